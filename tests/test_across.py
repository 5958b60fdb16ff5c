"""`across_processes` through whole learners, in 2 to 4 real processes (gloo, CPU): they end where one process ends; and
where one of them dies, the others say so and end. One process imports everything once and forks the others."""
import json, re, sys, time
from pathlib import Path
import pytest

# ---- a fork of this process as one of several

def together(f, n, timeout=60):
    "What `f()` returns in each of `n` processes, started by hand; the exit code of one that does not return"
    import os, socket, tempfile, torch
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as tmp:
        outs, pids = [Path(tmp)/str(r) for r in range(n)], []
        for r,out in enumerate(outs):
            pids.append(os.fork())
            if not pids[-1]:
                if n > 1: os.environ.update(RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
                try: torch.save(f(), out); os._exit(0)
                except BaseException:
                    import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(7)
        codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]
        return [torch.load(o, weights_only=False) if o.exists() else c for o,c in zip(outs, codes)]

class Mirror:
    "The first view is the image, the second its darker mirror image, in every process; in float64 if asked"
    def __init__(self, double=False): self.n,self.double = 0,double
    def __call__(self, x, gen=None):
        self.n += 1
        x = x.double() if self.double else x
        return x if self.n%2 else x.flip(-1)*.8

def network():
    "Encoder and head; smooth, because a ReLU makes much of a difference in the last bit"
    import torch.nn as nn
    from simclrv2_nb.head import ProjectionHead
    enc, head = nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.GroupNorm(2, 8), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()), ProjectionHead(32, 16, 2)
    for l in head.layers: l[1] = nn.GroupNorm(1, l[1].num_features)
    return enc, head

