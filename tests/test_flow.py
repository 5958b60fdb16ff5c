"""The whole flow as its user runs it: the installed command, killed and started again; bad folders, bad files, two programs at once."""
import sys

# ---- programs that are forked and killed: one process imports everything once

def program(step, folder, images):
    "One step of a tiny run, to its end"
    from simclrv2_nb import flow
    kw = dict(say=lambda s: None)
    if step == 'pretrain': flow.pretrain(images, folder, recipe='fashion-mnist-sample', encoder='r18_0.0625x_sk0', epochs=4, bs=16, queue=64, checkpoint_every=2, **kw)
    else: flow.distill(folder, 'r18_0.03125x_sk0', images=images, epochs=3, bs=16, checkpoint_every=2, **kw)

def life(step, folder, images, delay=None):
    "Fork the program and kill it after `delay` seconds; its exit code or minus signal"
    import os, signal, time
    pid = os.fork()
    if not pid:
        try: program(step, folder, images); os._exit(0)
        except BaseException:
            import traceback; traceback.print_exc(); sys.stderr.flush(); os._exit(3)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def driver(tmp):
    "Kill pretraining and distillation a few times each; what is left must be as without"
    import csv, time, warnings
    from pathlib import Path
    warnings.filterwarnings('ignore')
    import torch
    from simclrv2_nb import flow, weights
    from simclrv2_nb.data import fashion_mnist_sample
    import simclrv2_nb.health
    torch.set_num_threads(1)
    d, tmp, took, killed = fashion_mnist_sample(), Path(tmp), {}, 0
    images = d.train_x[:128], d.train_y[:128]
    for name,delays in (('whole', {}), ('killed', dict(pretrain=(.35,.6), distill=(.5,)))):
        run = tmp/name
        for step in ('pretrain','distill'):
            start = time.time()
            for f in delays.get(step, ()): killed += life(step, run, images, f*took[step]) == -9
            assert life(step, run, images) == 0
            took.setdefault(step, time.time()-start)
            if step == 'pretrain': flow.finetune(run, images=images, per_class=3, steps=4, epochs=1, say=lambda s: None)
    for step in ('pretrain','finetune','distill'):
        assert len({weights.info(tmp/o/step/'model.safetensors')['sha256'] for o in ('whole','killed')}) == 1, step
    curves = [[{k: v for k,v in r.items() if 'wait' not in k} for r in csv.DictReader(open(tmp/o/'pretrain'/'history.csv'))] for o in ('whole','killed')]
    assert curves[0] == curves[1] and len(curves[0]) == 4
    assert not list(tmp.glob('*/*/checkpoints')) and (tmp/'killed'/'pretrain'/'ema.safetensors').exists()
    print(f'killed {killed} times')

if __name__ == '__main__': driver(sys.argv[1]); sys.exit()

# ---- the tests

import csv, json, os, signal, subprocess, time
from pathlib import Path
import numpy as np, pytest
from PIL import Image

COMMAND = str(Path(sys.executable).parent/'simclrv2')
TINY = dict(encoder='r18_0.0625x_sk0', size=32, method='squish', epochs=3, bs=8, workers=0)

def draw(path, c, i):
    "A bright bar on noise: across for class 0, upright for class 1"
    rng = np.random.default_rng(100*c+i)
    a = rng.integers(0, 120, (40,48,3), dtype=np.uint8)
    a[(slice(8+i%20, 14+i%20), slice(None)) if c == 0 else (slice(None), slice(8+i%20, 14+i%20))] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path)

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of two classes, with a blank and an umlaut in its name, and names that look like options"
    folder = tmp_path_factory.mktemp('data')/'meine Bilder ü'
    for c,name in enumerate(('quer','hoch é')):
        for i in range(20): draw(folder/name/f'{"--run" if i == 3 else f"bild {i}"}.png', c, i)
    (folder/'notes.txt').write_text('not an image')
    return folder

