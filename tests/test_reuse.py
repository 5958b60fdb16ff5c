"""Every piece on its own, beside other people's models: in a loop of plain PyTorch, and in a plain fastai `Learner`."""
import copy, io, json, math, warnings
import numpy as np, pytest, torch, torch.nn as nn, torch.nn.functional as F

warnings.filterwarnings('ignore', category=FutureWarning)
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam, SGD
from fastai.torch_core import set_seed, TensorImage
from torchvision.models import resnet18
import simclrv2_nb.all as s2

class Mine(nn.Module):
    "Somebody's model: it knows nothing of this library, and says nothing of its width"
    def __init__(self, n_out=32, c=3):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(c, 8, 5, 2), nn.GroupNorm(2, 8), nn.Conv2d(8, 16, 3, 2)
        self.out = nn.Linear(16, n_out)
    def forward(self, x): return self.out(F.relu(self.conv2(F.relu(self.norm(self.conv1(x))))).mean((2,3)))

def torchvision_model(n_out=32): return resnet18(num_classes=n_out)
def timm_model(n_out=32): return pytest.importorskip('timm').create_model('resnet10t', num_classes=n_out)
MODELS = [Mine, torchvision_model, timm_model]

@pytest.fixture(scope='module')
def images():
    "64 small pictures in colour of four kinds, which differ in colour and direction: floats in [0,1], and their kinds"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    stripes = torch.where((torch.arange(20)//4 % 2).bool(), .8, .2).expand(3, 20, 20)
    x = torch.stack([stripes if k % 2 else stripes.transpose(1,2) for k in y.tolist()]) * torch.tensor([1,.5,.3])[None,:,None,None]
    x[y > 1] = x[y > 1].flip(1)
    return (x + .1*torch.randn(x.shape, generator=g)).clamp(0, 1), y

@pytest.fixture
def dls(images):
    "A user's own loaders: floats, no transforms of ours"
    x, y = images
    pairs = list(zip(x, y))
    return DataLoaders(DataLoader(pairs, bs=32, shuffle=True), DataLoader(pairs, bs=32))

def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if o.name == 'progress'])
    learn.logger = lambda *_: None
    return learn

def weights(m): return {n: p.detach().clone() for n,p in m.named_parameters()}
def share_changed(m, before): return np.mean([not torch.equal(p, before[n]) for n,p in m.named_parameters()])
def falls(losses, by=.9): return np.mean(losses[-2:]) < by*np.mean(losses[:2])

# the loss

@pytest.mark.parametrize('make', MODELS)
def test_loss_in_a_plain_loop(make, images):
    set_seed(0)
    model, x = make(), images[0]
    before, losses, opt = weights(model), [], torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(4):
        for b in x.split(32):
            views = torch.cat([b, b.flip(3)]) + .05*torch.randn(64, 3, 20, 20)
            loss = s2.nt_xent(model(views), temperature=.2)
            opt.zero_grad(); loss.backward(); opt.step()
            losses.append(loss.item())
    assert falls(losses) and share_changed(model, before) > .9

@pytest.mark.parametrize('n,d', [(2,3), (9,5)])
def test_loss_is_the_formula(n, d):
    z = torch.randn(2*n, d, dtype=torch.float64, requires_grad=True)
    def cos(a, b): return (a @ b)/(a.norm()*b.norm())
    rows = [-(cos(z[i], z[(i+n)%(2*n)])/.2 - torch.stack([cos(z[i], z[k])/.2 for k in range(2*n) if k != i]).logsumexp(0)) for i in range(2*n)]
    want = torch.stack(rows).mean()
    assert abs(s2.nt_xent(z, .2) - want).item() < 1e-12
    a, = torch.autograd.grad(s2.nt_xent(z, .2), z)
    b, = torch.autograd.grad(want, z)
    assert (a-b).abs().max() < 1e-12

@pytest.mark.parametrize('make', MODELS)
def test_loss_in_a_plain_learner(make, dls):
    set_seed(0)
    learn = quiet(Learner(dls, make(), loss_func=s2.NTXentLoss(.2), opt_func=Adam, cbs=s2.SimCLR(), metrics=s2.contrastive_accuracy))
    before = weights(learn.model)
    learn.fit(4, 2e-3)
    assert share_changed(learn.model, before) > .9
    assert falls([float(o) for o in learn.recorder.losses], .97)
    assert 0 <= learn.validate()[1] <= 1

# LARS

