"""GradCache and NegativeQueue: two real processes (gloo, CPU) end where one process ends, and so does a compiled model."""
import shutil, torch, torch.distributed as dist, torch.multiprocessing as mp, torch.nn as nn
import pytest
from torch.nn.parallel import DistributedDataParallel as DDP
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Recorder
from fastai.optimizer import SGD
from simclrv2_nb.loss import NTXentLoss
from simclrv2_nb.memory import GradCache, NegativeQueue
from simclrv2_nb.pretrain import SimCLR

class Mirror:
    "The first view is the image, the second its mirror image, darker: the same in every process"
    n = 0
    def __call__(self, x, gen=None): self.n += 1; return x.double() if self.n%2 else x.double().flip(-1)*.8

class Talks(Callback):
    "Counts the times that gradients travel"
    def before_fit(self): self.seen = []; self.learn.model.register_comm_hook(self.seen, self.hook)
    @staticmethod
    def hook(seen, bucket):
        seen.append(1)
        return dist.all_reduce(bucket.buffer()/dist.get_world_size(), async_op=True).get_future().then(lambda f: f.value()[0])

def images():
    torch.manual_seed(0)
    return torch.rand(3, 13, 1, 8, 8)       # three batches of thirteen images: 7 for one process, 6 for the other

def model(norm=None):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), norm or nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 8)).double()

def fit(m, xs, *cbs):
    dls = DataLoaders([(x,) for x in xs], [(xs[0],)], device='cpu')
    learn = Learner(dls, m, loss_func=NTXentLoss(.5), opt_func=SGD, lr=.5, cbs=[SimCLR(Mirror()), *cbs])
    learn.remove_cbs(Recorder)              # it wants float32 losses
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

def weights(m): return nn.utils.parameters_to_vector(m.parameters()).detach()

def child(rank, world, tmp):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{tmp}/store', rank=rank, world_size=world)
    xs, res = images()[:, rank::world], {}
    learn = fit(DDP(model()), xs, GradCache(3), Talks())
    res['cached'], res['talks'] = weights(learn.model), len(learn.talks.seen)
    res['buffers'] = list(fit(DDP(model(nn.BatchNorm2d(4))), xs, GradCache(3)).model.module[1].buffers())
    for name,cbs in (('queue', []), ('both', [GradCache(3)])):
        cb = NegativeQueue(100, .9)
        res[name] = weights(fit(DDP(model()), xs, cb, *cbs).model), weights(cb.ema_model), cb.queue
    torch.save(res, f'{tmp}/{rank}.pt')
    dist.destroy_process_group()

@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "What each of two processes says"
    tmp = tmp_path_factory.mktemp('two')
    mp.start_processes(child, (2, str(tmp)), nprocs=2, start_method='forkserver')
    return [torch.load(tmp/f'{r}.pt', weights_only=True) for r in range(2)]

def test_gradcache(results):
    want = weights(fit(model(), images()).model)
    assert (want - weights(model())).abs().max() > 1e-2
    for r in results: assert (r['cached'] - want).abs().max() < 1e-12

def test_gradients_travel_once_a_step(results):
    assert [r['talks'] for r in results] == [3, 3]

def test_running_statistics(results):
    "Those of the first process, which count, have seen each of its micro-batches once: three steps of 3 + 2 + 2 images"
    m = model(nn.BatchNorm2d(4))
    mean, var, n = results[0]['buffers']
    assert n == 9 and (mean - m[1].running_mean).abs().max() > 1e-2 and (var > 0).all()

@pytest.mark.parametrize('name', ['queue', 'both'])
def test_queue(results, name):
    "With equal queues everywhere, and with micro-batches as without"
    cb = NegativeQueue(100, .9)
    one = fit(model(), images(), cb)
    assert torch.equal(results[0][name][2], results[1][name][2])
    for w,ema,queue in (r[name] for r in results):
        assert (w - weights(one.model)).abs().max() < 1e-12 and (ema - weights(cb.ema_model)).abs().max() < 1e-12
        assert (queue.sort(0)[0] - cb.queue.sort(0)[0]).abs().max() < 1e-12      # within a batch, rows are ordered by process

@pytest.mark.skipif(not shutil.which('g++'), reason='PyTorch compiles for the processor with g++')
def test_compiled():
    "Really compiled, with everything on"
    def trained(compile):
        m, cb = model(nn.BatchNorm2d(4)), NegativeQueue(100, .9)
        if compile: m.compile()
        fit(m, images()[:,:12], GradCache(6), cb)
        return [*m.state_dict().values(), cb.queue, *cb.ema_model.state_dict().values()]
    torch._dynamo.reset(); torch._dynamo.utils.counters.clear()
    plain, compiled = trained(False), trained(True)
    assert torch._dynamo.utils.counters['inductor'], 'nothing was compiled'
    for a,b in zip(plain, compiled, strict=True): torch.testing.assert_close(a, b, rtol=0, atol=1e-10)

def test_resumed_without_frozen_statistics():
    "A run goes on with the callbacks it began with; a checkpoint from before the callback existed is one without it"
    from simclrv2_nb.memory import FrozenStatistics
    from simclrv2_nb.resume import _changed, _learning, _settings
    frozen, plain = (_settings(fit(model(nn.BatchNorm2d(4)), images(), *cbs), _learning) for cbs in ([FrozenStatistics()], []))
    assert _changed(frozen, plain) == ['FrozenStatistics is FrozenStatistics() there and not used here']
    del plain['FrozenStatistics']
    assert len(_changed(plain, frozen)) == 1 and not _changed(plain, {**frozen, 'FrozenStatistics': 'not used'})