@pytest.fixture(scope='module')
def finished(photos, tmp_path_factory):
    "A whole run in this process, and the lines it said"
    from simclrv2_nb import flow
    tmp = tmp_path_factory.mktemp('runs'); run, said = tmp/'ein Lauf', []
    kw = dict(cache=tmp/'cache', say=said.append)
    flow.pretrain(photos, run, **TINY, cache=tmp/'cache', say=said.append)
    flow.finetune(run, labels='folder', per_class=4, steps=6, workers=0, **kw)
    flow.distill(run, 'r18_0.03125x_sk0', epochs=2, workers=0, **kw)
    flow.evaluate(run, workers=0, **kw)
    flow.export(run, formats='safetensors', say=said.append)
    return run, said

def shas(run):
    from simclrv2_nb import weights
    return {p.relative_to(run).as_posix(): weights.info(p)['sha256'] for p in sorted(Path(run).glob('*/*.safetensors'))}

def tree(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))

def env(tmp):
    "An environment whose every place to write is a folder of `tmp`"
    for o in ('home','cache','tmp','here'): (tmp/o).mkdir(exist_ok=True)
    return {**os.environ, 'HOME': str(tmp/'home'), 'XDG_CACHE_HOME': str(tmp/'cache'), 'XDG_CONFIG_HOME': str(tmp/'cache'), 'TMPDIR': str(tmp/'tmp'), 'MPLCONFIGDIR': str(tmp/'cache'), 'OMP_NUM_THREADS': '1'}

def test_killed_and_started_again(run, root, tmp_path):
    r = run(sys.executable, __file__, tmp_path, cwd=root, timeout=300)
    assert int(r.stdout.split('killed ')[-1].split()[0]) >= 2, r.stdout

def test_files(finished, photos):
    run, said = finished
    readme, config = (run/'README.md').read_text(encoding='utf-8'), json.loads((run/'config.json').read_text(encoding='utf-8'))
    for f in ('pretrain/history.csv','pretrain/pairs.png','pretrain/training.png','pretrain/data.txt','finetune/labels.csv','evaluate/scores.json','evaluate/student.png','export/student.md','export/classes.txt','log.txt','results.md'):
        assert (run/f).stat().st_size, f
    for f in tree(run):
        if '.' in f and not f.startswith('export') and f not in ('README.md','lock'): assert f'`{f}`' in readme, f'README.md does not explain {f}'
    assert config['pretrain']['source'] == str(photos) and config['pretrain']['epochs'] == 3 and config['finetune']['per_class'] == 4
    roles = [r['used for'] for r in csv.DictReader(open(run/'finetune'/'labels.csv', encoding='utf-8'))]
    assert (roles.count('train'), roles.count('test')) == (8, 32)
    assert any(r['image'] == 'quer/--run.png' for r in csv.DictReader(open(run/'finetune'/'labels.csv', encoding='utf-8')))
    log = (run/'log.txt').read_text(encoding='utf-8')
    assert all(l in log for s in said for l in s.splitlines())
    assert not [o for o in tree(run) if '/.' in o or o.startswith('.') or o.endswith('.tmp')], 'temporary files left'
    assert (run/'export'/'classes.txt').read_text(encoding='utf-8').split('\n')[:2] == ['hoch é','quer']
    from simclrv2_nb import weights
    known = [weights.info(p) for p in sorted(run.glob('*/*.safetensors'))]
    assert len(known) == 4 and {(o['size'], o['method']) for o in known} == {(32, 'squish')}, 'predict must make squares as training did'

def test_repeat_as_a_command(finished, tmp_path):
    "config.json alone, in another process: the same models and scores to the last bit; nothing is written elsewhere"
    run, _ = finished
    r = subprocess.run([COMMAND, 'repeat', str(run/'config.json'), 'noch einer'], capture_output=True, text=True, cwd=(e := env(tmp_path)) and tmp_path/'here', env=e, timeout=300)
    assert r.returncode == 0 and 'Warning' not in r.stderr, r.stderr
    other = tmp_path/'here'/'noch einer'
    assert shas(other) == shas(run) and len(shas(run)) == 4
    assert (other/'evaluate'/'scores.json').read_bytes() == (run/'evaluate'/'scores.json').read_bytes()
    configs = [json.loads((o/'config.json').read_text(encoding='utf-8')) for o in (run, other)]
    assert configs[0] == configs[1]
    assert tree(tmp_path/'here')[0] == 'noch einer' and not [o for o in tree(tmp_path/'here') if not o.startswith('noch einer')]
    assert not tree(tmp_path/'home') and not [o for o in tree(tmp_path/'tmp') if 'simclr' in o]
    assert '█' not in r.stdout and 'test accuracy' in r.stdout

