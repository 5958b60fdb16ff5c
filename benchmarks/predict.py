"""How fast `predict_files` says what is on a folder of JPEGs, beside the time to decode them and do nothing else.

    python benchmarks/predict.py                      # 2 000 pictures of 500×375; about four minutes; the machine should be idle
    python benchmarks/predict.py --images 10000

The pictures are those of benchmarks/decode.py: crops of scikit-learn's two photographs with noise, in the page cache. A round is
 (a) Pillow decodes each file at full size in two processes, and does nothing with it;
 (b) `decode_files`, which `predict_files` reads with: two processes read, hash, decode and resize each file to a square. A JPEG is
     decoded at 1/2, 1/4 or 1/8 of its size where that is still 1.25 times what is needed, so (b) does less work a file than (a);
 (c) `predict_files` with each small student, from opening the model to the finished CSV file, from safetensors and from ONNX.
The order within a round turns from round to round. Rates are files a second; shares are of the same round, their median is kept.
The result goes to benchmarks/results/predict.json.
"""
import argparse, json, multiprocessing as mp, statistics as st, tempfile, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
from decode import make, alone

OUT = Path(__file__).parent/'results'/'predict.json'

def timed(f):
    t = time.perf_counter(); f()
    return time.perf_counter() - t

def student(name, size, path):
    "A student with numbers in it, as safetensors and as ONNX; how many parameters it has"
    import torch
    from simclrv2_nb import weights
    from simclrv2_nb.export import export_onnx
    from simclrv2_nb.head import SimCLRModel, Classifier
    from simclrv2_nb.resnet import encoder
    torch.manual_seed(0)
    m = Classifier(SimCLRModel(encoder(name, cifar_stem=size <= 32)), 0, 10)
    torch.nn.init.normal_(m.supervised.weight)
    weights.save(m, path/f'{size}.safetensors', size=size)
    export_onnx(m.eval(), path/f'{size}.onnx', size)
    return sum(p.numel() for p in m.parameters())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=2000)
    p.add_argument('--sizes', type=int, nargs='+', default=[32,64], help='side of the images that the student takes')
    p.add_argument('--students', nargs='+', default=['r18_0.125x_sk0','r18_0.0625x_sk0'])
    p.add_argument('--repeats', type=int, default=5, help='rounds')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    import PIL, torch
    from simclrv2_nb import cli
    from simclrv2_nb.export import predict_files
    from simclrv2_nb.imagecache import decode_files
    rows = []
    with tempfile.TemporaryDirectory() as d:
        d, pics = Path(d), Path(d)/'pictures'
        for i in range(10): (pics/f'{i}').mkdir(parents=True)
        k = -(-a.images//2)
        with mp.get_context('fork').Pool(2) as pool: pool.map(make, [(pics, i, min(i+k, a.images)) for i in (0, k)])
        files = sorted(pics.glob('*/*.jpg'))
        for size,name in ((s,n) for s in a.sizes for n in a.students):
            n = student(name, size, d)
            jobs = {'full decode': lambda: alone(files),
                    'decode_files': lambda: [None for _ in decode_files(files, size, workers=2)],
                    'safetensors': lambda: predict_files(d/f'{size}.safetensors', pics, out=d/'out.csv', workers=2),
                    'onnx': lambda: predict_files(d/f'{size}.onnx', pics, out=d/'out.csv', workers=2)}
            for f in jobs.values(): f()                            # warm up
            rounds = []
            for i in range(a.repeats):
                names = [*jobs][i%4:] + [*jobs][:i%4]
                rounds.append({k: timed(jobs[k]) for k in names})
            rate = {k: round(len(files)/st.median(r[k] for r in rounds), 1) for k in jobs}
            share = {f'{k} of {b}': round(st.median(r[b]/r[k] for r in rounds), 3) for k in ('safetensors','onnx') for b in ('full decode','decode_files')}
            rows.append(dict(size=size, student=name, parameters=n, files_per_s=rate, share=share, seconds=[{k: round(v, 3) for k,v in r.items()} for r in rounds]))
            print(f'{size} px, {name}:', rate, share, flush=True)
        mb = sum(f.stat().st_size for f in files)/2**20
    res = dict(command=f'python benchmarks/predict.py --images {a.images} --sizes {" ".join(map(str, a.sizes))} --students {" ".join(a.students)} --repeats {a.repeats}', machine=cli._machine(),
               processes=2, pillow=PIL.__version__, images=a.images, picture='500×375 JPEG, quality 90', mb=round(mb, 1), rows=rows)
    if a.dry_run: return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(res, indent=1, ensure_ascii=False)+'\n')

if __name__ == '__main__': main()
