"""Time to find, check, decode and cache a folder of JPEGs, beside the time to decode them and do nothing else.

    python benchmarks/decode.py                       # 10 000 pictures of 500×375; some minutes; the machine should be idle
    python benchmarks/decode.py --images 2000 --dry-run

The pictures are crops of scikit-learn's two photographs with noise, written to a temporary folder. A pair is (a) Pillow
decodes each file at full size in two processes, (b) `load_images` with two workers and an empty cache; which comes first
alternates. Both find the files in the page cache. The result goes to benchmarks/results/decode.json.
"""
import argparse, json, multiprocessing as mp, statistics as st, sys, tempfile, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path

OUT = Path(__file__).parent/'results'/'decode.json'

def make(job):
    "Write pictures `a` to `b`"
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images
    folder, a, b = job
    photos = load_sample_images().images
    for i in range(a, b):
        rng = np.random.default_rng(i)
        im, y, x = photos[i%2], rng.integers(0, 427-375), rng.integers(0, 640-500)
        im = im[y:y+375, x:x+500] + rng.normal(0, 6, (375,500,3))
        Image.fromarray(im.clip(0, 255).astype(np.uint8)).save(folder/f'{i%10}'/f'{i:05}.jpg', quality=90)

def decode(file):
    "Decode one file, and do nothing with it"
    from PIL import Image
    with Image.open(file) as im: return im.convert('RGB').size

def alone(files):
    "Seconds to decode the files in two processes"
    t = time.perf_counter()
    with mp.get_context('fork').Pool(2) as pool:
        for _ in pool.imap_unordered(decode, files, chunksize=32): pass
    return time.perf_counter() - t

def cached(folder, size):
    "Seconds of `load_images` with an empty cache, and with a full one"
    from simclrv2_nb.images import load_images
    with tempfile.TemporaryDirectory() as d:
        res = []
        for _ in range(2):
            t = time.perf_counter()
            im = load_images(folder, size=size, cache=d, workers=2, progress=False)
            res.append(time.perf_counter() - t)
    return res

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=10_000)
    p.add_argument('--sizes', type=int, nargs='+', default=[64,224], help='pixels in the cache')
    p.add_argument('--repeats', type=int, default=5, help='pairs of timings')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    import PIL, torch
    from simclrv2_nb import cli
    import simclrv2_nb.images
    rows = []
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for i in range(10): (d/f'{i}').mkdir()
        k = -(-a.images//2)
        with mp.get_context('fork').Pool(2) as pool: pool.map(make, [(d, i, min(i+k, a.images)) for i in (0, k)])
        files = sorted(d.glob('*/*.jpg'))
        mb = sum(f.stat().st_size for f in files)/2**20
        time.sleep(2.1)                                   # younger files would be hashed again by the second call
        alone(files)                                      # warm up
        for size in a.sizes:
            pairs = []
            for i in range(a.repeats):
                if i%2: c = cached(d, size); t = alone(files)
                else: t = alone(files); c = cached(d, size)
                pairs.append([t, *c])
            r = sorted(c/t for t,c,_ in pairs)
            rows.append(dict(size=size, ratio=round(st.median(r), 3), ratio_range=[round(r[0], 3), round(r[-1], 3)],
                             alone=round(st.median(o[0] for o in pairs), 2), cached=round(st.median(o[1] for o in pairs), 2),
                             again=round(st.median(o[2] for o in pairs), 3), seconds=[[round(o, 3) for o in p] for p in pairs]))
            print(f'{size} px: {rows[-1]["cached"]} s for {a.images:,} images, {rows[-1]["ratio"]} times decoding alone ({rows[-1]["alone"]} s; range {r[0]:.2f} to {r[-1]:.2f}); again: {rows[-1]["again"]} s', flush=True)
    res = dict(command=f'python benchmarks/decode.py --images {a.images} --sizes {" ".join(map(str, a.sizes))} --repeats {a.repeats}', machine=cli._machine(),
               processes=2, pillow=PIL.__version__, images=a.images, picture='500×375 JPEG, quality 90', mb=round(mb, 1), rows=rows)
    if a.dry_run: return print(res)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(res, indent=1, ensure_ascii=False)+'\n')

if __name__ == '__main__': main()
