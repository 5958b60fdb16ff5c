"""The health panel in whole runs: it changes nothing, survives interruptions, works beside every other callback, and warns where, and only where, something is wrong."""
import importlib.util, json, math, random, warnings
from copy import deepcopy
from unittest import mock
import numpy as np, pytest, torch, torch.nn as nn
from fastai.callback.core import Callback
from fastai.callback.hook import layer_info          # gives learners their `summary`
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.learner import Learner, load_learner
from fastai.optimizer import Adam, SGD
from fastai.torch_core import set_seed
from simclrv2_nb.augment import SimCLRAugment
from simclrv2_nb.data import fashion_mnist_sample, image_dls
from simclrv2_nb.distributed import SharedDL
from simclrv2_nb.evaluate import knn_accuracy, predict_batches
from simclrv2_nb.health import Health, HealthWarning, alignment, effective_rank, feature_spread, uniformity
from simclrv2_nb.loss import NTXentLoss, contrastive_accuracy
from simclrv2_nb.memory import GradCache, NegativeQueue
from simclrv2_nb.pretrain import SimCLR, pretrain_learner
from simclrv2_nb.resume import Checkpoints
from simclrv2_nb.scale import CPUMixedPrecision

torch.set_num_threads(1)
data = fashion_mnist_sample()
PANEL, JUDGED = ['top1','alignment','uniformity','spread','rank'], ['probe','knn']

class Tiny(nn.Module):
    "An encoder with batch norm and dropout, and a head"
    def __init__(self, encoder=None, dropout=.1):
        super().__init__()
        self.encoder = encoder or nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32))
    def forward(self, x): return self.head(self.encoder(x))

def loaders(n=96, bs=16, labels=True, valid=48):
    x, v = (data.train_x[:n], data.train_y[:n]), (data.test_x[:valid], data.test_y[:valid])
    if not labels: x, v = x[0], v[0]
    return image_dls(x, v if valid else None, bs=bs, device='cpu')

def learner(*cbs, dls=None, seed=0, model=None, loss=None, opt=SGD, lr=.05, **kw):
    set_seed(seed)                              # loaders and model are made after this
    return Learner(dls if isinstance(dls, DataLoaders) else dls() if dls else loaders(), model() if model else Tiny(), loss_func=loss or NTXentLoss(.2), opt_func=opt, lr=lr, metrics=contrastive_accuracy, cbs=[SimCLR(), *cbs], **kw)

def fit(learn, n=2, cbs=None, seed=1):
    "Train in silence; what `Health` warned of"
    if seed is not None: set_seed(seed)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn.fit(n, cbs=cbs)
    return [str(w.message) for w in caught if w.category is HealthWarning]

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
def generators(): return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

# ---- it changes nothing

@pytest.mark.parametrize('labels', [True, False])
@pytest.mark.parametrize('valid', [48, 0])
def test_not_a_bit_of_training_changes(labels, valid):
    given = None if labels else (data.train_x[:64], data.train_y[:64], data.test_x[:64], data.test_y[:64])
    one, two = learner(dls=lambda: loaders(labels=labels, valid=valid)), learner(Health(given, knn_every=1, warn=False), dls=lambda: loaders(labels=labels, valid=valid))
    fit(one, 3); after = generators(), one.dls.train.rng.getstate()
    fit(two, 3)
    assert same(state(one), state(two)) and one.recorder.losses == two.recorder.losses
    assert after == (generators(), two.dls.train.rng.getstate())
    judged = JUDGED if valid or given else []
    assert [set(PANEL+judged) <= set(o) for o in two.health.history] == [True]*3
    assert not two.model.encoder._forward_hooks and len(two.metrics) == 1

def test_no_gradient_reaches_the_encoder():
    seen = []
    class Spy(Health):
        def _learn(self, h, y):
            ps = [*self.learn.model.parameters()]
            for p in ps: p.grad = None
            super()._learn(h, y)
            seen.append(not h.requires_grad and all(p.grad is None for p in ps))
    learn = learner(Spy(warn=False)); fit(learn, 1)
    assert seen == [True]*6 and learn.spy._probe.weight.abs().max() > 0

