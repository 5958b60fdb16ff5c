"""Logits of a teacher and its students on images they never saw, for the page on scores (nbs/api/09e_scores.ipynb).

    python benchmarks/calibration.py             # about six minutes on one core, with some minutes of pretraining before, if need be

The demo's recipe with 10 labels a class, seed 0, on the encoder of benchmarks/label_curve.py (pretrained here if that was
not run): the teacher is fine-tuned from layer 1, the students learn from it on the 10 000 training images. Logits are kept
for the 2 000 test images and for 1 000 held-out ones whose labels nobody trained on.
"""
import io, json, time
from pathlib import Path
import numpy as np, torch
from simclrv2_nb import cli, weights
from simclrv2_nb.data import fashion_mnist_sample, label_subset
from simclrv2_nb.evaluate import predict_batches

OUT, SEED, PER_CLASS = Path(__file__).parent/'results'/'calibration.npz', 0, 10

def main():
    d, start = fashion_mnist_sample(), time.perf_counter()
    cache = OUT.parent/f'.pretrained_{SEED}.safetensors'
    if not cache.exists(): weights.save(cli.demo_pretrain(d.train_x, epochs=cli.recipe['pretrain']['epochs'], seed=SEED).model, cache)
    i = label_subset(d.train_y, PER_CLASS, seed=SEED)
    rest = torch.ones(len(d.train_y)).bool(); rest[i] = False
    held = label_subset(d.train_y.where(rest, -1), 100, seed=SEED+1)
    models = dict(teacher=cli.demo_finetune(weights.load(cache), d.train_x[i], d.train_y[i], 1, SEED))
    for name in ('encoder', 'student'):         # the same network as the teacher's, and one of half the width
        kind = dict(encoder='self_distilled', student='distilled_half_width')[name]
        models[kind] = cli.demo_distill(models['teacher'], d.train_x, cli.recipe[name], seed=SEED)
        print(f'{kind}: {time.perf_counter()-start:.0f} s', flush=True)
    arrays = {f'{n}_{part}': predict_batches(m, x).half().numpy() for n,m in models.items() for part,x in (('test', d.test_x), ('held', d.train_x[held]))}
    about = dict(command='python benchmarks/calibration.py', machine=cli._machine(), seed=SEED, per_class=PER_CLASS, seconds=round(time.perf_counter()-start))
    f = io.BytesIO(); np.savez_compressed(f, held=held.numpy().astype(np.int16), about=json.dumps(about), **arrays)
    OUT.write_bytes(f.getvalue())

if __name__ == '__main__': main()
