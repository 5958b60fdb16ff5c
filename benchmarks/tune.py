"""How the demo's recipe was chosen: one knob at a time, on held-out *training* images, never on the test set.

    python benchmarks/tune.py supervised        # or: pretrain, finetune, distill

Models are trained on the sample's 10 000 training images and scored on 2 000 others of the official training split
that are in neither half of the sample, drawn with seed 1. It needs all of Fashion-MNIST (`data.fashion_mnist`).
Each trial changes `BASE[stage]` in one place or a few; its score goes to benchmarks/results/tune.json.
Pretraining is scored by the linear probe at 10 labels a class (five draws of labels), everything else by its own
accuracy at 10 labels a class (three draws).
"""
import argparse, json, time
from copy import deepcopy
from pathlib import Path
import numpy as np
from simclrv2_nb import cli, weights
from simclrv2_nb.data import fashion_mnist, fashion_mnist_sample, label_subset
from simclrv2_nb.evaluate import predict_batches, linear_probe, classifier_accuracy

OUT = Path(__file__).parent/'results'/'tune.json'
TRIALS = dict(
    pretrain=[{}, dict(temperature=.1), dict(temperature=.5), dict(strength=.5), dict(strength=1.), dict(min_scale=.08), dict(min_scale=.5), dict(lr=1.5), dict(lr=6.), dict(bs=256)],
    supervised=[{}, dict(min_scale=.08), dict(min_scale=.5), dict(min_scale=1.), dict(lr=8e-4), dict(lr=5e-3), dict(steps=100), dict(steps=400), dict(wd=.1)],
    finetune=[{}, dict(min_scale=.5), dict(min_scale=1.), dict(lr=5e-4), dict(lr=2e-3), dict(steps=60), dict(steps=240), dict(wd=.1)],
    distill=[{}, dict(temperature=.1), dict(temperature=.5), dict(min_scale=.5), dict(min_scale=1.), dict(lr=1e-3), dict(lr=6e-3), dict(bs=256)])

def held_out(sample, n=200, seed=1):
    "`n` images a class of the official training split that are not in the sample"
    d, seen = fashion_mnist(), {x.numpy().tobytes() for x in sample.train_x}
    rest = np.array([i for i,x in enumerate(d.train_x) if x.numpy().tobytes() not in seen])
    y, rng = d.train_y.numpy()[rest], np.random.RandomState(seed)
    i = np.concatenate([rng.permutation(rest[y == c])[:n] for c in range(10)])
    return d.train_x[i], d.train_y[i]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('stage', choices=list(TRIALS))
    stage = p.parse_args().stage
    d = fashion_mnist_sample()
    vx, vy = held_out(d)
    subset = lambda s: (lambda i: (d.train_x[i], d.train_y[i]))(label_subset(d.train_y, 10, seed=s))
    if stage in ('finetune','distill'):
        cache = OUT.parent/'.pretrained_0.safetensors'
        if not cache.exists(): weights.save(cli.demo_pretrain(d.train_x).model, cache)
        model = weights.load(cache)

    def score():
        "The held-out accuracies of one trial"
        if stage == 'pretrain':
            enc = cli.demo_pretrain(d.train_x, seed=0).model.encoder
            hv = predict_batches(enc, vx)
            return [linear_probe(predict_batches(enc, x), y, hv, vy) for x,y in map(subset, range(5))]
        if stage == 'supervised': return [classifier_accuracy(cli.demo_supervised(*subset(s), s), vx, vy) for s in range(3)]
        tuned = [cli.demo_finetune(model, *subset(s), 1, s) for s in range(3)]
        if stage == 'finetune': return [classifier_accuracy(m, vx, vy) for m in tuned]
        return [classifier_accuracy(cli.demo_distill(m, d.train_x, cli.recipe['encoder'], seed=s), vx, vy) for s,m in enumerate(tuned)]

    base = deepcopy(cli.recipe)
    for change in TRIALS[stage]:
        cli.recipe[stage] = {**base[stage], **change}
        t = time.perf_counter(); acc = 100*np.array(score())
        rows = json.loads(OUT.read_text()) if OUT.exists() else []
        rows.append(dict(stage=stage, base=base[stage], change=change, accuracy=acc.round(1).tolist(), mean=round(float(acc.mean()), 2), seconds=round(time.perf_counter()-t), machine=cli._machine()))
        cli._write(OUT, json.dumps(rows, indent=1)+'\n')
        print(stage, change, f'{acc.mean():.2f}', acc.round(1).tolist(), flush=True)

if __name__ == '__main__': main()
