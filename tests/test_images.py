"""Image files as they come: killed workers, two processes at once, full and read-only disks, links, bombs.

What a notebook cannot show; the pages on images show the rest.
"""
import io, os, signal, struct, subprocess, sys, time, warnings, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from simclrv2_nb import imagecache as ic
from simclrv2_nb.images import Images, find_duplicates, list_images, load_images

@pytest.fixture
def pics(tmp_path):
    "Forty small JPEGs in two class folders"
    rng = np.random.default_rng(0)
    for i in range(40):
        p = tmp_path/'pics'/('cat','dog')[i%2]/f'{i:02}.jpg'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60,80,3), dtype=np.uint8)).save(p)
    return tmp_path/'pics'

def child(code, *args, **kw):
    "Run `code` in a process of its own"
    return subprocess.Popen([sys.executable, '-W', 'error::ResourceWarning', '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def out(p, timeout=180):          # much, for machines that do other things too
    o, e = p.communicate(timeout=timeout)
    assert p.returncode == 0, e
    return o, e

def png_header(w, h):
    "A PNG file that says it has `w`×`h` pixels"
    chunk = lambda t, d: struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t+d))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')

def test_a_killed_worker_is_replaced(pics, tmp_path, monkeypatch):
    "One file kills whoever decodes it, as the kernel does when memory runs out; another only once; none of the others is lost"
    files = list_images(pics)
    evil, unlucky, once = os.fspath(files[7]), os.fspath(files[20]), tmp_path/'once'
    real = ic._decode_file
    def decode(file, *args):
        if file == evil: os.kill(os.getpid(), signal.SIGKILL)
        if file == unlucky and not once.exists(): once.touch(); os.kill(os.getpid(), signal.SIGKILL)
        return real(file, *args)
    monkeypatch.setattr(ic, '_decode_file', decode)          # reaches the workers because they are forked
    res = list(ic.decode_files(files, workers=2))
    assert [i for i,o in enumerate(res) if o.x is None] == [7]
    assert 'was killed' in res[7].reason and not res[7].lasting
    assert (res[20].x == ic.read_image(unlucky)).all()
    im = load_images(pics, cache=tmp_path/'cache', max_bad=.05)
    assert [f for f,_ in im.report.bad] == ['cat/14.jpg'] and len(im) == 39
    monkeypatch.undo()
    assert len(load_images(pics, cache=tmp_path/'cache')) == 40      # that reason was not kept

def test_workers_that_cannot_live_are_an_error_and_no_loop(pics, monkeypatch):
    monkeypatch.setattr(ic, '_serve', lambda *a: os._exit(3))
    with pytest.raises(RuntimeError, match='died one after the other, exit code 3'): list(ic.decode_files(list_images(pics), workers=2))

def test_workers_end_with_their_parent(pics):
    "kill -9 leaves no process behind"
    code = '''if 1:
        import os, sys, time
        from simclrv2_nb import imagecache as ic
        ic._decode_file = lambda *a: time.sleep(.05) or ic.Decoded(None, 'slow', None, False)
        for _ in ic.decode_files(sys.argv[1:], workers=2):
            print(*os.popen(f'pgrep -P {os.getpid()}').read().split(), flush=True)
            time.sleep(60)'''
    p = child(code, *list_images(pics))
    pids = [int(o) for o in p.stdout.readline().split()]
    p.kill(); p.communicate()
    alive = lambda pid: os.path.exists(f'/proc/{pid}') and open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z'
    assert len(pids) >= 2
    until = time.time() + 60
    while any(map(alive, pids)) and time.time() < until: time.sleep(.1)
    assert not any(map(alive, pids))

def test_two_processes_at_once(pics, tmp_path):
    "Both get the same images; the second waits for the first, and neither leaves anything half-made"
    code = '''if 1:
        import sys
        from simclrv2_nb.imagecache import cached_images
        im = cached_images(sys.argv[2:], cache=sys.argv[1])
        print(len(im.x), int(im.x.sum()), im.row.tolist())'''
    ps = [child(code, tmp_path/'cache', *list_images(pics)) for _ in range(3)]
    res = {out(p)[0] for p in ps}
    assert len(res) == 1
    assert len(list((tmp_path/'cache').glob('*/*/images.u8'))) == 1
    assert not list((tmp_path/'cache').glob('*/.tmp-*'))

