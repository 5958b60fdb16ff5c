"""Curves of healthy and of deliberately broken pretraining, for the page "What your curves mean".

    python benchmarks/curves.py                 # everything, about ten minutes on one core
    python benchmarks/curves.py --kinds healthy lr_high --seeds 1 --images 512 --epochs 2 --out some.json

Every run is the demo's pretraining recipe in small (`BASE`; half its batch, and the learning rate for that by the √-rule), changed in one place (`KINDS`); what `Health` sees after each epoch,
and what it says, goes to benchmarks/results/curves.json. kNN and probe: 1 000 labelled training images, judged on 1 000 test images.
"""
import argparse, json, math, sys, time, warnings
from pathlib import Path
import torch, torch.nn as nn
from fastai.torch_core import set_seed
from simclrv2_nb import cli
from simclrv2_nb.augment import SimCLRAugment
from simclrv2_nb.data import fashion_mnist_sample, image_dls
from simclrv2_nb.health import Health, alignment
from simclrv2_nb.pretrain import pretrain_learner
from simclrv2_nb.resnet import encoder

OUT = Path(__file__).parent/'results'/'curves.json'
_r = cli.recipe['pretrain']
BASE = dict(encoder='r18_0.125x_sk0', images=1536, epochs=8, bs=64, lr=_r['lr']*(64/_r['bs'])**.5, warmup=_r['warmup'], temperature=_r['temperature'],
            strength=_r['strength'], min_scale=_r['min_scale'], cifar_stem=True, negatives=True)
KINDS = dict(
    healthy={},
    lr_high=dict(lr=30*BASE['lr']),
    lr_low=dict(lr=BASE['lr']/100),
    temperature_high=dict(temperature=5.),
    same_views=dict(strength=None),             # no augmentation at all
    easy_views=dict(strength=0., min_scale=.8), # hardly a crop, and no colour
    small_batch=dict(bs=8, lr=BASE['lr']*(8/BASE['bs'])**.5),
    no_negatives=dict(negatives=False),
    imagenet_stem=dict(cifar_stem=False))

class NoNegatives(nn.Module):
    "The numerator of NT-Xent alone, −s/τ: partners together, and nothing that keeps the others apart"
    def __init__(self, temperature): super().__init__(); self.temperature = temperature
    def forward(self, z, *_): return (alignment(z)/2 - 1)/self.temperature

def same(x, gen=None): return x

def run(kind, seed, data, **kw):
    "Train once; the history of `Health`, and its warnings"
    c = {**BASE, **KINDS[kind], **kw}
    set_seed(seed)
    augment = same if c['strength'] is None else SimCLRAugment(28, c['strength'], blur=False, min_scale=c['min_scale'])
    i, j = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))[:c['images']], min(1000, c['images'])
    learn = pretrain_learner(image_dls(data.train_x[i], data.test_x[-512:], bs=c['bs']), encoder(c['encoder'], in_channels=1, cifar_stem=c['cifar_stem']), augment=augment,
                             temperature=c['temperature'], lr=c['lr'], **({} if c['negatives'] else dict(loss_func=NoNegatives(c['temperature']))))
    health = Health((data.train_x[:j], data.train_y[:j], data.test_x[:j], data.test_y[:j]), knn_every=2)
    t = time.perf_counter()
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_warmup_cosine(c['epochs'], warmup=c['warmup'], cbs=health)
    history = [{k: None if v is None or not math.isfinite(v) else round(v, 5) for k,v in o.items()} for o in health.history]
    return dict(kind=kind, seed=seed, history=history, said=health.said, seconds=round(time.perf_counter()-t, 1))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kinds', nargs='*', default=list(KINDS), choices=list(KINDS))
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--images', type=int, default=BASE['images'])
    p.add_argument('--epochs', type=int, default=BASE['epochs'])
    p.add_argument('--out', type=Path, default=OUT)
    a = p.parse_args()
    torch.set_num_threads(1)
    data, runs = fashion_mnist_sample(), []
    for seed in range(a.seeds):
        for kind in a.kinds:
            runs.append(run(kind, seed, data, images=a.images, epochs=a.epochs))
            o = runs[-1]
            print(kind, seed, f'{o["seconds"]} s', {k: v for k,v in o['history'][-1].items()}, list(o['said']), flush=True)
            cli._write(a.out, json.dumps(dict(command='python '+' '.join(['benchmarks/curves.py', *sys.argv[1:]]), machine=cli._machine(), threads=1, base=BASE | dict(images=a.images, epochs=a.epochs),
                                              kinds=KINDS, runs=runs), indent=1)+'\n')

if __name__ == '__main__': main()
