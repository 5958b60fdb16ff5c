"""Stage two: fine-tune from a layer of the projection head on few labels"""
from copy import deepcopy
import torch.nn as nn
from fastcore.foundation import L
from fastcore.meta import delegates
from fastai.learner import Learner
from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from simclrv2_nb.data import warn_if_normalized
from simclrv2_nb.augment import FineTuneAugment, eval_crop, check_images
from simclrv2_nb.head import Classifier, SimCLRModel
from simclrv2_nb.optim import lars_opt, lars_splitter, scale_lr
from simclrv2_nb.scale import fast_precision

__all__ = ['FineTune', 'finetune_learner']

class FineTune(Callback):
    "Crop and flip while training, the central crop in validation; `freeze=True` trains the linear layer alone"
    order = 5
    def __init__(self,
        augment=None, # Makes a view of a batch, called with (images); None: `FineTuneAugment` at the images' size
        freeze:bool=False # A linear probe: everything before `model.supervised` is frozen and stays in eval mode
    ): self.augment,self.freeze = augment,freeze

    def before_fit(self):
        warn_if_normalized(self.dls)
        if not self.freeze: return
        if not hasattr(self.model, 'supervised'): raise ValueError(f'freeze=True needs a model whose linear layer is called `supervised`, as in `head.Classifier`; got {type(self.model).__name__}')
        self._thawed = [p for m in self._frozen() for p in m.parameters() if p.requires_grad]
        for p in self._thawed: p.requires_grad_(False)
    def after_fit(self):
        for p in getattr(self, '_thawed', []): p.requires_grad_(True)
        self._thawed = []
    def before_train(self):
        if self.freeze:
            for m in self._frozen(): m.eval()       # batch statistics stay those of pretraining
    def _frozen(self): return [m for n,m in self.model.named_children() if n != 'supervised']

    def before_batch(self):
        x = check_images(self.xb[0], name='the batch')
        if self.augment is None: self.augment = FineTuneAugment(min(x.shape[2:]))
        self.learn.xb = (self.augment(x) if self.training else eval_crop(x, self.augment.size, self.augment.kernel),)

@delegates(Learner.__init__)
def finetune_learner(
    dls, # fastai `DataLoaders` of labelled images in [0,1]
    model, # A `SimCLRModel` (copied, so it can be fine-tuned again) or a `Classifier` to train further
    from_layer:int=1, # Where in the head the linear layer goes; the paper: 1 for few labels, 0 for many
    num_classes:int=None, # None: `dls.c`
    freeze:bool=False, # A linear probe: only the linear layer is trained
    augment=None, # None: random crop and flip at the images' size
    lr:float=None, # Peak learning rate; None: 0.005·√batch, the paper's
    weight_decay:float=0., # The paper's; LARS still adapts
    precision='auto', # Callbacks such as `fast_precision` gives; 'auto': those; None: float32
    metrics=accuracy, # fastai metrics
    opt_func=None, # None: LARS
    splitter=None, # None: the reference's parameter groups
    cbs=None, # More callbacks
    **kwargs
)->Learner: # `.model` is a `Classifier`
    "A fastai `Learner` for stage two"
    if isinstance(model, SimCLRModel):
        n = num_classes or getattr(dls, 'c', 0)
        if n < 2: raise ValueError(f'num_classes must be ≥ 2, got {n}: the loaders hold no labels, or one class only')
        model = deepcopy(Classifier(model, from_layer, n))
    elif not isinstance(model, Classifier): raise TypeError(f'model must be a SimCLRModel or a Classifier, got {type(model).__name__}')
    if precision == 'auto': precision = fast_precision(dls.device)
    if opt_func is None: opt_func,splitter = lars_opt(weight_decay),splitter or lars_splitter
    if splitter is not None: kwargs['splitter'] = splitter
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, lr=scale_lr(0.005, dls.train.bs) if lr is None else lr,
                   metrics=metrics, cbs=[FineTune(augment, freeze), *L(precision), *L(cbs)], **kwargs)
