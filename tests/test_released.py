"""`released`: a web server that misbehaves, on this machine, and mappings that no network ever had."""
import errno, http.server, io, os, random, re, shutil, threading, time, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch, torch.nn as nn
from tf_bundle import write_tf_checkpoint
from simclrv2_nb import released
from simclrv2_nb.head import Classifier, ProjectionHead, SimCLRModel
from simclrv2_nb.released import fetch_checkpoint, from_tf, official
from simclrv2_nb.resnet import ResNet

FIXTURE = Path(__file__).parent/'fixtures'/'tf1_r18_w0.125'
NUMBERS = 'model.ckpt-4321.data-00000-of-00001'
NAME = 'r18_0.125x_sk0'
X = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))

class Bucket:
    "A web server with the checkpoint in every folder. `files` may be changed, and `mischief(handler, name, data)` may answer in place of it"
    def __init__(self):
        self.files = {p.name: p.read_bytes() for p in FIXTURE.iterdir()}
        self.asked, self.mischief = [], None
        bucket = self
        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args): pass
            def do_GET(self): bucket.answer(self, self.path.rpartition('/')[2])
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}/simclrv2'
    def answer(self, h, name):
        data, self.asked = self.files.get(name), self.asked + [(name, h.headers.get('Range'))]
        if data is None: return h.send_error(404)
        if not (self.mischief and self.mischief(h, name, data)): self.send(h, data)
    def send(self, h, data, ranges=True, if_range=True, length=None, stop=None, etag=True):
        tag, total, m = f'"{zlib.crc32(data)}"', len(data), re.fullmatch(r'bytes=(\d+)-', h.headers.get('Range') or '')
        start = int(m[1]) if m and ranges and (not if_range or h.headers.get('If-Range') == tag) else 0
        if start >= total > 0: return h.send_error(416)
        h.send_response(206 if start else 200)
        if etag: h.send_header('ETag', tag)
        if start: h.send_header('Content-Range', f'bytes {start}-{total-1}/{total}')
        if length != 0: h.send_header('Content-Length', str(length or total-start))
        h.end_headers()
        h.wfile.write(data[start:stop])
    def times(self, name): return [r for n,r in self.asked if n == name]

@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    b = Bucket()
    yield b
    b.server.shutdown(); b.server.server_close()

@pytest.fixture(scope='module')
def want(): return from_tf(FIXTURE)(X)

def fetch(bucket, folder, **kw): return fetch_checkpoint(f'{bucket.url}/pretrained/x', folder, **dict(dict(tries=3, pause=.001), **kw))
def whole(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != '.lock'} == {p.name: p.read_bytes() for p in FIXTURE.iterdir()}

def test_fetched_once(bucket, tmp_path, want):
    assert torch.equal(from_tf(fetch(bucket, tmp_path/'new'/'folder'))(X), want) and whole(tmp_path/'new'/'folder')
    assert [n for n,_ in bucket.asked] == ['checkpoint', 'model.ckpt-4321.index', NUMBERS]
    bucket.asked.clear()
    fetch(bucket, tmp_path/'new'/'folder')
    assert not bucket.asked

def test_goes_on_where_it_broke_off(bucket, tmp_path):
    stops = iter([400_000, 900_000, 900_000, 1_400_000])
    def cut(h, name, data):
        if name == NUMBERS and (stop := next(stops, None)): bucket.send(h, data, stop=stop); return True
    bucket.mischief = cut
    fetch(bucket, tmp_path)
    assert whole(tmp_path) and bucket.times(NUMBERS) == [None, 'bytes=400000-', 'bytes=900000-', 'bytes=900000-', 'bytes=1400000-']

def test_goes_on_in_the_next_call(bucket, tmp_path):
    bucket.mischief = lambda h, name, data: name == NUMBERS and (bucket.send(h, data, stop=600_000) or True)
    with pytest.raises(ConnectionError, match=rf'{NUMBERS} could not be fetched .*600000 bytes are kept: call again to go on from there, or fetch it by hand to {tmp_path}'): fetch(bucket, tmp_path)
    assert not (tmp_path/NUMBERS).exists()
    bucket.mischief, n = None, len(bucket.asked)
    fetch(bucket, tmp_path)
    assert whole(tmp_path) and bucket.asked[n:] == [(NUMBERS, 'bytes=600000-')]

@pytest.mark.parametrize('how', [dict(ranges=False), dict(etag=False)])
def test_server_without_ranges_or_tags(bucket, tmp_path, how):
    n = [0]
    def first_half(h, name, data):
        n[0] += name == NUMBERS
        bucket.send(h, data, stop=500_000 if n[0] == 1 else None, **how)
        return True
    bucket.mischief = first_half
    fetch(bucket, tmp_path)
    assert whole(tmp_path) and len(bucket.times(NUMBERS)) == 2