@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_stopped_command(photos, finished, tmp_path, capsys):
    "Ctrl-C; the same in Python goes on to the same end"
    run, e = finished[0], env(tmp_path)
    args = [COMMAND, 'pretrain', str(photos), '--run', 'run', *(f'--{k}={v}' for k,v in TINY.items())]
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**e, 'PYTHONUNBUFFERED': '1'}, preexec_fn=listen)
    def until(p, word): return next((l for l in p.stdout if word in l), None)
    assert until(p, 'epoch 2 of 3')
    for _ in range(5):          # Python drops an interrupt that arrives inside a destructor: press again, as a person would
        p.send_signal(signal.SIGINT)
        try: _, err = p.communicate(timeout=30)
        except subprocess.TimeoutExpired: continue
        break
    assert p.returncode == 130 and 'is whole: ' in err and 'same command' in err and 'Traceback' not in err, err
    from simclrv2_nb import flow
    flow.pretrain(photos, tmp_path/'run', cache=tmp_path/'cache', **TINY)
    assert 'continuing after' in capsys.readouterr().out
    assert shas(tmp_path/'run')['pretrain/model.safetensors'] == shas(run)['pretrain/model.safetensors']

def test_two_programs_in_one_folder(finished, photos):
    "The second one is refused with the first one's number, and touches nothing"
    from simclrv2_nb import flow
    run, _ = finished
    hold = 'import fcntl,os,sys,time; f = open(sys.argv[1], "a+"); fcntl.lockf(f, fcntl.LOCK_EX); f.truncate(0); f.write(f"process {os.getpid()}"); f.flush(); print("held", flush=True); time.sleep(60)'
    p = subprocess.Popen([sys.executable, '-c', hold, str(run/'lock')], stdout=subprocess.PIPE, text=True)
    try:
        p.stdout.readline()
        before = {f: (run/f).read_bytes() for f in tree(run) if (run/f).is_file() and f != 'lock'}
        for step in (lambda: flow.pretrain(photos, run, **TINY), lambda: flow.finetune(run, labels='folder'), lambda: flow.evaluate(run), lambda: flow.export(run)):
            with pytest.raises(ValueError, match=f'in use by process {p.pid}'): step()
        assert before == {f: (run/f).read_bytes() for f in tree(run) if (run/f).is_file() and f != 'lock'}
    finally: p.kill(); p.wait()

def test_other_settings_and_anew(photos, tmp_path, capsys):
    "Other settings are refused; anew moves what was there aside, with what was made from it"
    from simclrv2_nb import flow
    run, kw = tmp_path/'run', dict(cache=tmp_path/'cache')
    flow.pretrain(photos, run, **kw, **{**TINY, 'epochs': 1})
    flow.finetune(run, 'folder', per_class=2, steps=1, epochs=1, workers=0, **kw)
    flow.evaluate(run, workers=0, **kw)
    old = shas(run)
    with pytest.raises(ValueError, match='epochs is 1 there and 2 here.*resume=False'): flow.pretrain(photos, run, **kw, **{**TINY, 'epochs': 2})
    with pytest.raises(ValueError, match='per_class is 2 there and 3 here'): flow.finetune(run, 'folder', per_class=3, **kw)
    flow.pretrain(run=run, workers=0, **kw)                          # no source, no settings: those of the run
    assert shas(run) == old and 'nothing is trained' in capsys.readouterr().out
    flow.pretrain(photos, run, resume=False, **kw, **{**TINY, 'epochs': 2})
    assert {k: v for k,v in shas(run/'old_1').items()} == old and list(shas(run)) == ['pretrain/model.safetensors']
    for f in ('config.json','results.json'): assert 'finetune' not in json.loads((run/f).read_text()) and 'finetune' in json.loads((run/'old_1'/f).read_text())
    assert 'test accuracy' in (run/'old_1'/'results.md').read_text() and 'test accuracy' not in (run/'results.md').read_text()
    (photos/'quer'/'new.png').write_bytes((photos/'quer'/'bild 1.png').read_bytes())
    try:
        with pytest.raises(ValueError, match='not those that the settings were made with: 40 then, 41 now'): flow.pretrain(photos, run, **kw, **{**TINY, 'epochs': 2})
    finally: (photos/'quer'/'new.png').unlink()

