"""Stage three: teach a student, on images without labels, to answer as the fine-tuned teacher does"""
import torch, torch.nn as nn
from fastcore.foundation import L
from fastcore.meta import delegates
from fastai.learner import Learner
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from simclrv2_nb.data import warn_if_normalized
from simclrv2_nb.augment import FineTuneAugment, eval_crop, check_images
from simclrv2_nb.resnet import encoder as encoder_by_name
from simclrv2_nb.head import SimCLRModel, Classifier, feature_dim
from simclrv2_nb.loss import DistillLoss
from simclrv2_nb.optim import lars_opt, lars_splitter, scale_lr
from simclrv2_nb.scale import fast_precision

__all__ = ['Distill', 'distill_learner']

class Distill(Callback):
    "Show teacher and student the same view, and hand the teacher's logits to the loss; works with and without labels"
    order = 5
    def __init__(self,
        teacher:nn.Module, # Images → logits; used in eval mode, never changed
        augment=None # Makes a view of a batch, called with (images); None: `FineTuneAugment` at the images' size
    ): self.teacher,self.augment = teacher,augment
    def __getstate__(self): return {**self.__dict__, 'teacher': None}     # an exported student travels without its teacher

    def before_fit(self):
        warn_if_normalized(self.dls)
        if self.teacher is None: raise ValueError('this learner was loaded without its teacher: make a new one with `distill_learner`')

    def before_batch(self):
        x = check_images(self.xb[0], name='the batch')
        if self.augment is None: self.augment = FineTuneAugment(min(x.shape[2:]))
        x = self.augment(x) if self.training else eval_crop(x, self.augment.size, self.augment.kernel)
        self.learn.xb = (x,)
        if not self.yb: self.learn.yb = (torch.full((len(x),), -1, device=x.device),)

    def after_pred(self):
        if self.teacher is None: return
        self._targets = self.yb
        with torch.no_grad(): t = self.teacher.to(self.xb[0].device).eval()(self.xb[0])
        self.learn.yb = (t.float(), *self._targets)

    def after_loss(self):
        if self.teacher is not None: self.learn.yb = self._targets      # metrics compare with labels

@delegates(Learner.__init__)
def distill_learner(
    dls, # fastai `DataLoaders` of images in [0,1]; labels are optional, −1 means none
    teacher:nn.Module, # Images → logits: a fine-tuned `Classifier`
    student, # A name such as 'r18_0.125x_sk0', an encoder (a linear layer is added), or a module that gives logits
    temperature:float=1., # τ of both softmaxes; the paper: 0.1 for self-distillation, 1 for smaller students
    alpha:float=1., # Weight of the distillation term; below 1 the labels count as well
    augment=None, # None: random crop and flip at the images' size
    lr:float=None, # Peak learning rate; None: 0.1·√batch, as in pretraining
    weight_decay:float=1e-4, # For LARS, on weights only
    precision='auto', # Callbacks such as `fast_precision` gives; 'auto': those; None: float32
    metrics=accuracy, # fastai metrics, against the labels of the validation set
    opt_func=None, # None: LARS
    splitter=None, # None: the reference's parameter groups
    cbs=None, # More callbacks
    **kwargs
)->Learner: # `.model` is the student
    "A fastai `Learner` for stage three"
    x = dls.train.one_batch()[0][:1]
    x = x.to(next(iter(teacher.parameters()), x).device)
    was = teacher.training
    with torch.no_grad(): n = teacher.eval()(x).shape[1]
    teacher.train(was)
    if isinstance(student, str): student = encoder_by_name(student, in_channels=x.shape[1], cifar_stem=min(x.shape[2:]) <= 32)
    student = _with_logits(student, x, n)
    if precision == 'auto': precision = fast_precision(dls.device)
    if opt_func is None: opt_func,splitter = lars_opt(weight_decay),splitter or lars_splitter
    if splitter is not None: kwargs['splitter'] = splitter
    return Learner(dls, student, loss_func=DistillLoss(temperature, alpha), opt_func=opt_func, lr=scale_lr(0.1, dls.train.bs) if lr is None else lr,
                   metrics=metrics, cbs=[Distill(teacher, augment), *L(precision), *L(cbs)], **kwargs)

def _with_logits(student, x, n):
    "`student` if it gives `n` logits, else with a linear layer on its features"
    if isinstance(student, Classifier): width = student.supervised.out_features
    elif isinstance(student, SimCLRModel): student, width = student.encoder, None
    else:
        was = student.training
        with torch.no_grad(): width = student.eval()(x.to(next(iter(student.parameters()), x).device)).shape[1]
        student.train(was)
    if width == n: return student
    if isinstance(student, Classifier): raise ValueError(f'the teacher has {n} classes, the student {width}')
    return Classifier(SimCLRModel(student), 0, n)