@pytest.mark.parametrize('make', MODELS)
def test_first_step_of_lars_moves_weights_by_lr_eta(make, images):
    set_seed(0)
    model, (x, y) = make(4), images
    model.train(); before = weights(model)
    opt = s2.LARS(s2.lars_groups(model), lr=3., eeta=.002, momentum=.9)
    F.cross_entropy(model(x[:16]), y[:16]).backward()
    grads = {n: p.grad.clone() for n,p in model.named_parameters()}
    opt.step()
    norms = {f'{k}.{n}' for k,m in model.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) for n,_ in m.named_parameters()}
    for n,p in model.named_parameters():
        moved, length = (p-before[n]).norm(), before[n].norm()
        if n in norms or n.endswith('bias'): torch.testing.assert_close(p.detach(), before[n] - 3*grads[n])      # plain momentum SGD
        elif grads[n].norm() > 0 and length > 0: assert abs(moved/length - .006) < 1e-5, n

def test_lars_in_a_plain_learner_with_one_cycle(dls):
    set_seed(0)
    learn = quiet(Learner(dls, torchvision_model(4), loss_func=CrossEntropyLossFlat(), metrics=accuracy,
                          opt_func=s2.lars_opt(weight_decay=1e-4), splitter=s2.lars_splitter))
    learn.fit_one_cycle(6, 2., wd=1e-4)
    assert falls([float(o) for o in learn.recorder.losses], .7)

def test_lars_state_goes_through_a_file(images):
    x, y = images
    def steps(model, opt, n):
        for _ in range(n): opt.zero_grad(); F.cross_entropy(model(x[:16]), y[:16]).backward(); opt.step()
    set_seed(0)
    a = Mine(4); opt_a = s2.LARS(s2.lars_groups(a), lr=2.)
    steps(a, opt_a, 2)
    torch.save((a.state_dict(), opt_a.state_dict()), f := io.BytesIO()); f.seek(0)
    model, state = torch.load(f, weights_only=True)
    b = Mine(4); b.load_state_dict(model); opt_b = s2.LARS(s2.lars_groups(b), lr=2.); opt_b.load_state_dict(state)
    steps(a, opt_a, 2); steps(b, opt_b, 2)
    assert all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))

def test_schedule_drives_any_optimizer():
    opt = torch.optim.SGD(Mine().parameters(), lr=1.)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: s2.warmup_cosine(t, 1., 2, 10))
    lrs = []
    for _ in range(10): lrs.append(opt.param_groups[0]['lr']); opt.step(); sched.step()
    want = [0, .5] + [.5*(1+math.cos(math.pi*t/8)) for t in range(8)]
    np.testing.assert_allclose(lrs, want, atol=1e-12)

# the encoder

@pytest.mark.parametrize('name', ['r18_0.25x_sk0', 'r50_0.125x_sk1'])
def test_encoder_in_a_plain_loop(name, images):
    set_seed(0)
    x, y = images
    model = nn.Sequential(s2.encoder(name, cifar_stem=True), nn.LazyLinear(4))
    opt, losses = torch.optim.Adam((model(x[:2]), model.parameters())[1], 2e-3), []
    for _ in range(3):
        for b,t in zip(x.split(32), y.split(32)):
            loss = F.cross_entropy(model(b), t); opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert falls(losses, .8)

def test_encoder_in_vision_learner(images):
    from fastai.vision.learner import vision_learner
    x, y = images
    dls = s2.image_dls(((x*255).byte(), y), ((x*255).byte(), y), bs=32)
    e = s2.encoder('r18_0.25x_sk1', cifar_stem=True)
    def arch(pretrained=False): return nn.Sequential(e.stem, e.stem_out, *e.groups, nn.AdaptiveAvgPool2d(1))
    learn = quiet(vision_learner(dls, arch, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(), concat_pool=False, metrics=accuracy))
    with torch.no_grad(): torch.testing.assert_close(learn.model.eval()[0](x[:4]).mean((2,3)), e.eval()(x[:4]))
    learn.freeze(); before = weights(learn.model)
    learn.fit(1, 2e-3)
    convs = [n for n,p in learn.model[0].named_parameters() if p.ndim > 1]
    assert all(torch.equal(dict(learn.model[0].named_parameters())[n], before[f'0.{n}']) for n in convs)
    learn.unfreeze(); learn.fit(2, 2e-3)
    assert share_changed(learn.model, before) > .9 and falls([float(o) for o in learn.recorder.losses])

def test_head_takes_any_encoder(images):
    model = s2.SimCLRModel(nn.Sequential(Mine(16), nn.ReLU()), s2.ProjectionHead(16, 8, 2))
    z = model(images[0][:8])
    assert z.shape == (8,8)
    s2.nt_xent(z).backward()
    assert all(p.grad is not None for p in model.parameters())