def test_without_locks_the_first_one_wins(pics, tmp_path, monkeypatch):
    "Where the file system has no locks both decode; the one that comes second takes what is there"
    files, cache = list_images(pics), tmp_path/'cache'
    real, first = ic._save, []
    def save(rows, *a, **kw):
        if not first: first.append(1); first.append(ic.cached_images(files, cache=cache))      # another process is quicker
        return real(rows, *a, **kw)
    monkeypatch.setattr(ic, '_save', save); monkeypatch.setitem(sys.modules, 'fcntl', None)
    second = ic.cached_images(files, cache=cache)
    assert (second.x == first[1].x).all() and second.folder == first[1].folder
    assert not list(cache.glob('*/.tmp-*'))

def test_a_full_disk_falls_back_to_memory(pics, tmp_path):
    "The write fails in the middle of the file: nothing is lost, and nothing half-made stays"
    code = '''if 1:
        import resource, sys, warnings
        from simclrv2_nb.imagecache import cached_images
        want = cached_images(sys.argv[2:], cache=False).x
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            got = cached_images(sys.argv[2:], cache=sys.argv[1]).x
        assert (want == got).all()
        print(*[o.message for o in w if 'cannot be written' in str(o.message)])'''
    o, _ = out(child(code, tmp_path/'cache', *list_images(pics)))
    assert 'File too large' in o and 'stay in memory' in o
    assert not list((tmp_path/'cache').glob('*/[!l]*/')) and not list((tmp_path/'cache').glob('*/.tmp-*'))

def test_no_space_is_seen_before_the_work(pics, tmp_path, monkeypatch):
    monkeypatch.setattr(ic.shutil, 'disk_usage', lambda o: type('o', (), dict(free=1000)))
    with pytest.warns(UserWarning, match='GB needed, 9.31e-07 GB free'): im = load_images(pics, cache=tmp_path/'cache')
    assert len(im) == 40
    monkeypatch.setattr(ic.os, 'sysconf', lambda o: 100)
    with pytest.raises(OSError, match='too much for the memory'): load_images(pics, cache=tmp_path/'cache')

def test_a_read_only_cache(pics, tmp_path):
    "Others' cache can be used without the right to write; what is not in it stays in memory"
    code = '''if 1:
        import os, sys, warnings
        from simclrv2_nb.imagecache import cached_images
        cache, warm, *files = sys.argv[1:]
        for _ in range(2): cached_images(files, 8, cache=warm)      # imports what nobody might not be allowed to read
        if os.getuid() == 0: os.setuid(65534)             # nobody: root may write anywhere
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            a, b = (cached_images(files, s, cache=cache) for s in (64, 32))
        print(a.decoded, b.decoded, *[o.message for o in w if 'cannot be written' in str(o.message)])'''
    time.sleep(2.1)           # younger files would be hashed again
    cache = tmp_path/'cache'
    load_images(pics, cache=cache)
    for o in [tmp_path, *tmp_path.parents]:
        if o.stat().st_mode & 0o777 == 0o700: o.chmod(0o755)          # pytest's own folders
    for o in cache.rglob('*'): o.chmod(0o555 if o.is_dir() else 0o444)
    cache.chmod(0o555)
    o, _ = out(child(code, cache, tmp_path/'warm', *list_images(pics)))
    for o2 in [cache, *cache.rglob('*')]: o2.chmod(0o755)
    assert o.startswith('0 40 the cache folder') and 'Permission denied' in o

def test_an_interrupted_run_keeps_what_it_decoded(pics, tmp_path, monkeypatch):
    files, cache = list_images(pics), tmp_path/'cache'
    real = ic._Rows.append
    def append(self, x):
        if self.n == 25: raise KeyboardInterrupt
        real(self, x)
    monkeypatch.setattr(ic._Rows, 'append', append)
    with pytest.raises(KeyboardInterrupt): ic.cached_images(files, cache=cache)
    monkeypatch.undo()
    assert not list(cache.glob('*/.tmp-*'))
    assert ic.cached_images(files, cache=cache).decoded == 15