def test_workers_and_generators_of_other_loaders():
    "Loaders that are not ours, with random changes to every image: labels are found, and nothing is drawn from anybody's generator"
    from fastai.data.core import TfmdDL
    def jitter(o): return o*random.uniform(.5, 1)*torch.rand(1) if o.ndim else o      # images, not labels
    items = list(zip(data.train_x[:96].float()/255, data.train_y[:96]))
    def dls(): return DataLoaders(TfmdDL(items, bs=16, shuffle=True, after_item=jitter), TfmdDL(items[:48], bs=16, after_item=jitter), device='cpu')
    one, two = learner(dls=dls), learner(Health(warn=False), dls=dls)
    fit(one); fit(two)
    assert same(state(one), state(two)) and 'knn' in two.health.history[-1]

def test_lists_of_batches():
    "The plainest loader there is, without a batch size, labels or generators"
    xs = [(o,) for o in (data.train_x[:96].float()/255).split(32)]
    def dls(): return DataLoaders(xs, xs[:1], device='cpu')
    one, two = learner(dls=dls), learner(Health(), dls=dls)
    fit(one, 1); assert fit(two, 1) == []
    assert same(state(one), state(two)) and two.health.history[0]['chance'] == pytest.approx(math.log(63)) and 'rank' in two.health.history[0]

# ---- what is measured

def test_values_are_those_of_the_images():
    "Against float64, from the very views and features of validation"
    class Note(Callback):
        order = 90
        def before_train(self): self.seen,self.losses = [],[]
        def after_pred(self):
            if not self.training: self.seen.append((self.xb[0], self.pred))
        def after_loss(self):
            if self.training: self.losses.append(self.learn.loss.item())
    learn = learner(Health(n_images=48, k=5), Note()); fit(learn, 2)
    now, model = learn.health.history[-1], learn.model.eval()
    z = torch.cat([o for v in (0,1) for _,p in learn.note.seen for o in [p.chunk(2)[v]]]).double()
    with torch.no_grad(): h = torch.cat([model.encoder(x).chunk(2)[v] for v in (0,1) for x,_ in learn.note.seen]).double()
    a, b = nn.functional.normalize(z).chunk(2)
    def unif(o): return torch.stack([(-2*(o[i]-o[j]).square().sum()).exp() for i in range(48) for j in range(48) if i != j]).mean().log()
    σ = torch.linalg.svdvals(h); p = σ/σ.sum()
    want = dict(top1=float(np.mean([contrastive_accuracy(o) for _,o in learn.note.seen])), alignment=((a-b)**2).sum(1).mean(), uniformity=(unif(a)+unif(b))/2,
                spread=nn.functional.normalize(h).std(0, unbiased=False).mean()*128**.5, rank=(-(p*p.clamp_min(1e-300).log()).sum()).exp())
    for k,v in want.items(): assert now[k] == pytest.approx(float(v), rel=2e-5), k                 # float32 projections
    enc = lambda x: predict_batches(model.encoder, x)
    assert now['knn'] == knn_accuracy(enc(data.train_x[:96]), data.train_y[:96], enc(data.test_x[:48]), data.test_y[:48], k=5)
    values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert {k: values[k] for k in PANEL[1:]+JUDGED} == {k: now[k] for k in PANEL[1:]+JUDGED} and values['contrastive_accuracy'] == pytest.approx(now['top1'])
    assert now['loss'] == pytest.approx(float(np.mean(learn.note.losses)), rel=1e-6)

def test_without_validation_the_last_training_batches():
    class Note(Callback):
        order,run_valid = 90,False
        def before_train(self): self.seen = []
        def after_pred(self): self.seen.append(self.pred.detach())
    learn = learner(Health(n_images=32), Note(), dls=lambda: loaders(valid=0, labels=False)); fit(learn, 1)
    z = torch.cat([p.chunk(2)[v] for v in (0,1) for p in learn.note.seen[-2:]])
    assert learn.health.history[0]['alignment'] == pytest.approx(alignment(z.double()).item(), rel=1e-5)
    assert 'top1' in learn.recorder.metric_names and 'knn' not in learn.recorder.metric_names

