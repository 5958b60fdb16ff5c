"""Draw `simclrv2_nb/assets/fashion_mnist_sample.npz` from the official Fashion-MNIST splits.

    python tools/make_sample.py [folder of the four idx files]

1 000 training and 200 test images of each class, seed 2020; the order is shuffled so that any slice is mixed.
Prints the SHA-256 that `nbs/api/00_data.ipynb` checks.
"""
import hashlib, io, sys, zipfile
from pathlib import Path
import numpy as np
from simclrv2_nb.data import fashion_mnist

SEED, OUT = 2020, Path(__file__).resolve().parent.parent/'simclrv2_nb'/'assets'/'fashion_mnist_sample.npz'

def draw(y, n, rng):
    "Indices of `n` images a class, in random order"
    return rng.permutation(np.concatenate([rng.permutation(np.flatnonzero(y == c))[:n] for c in range(10)]))

def write_npz(path, arrays):
    "As `np.savez_compressed`, at the highest level and without time stamps, so that the same data give the same file"
    tmp = path.with_suffix('.tmp')
    with zipfile.ZipFile(tmp, 'w') as z:
        for k,a in arrays.items():
            buf = io.BytesIO()
            np.lib.format.write_array(buf, a)
            z.writestr(zipfile.ZipInfo(f'{k}.npy'), buf.getvalue(), zipfile.ZIP_DEFLATED, 9)
    tmp.replace(path)

if __name__ == '__main__':
    d, rng = fashion_mnist(sys.argv[1] if len(sys.argv) > 1 else None), np.random.RandomState(SEED)
    i, j = draw(d.train_y.numpy(), 1000, rng), draw(d.test_y.numpy(), 200, rng)
    OUT.parent.mkdir(exist_ok=True)
    write_npz(OUT, dict(train_x=d.train_x.numpy()[i], train_y=d.train_y.numpy()[i].astype(np.uint8), test_x=d.test_x.numpy()[j], test_y=d.test_y.numpy()[j].astype(np.uint8)))
    print(OUT, OUT.stat().st_size, hashlib.sha256(OUT.read_bytes()).hexdigest())