def test_a_test_set_of_its_own(photos, tmp_path):
    "Its twins among the training images are left out and counted; its classes are found by name"
    from simclrv2_nb import flow
    run, kw = tmp_path/'run', dict(cache=tmp_path/'cache', workers=0)
    for i in range(4): draw(tmp_path/'test'/'quer'/f'{i}.png', 0, i if i < 2 else 50+i); draw(tmp_path/'test'/'hoch é'/f'{i}.png', 1, 60+i)
    flow.pretrain(photos, run, **{**TINY, 'epochs': 1}, cache=tmp_path/'cache')
    said = []
    flow.finetune(run, 'folder', test=tmp_path/'test', steps=1, epochs=1, from_layer='choose', say=said.append, **kw)
    assert any('2 test images are also among the training images' in s for s in said) and any('validation accuracy' in s for s in said), said
    rows = flow.evaluate(run, **kw)
    assert rows[-1]['images'] == 6 and 'a set of their own' in rows[-1]['protocol'] and '2 more have a twin' in rows[-1]['protocol']
    with pytest.raises(ValueError, match='labels that are not in vocab'):
        draw(tmp_path/'test2'/'schief'/'1.png', 0, 1); draw(tmp_path/'test2'/'quer'/'1.png', 0, 1)
        flow.evaluate(run, test=tmp_path/'test2', **kw)

def test_dry_run_of_a_folder(photos, tmp_path, recwarn):
    "The recipe heeds a size that is given, its table can be asked for with the folder's name, and nothing but the cache is written"
    import shlex
    from simclrv2_nb import flow
    said = []
    plan = flow.pretrain(photos, tmp_path/'run', dry_run=True, size=32, labels='folder', encoder='r18_0.0625x_sk0', cache=tmp_path/'cache', workers=0, say=said.append)
    assert said == [plan] and not (tmp_path/'run').exists() and not [o for o in recwarn if 'blur' in str(o.message)]
    assert '2 classes, labels for 40 (not used here)' in plan and f'simclrv2 recipes {shlex.quote(str(photos))}' in plan and 'guessing gives 2.71' in plan
    assert 'images of about 40 pixels' in flow.recipe_table(photos) and flow.recipe_table(str(photos), 'finetune').count('|') > 50
    with pytest.raises(ValueError, match='bs must be ≥ 2, got 1: an image that is alone'): flow.pretrain(photos, tmp_path/'run', dry_run=True, bs=1, cache=tmp_path/'cache', workers=0)

def test_a_mistake_is_not_remembered(photos, tmp_path):
    "A value that cannot be is refused before anything is written, and the next command does not inherit it"
    from simclrv2_nb import flow
    run, kw = tmp_path/'run', dict(cache=tmp_path/'cache', say=lambda s: None)
    for bad,word in ((dict(temperature=0), 'temperature must be > 0'), (dict(lr=-1), 'lr must be > 0'), (dict(strength=9), 'strength must be in'), (dict(blur=7), 'blur must be true or false'), (dict(queue=-1), 'queue must be ≥ 0')):
        with pytest.raises(ValueError, match=word): flow.pretrain(photos, run, **kw, **{**TINY, **bad})
        assert not run.exists()
    with pytest.raises(ValueError, match='warmup'): flow.pretrain(photos, run, **kw, **{**TINY, 'epochs': 1, 'warmup': 3})       # found by the learner
    flow.pretrain(photos, run, **kw, **{**TINY, 'epochs': 1})
    for bad,word in ((dict(from_layer=9), 'from_layer must be 0 … 3'), (dict(from_layer='choos'), "or 'choose', got 'choos'"), (dict(lr=-1), 'lr must be > 0'), (dict(epochs=0), 'epochs must be ≥ 1'), (dict(opt='sgd'), 'opt must be'), (dict(test_share=1), 'test_share must be in')):
        with pytest.raises(ValueError, match=word): flow.finetune(run, 'folder', **kw, **{'per_class': 2, 'steps': 1, **bad})
    assert 'finetune' not in json.loads((run/'config.json').read_text())
    flow.finetune(run, 'folder', per_class=2, steps=1, epochs=1, **kw)
    with pytest.raises(ValueError, match='temperature must be > 0'): flow.distill(run, epochs=1, temperature=0, **kw)
    flow.distill(run, 'r18_0.03125x_sk0', epochs=1, **kw)