@pytest.mark.parametrize('if_range', [True, False])
def test_file_that_changes_between_two_tries(bucket, tmp_path, if_range):
    old, new = bytes(len(bucket.files[NUMBERS])), bucket.files[NUMBERS]
    n = [0]
    def changing(h, name, data):
        if name != NUMBERS: return
        n[0] += 1
        bucket.send(h, old if n[0] == 1 else new, stop=500_000 if n[0] == 1 else None, if_range=if_range)
        return True
    bucket.mischief = changing
    fetch(bucket, tmp_path)
    assert whole(tmp_path)

def test_killed_when_a_changed_file_had_just_begun(bucket, tmp_path, monkeypatch):
    part, write_text = tmp_path/f'{NUMBERS}.part', Path.write_text
    part.write_bytes(bytes(700_000)); write_text(tmp_path/f'{NUMBERS}.part.etag', '"of yesterday"')
    def killed(p, text):
        write_text(p, text)
        if NUMBERS in p.name: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_text', killed)
        with pytest.raises(KeyboardInterrupt): fetch(bucket, tmp_path)
    fetch(bucket, tmp_path)
    assert whole(tmp_path)          # nothing of yesterday's in front of today's

def test_length_that_is_too_long(bucket, tmp_path):
    bucket.mischief = lambda h, name, data: name == NUMBERS and (bucket.send(h, data, length=len(data)+999) or True)
    with pytest.raises(ConnectionError, match='could not be fetched'): fetch(bucket, tmp_path)
    assert not (tmp_path/NUMBERS).exists()

def test_length_that_is_too_short(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(released, 'official_encoders', [NAME])
    bucket.mischief = lambda h, name, data: name == NUMBERS and (bucket.send(h, data, length=len(data)-999, stop=len(data)-999) or True)
    with pytest.warns(UserWarning, match='was damaged and is fetched again'), pytest.raises(ValueError, match='is damaged, twice: .*cut short'): official(NAME, cache=tmp_path, url=bucket.url)
    bucket.mischief = None
    official(NAME, cache=tmp_path, url=bucket.url)

def test_no_length(bucket, tmp_path):
    bucket.mischief = lambda h, name, data: bucket.send(h, data, length=0) or True
    fetch(bucket, tmp_path)
    assert whole(tmp_path)

def test_longer_than_the_file(bucket, tmp_path):
    (tmp_path/f'{NUMBERS}.part').write_bytes(bytes(2*10**6))
    (tmp_path/f'{NUMBERS}.part.etag').write_text(f'"{zlib.crc32(bucket.files[NUMBERS])}"')
    fetch(bucket, tmp_path)
    assert whole(tmp_path)

def test_not_found_and_forbidden(bucket, tmp_path):
    del bucket.files[NUMBERS]
    with pytest.raises(FileNotFoundError, match=rf'there is no {bucket.url}/pretrained/x/{NUMBERS} \(404\)'): fetch(bucket, tmp_path)
    assert len(bucket.times(NUMBERS)) == 1
    bucket.mischief = lambda h, name, data: h.send_error(403) or True
    with pytest.raises(PermissionError, match='the server refuses .*: 403 Forbidden'): fetch(bucket, tmp_path/'b')

def test_server_that_is_ill_for_a_while(bucket, tmp_path):
    codes = iter([503, 500, 429])
    bucket.mischief = lambda h, name, data: (c := next(codes, None)) and (h.send_error(c) or True)
    fetch(bucket, tmp_path, tries=4)
    assert whole(tmp_path)
    codes = iter([503]*9)
    with pytest.raises(ConnectionError, match='HTTP Error 503'): fetch(bucket, tmp_path/'b')

def test_no_network(bucket, tmp_path):
    url = bucket.url; bucket.server.shutdown(); bucket.server.server_close()
    with pytest.raises(ConnectionError, match=f'{url}/pretrained/x/checkpoint could not be fetched .*fetch it by hand to {tmp_path}/checkpoint'): fetch(bucket, tmp_path)

HOSTILE = ['../../x/model.ckpt-1/..', '..', '.', '', '../../../.bashrc', '/etc/passwd', 'C:\\\\windows\\\\model.exe', 'model.ckpt-', 'model.ckpt-12.index', 'model.ckpt-1\0', 'model.ckpt-' + '1'*400,
           'xmodel.ckpt-1', 'model.ckpt-１２', 'model.ckpt-1 ', 'MODEL.ckpt-1']
@pytest.mark.parametrize('text', [f'model_checkpoint_path: "{o}"\n' for o in HOSTILE] + ['', '<html>please log in</html>', '\xff\xfe'*10**5, 'all_model_checkpoint_paths: "model.ckpt-4321"'], ids=repr)
def test_hostile_checkpoint_file(bucket, tmp_path, text):
    bucket.files['checkpoint'] = text.encode()
    with pytest.raises(ValueError, match=f'{bucket.url}/pretrained/x/checkpoint names no checkpoint such as'): fetch(bucket, tmp_path/'a'/'b')
    assert [p.name for p in tmp_path.rglob('*') if p.is_file()] == ['.lock']
    assert [n for n,_ in bucket.asked] == ['checkpoint']

@pytest.mark.parametrize('path', ['/machine/that/wrote/it/model.ckpt-4321', 'gs://bucket/x/model.ckpt-4321', '../../../model.ckpt-4321', 'D:\\\\x\\\\model.ckpt-4321'])
def test_only_the_last_part_of_the_path_counts(bucket, tmp_path, path):
    bucket.files['checkpoint'] = f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "{path}"\n'.encode()
    assert fetch(bucket, tmp_path) == tmp_path/'model.ckpt-4321'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'checkpoint', NUMBERS, 'model.ckpt-4321.index']

