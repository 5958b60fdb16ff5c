"""The whole pretraining step beside the bare encoder and beside lightly's, one thread.

    pip install lightly                       # for the comparison; without it that column is left out
    python benchmarks/whole_step.py           # about ten minutes; the machine should be idle

256 pairs, a ResNet-18 with the 3×3 stem of base width 16 and 32, on 1×28×28 (the Fashion-MNIST sample) and 3×32×32
(pieces of scikit-learn's photographs). `bare`: forward and backward of the encoder on 512 images of random numbers, in
the fastest precision and memory format of the machine. `ours`: steps of `pretrain_learner` in fastai's loop, loading
included: two views, encoder, head, NT-Xent, backward, LARS. `lightly`: the same encoder with lightly's transform (PIL,
no blur), projection head of three layers, loss and LARS, in a plain PyTorch loop in float32 as its examples write it,
batches from a `DataLoader` without workers. The three take turns; medians, and quartiles of the ratios within a round.
The result goes to benchmarks/results/whole_step.json.
"""
import argparse, json, statistics as st, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import torch
from PIL import Image
from simclrv2_nb import cli
from simclrv2_nb.augment import SimCLRAugment
from simclrv2_nb.data import fashion_mnist_sample, image_dls
from simclrv2_nb.pretrain import pretrain_learner
from simclrv2_nb.resnet import encoder
from simclrv2_nb.scale import fast_precision
from step_overhead import timed
from augment import pieces

OUT = Path(__file__).parent/'results'/'whole_step.json'
BS = 256

def bare(name, shape):
    "Forward and backward of the encoder alone"
    cbs = fast_precision('cpu')
    enc = encoder(name, in_channels=shape[0], cifar_stem=True).train()
    x = torch.rand(2*BS, *shape)
    if cbs: enc, x = enc.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    def step():
        with torch.autocast('cpu', torch.bfloat16, enabled=bool(cbs)): h = enc(x)
        h.float().mean().backward(); enc.zero_grad()
    return step

def ours(name, x):
    "One step an epoch of `pretrain_learner`, as its user would call it"
    learn = pretrain_learner(image_dls(x, bs=BS), name, augment=SimCLRAugment(x.shape[-1], .5, blur=False), metrics=None)
    def step():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return step

class Views(torch.utils.data.Dataset):
    "lightly's two views of PIL images"
    def __init__(self, x):
        from lightly.transforms import SimCLRTransform
        self.ims = [Image.fromarray(o[0].numpy() if len(o) == 1 else o.permute(1,2,0).numpy()) for o in x]
        self.f = SimCLRTransform(input_size=x.shape[-1], cj_strength=.5, gaussian_blur=0., normalize=None)
    def __len__(self): return len(self.ims)
    def __getitem__(self, i): return self.f(self.ims[i])

def lightly(name, x):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.utils.lars import LARS
    enc = encoder(name, in_channels=x.shape[1], cifar_stem=True)
    d = enc.num_features
    model = torch.nn.Sequential(enc, SimCLRProjectionHead(d, d, 128, num_layers=3)).train()
    opt, loss_func = LARS(model.parameters(), lr=1., momentum=.9, weight_decay=1e-4), NTXentLoss(.1)
    dl = torch.utils.data.DataLoader(Views(x), batch_size=BS, shuffle=True, drop_last=True)
    def step():
        for a,b in dl:
            loss = loss_func(model(a), model(b)); loss.backward(); opt.step(); opt.zero_grad()
    return step

def compare(name, x, repeats):
    shape = tuple(x.shape[1:])
    fs = dict(bare=bare(name, shape), ours=ours(name, x))
    try: fs['lightly'] = lightly(name, x)
    except ImportError as e: print(f'lightly is left out: {e}')
    for f in fs.values(): f()                                        # warm up
    rows = [{k: timed(fs[k]) for k in (list(fs) if i%2 else reversed(list(fs)))} for i in range(repeats)]
    q = lambda f: [round(o, 3) for o in st.quantiles([f(r) for r in rows])]
    res = dict(encoder=name, shape=list(shape), seconds={k: round(st.median(r[k] for r in rows), 3) for k in fs}, rate_of_bare_encoder=q(lambda r: r['bare']/r['ours']))
    if 'lightly' in fs: res.update(lightly_over_ours=q(lambda r: r['lightly']/r['ours']))
    print(res, flush=True); return res

if __name__ == '__main__':
    ap = argparse.ArgumentParser(); ap.add_argument('--repeats', type=int, default=9); ap.add_argument('--case', type=int, help='one of the four alone; the others are kept')
    a = ap.parse_args()
    torch.set_num_threads(1); torch.manual_seed(0)
    grey, colour = fashion_mnist_sample().train_x[:BS], pieces(BS, 32)
    cases = [(name, x) for name in ('r18_0.25x_sk0','r18_0.5x_sk0') for x in (grey, colour)]
    old = json.loads(OUT.read_text())['rows'] if OUT.exists() else [None]*4
    rows = [compare(*c, a.repeats) if a.case in (None, i) else old[i] for i,c in enumerate(cases)]
    import fastai
    from importlib.metadata import version, PackageNotFoundError
    try: peer = version('lightly')
    except PackageNotFoundError: peer = None
    OUT.write_text(json.dumps(dict(command=f'python benchmarks/whole_step.py --repeats {a.repeats}', machine=cli._machine(), fastai=fastai.__version__, lightly=peer, repeats=a.repeats,
                                   note='three numbers: quartiles of the ratio within a round', rows=rows), indent=1)+'\n')