def test_damaged_caches_are_made_again(pics, tmp_path):
    time.sleep(2.1)
    cache = tmp_path/'cache'
    want = load_images(pics, cache=cache).x.clone()
    data, = cache.glob('*/*/images.u8')
    index, = cache.glob('*/*/*.npz')
    for path,cut in (data, 1), (data, 3*64*64), (index, 10), (index, index.stat().st_size):
        os.truncate(path, path.stat().st_size - cut)
        im = load_images(pics, cache=cache)
        assert torch.equal(im.x, want) and im.report.decoded == 40
        assert load_images(pics, cache=cache).report.decoded == 0
    (tmp_path/'other').mkdir()

def test_a_changed_file_is_noticed(pics, tmp_path):
    "Also with the old size and the old time, because the time of the change of the time counts"
    cache, f = tmp_path/'cache', pics/'cat'/'00.jpg'
    for p in pics.rglob('*.jpg'): os.utime(p, (1e9, 1e9))
    a = load_images(pics, cache=cache)
    raw, st = f.read_bytes(), f.stat()
    other = (pics/'cat'/'02.jpg').read_bytes()
    f.write_bytes(other[:len(raw)].ljust(len(raw), b'\0')); os.utime(f, (1e9, 1e9))
    assert f.stat().st_size == st.st_size and f.stat().st_mtime_ns == st.st_mtime_ns
    b = load_images(pics, cache=cache, max_bad=.1)
    assert b.report.decoded == 1 - len(b.report.bad) and not (len(b) == 40 and torch.equal(a.x[0], b.x[0]))

def test_a_file_that_changed_just_now_is_read_again(pics, tmp_path, monkeypatch):
    "Two changes within one tick of the clock have one stat: it counts only if the file was older than that when it was read"
    stats, f = ic._stats(list_images(pics))[0], pics/'cat'/'00.jpg'
    raw, other = f.read_bytes(), (pics/'cat'/'02.jpg').read_bytes()
    def load(raw, old):
        f.write_bytes(raw)
        monkeypatch.setattr(ic, '_stats', lambda files: (stats, np.full(len(stats), old)))
        return load_images(pics, cache=tmp_path/f'{first}').x[0].clone()
    for first in True, False: assert torch.equal(load(raw, first), load(other, True)) == first

def test_links(pics, tmp_path):
    "Inside the folder they count, out of it they are left alone, and circles end"
    (tmp_path/'secret').mkdir(); (pics/'cat'/'00.jpg').rename(tmp_path/'secret'/'00.jpg')
    (pics/'out.jpg').symlink_to(tmp_path/'secret'/'00.jpg'); (pics/'outdir').symlink_to(tmp_path/'secret'); (pics/'up').symlink_to('..')
    (pics/'in.jpg').symlink_to(pics/'cat'/'02.jpg'); (pics/'circle').symlink_to(pics); (pics/'dead.jpg').symlink_to(pics/'nothing')
    os.mkfifo(pics/'pipe.jpg')
    with pytest.warns(UserWarning, match='links that lead out') as w: files = list_images(pics)
    assert all(n in str(w[0].message) for n in ('outdir', 'out.jpg', 'up'))
    names = [f.relative_to(pics).as_posix() for f in files]
    assert len(files) == 40 and 'in.jpg' in names and not any('out' in n for n in names)
    (tmp_path/'link').symlink_to(pics)
    with pytest.warns(UserWarning): assert len(list_images(tmp_path/'link')) == 40
    assert ic._decode_file(os.fspath(pics/'pipe.jpg'), 64, 3, 'crop', ()).reason == 'no regular file'

def test_names_that_climb_out_of_a_table(pics, tmp_path):
    for bad in '../secret.jpg', 'cat/../../x.jpg', '/etc/passwd', 'link/00.jpg':
        (pics/'link').unlink(missing_ok=True); (pics/'link').symlink_to(tmp_path)
        (pics/'list.csv').write_text(f'file,label\ncat/00.jpg,a\n{bad},b\n')
        with pytest.raises(ValueError, match='lie out of its folder'): load_images(pics/'list.csv', labels='label', cache=tmp_path/'cache')