def test_sources_and_words(photos, tmp_path, monkeypatch):
    "The run folder is no source of images, the word 'folder' no path, an empty table an error in words; one label a class; a test set without labels"
    from simclrv2_nb import flow
    kw = dict(cache=tmp_path/'cache', say=lambda s: None)
    with pytest.raises(ValueError, match='would lie in the folder of images'): flow.pretrain(photos, photos/'run', **kw, **TINY)
    assert not (photos/'run').exists()
    (tmp_path/'empty.csv').write_text('')
    with pytest.raises(ValueError, match='no CSV file that can be read'): flow.pretrain(tmp_path/'empty.csv', tmp_path/'r', **kw, **TINY)
    monkeypatch.chdir(tmp_path); (tmp_path/'folder').mkdir()
    flow.pretrain(photos, tmp_path/'run', **kw, **{**TINY, 'epochs': 1})
    (tmp_path/'flat').mkdir(); draw(tmp_path/'flat'/'1.png', 0, 1)
    with pytest.raises(ValueError, match='test has no labels'): flow.finetune(tmp_path/'run', 'folder', test=tmp_path/'flat', **kw)
    (tmp_path/'two.csv').write_text('file,label\nquer/bild 1.png,a\nhoch é/bild 1.png,b\nnowhere.png,b\n', encoding='utf-8')
    said = []
    flow.finetune(tmp_path/'run', tmp_path/'two.csv', steps=1, epochs=1, cache=tmp_path/'cache', say=said.append)
    assert any(s.startswith('warning: labels that match no file: 1') for s in said) and 'nowhere.png' in (tmp_path/'run'/'log.txt').read_text(encoding='utf-8'), said
    with pytest.raises(ValueError, match='no labelled images are left for testing'): flow.evaluate(tmp_path/'run', **kw)

def test_sizes_are_seen_in_any_source(photos):
    "Also of torchvision's data sets: the side, not the number of channels"
    from simclrv2_nb import flow
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder
    class Arrays: data, targets = np.zeros((40,96,96,3), np.uint8), [0]*40
    folder = ImageFolder(photos)
    assert [flow._peek(o) for o in (Arrays(), folder, Subset(folder, range(30)), str(photos), photos)] == [(40, 96), (40, 40), (30, 40), (40, 40), (40, 40)]

def test_card_tells_no_paths(finished, photos):
    "What is shipped does not say where files lay; and a student is no larger than its teacher unless asked for"
    from simclrv2_nb import flow
    card = (finished[0]/'export'/'student.md').read_text(encoding='utf-8')
    assert str(photos.parent) not in card and 'pretrain.lr_base' in card and '| None |' not in card
    assert 'finetune.lr |' in card and 'finetune.lr_base' not in card, 'Adam has its own peak'
    assert flow.own_recipe(50, 160)['distill']['student'].value == 'same'
    assert all(k.reason and k.source for r in [*flow.recipes.values(), flow.own_recipe(99, 99)] for s in ('pretrain','finetune','distill') for k in r[s].values())

