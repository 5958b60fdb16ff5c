"""How time and memory grow: the loss with its batch and with its queue, the training step with its batch.

    python benchmarks/growth.py                  # some minutes; the machine should be idle

One thread. `loss`: NT-Xent of N pairs, forward and backward, d = 128. `queue`: NT-Xent of 256 pairs beside a queue of M
rows. `step`: a step of `pretrain_learner` (base width 8, the Fashion-MNIST sample) at batch N; `gradcache`: the same
with `GradCache(256)`. Every point is a fresh process: the median time of three calls after a small one (of one where a
call takes seconds), and the peak of its memory (VmHWM, counted anew after the small one) above what it held before,
inputs included. The result goes to benchmarks/results/growth.json.
"""
import argparse, json, subprocess, sys
from pathlib import Path

OUT = Path(__file__).parent/'results'/'growth.json'
SIZES = dict(loss=[256, 512, 1024, 2048, 4096, 8192], queue=[256, 1024, 4096, 16384, 65536], step=[64, 128, 256, 512, 1024], gradcache=[256, 512, 1024, 2048])

def loss(n):
    import torch
    from simclrv2_nb.loss import nt_xent
    z = torch.randn(2*n, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    def call(): z.grad = None; nt_xent(z, .1).backward()
    return call

def queue(m):
    import torch
    from simclrv2_nb.memory import nt_xent_with_queue
    z, q = torch.randn(512, 128).requires_grad_(), torch.randn(m, 128)
    def call(): z.grad = None; nt_xent_with_queue(z, q, .1).backward()
    return call

def step(n, micro_batch=None):
    from simclrv2_nb.data import fashion_mnist_sample, image_dls
    from simclrv2_nb.memory import GradCache
    from simclrv2_nb.pretrain import pretrain_learner
    x = fashion_mnist_sample().train_x
    learn = pretrain_learner(image_dls(x[:n], bs=n), 'r18_0.125x_sk0', metrics=None, cbs=GradCache(micro_batch) if micro_batch else None)
    def call():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return call

def gradcache(n): return step(n, 256)

def point(kind, n):
    "Seconds and megabytes of one point, in this process"
    import statistics as st, time, warnings; warnings.filterwarnings('ignore')
    import torch
    torch.set_num_threads(1)
    def status(k): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(k))
    make = globals()[kind]
    make(32)()                                       # libraries are loaded, kernels chosen
    Path('/proc/self/clear_refs').write_text('5'); before, ts = status('VmRSS'), []
    call = make(n)
    for _ in range(1 if n >= 2048 and kind != 'queue' else 3): t = time.perf_counter(); call(); ts.append(time.perf_counter()-t)
    return dict(kind=kind, n=n, seconds=round(st.median(ts), 4), peak_mb=round(status('VmHWM')-before, 1))

if __name__ == '__main__':
    ap = argparse.ArgumentParser(); ap.add_argument('--kind', choices=SIZES, nargs='+', default=list(SIZES)); ap.add_argument('--point', nargs=2)
    a = ap.parse_args()
    if a.point: sys.exit(print(json.dumps(point(a.point[0], int(a.point[1])))))
    from simclrv2_nb.cli import _machine
    rows = [r for r in (json.loads(OUT.read_text())['rows'] if OUT.exists() else []) if r['kind'] not in a.kind]
    for kind in a.kind:
        for n in SIZES[kind]:
            out = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--point', kind, str(n)], capture_output=True, text=True)
            if out.returncode: sys.exit(out.stderr)
            rows.append(json.loads(out.stdout.splitlines()[-1])); print(rows[-1], flush=True)
    OUT.write_text(json.dumps(dict(command='python benchmarks/growth.py', machine=_machine(), threads=1, rows=rows), indent=1)+'\n')
