"""Exported files answer as PyTorch does, whatever the network; `predict_files` is lazy, orderly, and trusts no file."""
import csv, json, os, pickle, random, subprocess, sys, warnings; warnings.filterwarnings('ignore')
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch, torch.nn as nn
from PIL import Image
from simclrv2_nb import export, weights
from simclrv2_nb.anyencoder import any_encoder
from simclrv2_nb.augment import eval_crop
from simclrv2_nb.export import Deployed, export_onnx, export_program, iter_predictions, predict_files
from simclrv2_nb.head import Classifier, Normalized, SimCLRModel
from simclrv2_nb.imagecache import read_image
from simclrv2_nb.resnet import DEPTHS, ResNet, encoder

onnx = pytest.importorskip('onnx'); ort = pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')

def pictures(n, c, H, W):
    "uint8 images that differ in brightness, contrast and detail: to a network all noise looks alike"
    g = torch.Generator().manual_seed(0)
    def rand(*s): return torch.rand(*s, generator=g)
    x = nn.functional.interpolate(rand(n,c,5,5), (H,W), mode='bilinear')*rand(n,c,1,1) + rand(n,c,1,1)*.5 + .1*rand(n,c,H,W)
    return (255*x.clamp(0, 1)).byte()

def classifier(enc, size=32, c=3, from_layer=1, k=4):
    "A classifier with numbers everywhere and the batch statistics of some pictures: fresh networks are full of zeros and ones"
    torch.manual_seed(0)
    m = Classifier(SimCLRModel(enc), from_layer, k)
    for p in m.parameters():
        if p.ndim == 1: nn.init.uniform_(p, .5, 1.)
    nn.init.normal_(m.supervised.weight, std=.3)
    for o in m.modules():
        if hasattr(o, 'running_mean'): o.momentum = None
    x = pictures(16, c, *((size,size) if isinstance(size, int) else size))/255
    with torch.no_grad(): m.train()(x); m.supervised.bias.copy_(-m.eval()(x).mean(0))       # no class wins always
    return m