@pytest.mark.parametrize('make,kw,word', [
    (lambda f: None, {}, 'no such folder'), (lambda f: f.mkdir(), {}, 'no images in'),
    (lambda f: [draw(f/'a'/'1.png', 0, 1), (f/'a'/'2.png').write_bytes(b'')], {}, '1 of 2 images cannot be read'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(3)], {}, 'bs=8, but there are 3 images'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(9)], dict(labels='folder'), 'one class only'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(9)], dict(labels='b.csv'), 'no such file'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(9)], dict(log='wandb'), 'pip install wandb'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(9)], dict(labels={'a/1.png': 'x'}), 'write it to a CSV'),
    (lambda f: [draw(f/'a'/f'{i}.png', 0, i) for i in range(9)], dict(encoder='r17_1x_sk0'), 'unknown encoder')])
def test_bad_folders(make, kw, word, tmp_path, monkeypatch):
    "A clear error before a run folder is made"
    from simclrv2_nb import flow
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n, *a: None if n == 'wandb' else find(n, *a))
    make(tmp_path/'pictures')
    with pytest.raises((ValueError, TypeError, OSError, ImportError), match=word): flow.pretrain(tmp_path/'pictures', tmp_path/'run', cache=tmp_path/'cache', **{**TINY, **kw})
    assert not (tmp_path/'run').exists()

def test_lying_files(tmp_path):
    "A few bad files are left out and listed; the run goes on"
    from simclrv2_nb import flow
    f = tmp_path/'pictures'
    for i in range(20): draw(f/f'{i}.png', i%2, i)
    Image.new('L', (30,30)).save(f/'gif.jpg', format='GIF'); (f/'text.png').write_text('hello'); (f/'half.png').write_bytes((f/'0.png').read_bytes()[:300])
    os.symlink('/etc', f/'out')
    with pytest.warns(UserWarning, match='lead out of'): flow.pretrain(f, tmp_path/'run', cache=tmp_path/'cache', max_bad=.2, **{**TINY, 'epochs': 1})
    text = (tmp_path/'run'/'pretrain'/'data.txt').read_text()
    assert '21 images' in text and 'text.png' in text and 'half.png' in text and 'gif.jpg' not in text

@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may write everywhere')
def test_folder_that_cannot_be_written(photos, tmp_path):
    from simclrv2_nb import flow
    (tmp_path/'locked').mkdir(mode=0o500)
    with pytest.raises(ValueError, match='cannot be written'): flow.pretrain(photos, tmp_path/'locked'/'run', cache=tmp_path/'cache', **TINY)

@pytest.mark.parametrize('at', [2, 7])
def test_full_disk(at, photos, tmp_path, monkeypatch):
    "At the first file or later: the reason is said, whole files stay, and the run goes on when there is room"
    from simclrv2_nb import flow
    real, n = os.fsync, [0]
    def full(fd):
        n[0] += 1
        if n[0] == at: raise OSError(28, 'No space left on device')
        real(fd)
    with monkeypatch.context() as m:
        m.setattr('simclrv2_nb.resume.os.fsync', full)
        with pytest.raises(OSError, match='No space left'): flow.pretrain(photos, tmp_path/'run', cache=tmp_path/'cache', **TINY)
    assert 'No space left' in (tmp_path/'run'/'log.txt').read_text(encoding='utf-8')
    flow.pretrain(photos, tmp_path/'run', cache=tmp_path/'cache', **TINY)
    assert (tmp_path/'run'/'pretrain'/'model.safetensors').exists()

