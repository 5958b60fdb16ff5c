"""What a pretraining step costs beyond the encoder: fastai's loop, two views, head, NT-Xent and LARS.

    python benchmarks/step_overhead.py               # some minutes; the machine should be idle
    python benchmarks/step_overhead.py --repeats 2 --steps 1 --dry-run

A pair is (a) the bare encoder, forward and backward on 2·bs images of random numbers, in the precision and memory
format that `fast_precision` chooses, and (b) as many steps of `pretrain_learner` on the Fashion-MNIST sample, loading
included. The two take turns, a pair's ratio is (b)/(a), and which comes first alternates, so that whatever else the
machine does meets both. The result goes to benchmarks/results/step_overhead.json.
"""
import argparse, json, statistics as st, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import fastai, torch
from fastai.callback.channelslast import ChannelsLast
from fastai.torch_core import set_seed
from simclrv2_nb import cli
from simclrv2_nb.data import fashion_mnist_sample, image_dls
from simclrv2_nb.pretrain import pretrain_learner
from simclrv2_nb.resnet import encoder
from simclrv2_nb.scale import fast_precision

OUT = Path(__file__).parent/'results'/'step_overhead.json'

def timed(f):
    "Seconds that `f()` takes"
    if torch.cuda.is_available(): torch.cuda.synchronize()
    t = time.perf_counter(); f()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - t

def bare_encoder(name, n, device, cbs):
    "A function that does one forward and backward of the encoder on `n` images"
    enc, x = encoder(name, in_channels=1, cifar_stem=True).to(device).train(), torch.rand(n, 1, 28, 28, device=device)
    if any(isinstance(o, ChannelsLast) for o in cbs): enc.to(memory_format=torch.channels_last)
    mixed = [o for o in cbs if hasattr(o, 'amp_mode')]
    dtype = torch.float16 if mixed and mixed[0].amp_mode.value == 'fp16' else torch.bfloat16
    def step():
        with torch.autocast(device.type, dtype, enabled=bool(mixed)): h = enc(x)
        h.float().mean().backward()
        enc.zero_grad()
    return step

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--encoder', default='r18_0.25x_sk0', help='base width 16 by default')
    p.add_argument('--bs', type=int, default=256, help='images a batch, each in two views')
    p.add_argument('--steps', type=int, default=4, help='steps a measurement')
    p.add_argument('--repeats', type=int, default=15, help='pairs of measurements')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    set_seed(0)
    dls = image_dls(fashion_mnist_sample().train_x[:a.steps*a.bs], bs=a.bs)
    device, cbs = torch.device(dls.device), fast_precision(dls.device)
    learn, bare = pretrain_learner(dls, a.encoder), bare_encoder(a.encoder, 2*a.bs, device, cbs)
    def encoder_only():
        for _ in range(a.steps): bare()
    def whole_step():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    encoder_only(); whole_step()                                     # warm up
    pairs = []
    for i in range(a.repeats):
        t = {f: timed(f) for f in ((encoder_only, whole_step) if i%2 else (whole_step, encoder_only))}
        pairs.append([t[encoder_only]/a.steps, t[whole_step]/a.steps])
    ratios = sorted(w/b for b,w in pairs)
    q = st.quantiles(ratios, n=4) if len(ratios) > 1 else ratios*3
    res = dict(command=f'python benchmarks/step_overhead.py --encoder {a.encoder} --bs {a.bs} --steps {a.steps} --repeats {a.repeats}',
               machine=cli._machine(), threads=torch.get_num_threads(), fastai=fastai.__version__,
               precision=[type(o).__name__ for o in cbs], ratio=dict(median=round(st.median(ratios), 3), quartiles=[round(q[0], 3), round(q[2], 3)], range=[round(ratios[0], 3), round(ratios[-1], 3)]),
               encoder_ms=round(1e3*st.median(b for b,_ in pairs), 1), step_ms=round(1e3*st.median(w for _,w in pairs), 1),
               pairs_per_second=round(a.bs/st.median(w for _,w in pairs), 1), seconds=[[round(o, 4) for o in pr] for pr in pairs])
    r = res['ratio']
    print(f"whole step / bare encoder: median {r['median']} (quartiles {r['quartiles'][0]} to {r['quartiles'][1]}, {a.repeats} pairs), "
          f"{res['encoder_ms']} ms and {res['step_ms']} ms, {res['pairs_per_second']} pairs/s; {a.encoder}, {a.bs} pairs, {', '.join(res['precision']) or 'float32'}; "
          f"{res['machine']}")
    if a.dry_run: return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