def images(labels=False, n=160, valid=37, batch=48):
    "Loaders of `batch` images in all processes together"
    from fastai.torch_core import set_seed, num_distrib
    from simclrv2_nb.data import fashion_mnist_sample, image_dls
    set_seed(0)
    d, v = fashion_mnist_sample(), slice(0, valid)
    train = (d.train_x[:n], d.train_y[:n]) if labels else d.train_x[:n]
    return image_dls(train, (d.test_x[v], d.test_y[v]), bs=batch//max(1, num_distrib()), vocab=range(10), device='cpu')

def single_items(n=160, valid=37, batch=48):
    "fastai's own loaders, which collate single images"
    from fastai.vision.all import DataLoaders, TfmdDL, set_seed, num_distrib
    from simclrv2_nb.data import fashion_mnist_sample
    set_seed(0)
    d, bs = fashion_mnist_sample(), batch//max(1, num_distrib())
    train, test = ([(o,) for o in x.float()/255] for x in (d.train_x[:n], d.test_x[:valid]))
    return DataLoaders(TfmdDL(train, bs=bs, shuffle=True, drop_last=True), TfmdDL(test, bs=bs), device='cpu')

def pretraining(cbs=None, double=False, load=images, **kw):
    from fastai.learner import Recorder
    from simclrv2_nb.pretrain import pretrain_learner
    dls, (enc, head) = load(**kw), network()
    learn = pretrain_learner(dls, *((enc.double(), head.double()) if double else (enc, head)), augment=Mirror(double), precision=None, cbs=cbs)
    if double: learn.remove_cbs(Recorder)            # it wants float32 losses
    return learn

def finetuning():
    from simclrv2_nb.finetune import finetune_learner
    from simclrv2_nb.head import SimCLRModel
    return finetune_learner(images(labels=True), SimCLRModel(*network()), augment=Mirror(), precision=None, lr=.5)

def distilling(unlabelled=0., **kw):
    "With a share of `unlabelled` images, of which some process has more than another"
    import torch, torch.nn as nn
    from simclrv2_nb.distill import distill_learner
    from simclrv2_nb.head import SimCLRModel, Classifier
    dls = images(labels=True)
    if unlabelled: y = dls.train.dataset.y; y[torch.rand(len(y)) < unlabelled] = -1
    teacher = Classifier(SimCLRModel(*network()), 1, 10)
    nn.init.normal_(teacher.supervised.weight)
    return distill_learner(dls, teacher, SimCLRModel(*network()), augment=Mirror(), precision=None, lr=.5, **kw)

def weights(m):
    import torch.nn as nn
    return nn.utils.parameters_to_vector(m.parameters()).detach()

def trained(make, *cbs, n_epoch=1, timeout=60, **kw):
    "Weights before and after, and what was recorded"
    from simclrv2_nb.distributed import across_processes
    learn = make(**kw)
    before = weights(learn.model)
    with learn.no_bar(), across_processes(learn, timeout=timeout), learn.no_logging():
        learn.fit_warmup_cosine(n_epoch, warmup=.3, cbs=cbs)
    rec = getattr(learn, 'recorder', None)
    return before, weights(learn.model), [list(v) for v in rec.values] if rec else None, [float(o) for o in rec.losses] if rec else None

# ---- checks: each returns numbers for its test, which reads them from a file

def apart(make, worlds=(2,4), **kw):
    "How far from one process several end, in weights, losses and metrics; and how far training went"
    f = lambda: trained(make, **kw)
    [one], res = together(f, 1), {}
    for n in worlds:
        many = together(f, n)
        res[n] = dict(weights=max((o[1]-one[1]).abs().max().item() for o in many), steps=len(one[3] or []),
                      losses=max(abs(a-b) for o in many for a,b in zip(o[3], one[3])) if one[3] else 0,
                      values=[one[2], *(o[2] for o in many)])
    return dict(moved=(one[1]-one[0]).abs().max().item(), worlds=res)

def check_pretrain(tmp): return apart(pretraining)
def check_items(tmp): return apart(pretraining, worlds=(2,), load=single_items)
def check_double(tmp): return apart(pretraining, worlds=(4,), double=True)

def check_memory(tmp):
    "GradCache, NegativeQueue and both; functions, because a callback belongs to one learner"
    from simclrv2_nb.memory import GradCache, NegativeQueue
    cache, queue = (lambda: GradCache(5)), (lambda: NegativeQueue(100, .9))
    return {k: apart(lambda fs=fs: pretraining(cbs=[f() for f in fs]), worlds=(2,)) for k,fs in dict(cache=[cache], queue=[queue], both=[queue, cache]).items()}

def check_finetune(tmp): return apart(finetuning)
def check_distill(tmp): return apart(distilling, worlds=(4,))
def check_some_labels(tmp): return apart(distilling, unlabelled=.8, alpha=.3)

def check_views(tmp):
    "Each process cuts differently; and one seed in the program decides"
    import torch
    from simclrv2_nb.augment import SimCLRAugment
    from simclrv2_nb.distributed import across_processes
    def f():
        learn, crops = pretraining(), []
        class Spy(SimCLRAugment):
            def draw(self, *args): d = super().draw(*args); crops.append(d[0]); return d
        learn.sim_clr.augment = Spy(28, blur=False)
        with learn.no_bar(), across_processes(learn), learn.no_logging(): learn.fit(1, lr=.1)
        return torch.stack(crops[:6])              # three steps of two views; then comes validation
    (a,b), (c,d) = together(f, 2), together(f, 2)
    return dict(equal=[torch.equal(a, c), torch.equal(b, d)], same_crops=(a == b).all(-1).float().mean().item())

def check_resume(tmp):
    "One of two processes is killed; both start again, continue, and end as two that were left alone; the first one's curves as well"
    import os, signal, torch
    from fastai.callback.core import Callback
    from fastai.torch_core import rank_distrib
    from simclrv2_nb.augment import SimCLRAugment
    from simclrv2_nb.resume import Checkpoints
    def run(folder, kill_at=None):
        def make(): learn = pretraining(); learn.sim_clr.augment = SimCLRAugment(28, blur=False); return learn
        def die(self):
            if rank_distrib() and self.train_iter == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        def f(): return trained(make, Callback(before_step=die), Checkpoints(folder, every=2), n_epoch=3)[1:]
        return together(f, 2)
    whole, first, second = run(tmp/'whole'), run(tmp/'cut', 5), run(tmp/'cut')           # in the middle of an epoch
    return dict(first=first, equal=all(torch.equal(a[0], b[0]) for a,b in zip(whole, second)) and whole[0][1:] == second[0][1:], files=sorted(p.name for p in (tmp/'cut').glob('*.ckpt')))

def check_not_finite(tmp):
    "A loss that is no number: all stop, and all know the last good checkpoint"
    import torch
    from fastai.callback.core import Callback
    from simclrv2_nb.resume import Checkpoints
    def spoil(self):
        if self.training and self.train_iter == 2: self.learn.loss = self.loss*torch.nan
    def f():
        try: trained(pretraining, Callback(after_loss=spoil), Checkpoints(tmp/'nan', every=2))
        except FloatingPointError as e: return str(e)
    return together(f, 2)

def check_fine_tune(tmp):
    "Two fits in a row, and the best model loaded after each; killed in the first and in the second"
    import os, signal, torch
    from fastai.vision.all import Callback, L, SaveModelCallback, SGD, params, rank_distrib
    from simclrv2_nb.distributed import across_processes
    from simclrv2_nb.resume import Checkpoints
    def run(folder, kill_at=None):
        def die(self):
            if rank_distrib() and (self.n_epoch, self.train_iter) == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        def f():
            learn = finetuning()
            learn.finetune.augment = lambda x: x.flip(-1)           # `Mirror` counts, and no checkpoint knows how far
            learn.path, learn.opt_func, learn.splitter = folder, SGD, lambda m: L(m.encoder, m.supervised).map(params)
            before = weights(learn.model)
            with learn.no_bar(), across_processes(learn), learn.no_logging():
                learn.fine_tune(3, .5, cbs=[Callback(before_step=die), SaveModelCallback(), Checkpoints(folder, every=2)])
            return (weights(learn.model)-before).abs().max(), weights(learn.model), [list(v) for v in learn.recorder.values]
        return f
    [one], two = together(run(tmp/'tune_one'), 1), together(run(tmp/'tune_two'), 2)
    codes = [together(run(tmp/'tune_cut', k), 2) for k in ((1,2), (3,5))]
    last = together(run(tmp/'tune_cut'), 2)
    return dict(moved=one[0].item(), apart=max((o[1]-one[1]).abs().max().item() for o in two), codes=codes, equal=all(torch.equal(a[1], b[1]) for a,b in zip(two, last)) and two[0][2] == last[0][2])

def check_folders(tmp):
    "A folder that only one of them can see: both stop"
    from fastai.torch_core import rank_distrib
    from simclrv2_nb.resume import Checkpoints
    def f():
        try: trained(pretraining, Checkpoints(tmp/f'own_{rank_distrib()}', every=2))
        except ValueError as e: return str(e)
    together(lambda: trained(pretraining, Checkpoints(tmp/'own_0', every=2)), 2)
    for p in (tmp/'own_0').glob('step_00000003*'): p.unlink()          # not finished
    return together(f, 2)

def check_deaths(tmp):
    "Killed, ended without a word, failed, or standing still: what the others say, and when"
    import os, signal
    from fastai.callback.core import Callback
    from fastai.torch_core import rank_distrib
    def dying(how, timeout):
        def die(self):
            if rank_distrib() != 1 or self.train_iter != 1: return
            if how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
            if how == 'exit': os._exit(3)
            if how == 'raise': raise ValueError('a bad image')
            if how == 'stand still': time.sleep(8); os._exit(0)
        def f():
            start = time.time()
            try: trained(pretraining, Callback(before_step=die), timeout=timeout)
            except Exception as e: return type(e).__name__, str(e), time.time()-start
        return together(f, 3)
    return {how: dying(how, t) for how,t in (('kill',60), ('exit',60), ('raise',60), ('stand still',2))}

def driver(tmp):
    "All checks; what they return, or their error, goes to a file"
    import traceback, warnings
    warnings.filterwarnings('ignore')
    import torch
    torch.set_num_threads(1)
    from fastai.vision.all import Learner            # so that children need not import
    import fastai.distributed, simclrv2_nb.distributed, simclrv2_nb.pretrain, simclrv2_nb.finetune, simclrv2_nb.distill, simclrv2_nb.memory
    res = {}
    for name,f in list(globals().items()):
        if not name.startswith('check_'): continue
        start = time.time()
        try: res[name[6:]] = f(Path(tmp))
        except BaseException: res[name[6:]] = traceback.format_exc()
        print(f'{name}: {time.time()-start:.1f} s', flush=True)
    (Path(tmp)/'res.json').write_text(json.dumps(res))

# ---- the tests

@pytest.fixture(scope='module')
def checks(run, root, tmp_path_factory):
    tmp = tmp_path_factory.mktemp('across')
    out = run(sys.executable, __file__, tmp, cwd=root, timeout=400).stdout
    res = json.loads((tmp/'res.json').read_text())
    def get(name):
        assert not isinstance(res[name], str), f'{res[name]}\n{out[-3000:]}'
        return res[name]
    return get

def same(r, tol, steps=3):
    assert r['moved'] > .05
    for w in r['worlds'].values():
        assert w['weights'] <= tol and w['losses'] <= max(tol, 1e-5) and w['steps'] == steps, w
        one, *many = w['values']
        if one: assert all(a == pytest.approx(b, abs=1e-5) for o in many for a,b in zip(o[0][:2], one[0][:2])), w['values']     # losses in training and validation

def test_pretraining(checks): same(checks('pretrain'), 1e-5)
def test_loaders_of_single_items(checks): same(checks('items'), 1e-5)
def test_pretraining_in_double_precision(checks): same(checks('double'), 1e-10, steps=0)          # the loss alone is shown in float32

@pytest.mark.parametrize('name', ['cache','queue','both'])
def test_gradcache_and_queue(checks, name): same(checks('memory')[name], 1e-5)

@pytest.mark.parametrize('name', ['finetune','distill','some_labels'])
def test_the_other_stages(checks, name):
    r = checks(name)
    same(r, 1e-5)
    for w in r['worlds'].values():
        one, *many = w['values']
        assert all(o[0][2] == pytest.approx(one[0][2], abs=1e-6) for o in many), w['values']       # accuracy over all 37 images

def test_each_process_draws_its_own_views(checks):
    r = checks('views')
    assert r['equal'] == [True, True] and r['same_crops'] < .1

def test_killed_and_resumed(checks):
    r = checks('resume')
    assert r['first'] == [7, -9]             # one is killed, the other ends with an error
    assert r['equal'] and r['files'] == ['step_00000008.ckpt','step_00000009.ckpt']

def test_two_fits_in_a_row(checks):
    r = checks('fine_tune')
    assert r['moved'] > .05 and r['apart'] <= 1e-5 and r['codes'] == [[7,-9],[7,-9]] and r['equal'], r

def test_not_finite(checks):
    assert all('the loss is nan after 3 steps (epoch 0)' in o and o.endswith('nan/step_00000002.ckpt') for o in checks('not_finite')), checks('not_finite')

def test_checkpoints_that_not_all_see(checks):
    assert all(o and 'the folder must be one that all machines see' in o for o in checks('folders'))

@pytest.mark.parametrize('how,own', [('kill',-9), ('exit',3), ('raise','ValueError'), ('stand still',0)])
def test_the_others_end(checks, how, own):
    first, dead, third = checks('deaths')[how]
    assert (dead if isinstance(own, int) else dead[0]) == own
    for r,(kind,message,seconds) in ((0,first), (2,third)):
        assert kind == 'RuntimeError' and f'process {r} of 3 has lost the others' in message
        assert seconds < (7 if how == 'stand still' else 30)          # the one that stands still does so for 8 s, and the timeout is 2 s

SCRIPT = '''
import os, signal, time, warnings; warnings.filterwarnings('ignore')
from fastai.callback.core import Callback
import test_across as t
def die(self):
    if os.environ['RANK'] == '1' and self.train_iter == 1: print('killed at', time.time(), flush=True); os.kill(os.getpid(), signal.SIGKILL)
t.trained(t.pretraining, Callback(before_step=die), n_epoch=50)
print('finished')
'''

@pytest.mark.parametrize('cmd', [['torch.distributed.run','--standalone','--nproc_per_node=2']], ids=['torchrun'])
def test_killed_under_a_launcher(run, root, tmp_path, cmd):
    (tmp_path/'train.py').write_text(SCRIPT)
    r = run(sys.executable, '-m', *cmd, 'train.py', cwd=tmp_path, check=False, PYTHONPATH=root/'tests')
    assert r.returncode and 'finished' not in r.stdout, r.stdout
    assert time.time()-float(re.search(r'killed at (\S+)', r.stdout)[1]) < 60, r.stdout       # it takes 2 s; a process that waits for the dead one takes longer than 60
    assert 'SIGKILL' in r.stdout or 'Signal 9' in r.stdout, r.stdout

if __name__ == '__main__': driver(sys.argv[1])
