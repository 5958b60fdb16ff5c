"""Time and memory of NT-Xent, forward and backward, beside the work that cannot be avoided and beside other libraries.

    pip install lightly pytorch-metric-learning      # for the comparison; what is missing is left out
    python benchmarks/nt_xent.py                     # some minutes; the machine should be idle

One thread, float32, d = 128. `floor` is two matrix products and one exponential of the 2N×2N matrix: what any exact
loss has to do (and in that form all it can hold). Those that run at a size take turns; the median of their ratios to
`floor` is reported. Memory is the peak (VmHWM, counted anew after a small warm-up) of a fresh process above its inputs.
The result goes to benchmarks/results/nt_xent.json.
"""
import argparse, json, statistics as st, subprocess, sys, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import torch, torch.nn.functional as F

OUT = Path(__file__).parent/'results'/'nt_xent.json'
τ = .1

def floor(z):
    z = F.normalize(z.detach(), dim=1)
    s = z @ z.T
    return s.exp_() @ z

def plain(z):
    z = F.normalize(z, dim=1); s = z @ z.T / τ
    s.fill_diagonal_(-torch.inf)
    F.cross_entropy(s, torch.arange(len(z)).roll(len(z)//2)).backward()

def ours(z):
    from simclrv2_nb.loss import nt_xent
    nt_xent(z, τ).backward()

def ours_whole(z):
    from simclrv2_nb.loss import nt_xent
    nt_xent(z, τ, chunk_size=len(z)).backward()

def lightly(z):
    from lightly.loss import NTXentLoss
    NTXentLoss(τ)(*z.chunk(2)).backward()

def metric_learning(z):
    from pytorch_metric_learning.losses import NTXentLoss
    NTXentLoss(τ)(z, torch.arange(len(z)//2).repeat(2)).backward()

FORMS = dict(floor=floor, ours=ours, ours_whole=ours_whole, plain=plain, lightly=lightly, metric_learning=metric_learning)

def inputs(n): return torch.randn(2*n, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()

def timed(f, z):
    z.grad = None; t = time.perf_counter(); f(z)
    return time.perf_counter() - t

def peak(name, n):
    "Peak memory in MB of one call in a fresh process, above its inputs; None: it failed"
    code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; torch.set_num_threads(1); import nt_xent as b\n'
            f'b.FORMS[{name!r}](b.inputs(16)); z = b.inputs({n})\n'
            'read = lambda k: next(int(l.split()[1])/1024 for l in open("/proc/self/status") if l.startswith(k))\n'
            'open("/proc/self/clear_refs", "w").write("5"); r = read("VmRSS"); b.FORMS[%r](z); print(read("VmHWM")-r)' % name)
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    return round(float(r.stdout.split()[-1]), 1) if r.returncode == 0 else None

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--pairs', type=int, nargs='+', default=[256, 1024, 4096, 8192], help='sizes to measure')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--most', type=int, default=4096, help='largest size at which forms that hold 2N×2N numbers are timed')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    torch.set_num_threads(1)
    from simclrv2_nb import cli
    rows = []
    for n in a.pairs:
        z, ts = inputs(n), {}
        for name,f in FORMS.items():
            if n > a.most and name not in ('floor','ours'): continue
            if name == 'metric_learning' and n > 256: continue           # minutes, and gigabytes
            try: f(inputs(16))
            except ImportError: continue
            ts[name] = []
        for i in range(a.repeats+1):
            for name in (ts if i%2 else reversed(ts)): ts[name].append(timed(FORMS[name], z))
        for name,t in ts.items():
            ratio = st.median(x/y for x,y in zip(t[1:], ts['floor'][1:]))      # the first round warms up
            rows.append(dict(pairs=n, form=name, seconds=round(st.median(t[1:]), 4), over_floor=round(ratio, 2), peak_mb=peak(name, n)))
            print(rows[-1], flush=True)
    res = dict(command=f'python benchmarks/nt_xent.py --pairs {" ".join(map(str, a.pairs))} --repeats {a.repeats}', machine=cli._machine(), rows=rows)
    if not a.dry_run:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
