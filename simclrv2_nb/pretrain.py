"""Stage one: a callback that makes two views of every image, and the learner around it"""
import torch, torch.nn as nn
from fastcore.foundation import L
from fastcore.meta import delegates
from fastai.learner import Learner
from fastai.callback.core import Callback
from simclrv2_nb.data import warn_if_normalized
from simclrv2_nb.augment import SimCLRAugment, check_images
from simclrv2_nb.resnet import encoder as encoder_by_name
from simclrv2_nb.head import SimCLRModel, ProjectionHead, feature_dim
from simclrv2_nb.loss import NTXentLoss, contrastive_accuracy
from simclrv2_nb.optim import lars_opt, lars_splitter, scale_lr
from simclrv2_nb.scale import fast_precision

__all__ = ['SimCLR', 'pretrain_learner']

class SimCLR(Callback):
    "Replace each batch by two views of it, [all first views; all second views]; works with and without labels"
    order = 5    # before mixed precision (10): views are made in float32
    def __init__(self,
        augment=None # Makes one view of a batch, called with (images, generator); None: `SimCLRAugment` for the images' size
    ): self.augment = augment

    def before_fit(self):
        warn_if_normalized(self.dls)
        if (getattr(self.dls.train, 'bs', None) or 2) < 2: raise ValueError(f'a batch of {self.dls.train.bs} image has no negatives: use a larger bs')

    def before_validate(self): self._gen = torch.Generator().manual_seed(0)     # the same views every epoch

    def before_batch(self):
        x = check_images(self.xb[0], name='the batch')
        if self.training and len(x) < 2: raise ValueError('a batch of 1 image has no negatives: use a larger bs, or drop_last=True')
        if self.augment is None: self.augment = default_augment(x)
        gen = None if self.training else getattr(self, '_gen', None)
        self.learn.xb = (torch.cat([self.augment(x, gen), self.augment(x, gen)]),)
        i = torch.arange(len(x), device=x.device)
        self.learn.yb = (torch.cat([i, i]),)        # which image a view is of: without a target fastai would skip loss and step

def default_augment(x):
    size = min(x.shape[2:])
    return SimCLRAugment(size, strength=1. if size > 32 else 0.5, blur=size > 32)

@delegates(Learner.__init__)
def pretrain_learner(
    dls, # fastai `DataLoaders` of images in [0,1], labelled or not
    encoder, # A name such as 'r18_0.25x_sk0', or any module that maps images to vectors
    head:ProjectionHead=None, # None: three layers, 128 out
    augment=None, # None: `SimCLRAugment` at the images' size; up to 32 pixels with half the strength and no blur
    temperature:float=0.1, # τ of NT-Xent
    lr:float=None, # Peak learning rate; None: 0.1·√batch, the paper's
    weight_decay:float=1e-4, # For LARS, on weights only
    precision='auto', # Callbacks such as `fast_precision` gives; 'auto': those; None: float32
    metrics=contrastive_accuracy, # fastai metrics, called with the projections
    opt_func=None, # None: LARS
    splitter=None, # None: the reference's parameter groups
    cbs=None, # More callbacks
    **kwargs
)->Learner: # `.model` is a `SimCLRModel`
    "A fastai `Learner` for stage one"
    x = dls.train.one_batch()[0]
    if isinstance(encoder, str): encoder = encoder_by_name(encoder, in_channels=x.shape[1], cifar_stem=min(x.shape[2:]) <= 32)
    dev = next(iter(encoder.parameters())).device
    if head is None: head = ProjectionHead(feature_dim(encoder, x.to(dev)))
    if precision == 'auto': precision = fast_precision(dls.device)
    if opt_func is None: opt_func,splitter = lars_opt(weight_decay),splitter or lars_splitter
    if splitter is not None: kwargs['splitter'] = splitter
    return Learner(dls, SimCLRModel(encoder, head), loss_func=NTXentLoss(temperature), opt_func=opt_func,
                   lr=scale_lr(0.1, dls.train.bs) if lr is None else lr, metrics=metrics, cbs=[SimCLR(augment), *L(precision), *L(cbs)], **kwargs)
