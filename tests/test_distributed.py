"""NT-Xent over several real processes (gloo, CPU) against the reference's replicas and against one process."""
import os, traceback
from pathlib import Path
import numpy as np, pytest, torch, torch.distributed as dist, torch.multiprocessing as mp, torch.nn as nn
from simclrv2_nb.loss import NTXentLoss, nt_xent

GOLDEN = Path(__file__).parent/'fixtures'/'replicas.npz'

def _child(rank, world, tmp, f, args):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{tmp}/store', rank=rank, world_size=world)
    try: torch.save(f(rank, world, *args), f'{tmp}/{rank}.pt')
    finally: dist.destroy_process_group()

def run(world, tmp, f, *args):
    "What `f(rank, world, *args)` returns in each of `world` processes"
    mp.start_processes(_child, (world, str(tmp), f, args), nprocs=world, start_method='forkserver')
    return [torch.load(f'{tmp}/{r}.pt', weights_only=True) for r in range(world)]

def hidden(world): return [torch.from_numpy(np.load(GOLDEN)[f'ntxent_{world}rep/hidden_rep{r}']) for r in range(world)]

def global_batch(zs):
    "All first views, then all second ones"
    return torch.cat([z.chunk(2)[v] for v in (0,1) for z in zs])

def own_rows(zs, rank):
    "Where the rows of process `rank` are in `global_batch(zs)`"
    start, n, N = sum(len(z)//2 for z in zs[:rank]), len(zs[rank])//2, sum(len(z)//2 for z in zs)
    return [*range(start, start+n), *range(N+start, N+start+n)]

def losses_and_grads(rank, world, zs, *kws):
    res = []
    for kw in kws:
        z = zs[rank].clone().requires_grad_()
        loss = nt_xent(z, gather=True, **kw); loss.backward()
        res.append((loss.detach(), z.grad))
    return res

@pytest.mark.parametrize('world', [2, 4])
def test_reference_replicas(tmp_path, world):
    "Values and gradients that the reference gave on 2 and 4 replicas; its gradient is that of loss/replicas, summed"
    zs, golden = hidden(world), np.load(GOLDEN)
    res = run(world, tmp_path, losses_and_grads, zs, dict(temperature=.1, directions='sum'))
    for rank,[(loss,grad)] in enumerate(res):
        want = golden[f'ntxent_{world}rep/mean']
        assert abs(loss.item()-want)/want < 1e-6
        assert (grad/world - torch.from_numpy(golden[f'ntxent_{world}rep/grad_rep{rank}'])).abs().max() < 1e-6

@pytest.mark.parametrize('world,sizes', [(2, (4,4)), (4, (3,1,5,2))])
def test_one_process(tmp_path, world, sizes):
    "Equal and unequal shares, whole and in chunks: the value, and the gradients averaged, are those of one process"
    torch.manual_seed(0)
    zs = [torch.randn(2*n, 6, dtype=torch.float64) for n in sizes]
    kws = dict(temperature=.1), dict(temperature=.5, chunk_size=3), dict(directions='sum', normalize=False)
    all_res = run(world, tmp_path, losses_and_grads, zs, *kws)
    for kw,*res in zip(kws, *all_res):
        one = global_batch(zs).requires_grad_()
        loss = nt_xent(one, **kw); loss.backward()
        for rank,(l,g) in enumerate(res):
            assert abs(l - loss) < 1e-12
            assert (g/world - one.grad[own_rows(zs, rank)]).abs().max() < 1e-12

def _encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

def ddp_steps(rank, world, xs):
    model = nn.parallel.DistributedDataParallel(_encoder())
    opt = torch.optim.SGD(model.parameters(), .5, momentum=.9)
    for x in xs:
        NTXentLoss(.5)(model(x[:, rank::world].flatten(0, 1))).backward()
        opt.step(); opt.zero_grad()
    return [p.detach() for p in model.module.parameters()]

@pytest.mark.parametrize('world', [2, 4])
def test_ddp(tmp_path, world):
    "Three steps under DistributedDataParallel end in the parameters of one process on the whole batch"
    torch.manual_seed(0)
    xs, model = torch.randn(3, 2, 9, 6), _encoder()         # nine images: no world size divides them
    opt = torch.optim.SGD(model.parameters(), .5, momentum=.9)
    for x in xs:
        NTXentLoss(.5)(model(x.flatten(0, 1))).backward()
        opt.step(); opt.zero_grad()
    for ps in run(world, tmp_path, ddp_steps, xs):
        for p,q in zip(ps, model.parameters()): assert (p-q).abs().max() < 1e-6

def mismatched(rank, world):
    try: nt_xent(torch.randn(4, 3+rank), gather=True)
    except ValueError as e: return str(e)

def test_different_widths_stop_everybody(tmp_path):
    assert run(2, tmp_path, mismatched) == ['z must have as many columns on every process, got [3, 4]']*2

def test_half_precision(tmp_path):
    zs = [z.half() for z in hidden(2)]
    res = run(2, tmp_path, losses_and_grads, zs, dict(temperature=.05))
    want = nt_xent(global_batch(zs), .05)
    for [(loss,grad)] in res:
        assert loss.dtype == torch.float32 and abs(loss-want)/want < 1e-6
        assert grad.dtype == torch.float16 and grad.isfinite().all()
