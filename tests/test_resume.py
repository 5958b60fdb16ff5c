"""`kill -9` at any moment, start the same program again: the parameters end up the same, to the last bit. One process
imports everything once and forks the programs that are killed, so that twenty kills take seconds."""
import sys

KILLS = 20

# ---- the programs, run in forked children

def _network(dropout=.1):
    import torch.nn as nn
    return nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, 32))

def _dim(o):
    "A random change to one image, made by a worker process"
    import random, torch
    return o*random.uniform(.5, 1)*torch.rand(1)

def lars(images, seed):
    "SimCLR with LARS: a checkpoint every third step"
    from simclrv2_nb.data import image_dls
    from simclrv2_nb.pretrain import pretrain_learner
    learn = pretrain_learner(image_dls(images[:80], images[80:96], bs=8, device='cpu'), _encoder(), precision=None)
    return learn, lambda cb: learn.fit_warmup_cosine(10, .3, cbs=cb), 3

def _encoder():
    import torch.nn as nn
    return nn.Sequential(*_network()[:-1])

def adam(images, seed):
    "fastai's Adam under one cycle, without validation: a checkpoint an epoch"
    from fastai.vision.all import Learner
    from simclrv2_nb.data import image_dls
    from simclrv2_nb.loss import NTXentLoss
    from simclrv2_nb.pretrain import SimCLR
    learn = Learner(image_dls(images[:80], bs=16, device='cpu'), _network(), loss_func=NTXentLoss(.2), cbs=SimCLR())
    return learn, lambda cb: learn.fit_one_cycle(20, 1e-2, cbs=cb), None

def everything(images, seed):
    "bfloat16, micro-batches, queue and moving average, health panel with probe: a checkpoint every second step"
    from fastai.callback.channelslast import ChannelsLast
    from simclrv2_nb.data import image_dls
    from simclrv2_nb.health import Health
    from simclrv2_nb.pretrain import pretrain_learner
    from simclrv2_nb.scale import CPUMixedPrecision, GradCache, NegativeQueue
    y = images[:,0].sum((1,2))%2                                                  # some labels
    cbs = [Health(knn_every=2, n_images=24, warn=False), NegativeQueue(64, .9), GradCache(6)]
    learn = pretrain_learner(image_dls((images[:64], y[:64]), (images[64:], y[64:]), bs=16, device='cpu'), _encoder(), cbs=cbs, precision=[ChannelsLast(), CPUMixedPrecision()])
    return learn, lambda cb: learn.fit_warmup_cosine(5, .5, cbs=cb), 2

def workers(images, seed):
    "Random changes to single images, in a worker process: a checkpoint every second step"
    from fastai.vision.all import Learner, DataLoaders, TfmdDL, SGD
    from simclrv2_nb.loss import NTXentLoss
    from simclrv2_nb.pretrain import SimCLR
    items = [(o,) for o in images[:24].float()/255]
    dls = DataLoaders(TfmdDL(items, bs=8, shuffle=True, num_workers=1, after_item=_dim), TfmdDL(items[:0], bs=8), device='cpu')
    learn = Learner(dls, _network(), loss_func=NTXentLoss(.2), opt_func=SGD, cbs=SimCLR())
    return learn, lambda cb: learn.fit_one_cycle(3, 1e-2, cbs=cb), 2

def program(make, images, folder):
    "Train to the end, and write a digest of all that the run has left"
    import hashlib, os
    import torch
    from pathlib import Path
    from fastai.torch_core import set_seed
    from simclrv2_nb.resume import Checkpoints
    seed = int.from_bytes(os.urandom(3), 'big') if any(Path(folder).glob('step_*.ckpt')) else 0     # nothing may depend on it once there is a checkpoint
    set_seed(seed)
    learn, fit, every = make(images, seed)
    with learn.no_bar(), learn.no_logging(): fit(Checkpoints(folder, every=every))
    sha = hashlib.sha256()
    for k,v in learn.model.state_dict().items(): sha.update(k.encode() + v.contiguous().numpy().tobytes())
    sha.update(torch.stack(learn.recorder.losses).numpy().tobytes())
    sha.update(repr((learn.recorder.values, [float(o) for o in learn.recorder.hps['lr']])).encode())
    (Path(folder)/'digest.tmp').write_text(sha.hexdigest()); (Path(folder)/'digest.tmp').rename(Path(folder)/'digest')

# ---- killing them

