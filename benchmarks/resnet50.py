"""Our ResNet-50 beside torchvision's, which has the same layers and FLOPs: forward and backward, taking turns.

    python benchmarks/resnet50.py                    # about four minutes; the machine should be idle

A pair is one step of each on the same images, and which comes first alternates. Precision and memory format are those
that `fast_precision` chooses. The result goes to benchmarks/results/resnet50.json.
"""
import argparse, json, statistics as st, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import torch, torchvision
from fastai.callback.channelslast import ChannelsLast
from simclrv2_nb import cli
from simclrv2_nb.resnet import ResNet
from simclrv2_nb.scale import fast_precision

OUT = Path(__file__).parent/'results'/'resnet50.json'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--bs', type=int, default=16, help='images a step')
    p.add_argument('--size', type=int, default=224, help='side of the images in pixels')
    p.add_argument('--repeats', type=int, default=25, help='pairs')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    torch.manual_seed(0)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    cbs = fast_precision(device)
    mixed = [o for o in cbs if hasattr(o, 'amp_mode')]
    dtype = torch.float16 if mixed and mixed[0].amp_mode.value == 'fp16' else torch.bfloat16
    theirs = torchvision.models.resnet50(); theirs.fc = torch.nn.Identity()
    models = dict(ours=ResNet(50), torchvision=theirs)
    x = torch.rand(a.bs, 3, a.size, a.size, device=device)
    for m in models.values():
        m.to(device).train()
        if any(isinstance(o, ChannelsLast) for o in cbs): m.to(memory_format=torch.channels_last)
    def step(m):
        if device.type == 'cuda': torch.cuda.synchronize()
        t = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=bool(mixed)): h = m(x)
        h.float().mean().backward(); m.zero_grad()
        if device.type == 'cuda': torch.cuda.synchronize()
        return time.perf_counter() - t
    for m in models.values(): step(m); step(m)
    pairs = [{k: step(models[k]) for k in (models if i%2 else reversed(models))} for i in range(a.repeats)]
    ratios = sorted(o['ours']/o['torchvision'] for o in pairs)
    q = st.quantiles(ratios, n=4)
    res = dict(command=f'python benchmarks/resnet50.py --bs {a.bs} --size {a.size} --repeats {a.repeats}', machine=cli._machine(), threads=torch.get_num_threads(),
               torchvision=torchvision.__version__, precision=[type(o).__name__ for o in cbs], ratio=dict(median=round(st.median(ratios), 3), quartiles=[round(q[0], 3), round(q[2], 3)]),
               ours_ms=round(1e3*st.median(o['ours'] for o in pairs)), torchvision_ms=round(1e3*st.median(o['torchvision'] for o in pairs)))
    print(res)
    if not a.dry_run:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(res, indent=1)+'\n')

if __name__ == '__main__': main()
