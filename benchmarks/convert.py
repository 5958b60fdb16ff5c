"""Time and memory of turning a TensorFlow checkpoint into a model, checksums included.

    python benchmarks/convert.py                     # ResNet-50 with selective kernels, half a minute
    python benchmarks/convert.py --encoder r152_3x_sk1

A checkpoint with random numbers and optimizer slots is written to a temporary folder; a fresh process converts it. Its
peak memory is read from VmHWM, counted anew after the imports. The result goes to benchmarks/results/convert.json.
"""
import argparse, json, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT/'benchmarks'/'results'/'convert.json'
CHILD = '''
import sys, time, warnings; warnings.filterwarnings('ignore')
from simclrv2_nb.weights import from_tf
import torch
def status(key): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(key))
open('/proc/self/clear_refs', 'w').write('5')
before, t = status('VmRSS'), time.perf_counter()
m = from_tf(sys.argv[1])
print(time.perf_counter()-t, status('VmHWM')-before, torch.get_num_threads())
'''

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--encoder', default='r50_1x_sk1')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--slots', action='store_true', help="with the optimizer's momentum, as in a released checkpoint")
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    sys.path.insert(0, str(ROOT/'tests'))
    import numpy as np, torch
    from tf_bundle import write_tf_checkpoint
    from simclrv2_nb import cli
    from simclrv2_nb.head import SimCLRModel
    from simclrv2_nb.released import _variables, _tf_shape
    from simclrv2_nb.resnet import encoder
    with torch.device('meta'):
        m = SimCLRModel(encoder(a.encoder)); m.supervised = torch.nn.Linear(m.encoder.num_features, 1000)
    rng, tf = np.random.default_rng(0), {}
    for name,(mod,k) in _variables(m).items():
        tf[name] = rng.standard_normal(_tf_shape(getattr(mod, k)), dtype=np.float32)
        if a.slots and 'moving' not in name: tf[f'{name}/Momentum'] = tf[name]
    size = sum(v.nbytes for k,v in tf.items() if not k.endswith('Momentum'))/2**20
    with tempfile.TemporaryDirectory() as d:
        write_tf_checkpoint(Path(d)/'model.ckpt-1', tf); del tf
        runs = [list(map(float, subprocess.run([sys.executable, '-c', CHILD, f'{d}/model.ckpt-1'], capture_output=True, text=True, check=True, cwd=d).stdout.split())) for _ in range(a.repeats)]
    seconds, peak = sorted(r[0] for r in runs)[len(runs)//2], max(r[1] for r in runs)
    res = dict(command=f'python benchmarks/convert.py --encoder {a.encoder}' + ' --slots'*a.slots, machine=cli._machine(), model_mb=round(size, 1), seconds=round(seconds, 2),
               all_seconds=[round(r[0], 2) for r in runs], peak_mb=round(peak, 1), peak_over_model=round(peak/size, 2))
    print(res)
    if not a.dry_run:
        OUT.parent.mkdir(exist_ok=True)
        rows = [r for r in (json.loads(OUT.read_text()) if OUT.exists() else []) if r['command'] != res['command']]
        OUT.write_text(json.dumps(rows + [res], indent=1)+'\n')

if __name__ == '__main__': main()
