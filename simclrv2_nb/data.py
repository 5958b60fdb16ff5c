"""Image sources, label subsets, and loaders of whole uint8 batches"""
import gzip, hashlib, io, warnings, zlib
from collections import namedtuple
from pathlib import Path
import numpy as np, torch
from torch import Tensor
from fastcore.foundation import L
from fastai.torch_core import TensorImage, TensorImageBW, TensorCategory
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize, Category
from fastai.vision.data import *     # registers how fastai shows images

__all__ = ['ImageData', 'fashion_classes', 'fashion_mnist_sample', 'fashion_mnist', 'label_subset', 'ImageBatches', 'BatchDL', 'image_dls', 'warn_if_normalized']

ImageData = namedtuple('ImageData', 'train_x train_y test_x test_y')
fashion_classes = ['T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot']

_SAMPLE = Path(__file__).parent/'assets'/'fashion_mnist_sample.npz'
_SAMPLE_SHA256 = '4ba624ccda8a28ade8c83acbf25842df190a0a315a316dac5843a8a8ff1fec96'

def fashion_mnist_sample(
    path=None # The file, if not the one in the package
)->ImageData: # uint8 images N×1×28×28 and int64 labels: train_x, train_y (10 000), test_x, test_y (2 000)
    "A class-balanced sample of Fashion-MNIST that comes with the package; its checksum is verified"
    path = Path(path or _SAMPLE)
    try: raw = path.read_bytes()
    except OSError as e: raise FileNotFoundError(f'the Fashion-MNIST sample cannot be read: {path} ({e.strerror}); reinstall simclrv2_nb') from e
    got = hashlib.sha256(raw).hexdigest()
    if got != _SAMPLE_SHA256: raise ValueError(f'{path} is damaged: its SHA-256 is {got[:16]}…, expected {_SAMPLE_SHA256[:16]}…; reinstall simclrv2_nb')
    with np.load(io.BytesIO(raw)) as z: return ImageData(*(torch.from_numpy(z[k].astype(np.int64) if k.endswith('y') else z[k]) for k in ImageData._fields))

def _read_idx(path):
    "An array from MNIST's idx format, gzipped or not"
    try:
        raw = path.read_bytes()
        if raw[:2] == b'\x1f\x8b': raw = gzip.decompress(raw)
        if len(raw) < 4 or raw[:3] != b'\0\0\x08': raise ValueError('not an idx file of bytes')
        shape = np.frombuffer(raw, '>i4', raw[3], offset=4)
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4+4*raw[3]).reshape(shape).copy())
    except (ValueError, EOFError, OSError, zlib.error) as e:
        raise ValueError(f'{path} is damaged or no idx file ({e}): fetch it again') from e

def fashion_mnist(
    path=None # Folder of the four idx files (gzipped or not); None: Debian's `dataset-fashion-mnist`, else torchvision downloads them
)->ImageData: # uint8 images N×1×28×28 and int64 labels: train_x, train_y (60 000), test_x, test_y (10 000)
    "All of Fashion-MNIST"
    folders = [Path(path)] if path is not None else [Path('/usr/share/datasets/fashion-mnist')]
    names = [f'{s}-{k}-ubyte' for s in ('train','t10k') for k in ('images-idx3','labels-idx1')]
    def find(d):
        fs = [next((f for f in (d/n, d/f'{n}.gz') if f.is_file()), None) for n in names]
        return fs if all(fs) else None
    files = find(folders[0])
    if files is None and path is not None: raise FileNotFoundError(f'no Fashion-MNIST in {path}: it must hold {", ".join(names)} (each may end in .gz)')
    if files is None:
        from torchvision.datasets import FashionMNIST
        from fastai.data.external import fastai_path
        root = fastai_path('data')
        FashionMNIST(root, download=True)
        files = find(Path(root)/'FashionMNIST'/'raw')
    a, b, c, d = map(_read_idx, files)
    if len(a) != len(b) or len(c) != len(d): raise ValueError(f'images and labels differ in number: {len(a)} and {len(b)}, {len(c)} and {len(d)}')
    return ImageData(a[:,None], b.long(), c[:,None], d.long())

def label_subset(
    y, # Class indices of all images
    per_class:int=None, # Images of each class …
    fraction:float=None, # … or a share of each class in (0,1], at least one image
    seed:int=0 # Another seed, another draw; with one seed a smaller subset lies inside a larger one
)->Tensor: # Indices into `y`, int64, ascending
    "Which images get to keep their label: stratified, seeded, nested"
    y = torch.as_tensor(y)
    if y.ndim != 1 or not len(y) or y.is_floating_point(): raise ValueError(f'y must be a non-empty list of class indices, got shape {tuple(y.shape)}, {y.dtype}')
    if (per_class is None) == (fraction is None): raise ValueError('give either per_class or fraction')
    if per_class is not None and per_class < 1: raise ValueError(f'per_class must be ≥ 1, got {per_class}')
    if fraction is not None and not 0 < fraction <= 1: raise ValueError(f'fraction must be in (0,1], got {fraction}')
    gen, res = torch.Generator().manual_seed(seed), []
    for c in y.unique().tolist():
        i = (y == c).nonzero()[:,0]
        n = per_class if per_class is not None else max(1, round(fraction*len(i)))
        if n > len(i): raise ValueError(f'per_class={n} asked, but class {c} has {len(i)} images: ask for {len(i)} at most')
        res.append(i[torch.randperm(len(i), generator=gen)[:n]])
    return torch.cat(res).sort()[0]

