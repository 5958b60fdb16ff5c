"""Accuracy against labels a class on Fashion-MNIST: supervised from scratch beside SimCLRv2, several seeds.

    python benchmarks/label_curve.py                 # seeds 0 1 2; about half an hour a seed on two cores
    python benchmarks/label_curve.py --seeds 3 4

A seed fixes the labels drawn, the weights and the views. Pretraining happens once a seed, on the sample's 10 000
images without labels, with the demo's recipe (`simclrv2_nb.cli.recipe`); accuracy is on its 2 000 test images.
Rows go to benchmarks/results/label_curve.json as they are made; what is there already is not run again.
"""
import argparse, json, time
from pathlib import Path
from simclrv2_nb import cli, show, weights
from simclrv2_nb.data import fashion_mnist_sample, label_subset
from simclrv2_nb.evaluate import predict_batches, linear_probe, classifier_accuracy

OUT = Path(__file__).parent/'results'/'label_curve.json'
BUDGETS, DISTIL = (2, 5, 10, 20, 60, 200, 1000), (10, 60)      # labels a class; where all six protocols are run

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--epochs', type=int, default=cli.recipe['pretrain']['epochs'])
    a = p.parse_args()
    d, read = fashion_mnist_sample(), lambda: json.loads(OUT.read_text())['rows'] if OUT.exists() else []
    done = {(r['seed'], r['per_class'], r['protocol']) for r in read()}

    def row(seed, n, protocol, f):
        "One row, if it is not there yet"
        if (seed, n, protocol) in done: return
        t = time.perf_counter(); res = f()
        acc = res if isinstance(res, float) else classifier_accuracy(res, d.test_x, d.test_y)
        new = dict(seed=seed, per_class=n, protocol=protocol, accuracy=round(100*acc, 2), seconds=round(time.perf_counter()-t, 1))
        rows = sorted([*read(), new], key=lambda r: (r['seed'], r['per_class']))        # read again: another process may work on other seeds
        cli._write(OUT, json.dumps(dict(command='python benchmarks/label_curve.py', machine=cli._machine(), recipe=cli.recipe, rows=rows), indent=1)+'\n')
        print(new, flush=True)
        return res

    for seed in a.seeds:
        cache = OUT.parent/f'.pretrained_{seed}.safetensors'       # ignored by git; spares the pretraining after an interruption
        if cache.exists(): model = weights.load(cache)
        else:
            t = time.perf_counter()
            model = cli.demo_pretrain(d.train_x, epochs=a.epochs, seed=seed).model
            weights.save(model, cache)
            print(f'seed {seed}: pretrained in {time.perf_counter()-t:.0f} s', flush=True)
        h, ht = predict_batches(model.encoder, d.train_x), predict_batches(model.encoder, d.test_x)
        for n in BUDGETS:
            i = label_subset(d.train_y, n, seed=seed)
            x, y = d.train_x[i], d.train_y[i]
            row(seed, n, 'supervised', lambda: cli.demo_supervised(x, y, seed))
            row(seed, n, 'linear_probe', lambda: linear_probe(h[i], y, ht, d.test_y))
            if n in DISTIL: row(seed, n, 'finetune_layer0', lambda: cli.demo_finetune(model, x, y, 0, seed))
            row(seed, n, 'finetune_layer1', lambda: cli.demo_finetune(model, x, y, 1, seed))
        for n in DISTIL:
            if (seed, n, 'distilled_half_width') in done: continue
            i = label_subset(d.train_y, n, seed=seed)
            teacher = cli.demo_finetune(model, d.train_x[i], d.train_y[i], 1, seed)
            students = []
            row(seed, n, 'self_distilled', lambda: students.append(cli.demo_distill(teacher, d.train_x, cli.recipe['encoder'], seed=seed)) or students[0])
            same = students[0] if students else cli.demo_distill(teacher, d.train_x, cli.recipe['encoder'], seed=seed)
            row(seed, n, 'distilled_half_width', lambda: cli.demo_distill(same, d.train_x, cli.recipe['student'], seed=seed))

def picture():
    "The curve on the home page: nbs/images/label_curve.png"
    import matplotlib.pyplot as plt
    rows = json.loads(OUT.read_text())['rows']
    curves = {}
    for r in rows:
        if r['protocol'] in ('supervised','finetune_layer1'): curves.setdefault(r['protocol'], {}).setdefault(r['per_class'], []).append(r['accuracy'])
    show.use_style()
    path = OUT.parents[2]/'nbs'/'images'/'label_curve.png'
    path.parent.mkdir(exist_ok=True)
    cli._write(path, fig=show.plot_labels(curves).figure)
    plt.close('all')

if __name__ == '__main__': main(); picture()