def test_every():
    learn = learner(Health(every=3, knn_every=2, warn=False)); fit(learn, 5)
    assert ['rank' in o for o in learn.health.history] == [False, False, True, False, True]
    assert ['knn' in o for o in learn.health.history] == [False, True, False, True, True]
    values = [dict(zip(learn.recorder.metric_names[1:], v)) for v in learn.recorder.values]
    assert [v['rank'] is None for v in values] == [True, True, False, True, False]

def test_probe_learns():
    "On features that hold the class, the online probe finds it; partly labelled batches do"
    x = torch.zeros(80, 1, 28, 28, dtype=torch.uint8); y = torch.arange(80)%4
    for c in range(4): x[y == c, :, 7*c:7*c+7] = 200
    some = torch.where(torch.arange(80) < 40, y, torch.full_like(y, -1))
    class Pixels(nn.Module):
        def __init__(self): super().__init__(); self.encoder = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()); self.head = nn.Linear(16, 8)
        def forward(self, x): return self.head(self.encoder(x))
    dls = image_dls((x, some), (x[:20], y[:20]), bs=20, device='cpu')
    learn = Learner(dls, Pixels(), loss_func=NTXentLoss(.5), cbs=[SimCLR(lambda x, g=None: x*.9), Health(k=3, warn=False)])
    fit(learn, 10)
    assert learn.health.history[-1]['probe'] == learn.health.history[-1]['knn'] == 1 and learn.health._probe.weight.shape == (4,16)

# ---- beside the others

@pytest.mark.parametrize('cbs', [lambda: [GradCache(6)], lambda: [NegativeQueue(64, .9)], lambda: [GradCache(6), NegativeQueue(64)], lambda: [CPUMixedPrecision()],
                                 lambda: [CPUMixedPrecision(), GradCache(6)], lambda: [GradientAccumulation(32)]], ids=['cache','queue','both','bf16','bf16+cache','accumulate'])
@pytest.mark.parametrize('valid', [48, 0])
def test_beside_others(cbs, valid):
    "The same parameters as without, and features of the views in their order"
    one, two = learner(*cbs(), dls=lambda: loaders(valid=valid)), learner(Health(n_images=16, warn=False), *cbs(), dls=lambda: loaders(valid=valid))
    fit(one); fit(two)
    assert same(state(one), state(two)) and one.recorder.losses == two.recorder.losses
    if hasattr(two, 'negative_queue'): assert same(one.negative_queue.ema_model.state_dict(), two.negative_queue.ema_model.state_dict()) and not two.negative_queue.ema_model.encoder._forward_hooks

def test_features_of_micro_batches_are_in_order():
    "GradCache embeds in parts: with no batch statistics and no dropout they give the same panel as the whole batch"
    def one(*cbs):
        def model(): m = Tiny(nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())); m.head = nn.Linear(128, 32); return m
        learn = learner(Health((data.train_x[:8], data.train_y[:8])*2, n_images=16, warn=False), *cbs, dls=lambda: loaders(valid=0), model=model); fit(learn, 1)
        return learn.health
    a, b = one(), one(GradCache(6))
    for k in PANEL: assert a.history[0][k] == pytest.approx(b.history[0][k], rel=1e-4), k
    assert (a._probe.weight - b._probe.weight).abs().max() < 1e-3                # Adam's first steps have the size of lr, whatever the gradient

def test_in_pretrain_learner():
    set_seed(0)
    learn = pretrain_learner(loaders(64, 32), 'r18_0.0625x_sk0', cbs=Health(warn=False))
    with learn.no_bar(), learn.no_logging(): learn.fit_warmup_cosine(1)
    assert set(PANEL+JUDGED) <= set(learn.health.history[0])

def test_a_plain_model_is_judged_by_its_output():
    learn = learner(Health(warn=False), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 16))); fit(learn, 1)
    assert learn.health.history[0]['rank'] <= 16