def test_two_at_once(bucket, tmp_path, monkeypatch, want):
    monkeypatch.setattr(released, 'official_encoders', [NAME])
    bucket.mischief = lambda h, name, data: time.sleep(.1)
    res = []
    threads = [threading.Thread(target=lambda: res.append(official(NAME, cache=tmp_path, url=bucket.url))) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(res) == 3 and all(torch.equal(m(X), want) for m in res) and len(bucket.asked) == 3

def test_damage_in_the_cache_and_on_the_server(bucket, tmp_path, monkeypatch, want):
    monkeypatch.setattr(released, 'official_encoders', [NAME])
    def get(): return official(NAME, 'finetuned_1pct', cache=tmp_path, url=bucket.url)
    assert get().supervised_layer == 1
    file = tmp_path/'finetuned_1pct'/NAME/NUMBERS
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    with pytest.warns(UserWarning, match='was damaged and is fetched again.*checksum'): assert torch.equal(get()(X), want)
    (tmp_path/'finetuned_1pct'/NAME/'model.ckpt-4321.index').write_bytes(b'')
    with pytest.warns(UserWarning, match='was damaged and is fetched again'): assert torch.equal(get()(X), want)
    bucket.files[NUMBERS] = bytes([bucket.files[NUMBERS][0] ^ 1]) + bucket.files[NUMBERS][1:]
    file.unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f'what {bucket.url}/finetuned_1pct/{NAME} has is damaged, twice: .*checksum'): get()
    assert not file.exists()

def test_another_network_than_the_name_says(bucket, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="r50_1x_sk0 holds a network with {'depth': 18.*remove the folder"): official('r50_1x_sk0', cache=tmp_path, url=bucket.url)
    assert len(bucket.asked) == 3           # not taken for damaged

def test_full_disk(bucket, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**9, 10**9-10**6, 10**6))
        with pytest.raises(OSError, match='the disk is full: .* does not fit into') as e: fetch(bucket, tmp_path)
        assert e.value.errno == errno.ENOSPC and len(bucket.times(NUMBERS)) == 1
    class Full(io.FileIO):
        def write(self, b):
            if self.tell() + len(b) > 10**5: raise OSError(errno.ENOSPC, 'No space left on device')
            return super().write(b)
    with monkeypatch.context() as m:
        m.setattr(released, 'open', lambda p, mode='r': Full(p, mode.replace('b','')) if mode in ('ab','wb') else open(p, mode), raising=False)
        with pytest.raises(OSError, match='the disk is full'): fetch(bucket, tmp_path)
    fetch(bucket, tmp_path)
    assert whole(tmp_path)