def test_odd_names(pics, tmp_path):
    "Spaces, other alphabets, what looks like an option or a pattern, bytes that are no text"
    names = ['-rf.jpg', '--help.jpg', 'a b.jpg', 'füße.jpg', '猫.jpg', '*.jpg', '$(x).jpg', 'a\nb.jpg', 'UPPER.JPG', os.fsdecode(b'\xff\xfe.jpg')]
    d = tmp_path/'odd'; d.mkdir()
    for n,f in zip(names, list_images(pics)): (d/n).write_bytes(f.read_bytes())
    (d/os.fsdecode(b'\xfd.jpg')).write_text('text')
    im = load_images(d, cache=tmp_path/'cache', max_bad=.1)
    assert set(im.files) == set(names) and r'\xfd.jpg' in str(im.report)
    str(im.report).encode()
    assert load_images(d, cache=tmp_path/'cache', max_bad=.1).files == im.files
    (d/'.hidden.jpg').write_text('x'); (d/'.git').mkdir(); (d/'.git'/'x.jpg').write_text('x'); (d/'notes.txt').write_text('x')
    assert len(list_images(d)) == 11

def test_bombs_are_refused_before_they_are_decoded():
    start = time.process_time()
    for raw in png_header(60_000, 60_000), png_header(2**31-1, 2**31-1), jpeg(60_000, 60_000), tiff(60_000, 60_000):
        with pytest.raises(ic.BadImage, match='too many to decode|damaged'): ic.read_image(raw)
    with pytest.raises(ic.BadImage, match='60000×60000 pixels are too many'): ic.read_image(png_header(60_000, 60_000))
    with pytest.raises(ic.BadImage, match='60000×60000 pixels are too many'): ic.read_image(jpeg(60_000, 60_000))
    png = png_header(60_000, 60_000)                                       # inside an icon that says 16×16
    with pytest.raises(ic.BadImage, match='no picture'): ic.read_image(struct.pack('<HHHBBBBHHII', 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png)
    lying = io.BytesIO(); np.lib.format.write_array_header_1_0(lying, dict(descr='|u1', fortran_order=False, shape=(10**7, 10**7, 5)))
    with pytest.raises((ic.BadImage, MemoryError)): ic.read_image(lying.getvalue(), channels=5)
    assert time.process_time() - start < 2

def jpeg(w, h):
    "A JPEG that says it has `w`×`h` pixels"
    b = io.BytesIO(); Image.new('RGB', (16,16)).save(b, 'JPEG'); raw = bytearray(b.getvalue())
    i = raw.index(b'\xff\xc0'); raw[i+5:i+9] = struct.pack('>HH', h, w)
    return bytes(raw)

def tiff(w, h):
    b = io.BytesIO(); Image.new('RGB', (4321,16)).save(b, 'TIFF')
    return b.getvalue().replace(struct.pack('<HHI', 256, 4, 1)+struct.pack('<I', 4321), struct.pack('<HHI', 256, 4, 1)+struct.pack('<I', w)).replace(
        struct.pack('<HHI', 256, 3, 1)+struct.pack('<HH', 4321, 0), struct.pack('<HHI', 256, 4, 1)+struct.pack('<I', w))

def test_a_phone_with_200_megapixels():
    "More than Pillow would open: decoded at an eighth of its size"
    b = io.BytesIO(); Image.new('RGB', (16320,12240), 'red').save(b, 'JPEG', quality=30)
    assert ic.read_image(b.getvalue(), 8)[:,4,4].tolist() == pytest.approx([255,0,0], abs=4)      # a strong JPEG

def test_damage_anywhere_ends_in_a_picture_or_a_reason():
    "A thousand cut and flipped files of each format: nothing but `BadImage` comes out"
    rng = np.random.default_rng(0)
    a = Image.fromarray(rng.integers(0, 256, (24,32,3), dtype=np.uint8))
    for fmt in 'JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM':
        b = io.BytesIO(); a.save(b, fmt); raw = b.getvalue(); bad = 0
        for k in range(150):
            r = bytearray(raw[:rng.integers(1, len(raw))] if k%2 else raw)
            for i in rng.integers(0, min(len(r), 200), rng.integers(1, 4)): r[i] = rng.integers(256)
            try: assert ic.read_image(bytes(r), 16).shape == (3,16,16)
            except ic.BadImage: bad += 1
        assert bad > 20, fmt

def test_old_sets_are_removed_first(pics, tmp_path):
    "Whole sets, those not used for longest; never what is in use now, nor what is not ours"
    cache = tmp_path/'cache'
    homes = [ic.cached_images(list_images(pics), size, cache=cache).folder for size in (16,24,32)]
    for i,o in enumerate(homes): os.utime(o, (i+1, i+1))
    total = ic.trim_cache(cache=cache)
    assert all(o.exists() for o in homes)
    ic.cached_images(list_images(pics), 8, cache=cache)
    assert ic.trim_cache(total, cache) < total and [o.exists() for o in homes] == [False,True,True]
    homes[0] = ic.cached_images(list_images(pics), 16, cache=cache).folder
    mine = cache/'9px-mine'/'x'; mine.mkdir(parents=True); (mine/'images.u8').write_bytes(bytes(10**6))
    used = ic.cached_images(list_images(pics)[:39], 16, cache=cache)              # rows come from the first set
    assert used.decoded == 0
    before = used.x.copy()
    left = ic.trim_cache(1e-9, cache, keep=[used.folder])
    assert [o.parent for o in cache.glob('*px*-v3/*/images.u8')] == [used.folder] and left > 0
    ic.trim_cache(0, cache)
    assert not list(cache.glob('*px*-v3/*/images.u8')) and (mine/'images.u8').exists()
    assert (used.x == before).all()                          # what is mapped stays until it is let go

def test_a_set_larger_than_the_limit_is_refused(pics, tmp_path, monkeypatch):
    monkeypatch.setenv('SIMCLRV2_CACHE_GB', '0.0001')
    with pytest.raises(ValueError, match='set SIMCLRV2_CACHE_GB higher'): load_images(pics, cache=tmp_path/'cache')
    monkeypatch.setenv('SIMCLRV2_CACHE_GB', 'much')
    with pytest.raises(ValueError, match="got 'much'"): load_images(pics, cache=tmp_path/'cache')

def test_leftovers_of_killed_processes_go_after_a_day(pics, tmp_path):
    cache = tmp_path/'cache'
    home = ic.cached_images(list_images(pics), cache=cache).folder.parent
    for name,age in ('.tmp-1-1', 90_000), ('.tmp-1-2', 60):
        (home/name).mkdir(); (home/name/'images.u8').touch()
        for o in (home/name/'images.u8', home/name): os.utime(o, (time.time()-age,)*2)
    ic.trim_cache(cache=cache)
    assert [o.name for o in home.glob('.tmp-*')] == ['.tmp-1-2']

def test_spawned_workers(pics, monkeypatch):
    "As on macOS and Windows"
    want = [o.x for o in ic.decode_files(list_images(pics), workers=0)]
    monkeypatch.setattr(ic.sys, 'platform', 'darwin')
    for a,b in zip(want, ic.decode_files(list_images(pics), workers=1)): assert (a == b.x).all()

def test_batches_of_a_mapped_set_in_worker_processes(pics, tmp_path):
    from simclrv2_nb.data import ImageBatches, BatchDL
    im = load_images(pics, labels='folder', cache=tmp_path/'cache')
    a, b = (list(BatchDL(ImageBatches(im.x, im.y, im.vocab), bs=16, num_workers=n)) for n in (0, 2))
    for o,p in zip(a, b): assert torch.equal(o[0], p[0]) and torch.equal(o[1], p[1])

def test_loaders_that_a_user_made_with_fastai(pics):
    from fastai.vision.all import ImageDataLoaders, Resize
    from simclrv2_nb.pretrain import pretrain_learner
    from simclrv2_nb.resnet import encoder
    dls = ImageDataLoaders.from_folder(pics, valid_pct=.2, seed=0, item_tfms=Resize(32), bs=16, num_workers=0)
    learn = pretrain_learner(dls, encoder('r18_0.0625x_sk0', cifar_stem=True))
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all() and any(not torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    with pytest.raises(TypeError, match='loaders already'): load_images(dls)

def torchvision_sets(d, monkeypatch):
    "torchvision's own classes on small files in the formats of theirs"
    import pickle
    from scipy.io import savemat
    from torchvision import datasets as T
    rng = np.random.default_rng(0)
    def bytes_(*shape): return rng.integers(0, 256, shape, dtype=np.uint8)
    def jpeg(path): path.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(bytes_(50, 60, 3)).save(path, 'JPEG')
    for folder, files, key, meta in ('cifar-10-batches-py', [f'data_batch_{i}' for i in range(1, 6)], 'labels', ('batches.meta', 'label_names')), \
                                    ('cifar-100-python', ['train'], 'fine_labels', ('meta', 'fine_label_names')):
        (d/folder).mkdir()
        for f in files: (d/folder/f).write_bytes(pickle.dumps({'data': bytes_(4, 3072), key: rng.integers(0, 10, 4).tolist()}))
        (d/folder/meta[0]).write_bytes(pickle.dumps({meta[1]: [f'class {i}' for i in range(10)]}))
    (d/'stl10_binary').mkdir()
    for split, n in ('train', 6), ('unlabeled', 8): bytes_(n, 3, 96, 96).tofile(d/'stl10_binary'/f'{split}_X.bin')
    (rng.integers(1, 11, 6)).astype(np.uint8).tofile(d/'stl10_binary'/'train_y.bin')
    (d/'stl10_binary'/'class_names.txt').write_text('\n'.join('airplane bird car cat deer dog horse monkey ship truck'.split()))
    for wnid in T.Imagenette._WNID_TO_CLASS: jpeg(d/'imagenette2-160'/'train'/wnid/f'{wnid}_1.JPEG')
    for i in range(1, 5): jpeg(d/'flowers-102'/'jpg'/f'image_{i:05}.jpg')
    savemat(d/'flowers-102'/'imagelabels.mat', dict(labels=[[3, 1, 2, 1]])); savemat(d/'flowers-102'/'setid.mat', dict(trnid=[[1, 2, 4]], valid=[[3]], tstid=[[3]]))
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *a: True)       # their checksums are of the real files
    for cls in T.CIFAR10, T.STL10, T.Flowers102: monkeypatch.setattr(cls, '_check_integrity', lambda self: True)
    return dict(cifar10=T.CIFAR10(d), cifar100=T.CIFAR100(d), stl10=T.STL10(d, 'train+unlabeled'), unlabelled=T.STL10(d, 'unlabeled'),
                imagenette=T.Imagenette(d, 'train', size='160px'), flowers=T.Flowers102(d, 'train'))

def test_torchvision_data_sets(tmp_path, monkeypatch):
    "Pixels, labels and class names are those that the data sets themselves give out, one by one"
    for name, ds in torchvision_sets(tmp_path, monkeypatch).items():
        im = load_images(ds, cache=tmp_path/'cache')
        assert len(im) == len(ds), name
        for i in range(len(ds)):
            x, y = ds[i]
            assert y == (-1 if im.y is None else im.y[i]), name
            if im.x.shape[-1] in (32, 96): assert (im.x[i].permute(1, 2, 0).numpy() == np.asarray(x)).all(), name
            else: b = io.BytesIO(); x.save(b, 'PNG'); assert (im.x[i].numpy() == ic.read_image(b.getvalue())).all(), name
        assert (im.y is None) == (name == 'unlabelled')
        if name == 'stl10': assert (im.y[6:] == -1).all() and im.labelled()[0].shape == (6, 3, 96, 96) and im.vocab[:2] == ['airplane', 'bird']
        if name == 'imagenette': assert im.vocab[0] == 'tench' and im.y.tolist() == list(range(10))
        if name == 'flowers': assert im.y.tolist() == [2, 0, 0] and im.vocab[0] == 'pink primrose'