def test_a_model_that_hides_its_encoder():
    "As a compiled one may: features are computed once more, in eval mode, and nothing moves"
    class Hidden(Tiny):
        def forward(self, x): return self.head(self.encoder.forward(x))
    one, two = learner(model=Hidden), learner(Health(warn=False), model=Hidden)
    fit(one); fit(two)
    assert same(state(one), state(two)) and 'rank' in two.health.history[-1] and two.model.encoder.training is False

def test_lr_find_leaves_it_alone():
    learn = learner(Health())
    with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    assert learn.health.history == [] and learn.health.said == {} and len(learn.metrics) == 1 and learn.health._probe is None
    fit(learn, 1); history = deepcopy(learn.health.history)
    with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    assert learn.health.history == history and len(history) == 1

def test_validate_and_get_preds():
    learn = learner(Health(warn=False)); fit(learn, 2)
    history = deepcopy(learn.health.history)
    with learn.no_bar():
        got = learn.validate(); z, _ = learn.get_preds()
    assert learn.health.history == history and len(z) == 48 and len(learn.metrics) == 1
    assert [got[2+i] for i in range(4)] == [history[-1][k] for k in PANEL[1:]]

def test_before_the_first_fit():
    "`validate` and `summary` come before there is an optimizer; `summary` asks for predictions, which are no pairs of views"
    learn = learner(Health(warn=False)); model = state(learn)
    with learn.no_bar():
        assert len(learn.validate()) == 2 + len(PANEL)-1 + len(JUDGED)
        assert 'Tiny' in str(learn.summary())
        fit(learn, 1); str(learn.summary())
    assert len(learn.health.history) == 1 and len(learn.metrics) == 1 and not learn.model.encoder._forward_hooks and model.keys() == state(learn).keys()

def test_export(tmp_path):
    learn = learner(Health((data.train_x[:2000], data.train_y[:2000], data.test_x[:500], data.test_y[:500]), warn=False)); fit(learn, 1)
    learn.path = tmp_path; learn.export()
    assert (tmp_path/'export.pkl').stat().st_size < 400_000                       # 2 000 images would be 1.6 MB
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); got = load_learner(tmp_path/'export.pkl')
    assert got.health.history == learn.health.history and got.health._data is None and got.health.plot()

def test_an_interrupted_fit_leaves_nothing_behind():
    def stop(self): raise KeyboardInterrupt
    learn = learner(Health(warn=False))
    with pytest.raises(KeyboardInterrupt): fit(learn, 1, cbs=Callback(after_pred=stop))
    learn.remove_cbs(learn.cbs[-1:]) if type(learn.cbs[-1]) is Callback else None
    fit(learn, 1)
    assert len(learn.metrics) == 1 and not learn.model.encoder._forward_hooks and len(learn.health.history) == 1

def test_a_second_fit_starts_a_new_history():
    learn = learner(Health(warn=False)); fit(learn, 2); fit(learn, 1)
    assert [o['epoch'] for o in learn.health.history] == [0] == list(range(len(learn.recorder.values)))

# ---- interruptions

@pytest.mark.parametrize('valid', [48, 0])
@pytest.mark.parametrize('every', [None, 1, 4])
def test_interrupted_and_resumed(tmp_path, valid, every):
    "Stopped at several moments, also amid the batches that are being measured: the same table, history and probe, to the last bit"
    def train(seed, kill_at=None, folder=None):
        def die(self):
            if self.train_iter == kill_at: raise KeyboardInterrupt
        learn = learner(Health(n_images=40, knn_every=2, warn=False), dls=lambda: loaders(valid=valid), seed=seed)
        cbs = [Callback(before_step=die), *([Checkpoints(folder, every=every)] if folder else [])]
        try: fit(learn, 4, cbs, seed=seed)
        except KeyboardInterrupt: pass
        return learn
    one = train(0)
    for seed,kill_at in enumerate([7, 9, 11, 17, None]): two = train(seed, kill_at, tmp_path/'run')
    assert same(state(one), state(two)) and one.health.history == two.health.history
    assert one.recorder.values == two.recorder.values and (one.health._probe is None) == (two.health._probe is None)
    if one.health._probe is not None: assert same(one.health._probe.state_dict(), two.health._probe.state_dict())
    again = train(9, None, tmp_path/'run')                                       # a finished run
    assert again.health.history == one.health.history

