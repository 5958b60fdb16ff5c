"""Time and memory of the gathered NT-Xent loss, forward and backward, against the number of processes.

    python benchmarks/gathered.py                    # a minute; the machine should be idle

d = 128, float32, gloo, one thread in each process. Two questions: (a) a fixed batch that is divided among more and more
processes, (b) a fixed number of images in each of them. Every number comes from fresh processes. A step begins and ends
at a barrier, so its time is that of the slowest process; reported is the median of `--repeats` steps after two of
warm-up. Memory is the peak (VmHWM, counted anew after a small warm-up) of the process with the highest one, above its
inputs. With more processes than cores they take turns. The result goes to benchmarks/results/gathered.json.
"""
import argparse, json, os, socket, statistics as st, subprocess, sys, time
from pathlib import Path

OUT = Path(__file__).parent/'results'/'gathered.json'

def status(key): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith(key))

def child(pairs, repeats):
    "One process of a group: prints seconds a step and peak MB, the maximum over processes"
    import torch, torch.distributed as dist
    from simclrv2_nb.loss import nt_xent
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    def inputs(n): return torch.randn(2*n, 128, generator=torch.Generator().manual_seed(dist.get_rank())).requires_grad_()
    def step(z): z.grad = None; nt_xent(z, .1, gather=True).backward()
    step(inputs(16))
    z = inputs(pairs)
    open('/proc/self/clear_refs', 'w').write('5')
    before = status('VmRSS'); step(z); peak = torch.tensor(status('VmHWM') - before)
    step(z)
    times = []
    for _ in range(repeats):
        dist.barrier(); t = time.perf_counter(); step(z); dist.barrier()
        times.append(time.perf_counter() - t)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    if not dist.get_rank(): print(json.dumps(dict(seconds=round(st.median(times), 4), spread=[round(min(times), 4), round(max(times), 4)], peak_mb=round(peak.item(), 1))))
    dist.destroy_process_group()

def group(processes, pairs, repeats):
    "Run `processes` of them; what the first one prints"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    cmd = [sys.executable, '-W', 'ignore', __file__, '--child', str(pairs), '--repeats', str(repeats)]
    ps = [subprocess.Popen(cmd, env=dict(env, RANK=str(r)), stdout=subprocess.PIPE, text=True) for r in range(processes)]
    outs = [p.communicate()[0] for p in ps]
    if any(p.returncode for p in ps): raise SystemExit(f'{processes} processes of {pairs} images failed')
    return json.loads(outs[0])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--processes', type=int, nargs='+', default=[1, 2, 4])
    p.add_argument('--batch', type=int, default=4096, help='images in all, for (a)')
    p.add_argument('--part', type=int, default=1024, help='images in each process, for (b)')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--child', type=int, help=argparse.SUPPRESS)
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    if a.child: return child(a.child, a.repeats)
    from simclrv2_nb import cli
    rows = []
    for form,each in (('fixed batch', lambda n: a.batch//n), ('fixed part', lambda n: a.part)):
        for n in a.processes:
            rows.append(dict(form=form, processes=n, pairs_each=each(n), pairs=n*each(n), **group(n, each(n), a.repeats)))
            print(rows[-1], flush=True)
    res = dict(command=f'python benchmarks/gathered.py --processes {" ".join(map(str, a.processes))} --batch {a.batch} --part {a.part} --repeats {a.repeats}',
               machine=cli._machine(), rows=rows)
    if not a.dry_run:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