def test_progress_is_shown_to_those_who_look(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    monkeypatch.setattr(released, 'IN_NOTEBOOK', False)
    seen = []
    class Bar:
        def __init__(self, r): seen.append(len(r))
        def update(self, n): seen.append(n)
    monkeypatch.setattr(released, 'progress_bar', Bar)
    for out,total in ((Terminal(), 10**6), (Terminal(), None), (io.StringIO(), 2**30)):
        monkeypatch.setattr('sys.stdout', out)
        released._bar(total, 'x')(5)
    assert seen == []
    monkeypatch.setattr('sys.stdout', Terminal())
    released._bar(2**30, 'x')(5<<20)
    assert seen == [1024, 0, 5]

def arrays(model): return {name: getattr(m, k).detach().numpy().transpose(released._BACK[getattr(m, k).ndim]) for name,(m,k) in released._variables(model).items()}

def network(L=3, out=5, **kw):
    torch.manual_seed(0)
    e = ResNet(**dict(dict(depth=50, width_multiplier=1/16, sk_ratio=1/16), **kw))
    m = SimCLRModel(e, ProjectionHead(e.num_features, out, L)).eval()
    m.supervised = nn.Linear(e.num_features, 3)
    return m

def test_through_a_file_with_all_that_is_of_no_use(tmp_path):
    m = network()
    tf = arrays(m)
    rest = {'global_step': np.array(250228), 'memory/queue': np.zeros((4,5), np.float32)} | {f'{k}/Momentum': np.full_like(v, 9) for k,v in tf.items() if 'moving' not in k}
    ema = {f'ema_model/{k}': v+1 for k,v in tf.items() if not k.startswith('head_supervised')}
    write_tf_checkpoint(tmp_path/'model.ckpt-250228', tf | rest | ema)
    for source in (tmp_path, tmp_path/'model.ckpt-250228', str(tmp_path/'model.ckpt-250228.index')):
        assert torch.equal(from_tf(source)(X), m(X))
    average = from_tf(tmp_path, ema=True)
    assert torch.equal(average.encoder.stem[0].weight, m.encoder.stem[0].weight+1) and torch.equal(average.supervised.weight, m.supervised.weight)
    with pytest.raises(ValueError, match='ema=True'): from_tf(FIXTURE, ema=True)

def mutate(tf, rnd):
    "A checkpoint with something wrong, or not"
    tf, names = dict(tf), list(tf)
    k, o = rnd.choice(names), rnd.choice(names)
    v, prefix, leaf = tf[k], *k.rpartition('/')[::2]
    number = rnd.choice(['', '_0', '_00', '_-1', '_1', '_7', '_52', '_53', '_999', '_999999', '_9999999', '_' + '9'*5000, '_1e3', '_１'])
    odd = rnd.choice([np.array(None), np.array([None, 1]), [[1], [1, 2]], 'text', b'bytes', 3.5, None, {}, np.zeros(0, np.float32), np.zeros((1,)*30, np.float32), np.array(['a']), np.zeros(3, 'M8[s]'),
                      np.full(v.shape, np.nan, np.float32), np.ones(v.shape, bool), np.ones(v.shape, np.longdouble), np.empty((0,)*v.ndim), np.broadcast_to(np.float32(1), (10**3,)*v.ndim)])
    case = rnd.randrange(9)
    if case == 0: tf.pop(k)
    if case == 1: tf[k] = odd
    if case == 2: tf[k] = v.T
    if case == 3: tf[k] = v[..., None] if rnd.random() < .5 else v.reshape(-1)
    if case == 4: tf[f'{re.sub("_[0-9]+$", "", prefix)}{number}/{leaf}'] = tf.pop(k) if rnd.random() < .5 else v
    if case == 5: tf[k], tf[o] = tf[o], tf[k]
    if case == 6: tf[k] = v.astype(rnd.choice(['>f4', 'f8', 'f2', 'i4']))
    if case == 7: tf[rnd.choice(['', '/', ':0', 'x', 'ema_model/base_model', 'base_model/', 'base_model/x/kernel', 'head_contrastive/nl_0', 'base_model/conv2d/kernel/', k + ':0', k + '/Momentum', k*300])] = v
    if case == 8: tf = {n: a for n,a in tf.items() if rnd.random() > rnd.choice([.01, .5, .99])}
    return tf

def test_mappings_that_no_network_ever_had():
    rnd, said = random.Random(0), {}
    good = [arrays(network(**kw)) for kw in ({}, dict(depth=18, sk_ratio=0, se_ratio=.25), dict(depth=18, sk_ratio=0, cifar_stem=True, L=1), dict(sk_ratio=0, out=128))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(300):
            tf, t0 = mutate(rnd.choice(good), rnd), time.process_time()
            try: m = from_tf(tf, ema=rnd.random() < .02, sk_ratio=rnd.choice([None]*20 + [0, 1/16, -1, float('nan')]), from_layer=rnd.choice([None]*9 + [0, 1, 3, 9]))
            except ValueError as e: res = 'refused'; assert len(str(e)) < 20000, e
            else: res = 'loads'; assert all(v.device.type == 'cpu' and v.isfinite().all() for v in m.state_dict().values())
            said[res] = said.get(res, 0) + 1
            assert time.process_time()-t0 < 2
    assert said['refused'] > 100 and said['loads'] > 40, said
