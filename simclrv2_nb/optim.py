"""LARS as the reference computes it, its parameter groups, warm-up and cosine, learning-rate scaling"""
import math
import torch, torch.nn as nn
from functools import partial
from fastcore.basics import patch
from fastcore.foundation import L
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.callback.schedule import ParamScheduler

__all__ = ['LARS', 'lars_groups', 'lars_splitter', 'lars_opt', 'warmup_cosine', 'scale_lr']

class LARS(torch.optim.Optimizer):
    "Momentum SGD whose step for each weight tensor is scaled by its trust ratio, η‖w‖/‖g‖"
    def __init__(self,
        params, # Parameters, or groups with keys `adapt` (trust ratio, else plain momentum SGD) and `decay` (weight decay), both True by default
        lr:float, # Learning rate ≥ 0; inside the momentum buffer, as in the reference
        momentum:float=0.9, # m in [0,1)
        weight_decay:float=0., # Added to the gradient of groups with `decay`; the trust ratio works at 0 as well
        eeta:float=0.001, # η, the reference's spelling
        nesterov:bool=False # Look ahead
    ):
        if lr < 0: raise ValueError(f'lr must be ≥ 0, got {lr}')
        if not 0 <= momentum < 1: raise ValueError(f'momentum must be in [0,1), got {momentum}')
        if weight_decay < 0 or eeta <= 0: raise ValueError(f'weight_decay must be ≥ 0 and eeta > 0, got {weight_decay} and {eeta}')
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eeta=eeta, nesterov=nesterov, adapt=True, decay=True))

    @torch.no_grad()
    def step(self, closure=None):
        "One update. Parameters without a gradient are left alone, momentum and decay included"
        loss = None
        if closure is not None:
            with torch.enable_grad(): loss = closure()
        for group in self.param_groups:
            ps = [p for p in group['params'] if p.grad is not None]
            if ps: self._update(group, ps, [p.grad for p in ps])
        return loss

    def _update(self, group, w, g):
        lr, m = group['lr'], group['momentum']
        if group['decay'] and group['weight_decay']: g = torch._foreach_add(g, w, alpha=group['weight_decay'])
        if group['adapt']:
            wn, gn = torch.stack(torch._foreach_norm(w)), torch.stack(torch._foreach_norm(g))
            trust = torch.where((wn > 0) & (gn > 0), group['eeta']*wn/gn, 1.)
            g = torch._foreach_mul(g, list((lr*trust).unbind()))
        else: g = torch._foreach_mul(g, lr)
        for p in w:
            if 'momentum_buffer' not in self.state[p]: self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        v = [self.state[p]['momentum_buffer'] for p in w]
        torch._foreach_mul_(v, m); torch._foreach_add_(v, g)
        if group['nesterov']: v = torch._foreach_add(g, v, alpha=m)
        torch._foreach_sub_(w, v)

def lars_groups(
    model:nn.Module, # Any model; a layer called `supervised` is the linear classifier
    weight_decay:float=None # For the groups that decay; None leaves it to the optimizer
)->list: # Three groups: weights (adapted, decayed), the classifier's weight (decayed, not adapted), biases and norms (neither)
    "The parameter groups of the reference: batch norm, biases and the classifier do without the trust ratio"
    norms = {p for m in model.modules() if isinstance(m, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)) for p in m.parameters(recurse=False)}
    weights, linear, rest = [], [], []
    for n,p in model.named_parameters():
        if p in norms or n.split('.')[-1] == 'bias': rest.append(p)
        elif 'supervised' in n.split('.'): linear.append(p)
        else: weights.append(p)
    res = [dict(params=weights, adapt=True, decay=True), dict(params=linear, adapt=False, decay=True), dict(params=rest, adapt=False, decay=False)]
    if weight_decay is not None:
        for g in res: g['weight_decay'] = weight_decay if g['decay'] else 0.
    return [g for g in res if g['params']]

def lars_splitter(model):
    "`lars_groups` as a fastai splitter"
    return lars_groups(model)

def lars_opt(
    weight_decay:float=0., # Of the groups that decay; fastai's `fit(wd=…)` overrides it
    momentum:float=0.9, # m in [0,1)
    eeta:float=0.001 # η of the trust ratio
): # Give it to `Learner(opt_func=…, splitter=lars_splitter)`
    "LARS as a fastai `opt_func`"
    return partial(OptimWrapper, opt=LARS, weight_decay=weight_decay, momentum=momentum, eeta=eeta, convert_groups=False)

def warmup_cosine(
    step:int, # 0-based: the first update is step 0
    peak:float, # Learning rate at the end of the warm-up
    warmup_steps:int, # Steps of linear growth from 0
    total_steps:int # Steps in all
)->float: # Learning rate of this step
    "Linear warm-up from 0, then half a cosine to 0"
    if warmup_steps < 0 or total_steps < warmup_steps: raise ValueError(f'0 ≤ warmup_steps ≤ total_steps expected, got {warmup_steps} and {total_steps}')
    if step < warmup_steps: return step/warmup_steps * peak
    T = total_steps - warmup_steps
    return peak * 0.5*(1+math.cos(math.pi*min(step-warmup_steps, T)/max(T, 1)))

def scale_lr(
    base:float, # The recipe's learning rate: SimCLRv2 0.1 with 'sqrt', the CIFAR-10 recipe 1.0 with 'linear'
    batch_size:int, # Images a step, over all processes
    rule:str='sqrt' # 'sqrt': base·√batch; 'linear': base·batch/256
)->float: # The peak learning rate
    "Learning rate for a batch size"
    if batch_size < 1: raise ValueError(f'batch_size must be ≥ 1, got {batch_size}')
    if rule == 'sqrt': return base*math.sqrt(batch_size)
    if rule == 'linear': return base*batch_size/256
    raise ValueError(f"rule must be 'sqrt' or 'linear', got {rule!r}")

@patch
def fit_warmup_cosine(self:Learner,
    n_epoch:int, # Passes over the training loader
    lr:float=None, # Peak; None: the learner's own
    warmup:float=0.05, # Below 1: share of all steps (the paper's 5 %); 1 or more: epochs
    cbs=None, # More callbacks
    **kwargs # For `Learner.fit`
):
    "Fit with a linear warm-up and a cosine, stepped every batch"
    if n_epoch < 1: raise ValueError(f'n_epoch must be ≥ 1, got {n_epoch}')
    if warmup < 0 or warmup > n_epoch: raise ValueError(f'warmup must be between 0 and n_epoch = {n_epoch}, got {warmup}')
    n = len(self.dls.train)
    total = n_epoch*n
    ws = round(warmup*(total if warmup < 1 else n))
    sched = partial(_at_pct, peak=self.lr if lr is None else lr, warmup_steps=ws, total_steps=total+1)   # + 1 as in the reference: the last step moves, too
    self.fit(n_epoch, cbs=L(cbs) + ParamScheduler({'lr': sched}), **kwargs)

def _at_pct(pct, peak, warmup_steps, total_steps): return warmup_cosine(round(pct*(total_steps-1)), peak, warmup_steps, total_steps)