# ---- warnings, and silence

def said(*args, n=2, cbs=None, again=True, **kw):
    learn = learner(Health(False), *args, **{**dict(dls=lambda: loaders(bs=32)), **kw})
    first = fit(learn, n, cbs)
    assert list(learn.health.said.values()) == first and (not again or fit(learn, n, cbs) == [])       # once
    return learn.health.said

def test_silence():
    "A healthy run: 30 epochs of 4 steps, far beyond the point where losses are judged"
    learn = learner(Health(), opt=Adam, lr=3e-3, dls=lambda: loaders(256, 64))
    assert fit(learn, 30) == [] and learn.health.history[-1]['loss'] < learn.health.history[-1]['chance'] - .5

def test_views_that_are_the_same():
    learn = Learner(loaders(bs=32), Tiny(dropout=0), loss_func=NTXentLoss(.2), opt_func=SGD, lr=1e-3, cbs=[SimCLR(lambda x, g=None: x), Health(False)])
    got = fit(learn, 2)
    assert len(got) == 2 and 'both views of an image are the same' in got[0] and 'contrastive top-1 is 100.0%' in got[1]

@pytest.mark.filterwarnings('ignore')
def test_not_finite():
    class Breaks(NTXentLoss):
        n = 0
        def forward(self, z, *y): self.n += 1; return super().forward(z, *y) * (math.nan if self.n == 2 else 1)
    got = said(loss=Breaks(.2))['finite']
    assert 'the loss is nan after 2 steps (epoch 0)' in got and 'Lower the learning rate (now 0.05)' in got       # at once

def test_stuck():
    got = said(lr=0., n=6, again=False, dls=lambda: loaders(640, 32, valid=32), model=lambda: Tiny(dropout=0))
    assert set(got) <= {'stuck','diverged'} and got and 'guessing gives log(2N−1) = 4.143' in next(iter(got.values()))

def test_diverged():
    class Worse(Callback):
        "Makes the weights of the head grow in a way that separates partners"
        order = 1
        def after_loss(self): self.learn.loss_grad = -self.learn.loss_grad
    got = said(Worse(), lr=.05, n=6, again=False, dls=lambda: loaders(640, 32, valid=32))
    assert 'the run diverges. Lower the learning rate (peak 0.05)' in got['diverged']

def test_collapse():
    class NoNegatives(nn.Module):
        def forward(self, z, *y): return alignment(z)
    def model(): m = Tiny(); m.head = nn.Linear(128, 32); return m
    got = said(loss=NoNegatives(), model=model, opt=Adam, lr=.01, n=6, again=False, dls=lambda: loaders(640, 32, valid=32))
    assert list(got) == ['collapse'] and 'Check that the loss has negatives' in got['collapse']
    assert said(loss=NoNegatives(), model=model, opt=Adam, lr=.01, n=4, again=False, dls=lambda: loaders(640, 32, valid=32)) == {}       # 80 steps: batch norm has not settled

@pytest.mark.parametrize('bs,τ,says', [(8,.1,'a batch of 8 images has only 14 negatives'), (8,.2,None), (32,.1,None), (31,.1,'a batch of 31 images'), (32,5.,'temperature=5.0 makes all negatives count alike')])
def test_small_batches(bs, τ, says):
    got = said(loss=NTXentLoss(τ), dls=lambda: loaders(bs=bs), n=1)
    assert (list(got) == ['small_batch' if bs < 32 else 'high_temperature'] and says in [*got.values()][0]) if says else got == {}

def test_a_batch_of_one_is_refused_and_not_talked_about():
    learn = learner(Health(False), loss=NTXentLoss(.1), dls=lambda: loaders(bs=1))
    with pytest.raises(ValueError, match='a batch of 1 image has no negatives'): fit(learn, 1)
    assert learn.health.said == {}

