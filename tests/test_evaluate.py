"""What the pages on evaluation and on labelling do not show: scikit-learn's and closed-form answers, coverage of the
intervals, odd data, fastai's own tools on our learners, and a small twin of the study of proposals."""
import importlib.util, json, math
import numpy as np, pytest, torch, torch.nn as nn, torch.nn.functional as F
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from conftest import ROOT
from simclrv2_nb import evaluate as ev
from simclrv2_nb.annotate import label_report, propose
from simclrv2_nb.data import fashion_classes, fashion_mnist_sample, image_dls, label_subset
from simclrv2_nb.scores import Scores, bootstrap_interval, calibration_bins, compare, temperature_scale

def draw(n=500, c=7, seed=0, sharp=1.):
    "Logits that are right more often than not"
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=gen)
    return sharp*(torch.randn(n, c, generator=gen) + 1.5*F.one_hot(y, c)), y

def test_scores_as_scikit_learn():
    z, y = draw()
    s, p = Scores(z, y), z.double().softmax(1).numpy()
    assert s.accuracy == metrics.accuracy_score(y, z.argmax(1))
    np.testing.assert_array_equal(s.confusion, metrics.confusion_matrix(y, z.argmax(1)))
    assert s.top5 == pytest.approx(metrics.top_k_accuracy_score(y, p, k=5), abs=1e-12)
    assert s.nll == pytest.approx(metrics.log_loss(y, p), abs=1e-12)
    assert s.balanced == pytest.approx(metrics.balanced_accuracy_score(y, z.argmax(1)), abs=1e-12)
    for k, row in enumerate(s.per_class):
        assert row['accuracy'] == pytest.approx(metrics.recall_score(y, z.argmax(1), labels=[k], average=None)[0], abs=1e-12) and row['images'] == (y == k).sum()

@pytest.mark.parametrize('bins', [1, 5, 15])
def test_calibration_as_scikit_learn(bins):
    z, y = draw(seed=1, sharp=2.)
    s = Scores(z, y)
    count, acc, conf = calibration_bins(s.confidence, s.right, bins)
    right, sure = calibration_curve(s.right.numpy(), s.confidence.numpy(), n_bins=bins)
    np.testing.assert_allclose(acc[count > 0], right, atol=1e-12); np.testing.assert_allclose(conf[count > 0], sure, atol=1e-12)
    if bins == 15: assert s.ece == pytest.approx(sum(n/len(y)*abs(a-c) for n, a, c in zip(count[count > 0].tolist(), right, sure)), abs=1e-12)

def test_edges_belong_to_the_bin_below():
    edges = torch.arange(16).double()/15
    assert calibration_bins(edges, edges > .5)[0].tolist() == [2, *[1]*14]
    z, y = torch.zeros(10, 5), torch.arange(10) % 5                     # confidence 1/5 = 3/15 everywhere: the third bin
    assert Scores(z, y).bins[0].tolist() == [0, 0, 10, *[0]*12] and Scores(z, y).ece == pytest.approx(0, abs=1e-12)

@pytest.mark.parametrize('n,p', [(50, .5), (200, .8), (1000, .97)])
def test_interval_is_the_binomials(n, p):
    "The bootstrap of a share is binomial: percentiles in closed form, within one image (and the luck of 10 000 draws)"
    got = bootstrap_interval(round(n*p), n)
    np.testing.assert_allclose(got, stats.binom.ppf([.025, .975], n, round(n*p)/n)/n, atol=1.01/n)

def test_interval_covers():
    "95 % intervals of 400 test sets of 200 images cover a true accuracy of 0.8 in about 95 %: 3 sd of 400 draws are 0.033"
    rights = np.random.default_rng(0).binomial(200, .8, 400)
    cover = np.mean([lo <= .8 <= hi for lo, hi in (bootstrap_interval(int(r), 200, seed=k) for k, r in enumerate(rights))])
    assert abs(cover-.95) < .035, cover