def arm(moment, rnd):
    "Have this process kill itself while it writes a checkpoint"
    import os, signal, stat
    n, fsync, replace = [rnd.randrange(1, 6)], os.fsync, os.replace
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def now(): n[0] -= 1; return n[0] == 0
    def half(fd):
        if now():
            if stat.S_ISREG(os.fstat(fd).st_mode): os.ftruncate(fd, os.fstat(fd).st_size//2)
            die()
        fsync(fd)
    def before(a, b):
        if now(): die()
        replace(a, b)
    def after(a, b):
        replace(a, b)
        if now(): die()
    if moment == 'half': os.fsync = half
    elif moment == 'before': os.replace = before
    elif moment == 'after': os.replace = after

def life(make, images, folder, moment=None, rnd=None, delay=None):
    "Fork the program, kill it, and say how it ended: exit code or minus signal"
    import os, signal, time
    pid = os.fork()
    if not pid:
        try:
            if moment: arm(moment, rnd)
            program(make, images, folder)
            os._exit(0)
        except BaseException:
            import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(3)
    if delay is not None:
        time.sleep(delay)
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

# ---- two processes that train together

def rank_program(rank, images, folder, out, kill_at):
    "One of two processes under DistributedDataParallel, each with its own order, views and dropout"
    import hashlib, os, signal
    import torch, torch.nn as nn
    from fastai.vision.all import Learner, Callback, SGD, set_seed
    from simclrv2_nb.data import image_dls
    from simclrv2_nb.loss import NTXentLoss
    from simclrv2_nb.pretrain import SimCLR
    from simclrv2_nb.resume import Checkpoints
    os.environ |= dict(RANK=str(rank), WORLD_SIZE='2')
    torch.distributed.init_process_group('gloo', init_method=f'file://{out}.store', rank=rank, world_size=2)
    set_seed(rank if kill_at or 'whole' in str(folder) else 10+rank)
    model = nn.parallel.DistributedDataParallel(_network())
    learn = Learner(image_dls(images[:80], bs=16, device='cpu'), model, loss_func=NTXentLoss(.2), opt_func=SGD, cbs=SimCLR())
    def die(self):
        if self.train_iter == kill_at: os.kill(os.getpid(), signal.SIGKILL)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 1e-2, cbs=[Callback(before_step=die), Checkpoints(folder, every=3)])
    sha = hashlib.sha256(torch.get_rng_state().numpy().tobytes())          # each process's own
    for p in model.parameters(): sha.update(p.detach().numpy().tobytes())
    out.with_suffix(f'.{rank}').write_text(sha.hexdigest())

def together(images, folder, out, kill_at=None):
    "Fork both; their exit codes"
    import os
    pids = []
    for rank in (0,1):
        pids.append(os.fork())
        if not pids[-1]:
            try: rank_program(rank, images, folder, out, kill_at); os._exit(0)
            except BaseException:
                import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(3)
    return [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]

def two_processes(images, tmp):
    assert together(images, tmp/'pair_whole', tmp/'whole') == [0,0]
    assert all(together(images, tmp/'pair', tmp/'first', kill_at=8))     # both end: by the signal, or because the other one is gone
    assert together(images, tmp/'pair', tmp/'second') == [0,0]
    whole, second = ([(tmp/f'{o}.{r}').read_text() for r in (0,1)] for o in ('whole','second'))
    assert whole == second and whole[0] != whole[1]
    print('two processes end as one uninterrupted pair')

def driver(tmp):
    "All kills; raises at the first difference"
    import random, time, warnings
    from pathlib import Path
    warnings.filterwarnings('ignore', message='.*torch.jit')
    import torch
    from fastai.vision.all import Learner              # so that children need not import
    import simclrv2_nb.resume, simclrv2_nb.pretrain, simclrv2_nb.health, fastai.callback.channelslast
    from simclrv2_nb.data import fashion_mnist_sample
    torch.set_num_threads(1)
    images, rnd, tmp, killed = fashion_mnist_sample().train_x[:96], random.Random(0), Path(tmp), 0
    for make, kills in ((lars, 11), (adam, 3), (everything, 4), (workers, 2)):
        start = time.time()
        assert life(make, images, tmp/f'{make.__name__}_whole') == 0
        took = time.time() - start
        want, run, n = (tmp/f'{make.__name__}_whole'/'digest').read_text(), 0, 0
        while n < kills:
            folder, run, lives = tmp/f'{make.__name__}_{run}', run+1, []
            while not (folder/'digest').exists():
                moment = rnd.choice([None, None, None, 'half', 'before', 'after']) if n < kills else 'none'
                delay = rnd.uniform(.1, .8)*took if moment is None else None
                code = life(make, images, folder, moment, random.Random(rnd.random()), delay)
                assert code in (0, -9), f'{make.__name__}, {moment}: exit code {code}'
                n += code == -9; killed += code == -9
                lives.append(moment or f'{delay:.2f} s')
            assert (folder/'digest').read_text() == want, f'{make.__name__}: killed {lives}, and the end differs'
            print(make.__name__, 'lives:', ', '.join(lives))
        print(f'{make.__name__}: {n} kills, {run} runs; one uninterrupted {took:.1f} s')
    two_processes(images, tmp)
    print(f'killed {killed} times')

