"""Memory and time of a large batch with GradCache, beside a small batch without it.

    python benchmarks/gradcache.py                    # some minutes; the machine should be idle
    python benchmarks/gradcache.py --repeats 2 --dry-run

Both are steps of `pretrain_learner` on random images, in the precision that `fast_precision` chooses, loading, views,
loss and optimizer included: (a) batches of `--small` images, (b) batches of `--large` images with `GradCache(small)`.
Memory: each runs alone in a fresh process, which prints VmHWM, counted anew after the imports, less what was resident
then. Time: one process each way takes turns, as many images each, and a pair's ratio is (b)/(a); which comes first
alternates, so that whatever else the machine does meets both. The result goes to benchmarks/results/gradcache.json.
"""
import argparse, json, statistics as st, subprocess, sys, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path

OUT = Path(__file__).parent/'results'/'gradcache.json'

def learner(encoder, bs, n, size, micro_batch=None):
    "A learner for `n` images in batches of `bs`"
    import torch
    from fastai.torch_core import set_seed
    from simclrv2_nb.data import image_dls
    from simclrv2_nb.memory import GradCache
    from simclrv2_nb.pretrain import pretrain_learner
    set_seed(0)
    x = torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8)
    return pretrain_learner(image_dls(x, bs=bs), encoder, cbs=[GradCache(micro_batch)] if micro_batch else [])

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

def status(key): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(key))

def child(a):
    "Two steps, and the memory they took at most, in MB"
    import simclrv2_nb.pretrain, simclrv2_nb.memory                 # imports do not count
    open('/proc/self/clear_refs', 'w').write('5')
    before = status('VmRSS')
    bs, micro = (a.large, a.small) if a.child == 'large' else (a.small, None)
    fit(learner(a.encoder, bs, 2*bs, a.size, micro))
    print(status('VmHWM') - before)

def memory(a, which):
    cmd = [sys.executable, __file__, '--child', which, '--encoder', a.encoder, '--small', a.small, '--large', a.large, '--size', a.size]
    return float(subprocess.run(list(map(str, cmd)), capture_output=True, text=True, check=True).stdout.split()[-1])

def timed(learn):
    t = time.perf_counter(); fit(learn)
    return time.perf_counter() - t

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--encoder', default='r18_0.25x_sk0', help='base width 16 by default')
    p.add_argument('--small', type=int, default=256, help='images in the small batch, and in a micro-batch')
    p.add_argument('--large', type=int, default=4096, help='images in the large batch')
    p.add_argument('--size', type=int, default=28, help='pixels')
    p.add_argument('--repeats', type=int, default=5, help='pairs of timings, and processes for each memory')
    p.add_argument('--child', choices=['small','large'], help=argparse.SUPPRESS)
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    if a.child: return child(a)
    mb = {k: [round(memory(a, k), 1) for _ in range(a.repeats)] for k in ('small','large')}
    import torch, fastai
    from simclrv2_nb import cli
    from simclrv2_nb.scale import fast_precision
    small, large = learner(a.encoder, a.small, a.large, a.size), learner(a.encoder, a.large, a.large, a.size, a.small)
    timed(small); timed(large)                                      # warm up
    pairs = []
    for i in range(a.repeats):
        t = {k: timed(k) for k in ((small, large) if i%2 else (large, small))}
        pairs.append([t[small], t[large]])
    ratios = sorted(b/s for s,b in pairs)
    res = dict(command=f'python benchmarks/gradcache.py --encoder {a.encoder} --small {a.small} --large {a.large} --size {a.size} --repeats {a.repeats}',
               machine=cli._machine(), threads=torch.get_num_threads(), fastai=fastai.__version__, precision=[type(o).__name__ for o in fast_precision('cpu')],
               memory_mb={k: st.median(v) for k,v in mb.items()}, memory_ratio=round(st.median(mb['large'])/st.median(mb['small']), 3),
               time_ratio=dict(median=round(st.median(ratios), 3), range=[round(ratios[0], 3), round(ratios[-1], 3)]),
               ms_per_image=dict(small=round(1e3*st.median(s for s,_ in pairs)/a.large, 3), large=round(1e3*st.median(b for _,b in pairs)/a.large, 3)),
               all_memory_mb=mb, seconds=[[round(o, 3) for o in pr] for pr in pairs])
    print(f"{a.large} images with GradCache({a.small}) beside {a.small}: {res['memory_ratio']} times the memory ({res['memory_mb']['large']:.0f} and {res['memory_mb']['small']:.0f} MB), "
          f"{res['time_ratio']['median']} times the time an image (range {res['time_ratio']['range'][0]} to {res['time_ratio']['range'][1]}, {a.repeats} pairs); {res['machine']}")
    if a.dry_run: return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