def test_seeds():
    z, y = draw()
    assert Scores(z, y, seed=1).interval == Scores(z, y, seed=1).interval
    a, b = (bootstrap_interval(12_345, 100_000, seed=k) for k in (0, 1))
    assert a != b and np.abs(np.subtract(a, b)).max() < 2e-4          # a tenth of the interval's half width

def test_difference_in_closed_form():
    "The interval of a difference is close to a normal one with variance ((n_a + n_b)/n − d²)/n"
    n, na, nb = 4000, 150, 90
    y = torch.zeros(n).long()
    def model(right): return Scores(F.one_hot((~right).long(), 2).float(), y)
    i = torch.arange(n)
    c = compare(model((i < na) | (i >= 1000)), model(((i >= na) & (i < na+nb)) | (i >= 1000)))
    d = (na-nb)/n
    sd = math.sqrt(((na+nb)/n - d*d)/n)
    assert (c.only_a, c.only_b, c.n, c.difference) == (na, nb, n, d)
    np.testing.assert_allclose(c.interval, (d-1.96*sd, d+1.96*sd), atol=.06*sd)
    assert 'a is better' in str(c) and json.loads(json.dumps(c.to_dict()))['only_b'] == nb

def test_difference_covers_nothing_when_models_are_equal():
    "Two equally good models: 'better' is said in about one trial of 20; 3 sd of 300 draws are 0.038"
    rng, false = np.random.default_rng(1), 0
    y = torch.zeros(300).long()
    for k in range(300):
        a, b = (Scores(F.one_hot(torch.from_numpy((rng.random(300) > .8).astype(np.int64)), 2).float(), y) for _ in range(2))
        false += 'no difference' not in str(compare(a, b, seed=k))
    assert abs(false/300-.05) < .04, false/300

def test_ties_and_lone_images():
    s = Scores(torch.zeros(6, 3), [0, 0, 1, 1, 2, 2])
    assert s.accuracy == 1/3 and s.predicted.tolist() == [0]*6 and s.nll == pytest.approx(math.log(3), abs=1e-12)
    assert Scores(torch.tensor([[1., 1, 0]]), [1]).accuracy == 0 and Scores(torch.zeros(7, 7), range(7)).top5 == 5/7
    one = Scores(torch.tensor([[0., 9]]), [1])
    assert one.interval == (1, 1) and 'No error was seen' in str(one)
    none = Scores(torch.tensor([[9., 0]]), [1])
    assert none.interval == (0, 0) and none.per_class[0]['accuracy'] is None and none.balanced == 0 and '–' in str(none)
    assert Scores(torch.eye(3)[:2], [0, 1]).balanced == 1                     # the class without images does not count
    assert json.loads(json.dumps(none.to_dict(), allow_nan=False))['per_class'][0]['images'] == 0
    assert Scores(torch.tensor([[1e4, -1e4]]), [1]).nll == 2e4                # no overflow

@pytest.mark.parametrize('T', [.3, 1., 4.])
def test_temperature_is_found(T):
    "Labels drawn from softmax(z): for T·z the temperature is T, up to the luck of 20 000 labels"
    gen = torch.Generator().manual_seed(0)
    z = 2*torch.randn(20_000, 4, generator=gen)
    y = z.softmax(1).multinomial(1, generator=gen)[:, 0]
    t = temperature_scale(T*z, y)
    assert t == pytest.approx(T, rel=.04)
    nll = lambda b: F.cross_entropy((T*z).double()*b, y).item()
    assert nll(1/t) <= min(nll(1.001/t), nll(.999/t))
    z.requires_grad_(); assert temperature_scale(T*z, y) == t

@pytest.mark.parametrize('right,word', [(True, 'every one is right'), (False, 'no better than a guess')])
def test_no_temperature_fits(right, word):
    z = F.one_hot(torch.arange(6) % 3, 3).float()
    with pytest.warns(UserWarning, match=word): temperature_scale(z if right else -z, torch.arange(6) % 3)