def test_a_queue_helps_a_small_batch(): assert said(NegativeQueue(64), loss=NTXentLoss(.1), dls=lambda: loaders(bs=8), n=1) == {}

@pytest.mark.parametrize('lr,opt,odd', [(.566,'lars',False), (5.,'lars',False), (6.,'lars',True), (.05,'lars',True), (1e-3,'adam',False), (.5,'adam',True), (.5,'sgd',False), (.5,'torch',True)])
def test_learning_rates(lr, opt, odd):
    "√32·0.1 = 0.566"
    from functools import partial
    from fastai.optimizer import OptimWrapper
    from simclrv2_nb.optim import lars_opt, lars_splitter
    kw = dict(lars=dict(opt=lars_opt(), splitter=lars_splitter), adam=dict(opt=Adam), sgd=dict(opt=SGD), torch=dict(opt=partial(OptimWrapper, opt=torch.optim.AdamW)))[opt]
    got = said(lr=1e-3 if opt != 'lars' else .566, n=1, cbs=ParamScheduler({'lr': SchedLin(0., lr)}), **kw)       # the peak of the schedule counts
    assert ('odd_lr' in got) == odd and (not odd or f'lr={lr:.3g}' in got['odd_lr'])

def test_a_learning_rate_for_another_eeta():
    from simclrv2_nb.optim import lars_opt, lars_splitter
    for lr,odd in ((.0566, False), (.566, True)): assert ('odd_lr' in said(lr=lr, n=1, opt=lars_opt(eeta=.02), splitter=lars_splitter)) == odd       # 0.1·√32 for η = 0.001, a twentieth for 0.02

def test_ragged():
    dls = loaders(100, 32)
    ragged = DataLoaders(dls.train.new(drop_last=False), dls.valid)
    assert 'the last batch of an epoch has 4 images instead of 32' in said(dls=ragged, n=1)['ragged']
    assert said(dls=dls, n=1) == {}

def test_stem_for_imagenet():
    big = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    assert '28 pixels are a quarter' in said(model=lambda: Tiny(big), n=1)['big_stem']
    assert said(model=lambda: Tiny(big), dls=lambda: image_dls(torch.randint(256, (64,1,64,64), dtype=torch.uint8), bs=32, device='cpu'), n=1) == {}       # large enough for it
    listed = [(o,) for o in (data.train_x[:64].float()/255).split(32)]             # any loader: the views are looked at
    assert 'big_stem' in said(model=lambda: Tiny(big), dls=lambda: DataLoaders(listed, [], device='cpu'), n=1)
    from simclrv2_nb.resnet import encoder
    ours = encoder('r18_0.0625x_sk0', in_channels=1)                              # warns itself, so that `Health` need not
    with pytest.warns(UserWarning, match='cifar_stem=True'): ours(torch.rand(2,1,28,28))
    assert 'big_stem' not in said(model=lambda: nn.Sequential(ours, nn.Linear(32, 16)), n=1)

def test_batchnorm_of_several_processes():
    h = learner(Health(False)).health
    from simclrv2_nb.health import _own_batchnorm
    with mock.patch('torch.distributed.is_initialized', lambda: True), mock.patch('torch.distributed.get_world_size', lambda: 2):
        assert 'sync_bn=True' in _own_batchnorm(h)
        h.learn.dls = DataLoaders(SharedDL.__new__(SharedDL), []); assert _own_batchnorm(h) is None            # `across_processes` has said so
        h.learn.dls = loaders()
        h.learn.model = nn.SyncBatchNorm.convert_sync_batchnorm(h.learn.model); assert _own_batchnorm(h) is None
        h.learn.model = nn.Linear(2, 2); assert _own_batchnorm(h) is None
    with mock.patch('torch.distributed.is_initialized', lambda: True), mock.patch('torch.distributed.get_world_size', lambda: 1): assert _own_batchnorm(learner(Health(False)).health) is None

