"""Is it worth choosing which images to label? Fashion-MNIST sample, features of pretrained encoders, a linear probe.

    python benchmarks/annotate.py                  # three encoders; about three minutes on one core, with 20 minutes of pretraining before, if need be

Encoders are those of benchmarks/label_curve.py (the demo's recipe, one a seed); where it has run, its encoders are used.
An encoder never saw a label. Of the sample's 10 000 training images n get one, chosen
- random: by chance, without a look at the classes
- stratified: by chance, n/10 of each class (needs the labels before they are given: a yardstick, no method)
- kmeans, farthest: by `annotate.propose` on the encoder's features.
The probe is logistic regression with C = 1, never tuned; accuracy is on the 2 000 test images. Each choice is drawn `--draws` times.
"""
import argparse, json, time
from pathlib import Path
import torch
from simclrv2_nb import cli, weights
from simclrv2_nb.annotate import propose
from simclrv2_nb.data import fashion_mnist_sample, label_subset
from simclrv2_nb.evaluate import linear_probe, predict_batches

OUT = Path(__file__).parent/'results'/'annotate.json'
BUDGETS, METHODS, C = (10, 20, 50, 100, 200), ('random', 'stratified', 'kmeans', 'farthest'), 1.

def choose(method, h, y, n, seed):
    "n of the images, by one of `METHODS`; `y` is read by the yardstick alone"
    if method == 'random': return torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))[:n]
    if method == 'stratified': return label_subset(y, n//len(y.unique()), seed=seed)
    return propose(h, n, method=method, seed=seed)

def rows(h, y, test_h, test_y, budgets=BUDGETS, draws=5, **extra):
    "Accuracy of a probe on the chosen images, and how many classes are among them"
    for n in budgets:
        for method in METHODS:
            for seed in range(draws):
                i = choose(method, h, y, n, seed)
                acc = linear_probe(h[i], y[i], test_h, test_y, C=C)
                yield dict(extra, n=n, method=method, draw=seed, accuracy=round(100*acc, 2), classes=len(y[i].unique()))

def encoder(x, seed):
    "The encoder of benchmarks/label_curve.py, pretrained here if that was not run"
    cache = OUT.parent/f'.pretrained_{seed}.safetensors'
    if not cache.exists(): weights.save(cli.demo_pretrain(x, epochs=cli.recipe['pretrain']['epochs'], seed=seed).model, cache)
    return weights.load(cache).encoder

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--draws', type=int, default=5)
    a = p.parse_args()
    d, res, shown, start = fashion_mnist_sample(), [], {}, time.perf_counter()
    for seed in a.seeds:
        f = encoder(d.train_x, seed)
        h, ht = predict_batches(f, d.train_x), predict_batches(f, d.test_x)
        for r in rows(h, d.train_y, ht, d.test_y, draws=a.draws, encoder=seed): res.append(r); print(r, flush=True)
        if seed == a.seeds[0]: shown = {m: choose(m, h, d.train_y, 20, 0).tolist() for m in METHODS}
    command = f'python benchmarks/annotate.py --seeds {" ".join(map(str, a.seeds))} --draws {a.draws}'
    new = dict(command=command, machine=cli._machine(), threads=torch.get_num_threads(), recipe=cli.recipe['pretrain'], C=C, seconds=round(time.perf_counter()-start), shown=shown, rows=res)
    cli._write(OUT, json.dumps(new, indent=1)+'\n')

if __name__ == '__main__': main()