class Patches(nn.Module):
    "A user's own encoder: patches, attention, no batch norm, no convolution, no `num_features`"
    def __init__(self, size=16, patch=8, d=32):
        super().__init__()
        self.patch, self.embed, self.place = patch, nn.Linear(3*patch**2, d), nn.Parameter(torch.randn(1, (size//patch)**2, d))
        self.attend, self.norm = nn.MultiheadAttention(d, 4, batch_first=True), nn.LayerNorm(d)
    def forward(self, x):
        x = nn.functional.unfold(x, self.patch, stride=self.patch).mT
        x = self.embed(x) + self.place
        return self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(1)

def selective():
    "An SK-ResNet of one block a group: of 50 layers it takes long to export"
    with pytest.MonkeyPatch.context() as mp: mp.setitem(DEPTHS, 50, (1,1,1,1)); return encoder('r50_0.03125x_sk1')

NETS = {'sk': (selective, 48, 'tf1'), 'se': (lambda: ResNet(18, 1/16, se_ratio=.25), (56,40), 'tf2'),
        'cifar grey': (lambda: encoder('r18_0.0625x_sk0', cifar_stem=True, in_channels=1), 28, 'tf2'),
        'timm': (lambda: Normalized(any_encoder('timm/test_resnet.r160_in1k', size=48), (.5,.4,.3), (.2,.3,.2)), 48, 'tf2'), 'user': (lambda: any_encoder(Patches(), size=16), 16, 'tf2')}

@pytest.mark.parametrize('name', NETS)
def test_every_network(name, tmp_path):
    "ONNX Runtime against the model with `eval_crop` before and a softmax behind it, written out here"
    (make, size, kernel), c = NETS[name], 1 if name == 'cifar grey' else 3
    m = classifier(make(), size, c); m.resize_kernel = kernel
    assert export_onnx(m, tmp_path/'m.onnx', size, channels=c, vocab=list('abcd')) < 1e-4
    H, W = (size, size) if isinstance(size, int) else size
    x = pictures(5, c, H, W)
    with torch.no_grad(): want = m(eval_crop(x/255, min(H,W), kernel)).softmax(1)
    s = ort.InferenceSession(str(tmp_path/'m.onnx'), providers=['CPUExecutionProvider'])
    for n in (1, 3, 5): assert np.abs(s.run(None, {'images': x[:n].numpy()})[0] - want[:n].numpy()).max() < 1e-5      # float32 sums of some hundred numbers
    assert want.std(0).max() > .005 and json.loads(s.get_modelmeta().custom_metadata_map['vocab']) == list('abcd')

@pytest.mark.parametrize('name', ['user'])
def test_program(name, tmp_path):
    make, size, _ = NETS[name]
    c = 1 if name == 'cifar grey' else 3
    m = classifier(make(), size, c)
    assert export_program(m, tmp_path/'m.pt2', size, channels=c, output='logits') < 1e-4
    net, about = Deployed(m, size, c, 'logits'), {'about.json': ''}
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); again = torch.export.load(tmp_path/'m.pt2', extra_files=about).module()
    for n in (1, 4):
        x = pictures(n, c, *net.size)
        with torch.no_grad(): torch.testing.assert_close(again(x), net(x), rtol=0, atol=1e-5)
    assert json.loads(about['about.json'])['output'] == 'logits'

@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    "One small classifier as safetensors and as ONNX, pictures of all sorts, and what the model says of them"
    d = tmp_path_factory.mktemp('shipped')
    m = classifier(encoder('r18_0.0625x_sk0', cifar_stem=True), 16, k=3)
    weights.save(m, d/'m.safetensors', vocab=['a','b','c'], size=16)
    export_onnx(m, d/'m.onnx', 16, vocab=['a','b','c'])
    pics, rng = d/'pictures', np.random.default_rng(0)
    (pics/'sub ß').mkdir(parents=True)
    for i in range(20): Image.fromarray((rng.random((20+i,24,3))*rng.random(3)*255).astype(np.uint8)).save(pics/('sub ß' if i%2 else '.')/f'{i:02}.png')
    (pics/'05 text.jpg').write_text('no picture'); (pics/'06 empty.jpg').write_bytes(b''); (pics/'07 cut.png').write_bytes((pics/'00.png').read_bytes()[:700])
    files = sorted(pics.rglob('*.*'), key=lambda o: o.relative_to(pics).as_posix())
    return SimpleNamespace(dir=d, model=m, pics=pics, files=files)

def expected(s):
    "The rows, one image at a time"
    rows = []
    for f in s.files:
        if ' ' in f.name: rows.append((str(f), None)); continue
        with torch.no_grad(): p = s.model(torch.from_numpy(read_image(f, 16))[None]/255).softmax(1)[0]
        rows.append((str(f), [('abc'[i], p[i].item()) for i in p.argsort(descending=True)]))
    return rows

def same(got, want):
    assert [r['file'] for r in got] == [f for f,_ in want]
    for r,(_,top) in zip(got, want):
        if top is None: assert r['top'] == [] and r['error']; continue
        assert r['error'] is None and [k for k,_ in r['top']] == [k for k,_ in top]
        assert np.abs(np.array([q for _,q in r['top']]) - [q for _,q in top]).max() < 1e-5

def test_rows(shipped):
    "The same rows from safetensors, ONNX and the model, however many work on them"
    want = expected(shipped)
    assert sum(t is None for _,t in want) == 3
    for model, kw in (('m.safetensors', {}), ('m.onnx', dict(batch=3, workers=3)), ('m.onnx', dict(batch=1, workers=1))): same(predict_files(shipped.dir/model, shipped.pics, **kw), want)
    same(predict_files(shipped.model, [shipped.pics], names=list('abc'), size=16, batch=5), want)
    same(predict_files(shipped.dir/'m.onnx', [*shipped.files[3:9], 'nowhere.jpg']), [*want[3:9], ('nowhere.jpg', None)])

def test_files(shipped, tmp_path):
    "CSV and JSON hold what the rows say, and appear whole or not at all"
    rows = predict_files(shipped.dir/'m.safetensors', shipped.pics, top=2)
    for name in ('a.csv', 'b.json'):
        res = predict_files(shipped.dir/'m.safetensors', shipped.pics, out=tmp_path/name, top=2)
        assert (res['files'], res['bad']) == (23, 3)
    table = list(csv.reader(open(tmp_path/'a.csv', encoding='utf-8', newline='')))
    assert table[0] == ['file','class_1','probability_1','class_2','probability_2','error'] and len(table) == 24
    for r,t in zip(rows, table[1:]): assert t == [r['file'], *([c for k,q in r['top'] for c in (k, f'{q:.6f}')] or ['']*4), r['error'] or '']
    for r,t in zip(rows, json.load(open(tmp_path/'b.json', encoding='utf-8'))):
        assert (t['file'], t['error']) == (r['file'], r['error']) and [(o['class'], o['probability']) for o in t['top']] == [(k, round(q, 6)) for k,q in r['top']]
    before = (tmp_path/'a.csv').read_bytes()
    with pytest.MonkeyPatch.context() as mp, pytest.raises(KeyboardInterrupt):
        def stopped(*a): raise KeyboardInterrupt
        mp.setattr(export, '_rows', stopped)
        predict_files(shipped.dir/'m.safetensors', shipped.pics, out=tmp_path/'a.csv')
    assert (tmp_path/'a.csv').read_bytes() == before and sorted(os.listdir(tmp_path)) == ['a.csv','b.json']

@pytest.mark.parametrize('method', ['crop','squish','pad'])
def test_squares(method, shipped, tmp_path, monkeypatch, capsys):
    "Pictures become squares as in training, from both kinds of file; and the program in the card says nearly the same"
    monkeypatch.chdir(tmp_path)
    m = weights.load(shipped.dir/'m.safetensors'); m.method = method
    weights.save(m, 'm.safetensors'); export_onnx(m, 'm.onnx')
    Image.fromarray(pictures(1, 3, 60, 90)[0].permute(1, 2, 0).numpy()).save('picture.jpg', format='PNG')        # whatever its name
    def answer(how):
        with torch.no_grad(): return m(torch.from_numpy(read_image('picture.jpg', 16, method=how))[None]/255).softmax(1)[0].numpy()
    want = answer(method)
    assert min(np.abs(answer(o)-want).max() for o in ('crop','squish','pad') if o != method) > .03
    for f in ('m.safetensors', 'm.onnx'):
        got = dict(predict_files(f, 'picture.jpg')[0]['top'])
        assert np.abs([got[k]-p for k,p in zip('abc', want)]).max() < 1e-5
    card = export.model_card('m.md', m).read_text(encoding='utf-8')
    exec(card.split('```python\n')[1].split('```')[0], {})
    said = eval(capsys.readouterr().out)
    assert [*said] == ['a','b','c'] and np.abs([said[k]-p for k,p in zip('abc', want)]).max() < .02

def test_lazy(shipped, monkeypatch):
    "Never more decoded than a few batches ahead of what was asked for"
    seen, real = [0], export.decode_files
    def counted(files, *a, **kw):
        for d in real(files, *a, **dict(kw, workers=0)): seen[0] += 1; yield d
    monkeypatch.setattr(export, 'decode_files', counted)
    rows = iter_predictions(shipped.dir/'m.safetensors', [shipped.files[0]]*1000, batch=10, workers=2)
    for asked in (1, 100, 500): next(islice(rows, asked-1, None)); ahead = seen[0]; assert ahead <= 610 + 40 and ahead >= asked
    rows.close()
    assert seen[0] < 700 and torch.get_num_threads() >= 1

MEMORY = '''
import resource, sys
from simclrv2_nb.export import predict_files
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform == 'linux' else 20)
for n in (200, 2000): print(predict_files(sys.argv[1], sys.argv[2]+f'/{n}', out=sys.argv[2]+'/out.csv', size=96)['files'], peak())
'''

def test_memory(tmp_path):
    "Ten times the files need no more memory: 2 000 decoded pictures alone would be 55 MB"
    weights.save(classifier(encoder('r18_0.03125x_sk0'), 96), tmp_path/'m.safetensors', size=96)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100,100,3), dtype=np.uint8)).save(tmp_path/'a.jpg')
    raw = (tmp_path/'a.jpg').read_bytes()
    for n in (200, 2000):
        (tmp_path/f'{n}').mkdir()
        for i in range(n): (tmp_path/f'{n}'/f'{i:04}.jpg').write_bytes(raw)
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', MEMORY, tmp_path/'m.safetensors', tmp_path], text=True, capture_output=True, timeout=300)
    assert r.returncode == 0, r.stderr
    (n1, few), (n2, many) = [map(int, l.split()) for l in r.stdout.splitlines()]
    assert (n1, n2) == (200, 2000) and many-few < 20, (few, many)      # MB; what the allocators keep moves by some