def test_named_data_set(tmp_path, monkeypatch):
    "Fetched by torchvision, with a test set of its own; without a network it is said what to do"
    import torchvision.datasets as sets
    from simclrv2_nb import flow
    class Fake:
        classes = ['dark','bright']
        def __init__(self, root, train, download):
            rng = np.random.default_rng(train)
            self.targets = [i%2 for i in range(40 if train else 10)]
            self.data = np.stack([rng.integers(0, 100, (32,32,3)) + 150*y for y in self.targets]).astype(np.uint8)
        def __len__(self): return len(self.data)
    monkeypatch.setattr(sets, 'CIFAR10', Fake)
    flow.pretrain('cifar10', tmp_path/'run', encoder='r18_0.0625x_sk0', epochs=1, bs=16, say=lambda s: None)
    flow.finetune(tmp_path/'run', per_class=3, epochs=1, steps=1, say=lambda s: None)
    rows = flow.evaluate(tmp_path/'run', say=lambda s: None)
    assert rows[-1]['images'] == 10 and rows[-1]['vocab'] == Fake.classes and 'a set of their own' in rows[-1]['protocol']
    assert json.loads((tmp_path/'run'/'config.json').read_text())['pretrain']['temperature'] == .5
    def offline(*args, **kwargs): raise RuntimeError('Error downloading')
    monkeypatch.setattr(sets, 'CIFAR10', offline)
    with pytest.raises(FileNotFoundError, match='cifar10 could not be fetched'): flow.pretrain('cifar10', tmp_path/'other')

def test_a_card_for_each_model(finished, tmp_path):
    "The teacher's does not take the place of the student's"
    import shutil
    from simclrv2_nb import flow
    run = shutil.copytree(finished[0], tmp_path/'run')
    before = (run/'export'/'student.md').read_text(encoding='utf-8')
    flow.export(run, which='teacher', formats='safetensors', say=lambda s: None)
    cards = {o: (run/'export'/f'{o}.md').read_text(encoding='utf-8') for o in ('student','teacher')}
    assert cards['student'] == before and 'student, distilled' in before and 'teacher, fine-tuned' in cards['teacher']
    assert all(f'simclrv2 predict {o}.safetensors' in c for o,c in cards.items())

