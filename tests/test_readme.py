"README.md is what the home page makes, and its own lines run: only the amount of training is cut, and the network is not asked."
import math, re, shlex, sys
import numpy as np, pytest, torch
from PIL import Image

def blocks(root, language): return re.findall(rf'^```{language}\n(.*?)^```$', (root/'README.md').read_text(encoding='utf-8'), re.M | re.S)
def block(root, language, word):
    found = [o for o in blocks(root, language) if word in o]
    assert len(found) == 1, f'{len(found)} blocks of {language} in README.md hold {word!r}'
    return found[0]

def test_readme_agrees_with_the_home_page(root, run):
    run(sys.executable, 'tools/readme.py', '--check', cwd=root)

@pytest.fixture
def photos(tmp_path, monkeypatch):
    "A folder `photos` of three kinds of stripes, in the working directory; recipes of one short epoch"
    from simclrv2_nb import flow
    gen = np.random.default_rng(0)
    for c,name in enumerate(('across','upright','plain')):
        (tmp_path/'photos'/name).mkdir(parents=True)
        for i in range(16):
            a = gen.integers(0, 120, (40,48,3), dtype=np.uint8)
            if c < 2: a[(slice(i,i+8), slice(None))[::(1,-1)[c]]] = 250
            Image.fromarray(a).save(tmp_path/'photos'/name/f'{i}.jpg')
    own = flow.own_recipe
    def short(*args):
        r = own(*args)
        for s,epochs in dict(pretrain=1, finetune=1, distill=1).items(): r[s]['epochs'] = r[s]['epochs']._replace(value=epochs)
        r['finetune']['steps'] = r['finetune']['steps']._replace(value=3)
        return r
    monkeypatch.setattr(flow, 'own_recipe', short)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    return tmp_path

def check_run(run):
    assert {'student.safetensors','student.onnx','student.pt2','classes.txt','student.md'} <= {o.name for o in (run/'export').iterdir()}
    assert (run/'README.md').exists() and 'student' in (run/'results.md').read_text(encoding='utf-8')

def test_own_pictures_by_command(root, photos):
    "From `simclrv2 pretrain photos` to `answers.csv`, line by line"
    from simclrv2_nb.cli import app
    lines = [shlex.split(o, comments=True)[1:] for o in block(root, 'sh', 'simclrv2 pretrain photos').splitlines() if o.startswith('simclrv2')]
    assert [o[0] for o in lines] == ['pretrain','pretrain','finetune','distill','evaluate','export','predict']
    for o in lines: app(o, standalone_mode=False)
    check_run(photos/'run')
    answers = (photos/'answers.csv').read_text(encoding='utf-8').splitlines()
    assert len(answers) == 1 + 48 and 'upright' in '\n'.join(answers)

def test_own_pictures_in_python(root, photos):
    exec(block(root, 'python', 'flow.pretrain'), {})
    check_run(photos/'run')

def test_a_piece_of_it(root, tmp_path, monkeypatch):
    "The three stages as fastai learners, one epoch each on 26 images a class; one of the authors' networks, here a small one of that kind; the loss"
    import simclrv2_nb.all
    from simclrv2_nb import data, released, weights
    d = data.fashion_mnist_sample()
    i, j = data.label_subset(d.train_y, per_class=26), data.label_subset(d.test_y, per_class=26)
    small = data.ImageData(d.train_x[i], d.train_y[i], d.test_x[j], d.test_y[j])
    monkeypatch.setattr(simclrv2_nb.all, 'fashion_mnist_sample', lambda: small)
    monkeypatch.chdir(tmp_path)
    scope = {}
    code, n = re.subn(r'(fit_\w+)\(\d+', r'\1(1', block(root, 'python', 'pretrain_learner'))
    assert n == 3
    exec(code, scope)
    student = scope['student'].model.eval()
    assert student(small.test_x[:4].float()/255).shape == (4, 10)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in scope['ft'].model.parameters())/2

    fetched = []
    def fake(url, folder, read):
        fetched.append(url)
        monkeypatch.setattr(released, 'encoder', lambda name: model.encoder)
        return (model := read(root/'tests'/'fixtures'/'tf1_r18_w0.125'))
    monkeypatch.setattr(released, '_fetched', fake)
    exec(block(root, 'python', 'weights.official'), scope)
    assert fetched == [f'{released.official_url}/finetuned_1pct/r50_1x_sk1'] and scope['clf'](torch.rand(1,3,64,64)).shape[0] == 1

    scope['z'] = torch.eye(4)[[0,1,0,1]]
    exec(block(root, 'python', 'import nt_xent'), scope)
    assert scope['loss'].item() == pytest.approx(math.log1p(2*math.exp(-10)), abs=1e-6)