def test_test_labels_cannot_choose(monkeypatch):
    "The probe is fitted before the test labels are looked at: with any labels, and any test features, the same C and the same predictions"
    gen = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(20)
    h, ht = (F.one_hot(y, 12)[:, :12]*1. + torch.randn(80, 12, generator=gen) for _ in range(2))
    seen, real = [], ev._fit_probe
    def spy(X, labels, C, seed):
        fit, chosen, how = real(X, labels, C, seed)
        seen.append((chosen, fit.predict(ht.numpy()).tolist(), X.tobytes(), labels.tobytes()))
        return fit, chosen, how
    monkeypatch.setattr(ev, '_fit_probe', spy)
    for k in range(4):
        ev.linear_probe(h, y, ht if k < 2 else 5*ht, y[torch.randperm(80, generator=gen)])
        ev.evaluate_features(lambda x: x[:, 0, 0], (h[:, None, None], y), (ht[:, None, None], y[torch.randperm(80, generator=gen)]), k=3)
    assert len(seen) == 8 and len({str(o) for o in seen}) == 1

class Nets(nn.Module):
    "Mean brightness of each quarter of the image as a logit"
    def __init__(self): super().__init__(); self.bn = nn.BatchNorm2d(1); self.register_buffer('seen', torch.zeros(2))
    def forward(self, x): self.seen = torch.tensor(x.shape[2:]).float(); return F.adaptive_avg_pool2d(self.bn(x), 2).flatten(1)