def test_settings_of_another_version(finished, tmp_path):
    "It is said; and a setting that is not known here is refused, not dropped"
    from simclrv2_nb import flow
    said, config = [], json.loads((finished[0]/'config.json').read_text(encoding='utf-8')) | {'simclrv2_nb': '9.9.9'}
    k = flow._knobs_of(flow.Run(tmp_path/'run', said.append), 'distill', {}, {'distill': flow.recipes['imagenet']['distill']}, True, config)
    assert k == config['distill'] and said == [f'warning: the settings were made with simclrv2_nb 9.9.9, this is {flow.simclrv2_nb.__version__}: numbers may differ']
    config['pretrain']['shiny'] = 7
    with pytest.raises(TypeError, match="no setting 'shiny'"): flow.repeat(config, tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_neighbours(finished):
    "No more vote than a class has labels"
    rows = json.loads((finished[0]/'evaluate'/'scores.json').read_text(encoding='utf-8'))
    assert rows[0]['protocol'].startswith('kNN, k = 4,')

def test_encoders_of_other_libraries(tmp_path):
    "By name, for teacher and student, through all steps; a name that does not exist is refused before anything is written"
    import torch
    from simclrv2_nb import flow, weights
    from simclrv2_nb.data import fashion_mnist_sample
    from simclrv2_nb.export import predict_files
    d, kw = fashion_mnist_sample(), dict(say=lambda s: None, epochs=1, bs=32)
    both = d.train_x[:96], d.train_y[:96]
    for name,word in (('timm/no_such_net', 'timm has no network'), ('elsewhere/resnet18', "must begin with 'timm/'")):
        with pytest.raises(ValueError, match=word): flow.pretrain(both, tmp_path/'run', recipe='fashion-mnist-sample', encoder=name, **kw)
    assert not (tmp_path/'run').exists()
    plan = flow.pretrain(both, tmp_path/'run', recipe='fashion-mnist-sample', encoder='timm/test_resnet.r160_in1k', dry_run=True, **kw)
    assert 'timm/test_resnet.r160_in1k' in str(plan) and 'stem)' not in str(plan), plan
    flow.pretrain(both, tmp_path/'run', recipe='fashion-mnist-sample', encoder='timm/test_resnet.r160_in1k', **kw)
    teacher = flow.finetune(tmp_path/'run', images=both, per_class=4, steps=2, **kw)
    student = flow.distill(tmp_path/'run', images=both, student='torchvision/shufflenet_v2_x0_5', **kw)
    assert flow.evaluate(tmp_path/'run', images=both, say=lambda s: None)
    flow.export(tmp_path/'run', formats='safetensors', say=lambda s: None)
    Image.fromarray(d.test_x[0,0].numpy()).save(tmp_path/'a.png')
    for model,step in ((teacher,'finetune'), (student,'distill')):
        again = weights.load(tmp_path/'run'/step/'model.safetensors')
        assert again.encoder.named['name'] == dict(finetune='timm/test_resnet.r160_in1k', distill='torchvision/shufflenet_v2_x0_5')[step]
        with torch.no_grad(): assert torch.equal(again(d.test_x[:4]/255), model.eval()(d.test_x[:4]/255))
    [row] = predict_files(tmp_path/'run'/'distill'/'model.safetensors', tmp_path/'a.png')
    assert row['error'] is None and len(row['top']) == 3

def test_wandb(tmp_path, monkeypatch):
    "fastai's callback gets losses and measures, in a run of its own for each step that ends with the step"
    from fastcore.basics import AttrDict
    from types import ModuleType
    from importlib.machinery import ModuleSpec
    from simclrv2_nb import flow
    from simclrv2_nb.data import fashion_mnist_sample
    calls, fake = [], ModuleType('wandb')
    class A:
        step, summary = 0, {}
        def __enter__(self): return self
        def __exit__(self, *a): calls.append(('finish',)); fake.run = None
    def init(**kw): calls.append(('init', kw)); fake.run = A(); return fake.run
    fake.__spec__, fake.run, fake.init, fake.config = ModuleSpec('wandb', None), None, init, type('C', (), {'update': lambda self, d, **k: calls.append(('config', d))})()
    fake.log = lambda d, step=None: calls.append(('log', d))
    monkeypatch.setitem(sys.modules, 'wandb', fake); monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    x = fashion_mnist_sample().train_x[:64]; y = fashion_mnist_sample().train_y[:64]
    kw = dict(say=lambda s: None, epochs=1, bs=32)
    flow.pretrain((x, y), tmp_path/'run', recipe='fashion-mnist-sample', encoder='r18_0.0625x_sk0', log='wandb', **kw)
    flow.finetune(tmp_path/'run', images=(x, y), per_class=2, steps=1, **kw)
    flow.distill(tmp_path/'run', images=(x, y), log='wandb', **kw)
    sys.modules.pop('fastai.callback.wandb')
    inits = [c[1] for c in calls if c[0] == 'init']
    assert [Path(o['dir']).name for o in inits] == ['pretrain','distill'] and inits[0]['config']['epochs'] == 1 and [c[0] for c in calls if c[0] in ('init','finish')] == ['init','finish']*2
    seen = {k for c in calls if c[0] == 'log' for k in c[1]}
    assert {'train_loss','contrastive_accuracy','lr_0'} <= seen, seen
    fake.run, calls[:] = A(), []                # begun by the user: it is told the settings, and goes on afterwards
    with flow._logger(AttrDict(log='wandb', epochs=7), tmp_path): pass
    assert calls == [('config', dict(log='wandb', epochs=7))]

def test_tensorboard_and_memory(tmp_path):
    "fastai's callback writes into the run folder; micro-batches and a queue"
    pytest.importorskip('tensorboard')
    from simclrv2_nb import flow
    from simclrv2_nb.data import fashion_mnist_sample
    flow.pretrain(fashion_mnist_sample().train_x[:64], tmp_path/'run', recipe='fashion-mnist-sample', encoder='r18_0.0625x_sk0', epochs=1, bs=32, log='tensorboard', micro_batch=16, queue=32, say=lambda s: None)
    assert list((tmp_path/'run'/'pretrain'/'tensorboard').glob('events*')) and (tmp_path/'run'/'pretrain'/'ema.safetensors').exists()

def test_help():
    "Every command is named, and its help says what it does"
    from typer.testing import CliRunner
    from simclrv2_nb.cli import app
    out = CliRunner().invoke(app, ['--help']).output
    for o in ('pretrain','finetune','distill','evaluate','export','repeat','recipes','predict','convert','demo'):
        assert f' {o} ' in out
        assert CliRunner().invoke(app, [o, '--help']).exit_code == 0