def test_pairs_of_all_processes_and_rows_of_the_queue():
    "They are candidates, too: guessing gives log(2N−1+M). And one process speaks for all"
    learn = learner(Health(False), NegativeQueue(64), dls=lambda: loaders(bs=8)); h = learn.health
    assert fit(learn, 1) == [] and h.history[0]['chance'] == pytest.approx(math.log(15+64))
    learn.loss_func.gather = True
    with mock.patch('torch.distributed.is_initialized', lambda: True), mock.patch('torch.distributed.get_world_size', lambda: 4): assert h._pairs() == 32
    with mock.patch('simclrv2_nb.health.rank_distrib', lambda: 1): assert said(loss=NTXentLoss(5.), n=0) == {}
    assert list(said(loss=NTXentLoss(5.), n=0)) == ['high_temperature']

def test_can_be_silenced():
    learn = learner(Health(warn=False), loss=NTXentLoss(.1), dls=lambda: loaders(bs=8))
    assert fit(learn, 1) == [] and learn.health.said == {}

# ---- bad input

@pytest.mark.parametrize('kw,says', [(dict(every=0), 'every must be ≥ 1, got 0'), (dict(knn_every=0), 'knn_every must be ≥ 1'), (dict(n_images=1), 'n_images must be ≥ 2, got 1'), (dict(k=0), 'k must be ≥ 1')])
def test_bad_numbers(kw, says):
    with pytest.raises(ValueError, match=says): Health(**kw)

def test_bad_probe_data():
    x, y = data.train_x[:20], data.train_y[:20]
    for bad,says in ((x, 'must be \\(train_x'), ((x,y), 'got tuple of 2'), ((x,y,x,y[:5]), 'got 20 test_x and test_y of shape \\(5,\\)'), ((x,y.float(),x,y), 'torch.float32'), ((x,None,x,y), 'got no train_y'), ((x,0*y,x,y), 'two classes or more'), ((x,y,x,0*y-1), 'got 0 labels of 0 classes in test_y')):
        with pytest.raises(ValueError, match=says): Health(bad)

def test_a_model_of_another_kind():
    learn = Learner(loaders(), nn.Conv2d(1, 2, 3), loss_func=lambda z, *y: z.mean(), cbs=[SimCLR(), Health(False)])
    with pytest.raises(TypeError, match='Health needs batches of'): fit(learn, 1)

# ---- the share of the time that was spent waiting for data, the other column of a run

def test_data_wait():
    "By a clock that a batch moves by 3 and a step by 1"
    from types import SimpleNamespace
    from simclrv2_nb.scale import DataWait
    clock = [0.]
    class Slow(list):
        def __iter__(self):
            for b in list.__iter__(self): clock[0] += 3; yield b
    class Step(Callback):
        def after_loss(self): clock[0] += 1
    xs = [(o,) for o in (data.train_x[:96].float()/255).split(32)]
    learn = learner(DataWait(), Step(), dls=lambda: DataLoaders(Slow(xs), Slow(xs[:1]), device='cpu'))
    with mock.patch('simclrv2_nb.scale.time', SimpleNamespace(perf_counter=lambda: clock[0])): fit(learn, 2)
    assert learn.data_wait.share == .75 and clock == [2*4*4.]                     # validation does not count
    assert [dict(zip(learn.recorder.metric_names[1:], v))['data wait %'] for v in learn.recorder.values] == [75, 75]

# ---- the benchmark, tiny

def test_curves(root, tmp_path):
    spec = importlib.util.spec_from_file_location('curves', root/'benchmarks'/'curves.py'); curves = importlib.util.module_from_spec(spec); spec.loader.exec_module(curves)
    for kind in ('healthy','same_views','no_negatives','imagenet_stem'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore'); o = curves.run(kind, 0, data, encoder='r18_0.03125x_sk0', images=128, epochs=2)
        assert len(o['history']) == 2 and set(PANEL+JUDGED) <= set(o['history'][-1]) and ('views' in o['said']) == (kind == 'same_views')
    known = json.loads((root/'benchmarks'/'results'/'curves.json').read_text())
    assert known['kinds'] == {k: v for k,v in curves.KINDS.items()} and {o['kind'] for o in known['runs']} == set(curves.KINDS)