# the views

def test_views_with_torch_tensors_alone(images):
    aug = s2.SimCLRAugment(24, strength=.5, blur=False)
    a, b = (aug(images[0], torch.Generator().manual_seed(s)) for s in (0,1))
    assert a.shape == (64,3,24,24) and type(a) is torch.Tensor and 0 <= a.min() and a.max() <= 1
    assert not torch.equal(a, b) and torch.equal(a, aug(images[0], torch.Generator().manual_seed(0)))

def test_views_as_batch_tfms(tmp_path, images):
    from fastai.vision.all import ImageDataLoaders, Resize, DisplayedTransform, vision_learner
    from PIL import Image
    class Views(DisplayedTransform):
        order, split_idx = 15, 0
        def __init__(self, aug): self.aug = aug
        def encodes(self, x:TensorImage): return TensorImage(self.aug(x))
    for i,(x,y) in enumerate(zip(*images)):
        (tmp_path/f'{y}').mkdir(exist_ok=True)
        Image.fromarray((x*255).byte().permute(1,2,0).numpy()).save(tmp_path/f'{y}'/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, seed=0, item_tfms=Resize(32), num_workers=0, bs=16,
                                       batch_tfms=[Views(s2.SimCLRAugment(24, strength=.5, blur=False, min_scale=.5))])
    (a, ya), (b, yb) = dls.train.one_batch(), dls.valid.one_batch()
    assert a.shape[1:] == (3,24,24) and b.shape[1:] == (3,32,32) and 0 <= a.min() and a.max() <= 1
    assert ya.max() < 4 and yb.max() < 4
    learn = quiet(vision_learner(dls, resnet18, pretrained=False, metrics=accuracy))
    learn.fit(3, 2e-3)
    assert falls([float(o) for o in learn.recorder.losses])

# distillation

@pytest.mark.parametrize('make', MODELS)
def test_distillation_in_a_plain_loop(make, images):
    set_seed(0)
    teacher, student, x = Mine(4).eval(), make(4), images[0]
    teacher.out.weight.data *= 20                          # a teacher with opinions
    opt, losses = torch.optim.Adam(student.parameters(), 5e-3), []
    with torch.no_grad(): t = teacher(x)
    for _ in range(10):
        loss = s2.distillation_loss(student(x), t); opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    entropy = -(t.softmax(1)*t.log_softmax(1)).sum(1).mean().item()
    assert losses[-1] >= entropy - 1e-6                    # cross-entropy is never less
    assert losses[-1] - entropy < .7*(losses[0] - entropy)

def test_distillation_in_a_plain_learner(dls, images):
    set_seed(0)
    x, y = images
    teacher = quiet(Learner(dls, torchvision_model(4), loss_func=CrossEntropyLossFlat()))
    teacher.fit(3, 2e-3)
    before = copy.deepcopy(teacher.model.state_dict())
    unlabelled = DataLoaders(*(DataLoader([(o,) for o in x], bs=32, shuffle=s) for s in (True, False)))
    learn = quiet(Learner(unlabelled, Mine(4), loss_func=s2.DistillLoss(), cbs=s2.Distill(teacher.model, augment=lambda x: x)))
    learn.fit(20, 1e-2)
    assert falls([float(o) for o in learn.recorder.losses])
    assert all(torch.equal(v, before[k]) for k,v in teacher.model.state_dict().items())
    with torch.no_grad(): agree = (learn.model.eval()(x).argmax(1) == teacher.model.eval()(x).argmax(1)).float().mean()
    assert agree > .8

# fine-tuning, interrupted runs

@pytest.mark.parametrize('make', MODELS)
def test_fine_tuning_in_a_plain_learner(make, dls):
    "Somebody's classifier trains on views, and is validated on the images as they are"
    set_seed(0)
    seen = []
    def view(x): seen.append(len(x)); return x.flip(3)
    learn = quiet(Learner(dls, make(4), loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=Adam, cbs=s2.FineTune(view)))
    learn.fit(10, 5e-3)
    assert seen == [32]*20 and falls([float(o) for o in learn.recorder.losses])

