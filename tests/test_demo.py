"""The demo as its user runs it: the installed command, in a process of its own, on a tiny budget."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest

PROTOCOLS = ['supervised', 'linear_probe', 'finetune_layer0', 'finetune_layer1', 'self_distilled', 'distilled_half_width']
COMMAND = [str(Path(sys.executable).parent/'simclrv2'), 'demo']
# the same command on a seventh of the images and with ten steps on labels: what it does with all of them is the same, for minutes
FEWER = '''import sys
from simclrv2_nb import cli
d = cli.fashion_mnist_sample(); few = type(d)(d.train_x[::7], d.train_y[::7], d.test_x[::8], d.test_y[::8])
cli.fashion_mnist_sample = lambda: few
for o in ('supervised', 'finetune'): cli.recipe[o].update(steps=10, epochs=2)
sys.argv[0] = 'simclrv2'; cli.main()'''
ENV = {**os.environ, 'PYTHONWARNINGS': 'ignore'}

def test_demo(tmp_path):
    "One epoch of everything: the files are there, say the same as the output, and the output is quiet without a terminal"
    out = tmp_path/'with space ü'
    r = subprocess.run([sys.executable, '-c', FEWER, 'demo', '--out', out, '--epochs', '1', '--distil-epochs', '1', '--per-class', '2', '--seed', '3'],
                       capture_output=True, text=True, env=ENV, cwd=tmp_path, timeout=900)
    assert r.returncode == 0, r.stderr
    rows = json.loads((out/'results.json').read_text())
    assert [o['protocol'] for o in rows] == PROTOCOLS
    for o in rows: assert set(o) == {'protocol','params','accuracy','seconds'} and 0 <= o['accuracy'] <= 100 and o['params'] > 0
    p = {o['protocol']: o['params'] for o in rows}
    assert p['distilled_half_width'] < p['self_distilled']/3
    md = (out/'results.md').read_text()
    for o in rows: assert f"{o['params']:,} | {o['accuracy']:.1f}" in md and f"{o['accuracy']:.1f}" in r.stdout
    names = {o.name for o in out.iterdir()}
    assert {f'{o}.png' for o in ('pairs','training','similarity','embedding','labels')} <= names
    assert {f'{o}.safetensors' for o in ['pretrained', *PROTOCOLS] if o != 'linear_probe'} <= names
    assert not [o for o in names if o.startswith('.')], 'temporary files left'
    assert 'minutes in all' in r.stdout and 'bought' in r.stdout
    assert '█' not in r.stdout and 'epoch' not in r.stdout, 'progress bars without a terminal'

@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_ctrl_c(tmp_path):
    "Stopped in the middle of pretraining: no traceback, exit code 130, and a word on what is there"
    # a shell that starts jobs in the background lets them ignore the interrupt, and that is inherited
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    p = subprocess.Popen([*COMMAND, '--out', str(tmp_path/'out')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**ENV, 'PYTHONUNBUFFERED': '1'}, preexec_fn=listen)
    try:
        for line in p.stdout:
            if 'minutes in all' in line: break
        for _ in range(5):          # Python drops an interrupt that arrives inside a destructor: press again, as a person would
            p.send_signal(signal.SIGINT)
            try: _, err = p.communicate(timeout=30)
            except subprocess.TimeoutExpired: continue
            break
    finally: p.kill()
    assert p.returncode == 130 and 'stopped' in err and 'Traceback' not in err, err
    assert not [o for o in (tmp_path/'out').iterdir()], 'half-written files'

@pytest.mark.parametrize('args,word', [(['--per-class','1001'], 'per_class=1001'), (['--epochs','0'], 'epochs'), (['--out','/dev/null/x'], 'cannot be written')])
def test_bad_arguments(args, word, tmp_path):
    "One line that names the value, before anything is trained or written"
    r = subprocess.run([*COMMAND, '--out', str(tmp_path/'out'), *args], capture_output=True, text=True, env=ENV, timeout=120)
    assert r.returncode == 1 and word in r.stderr and 'Traceback' not in r.stderr, r.stderr
    assert not (tmp_path/'out').exists() or not list((tmp_path/'out').iterdir())