def test_evaluate_classifier_and_its_view():
    x = torch.randint(0, 256, (9, 1, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y, m = torch.arange(9) % 4, Nets().train()
    s = ev.evaluate_classifier(m, x, y, bs=4)
    assert m.training and m.bn.num_batches_tracked == 0 and m.seen.tolist() == [48, 48] and 'images as they are' in s.protocol
    assert s.accuracy == pytest.approx(ev.classifier_accuracy(m, x, y), abs=1e-7)     # float32 there
    from simclrv2_nb.augment import eval_crop
    cut = ev.evaluate_classifier(m, x, y, size=40)
    assert m.seen.tolist() == [40, 40] and 'central crop of 40×40' in cut.protocol
    assert cut.nll == pytest.approx(Scores(m.eval()(eval_crop(x/255, 40)).detach(), y).nll, abs=1e-6)      # float32
    with pytest.raises(ValueError, match='leave unlabelled images out'): ev.evaluate_classifier(m, x, y-1)

@pytest.fixture(scope='module')
def learners():
    "A tiny fine-tuned network, and a student of it that has seen no label"
    from fastai.optimizer import Adam
    from fastai.torch_core import set_seed
    from simclrv2_nb.distill import distill_learner
    from simclrv2_nb.finetune import finetune_learner
    from simclrv2_nb.head import SimCLRModel
    d, small = fashion_mnist_sample(), lambda x: x[:, :, ::2, ::2]
    i, j = label_subset(d.train_y, 10), label_subset(d.test_y, 10)
    valid = small(d.test_x[j]), d.test_y[j]
    set_seed(0)
    enc = lambda: nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    from simclrv2_nb.head import ProjectionHead
    kw = dict(opt_func=Adam, lr=3e-3, precision=None, augment=lambda x: x)
    teach = finetune_learner(image_dls((small(d.train_x[i]), d.train_y[i]), valid, bs=50, vocab=fashion_classes), SimCLRModel(enc(), ProjectionHead(32, 8, 2)), **kw)
    with teach.no_bar(), teach.no_logging(): teach.fit(3)
    learn = distill_learner(image_dls(small(d.train_x[:500]), valid, bs=50, vocab=fashion_classes), teach.model, enc(), **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    return dict(teacher=teach, student=learn), valid

@pytest.mark.parametrize('which', ['teacher', 'student'])
def test_fastai_agrees(learners, which):
    "`validate`, `get_preds` and `ClassificationInterpretation` say what `evaluate_classifier` says"
    from fastai.interpret import ClassificationInterpretation
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    (learn, valid) = learners[0][which], learners[1]
    s = ev.evaluate_classifier(learn.model, *valid, fashion_classes)
    # the student's own loss compares with its teacher: a plain learner compares with the labels
    plain = learn if which == 'teacher' else Learner(learn.dls, learn.model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), plain.no_bar():
        probs, y = learn.get_preds()
        assert torch.equal(y.as_subclass(torch.Tensor), valid[1]) and (probs.sum(1)-1).abs().max() < 1e-5
        assert (probs.argmax(1) == y).float().mean().item() == pytest.approx(s.accuracy, abs=1e-7)       # float32
        assert learn.validate()[1] == pytest.approx(s.accuracy, abs=1e-7)
        interp = ClassificationInterpretation.from_learner(plain)
        np.testing.assert_array_equal(interp.confusion_matrix(), s.confusion)
        assert float(interp.losses.mean()) == pytest.approx(s.nll, abs=1e-5)         # float32
        worst = interp.top_losses(1)[1].item()
        assert interp.most_confused() and worst == F.cross_entropy(ev.predict_batches(learn.model, valid[0]), valid[1], reduction='none').argmax().item()

def test_one_percent_lies_in_ten():
    y = fashion_mnist_sample().train_y
    y = torch.cat([y, torch.zeros(333).long(), torch.full((50,), -1)])              # unequal classes, and unlabelled images
    one, ten = (set(label_subset(y, fraction=f, seed=5).tolist()) for f in (.01, .1))
    assert one < ten and len(ten) == round(.1*len(y[y == 0])) + 900
    assert set(label_subset(y, per_class=3, seed=5).tolist()) < one
    assert 'All 103 lie inside the larger draw of 1,033: nested.' in label_report(y, sorted(one), inside=sorted(ten))
    other = label_subset(y, fraction=.01, seed=6)
    assert 'NOT nested' in label_report(y, other, seed=6, inside=sorted(ten)) and 'seed 6' in label_report(y, other, seed=6)

@pytest.fixture(scope='module')
def study():
    spec = importlib.util.spec_from_file_location('annotate_study', ROOT/'benchmarks'/'annotate.py')
    mod = importlib.util.module_from_spec(spec); spec.loader.exec_module(mod)
    return mod

def test_twin_of_the_study(study):
    "benchmarks/annotate.py, on principal components of 2 000 images in place of an encoder: k-means finds more classes than chance, and scores higher"
    d = fashion_mnist_sample()
    x, xt = (o[:n].flatten(1).float()/255 for o, n in ((d.train_x, 2000), (d.test_x, 1000)))
    mean, v = x.mean(0), torch.pca_lowrank(x, 24)[2] if torch.manual_seed(0) else None
    rows = list(study.rows((x-mean) @ v, d.train_y[:2000], (xt-mean) @ v, d.test_y[:1000], budgets=(20,), draws=6))
    mean_of = lambda m, what: np.mean([r[what] for r in rows if r['method'] == m])
    assert len(rows) == 24 and {r['method'] for r in rows} == set(study.METHODS)
    assert mean_of('kmeans', 'accuracy') > mean_of('random', 'accuracy')+2
    assert mean_of('stratified', 'classes') == 10

def test_the_study_is_whole(study):
    "Every encoder, budget, method and draw of its command is in the table, and what it shows can be drawn again"
    got = json.loads(study.OUT.read_text())
    keys = {(r['encoder'], r['n'], r['method'], r['draw']) for r in got['rows']}
    assert keys == {(e, n, m, k) for e in (0, 1, 2) for n in study.BUDGETS for m in study.METHODS for k in range(5)} and len(got['rows']) == len(keys)
    y = fashion_mnist_sample().train_y
    for m in ('random', 'stratified'): assert got['shown'][m] == study.choose(m, y, y, 20, 0).tolist()
    assert all(len(set(i)) == 20 for i in got['shown'].values())

def test_many_labelled_images():
    "Minibatch k-means, where clusters are many"
    h = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    got = propose(h, 15, labelled=range(1700))
    assert len(got.unique()) == 15 and got.min() >= 1700