def test_checkpoints_in_a_plain_learner(images, tmp_path):
    "A supervised run that was cut off ends with the numbers of one that was not, to the last bit"
    class CutOff(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    def run(name, *cbs):
        set_seed(0)
        pairs = list(zip(*images))
        dls = DataLoaders(DataLoader(pairs, bs=32, shuffle=True), DataLoader(pairs, bs=32))
        learn = quiet(Learner(dls, Mine(4), loss_func=CrossEntropyLossFlat(), cbs=[s2.Checkpoints(tmp_path/name), *cbs]))
        learn.fit_one_cycle(4, 1e-2)
        return learn.model.state_dict()
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('cut', CutOff())
    again = run('cut')
    assert all(torch.equal(v, again[k]) for k,v in whole.items())

# large batches

def plain(dls, *cbs):
    set_seed(0)
    learn = quiet(Learner(dls, Mine(16), loss_func=s2.NTXentLoss(.2), opt_func=SGD, cbs=[s2.SimCLR(lambda x, gen: x + .01), *cbs]))
    learn.fit(2, .1)
    return learn

def test_gradcache_changes_nothing_but_memory(images):
    x, y = images
    one = DataLoaders(*(DataLoader(list(zip(x, y)), bs=64) for _ in range(2)))
    whole, pieces = plain(one), plain(one, s2.GradCache(micro_batch=16))
    for (n,p),q in zip(whole.model.named_parameters(), pieces.model.parameters()): torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=n)

def test_queue_in_a_plain_loop_and_learner(dls):
    z, q = torch.randn(6, 8, dtype=torch.float64), torch.randn(10, 8, dtype=torch.float64)
    s = torch.cosine_similarity(z[:,None], torch.cat([z, q])[None], dim=2)/.2
    s[range(6), range(6)] = -torch.inf
    want = F.cross_entropy(s, (torch.arange(6)+3) % 6)
    assert abs(s2.nt_xent_with_queue(z, q, .2) - want) < 1e-12
    queue = s2.NegativeQueue(size=128, decay=.9)
    learn = plain(dls, queue)
    assert len(queue.queue) == 128 and torch.isfinite(torch.tensor([float(o) for o in learn.recorder.losses])).all()

# evaluation

@pytest.mark.parametrize('make', MODELS)
def test_other_peoples_features_are_judged(make, images):
    set_seed(0)
    model, (x, y) = make(16), images
    was = [m.training for m in model.modules()]
    h = s2.predict_batches(model, x, bs=24)
    with torch.no_grad(): want = model.eval()(x)
    torch.testing.assert_close(h, want, rtol=1e-4, atol=1e-5)
    assert was[0] and s2.knn_accuracy(h[:32], y[:32], h[32:], y[32:], k=3) > .5
    assert s2.linear_probe(h[:32], y[:32], h[32:], y[32:], C=1.) > .5

def test_other_peoples_classifiers_are_scored(images):
    x, y = images
    model = torchvision_model(4)
    s = s2.evaluate_classifier(model, x, y, list('abcd'))
    with torch.no_grad(): p = model.eval()(x).argmax(1)
    assert abs(s.accuracy - (p == y).float().mean()) < 1e-6 and s.interval[0] <= s.accuracy <= s.interval[1]

def test_images_to_label_by_other_peoples_features(images):
    "One of each kind, whoever made the features"
    x, y = images
    for method in ('kmeans','farthest'): assert sorted(y[s2.propose(x.flatten(1), 4, method=method)].tolist()) == [0,1,2,3]

# the pages

def test_no_page_holds_a_dead_widget(root):
    "A widget's view needs its kernel; what a stored page should hold is the picture beside it"
    pages = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not any(o.startswith(('.','_')) for o in p.relative_to(root).parts)]
    def kinds(p): return {k for c in json.loads(p.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', []) for k in o.get('data', {})}
    dead = [str(p.relative_to(root)) for p in pages if 'application/vnd.jupyter.widget-view+json' in kinds(p)]
    assert not dead, f'{dead}: take "application/vnd.jupyter.widget-view+json" out of the stored outputs; the image/png beside it stays'

def test_widgets_follow_their_controls(images):
    from simclrv2_nb.widgets import augment_widget, temperature_widget, neighbours_widget
    x, y = images
    h = Mine()(x)
    moves = {augment_widget(x): dict(strength=.3, min_scale=.5, blur=True, seed=3), temperature_widget(h): dict(temperature=1., row=5),
             neighbours_widget(x, {'h': h, 'pixels': x.flatten(1)}, y): dict(image=9, k=3, features='pixels')}
    for w,values in moves.items():
        for name,v in values.items():
            before = w.picture.value
            w.controls[name].value = v
            assert w.picture.value != before and 'Error' not in w.note.value, (name, w.note.value)
        assert w.values == values and w.picture.value == w.still().data