class Surprise:
    def __reduce__(self): return os.system, ('touch ran',)

def test_no_pickles(shipped, tmp_path, monkeypatch):
    "By content, whatever the name; nothing runs"
    monkeypatch.chdir(tmp_path)
    for i,name in enumerate(['m.onnx', 'm.safetensors', 'm.pkl']):
        for protocol in (0, 2, 5):
            Path(name).write_bytes(pickle.dumps(Surprise(), protocol))
            with pytest.raises(ValueError, match='is a pickle' if protocol else 'neither a safetensors nor an ONNX'): predict_files(name, shipped.pics)
        torch.save(Surprise(), name)
        with pytest.raises(ValueError, match='is a pickle'): predict_files(name, shipped.pics)
    assert not Path('ran').exists()
    for raw in (b'', b'\x08', b'hello, I am a model', bytes(100)):
        Path('m.onnx').write_bytes(raw)
        with pytest.raises(ValueError): predict_files('m.onnx', shipped.pics)
    with pytest.raises(FileNotFoundError, match='there is no file'): predict_files('gone.onnx', shipped.pics)

def test_damaged_onnx(shipped, tmp_path):
    "Each of 400 damaged files is refused in words, or answers as the good one"
    good, rnd, bad = (shipped.dir/'m.onnx').read_bytes(), random.Random(0), tmp_path/'bad.onnx'
    x = pictures(2, 3, 16, 16)
    want, loaded = export._ONNX(shipped.dir/'m.onnx')(x), 0
    for i in range(400):
        b = bytearray(good); at = rnd.randrange(rnd.choice([100, 5000, len(b)]))
        match i%4:
            case 0: b[at] ^= 1 << rnd.randrange(8)
            case 1: del b[at:]
            case 2: b[-rnd.randrange(1, 2000)] ^= 1 << rnd.randrange(8)              # the metadata
            case 3: b[at:at+8] = rnd.randbytes(8)
        bad.write_bytes(b)
        try: p = export._predictor(bad, None, None)
        except ValueError as e: assert 'bad.onnx' in str(e)
        else: assert np.array_equal(p(x), want) and p.vocab == ['a','b','c']; loaded += 1
    assert loaded < 40, loaded

def test_wrong_answers_are_not_written(shipped, tmp_path, monkeypatch):
    path, run, proto = tmp_path/'m.onnx', export._run, onnx.load(shipped.dir/'m.onnx')
    monkeypatch.setattr(export, '_onnx_proto', lambda net, batch: proto)
    assert export_onnx(shipped.model, path, 16) < 1e-4
    path.write_bytes(b'the good one')
    monkeypatch.setattr(export, '_run', lambda s, x: run(s, x) + 1.1e-4)
    with pytest.raises(ValueError, match="differ from PyTorch's by 0.00011"): export_onnx(shipped.model, path, 16)
    assert path.read_bytes() == b'the good one' and os.listdir(tmp_path) == ['m.onnx']

@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_missing_packages(name, shipped, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}: pip install 'simclrv2_nb\[export\]'"): export_onnx(shipped.model, tmp_path/'m.onnx', 16)
    assert not os.listdir(tmp_path)