class ImageBatches:
    "Images held as one uint8 tensor, with labels if there are any; indexing with a list gives a whole batch"
    def __init__(self,
        x:Tensor, # uint8, N×C×H×W
        y:Tensor=None, # N class indices (−1: unlabelled), or None
        vocab=None # Class names
    ):
        if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4:
            raise TypeError(f'x must be a uint8 tensor N×C×H×W, got {getattr(x, "dtype", type(x).__name__)} of shape {tuple(getattr(x, "shape", ()))}')
        if y is not None:
            y = torch.as_tensor(y)
            if y.ndim != 1 or len(y) != len(x) or y.is_floating_point(): raise ValueError(f'y must hold one class index for each of {len(x)} images, got shape {tuple(y.shape)}, {y.dtype}')
            if vocab is None: vocab = list(range(int(y.max())+1 if len(y) else 0))
            if len(y) and not (-1 <= y.min() and y.max() < len(vocab)): raise ValueError(f'labels must be −1 … {len(vocab)-1}, got {y.min()} … {y.max()}')
        self.x,self.y,self.vocab = x,y,None if vocab is None else L(vocab)
        self.kind = TensorImageBW if x.shape[1] == 1 else TensorImage
    @property
    def c(self): return len(self.vocab) if self.vocab is not None else 0
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.kind(self.x[i])
        return (x,) if self.y is None else (x, TensorCategory(self.y[i]))
    def new_empty(self): return type(self)(self.x[:0], None if self.y is None else self.y[:0], self.vocab)
    def decode(self, b, full=True):
        "Class names for class indices"
        return b if len(b) < 2 or self.vocab is None else (b[0], Category('?' if b[1] < 0 else str(self.vocab[int(b[1])])), *b[2:])

class BatchDL(TfmdDL):
    "A fastai loader that indexes its data set once a batch and makes floats in [0,1] of it"
    def __init__(self, dataset, bs=64, shuffle=False, num_workers=0, after_batch=None, **kwargs):
        if after_batch is None: after_batch = [IntToFloatTensor()]
        if not isinstance(dataset, ImageBatches):           # `test_dl` and `predict` pass lists of images
            dataset = ImageBatches(dataset if isinstance(dataset, Tensor) else torch.stack([torch.as_tensor(np.asarray(o)) for o in dataset]))
        super().__init__(dataset, bs=bs, shuffle=shuffle, num_workers=num_workers, after_batch=after_batch, **kwargs)
    def create_batches(self, samps): yield from (self.dataset[list(i)] for i in self.chunkify(samps))

def image_dls(
    train, # Images, uint8 N×C×H×W, or (images, labels)
    valid=None, # The same for validation
    bs:int=256, # Images a batch, at most as many as there are; the last, smaller one is dropped in training
    vocab=None, # Class names
    device=None, # Where batches go; None: fastai's default
)->DataLoaders:
    "fastai `DataLoaders` of whole uint8 batches; `after_batch` makes floats in [0,1], and nothing else"
    train, valid = (o if isinstance(o, (tuple,list)) else (o,) for o in (train, valid))
    ds = ImageBatches(*train, vocab=vocab)
    if not len(ds): raise ValueError('the training set is empty')
    if ds.y is not None:
        seen = ds.y[ds.y >= 0].unique()
        if len(seen) == 1: raise ValueError(f'all labels are {seen.item()}: one class only, nothing to tell apart; leave the labels out to pretrain')
    if bs < 1: raise ValueError(f'bs must be ≥ 1, got {bs}')
    vds = ds.new_empty() if valid[0] is None else ImageBatches(*valid, vocab=ds.vocab if len(valid) > 1 else None)
    n = min(bs, len(ds))
    return DataLoaders(BatchDL(ds, bs=n, shuffle=True, drop_last=True), BatchDL(vds, bs=bs), device=device)

def warn_if_normalized(dls):
    "Warn if the loaders normalise by mean and std: the colour ops and the encoder expect [0,1]"
    for dl in dls.loaders:
        if any(isinstance(f, Normalize) for f in getattr(getattr(dl, 'after_batch', None), 'fs', [])):
            warnings.warn('`after_batch` holds `Normalize`: SimCLRv2 wants images in [0,1]; remove it, or put it inside the encoder with `head.Normalized`', stacklevel=3)
            return