# ---- the tests

def test_killed_at_any_moment(run, root, tmp_path):
    r = run(sys.executable, __file__, tmp_path, cwd=root, timeout=300)
    assert int(r.stdout.split('killed ')[-1].split()[0]) >= KILLS, r.stdout

def test_the_three_stages(tmp_path):
    "Our learners, in the precision they choose for this machine: interrupted twice, and as one run in the end"
    import torch
    from fastai.torch_core import set_seed
    from fastai.callback.core import Callback
    from simclrv2_nb.data import fashion_mnist_sample, image_dls
    from simclrv2_nb.pretrain import pretrain_learner
    from simclrv2_nb.finetune import finetune_learner
    from simclrv2_nb.distill import distill_learner
    from simclrv2_nb.resume import Checkpoints
    x, y = fashion_mnist_sample().train_x[:48], fashion_mnist_sample().train_y[:48]
    def unlabelled(): return image_dls(x, x[:16], bs=16, device='cpu')
    def pretrain(): return pretrain_learner(unlabelled(), 'r18_0.03125x_sk1')
    set_seed(0); model = pretrain().model
    def finetune(): return finetune_learner(image_dls((x,y), (x[:16],y[:16]), bs=16, vocab=range(10), device='cpu'), model, freeze='group1')
    teacher = finetune().model
    def distill(): return distill_learner(unlabelled(), teacher, 'r18_0.03125x_sk0')
    def train(make, seed, *cbs, kill_at=None):
        def die(self):
            if self.train_iter == kill_at: raise KeyboardInterrupt
        set_seed(seed); learn = make()
        with learn.no_bar(), learn.no_logging():
            try: learn.fit_warmup_cosine(3, cbs=[Callback(before_step=die), *cbs])
            except KeyboardInterrupt: pass
        return learn
    for make in (pretrain, finetune, distill):
        one = train(make, 0)
        for seed,kill_at in enumerate([3, 7, None]): two = train(make, seed, Checkpoints(tmp_path/make.__name__, every=2), kill_at=kill_at)
        assert all(torch.equal(v, two.model.state_dict()[k]) for k,v in one.model.state_dict().items()), make.__name__
        assert (one.recorder.values, one.recorder.losses) == (two.recorder.values, two.recorder.losses), make.__name__

def test_damaged_newest_file_falls_back(tmp_path, capsys):
    from simclrv2_nb.data import fashion_mnist_sample
    from fastai.torch_core import set_seed
    from simclrv2_nb.resume import Checkpoints, read_checkpoint
    import pytest, torch
    images = fashion_mnist_sample().train_x[:96]
    def train(seed=0):
        set_seed(seed)
        learn, fit, every = lars(images, seed)
        with learn.no_bar(), learn.no_logging(): fit(Checkpoints(tmp_path, every=every))
        return learn
    one = train()
    old, new = sorted(tmp_path.glob('step_*.ckpt'))
    raw = bytearray(new.read_bytes()); raw[len(raw)//2] ^= 1; new.write_bytes(raw)
    with pytest.warns(UserWarning, match='step_00000100.ckpt is damaged'): two = train(seed=1)
    assert f'{old.name}: continuing after 99 steps' in capsys.readouterr().out
    assert all(torch.equal(v, two.model.state_dict()[k]) for k,v in one.model.state_dict().items())
    assert read_checkpoint(new)['epoch'] == 10                # written again
    for p in (old, new): p.write_bytes(p.read_bytes()[:1000])
    with pytest.warns(UserWarning, match='is damaged'), pytest.raises(ValueError, match='all checkpoints in .* are damaged'): train()

def test_two_programs_in_one_folder(tmp_path):
    import multiprocessing, pytest
    from simclrv2_nb.resume import _lock, _unlock
    spawn = multiprocessing.get_context('spawn')
    _lock(tmp_path)
    with spawn.Pool(1) as pool:
        with pytest.raises(RuntimeError, match='is in use by process'): pool.apply(_lock, (tmp_path,))
        _unlock(tmp_path)
        pool.apply(_lock, (tmp_path,))
        with pytest.raises(RuntimeError, match='is in use by process'): _lock(tmp_path)
    _lock(tmp_path); _unlock(tmp_path)                        # the other one is gone, and its lock with it

if __name__ == '__main__': driver(sys.argv[1])
