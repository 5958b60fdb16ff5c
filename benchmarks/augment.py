"""Views a second, beside kornia's batched pipeline and beside PIL in worker processes (lightly).

    pip install kornia lightly          # for the comparison; what is missing is left out
    python benchmarks/augment.py        # some minutes; the machine should be idle

Pieces of scikit-learn's two photographs: 32×32 to views of 32 pixels, strength 0.5, no blur, 512 at a time; and 256×256
to views of 224 pixels, strength 1, blur, 64 at a time. Crop, flip, jitter, grey (and blur) with the same probabilities
and ranges in each; kernels and colour formulas are each library's own. All take turns, on one thread and on two; the
PIL pipeline is lightly's `SimCLRTransform` in a PyTorch `DataLoader` of two workers, collated, without decoding.
Medians over the rounds, and of the ratios within a round. The result goes to benchmarks/results/augment.json.
"""
import argparse, json, statistics as st, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import numpy as np, torch
from PIL import Image
from sklearn.datasets import load_sample_image
from simclrv2_nb.augment import SimCLRAugment

OUT = Path(__file__).parent/'results'/'augment.json'
CASES = {32: dict(n=512, source=32, strength=.5, blur=False), 224: dict(n=64, source=256, strength=1., blur=True)}

def pieces(n, size, seed=0):
    "`n` square pieces of the two photographs, n×3×size×size, uint8"
    rng, photos = np.random.default_rng(seed), [load_sample_image(o) for o in ('china.jpg','flower.jpg')]
    def piece(p):
        t, l = rng.integers(p.shape[0]-size), rng.integers(p.shape[1]-size)
        return torch.from_numpy(p[t:t+size, l:l+size].copy()).permute(2,0,1)
    return torch.stack([piece(photos[i%2]) for i in range(n)])

def ours(size, c):
    return SimCLRAugment(size, c['strength'], c['blur'])

def kornia(size, c):
    import kornia.augmentation as K
    s, k = c['strength'], 2*(size//10//2)+1
    ops = [K.RandomResizedCrop((size,size), scale=(.08,1.)), K.RandomHorizontalFlip(), K.ColorJitter(.8*s,.8*s,.8*s,.2*s, p=.8), K.RandomGrayscale(p=.2)]
    if c['blur']: ops.append(K.RandomGaussianBlur((k,k), (.1,2.), p=.5))
    return K.AugmentationSequential(*ops, data_keys=['input'])

class Pictures(torch.utils.data.Dataset):
    "PIL images, seen `times` over, each time in lightly's two views"
    def __init__(self, x, size, times):
        from lightly.transforms import SimCLRTransform
        self.ims, self.n = [Image.fromarray(o.permute(1,2,0).numpy()) for o in x], times*len(x)
        self.f = SimCLRTransform(input_size=size, normalize=None)
    def __len__(self): return self.n
    def __getitem__(self, i): return self.f(self.ims[i % len(self.ims)])

def pil_rate(x, size):
    "Views a second out of two workers, from the first batch on"
    dl = torch.utils.data.DataLoader(Pictures(x, size, 6), batch_size=64, num_workers=2)
    it = iter(dl); next(it); t, n = time.perf_counter(), 0
    for a,b in it: n += len(a)+len(b)
    return n/(time.perf_counter()-t)

def rate(f, x):
    t = time.perf_counter(); f(x)
    return len(x)/(time.perf_counter()-t)

def compare(size, threads, rounds):
    torch.set_num_threads(threads)
    c = CASES[size]; u8 = pieces(c['n'], c['source']); x, fs = u8/255, {}
    for make in (ours, kornia):
        try: fs[make.__name__] = make(size, c)
        except ImportError as e: print(f'{make.__name__} is left out: {e}')
    for f in fs.values(): rate(f, x)
    rows = [{k: rate(f, x) for k,f in fs.items()} for _ in range(rounds)]
    res = dict(size=size, threads=threads, rounds=rounds, views_per_second={k: round(st.median(r[k] for r in rows)) for k in fs})
    if 'kornia' in fs: res['ours_over_kornia'] = [round(q, 2) for q in st.quantiles([r['ours']/r['kornia'] for r in rows])]
    if threads == 2 and size == 224:
        try: res['views_per_second']['PIL, two workers'] = round(st.median(pil_rate(u8, size) for _ in range(3)))
        except ImportError as e: print(f'lightly is left out: {e}')
    print(res); return res

if __name__ == '__main__':
    ap = argparse.ArgumentParser(); ap.add_argument('--rounds', type=int, default=15); a = ap.parse_args()
    from simclrv2_nb.cli import _machine
    rows = [compare(size, threads, a.rounds) for threads in (1, 2) for size in CASES]
    versions = {}
    from importlib.metadata import version, PackageNotFoundError
    for k in ('kornia', 'lightly'):
        try: versions[k] = version(k)
        except PackageNotFoundError: pass
    torch.set_num_threads(2)
    OUT.write_text(json.dumps(dict(command=f'python benchmarks/augment.py --rounds {a.rounds}', machine=_machine(), versions=versions, rows=rows,
                                   note='ours_over_kornia: quartiles of the ratio within a round'), indent=1)+'\n')
