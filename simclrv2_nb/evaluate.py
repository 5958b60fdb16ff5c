"""Scores that say what the features are worth: nearest neighbours and the linear probe"""
import torch, torch.nn as nn, torch.nn.functional as F, numpy as np
from torch import Tensor

__all__ = ['predict_batches', 'knn_accuracy', 'linear_probe', 'classifier_accuracy']

@torch.no_grad()
def predict_batches(
    f, # A module or function from images in [0,1] to a tensor; a module is put in eval mode meanwhile
    x:Tensor, # Images N×C×H×W: uint8, or float in [0,1]
    bs:int=512 # Images a batch
)->Tensor: # The answers, float32, on the CPU
    "Run `f` over many images, in batches, without gradient, where its parameters live"
    if not len(x): raise ValueError('no images given')
    module = f if isinstance(f, nn.Module) else None
    dev = next(iter(module.parameters()), x).device if module else x.device
    was = module.training if module else None
    if module: module.eval()
    try: return torch.cat([f(b.to(dev).float()/255 if b.dtype == torch.uint8 else b.to(dev)).float().cpu() for b in x.as_subclass(Tensor).split(bs)])
    finally:
        if module: module.train(was)

def classifier_accuracy(
    model:nn.Module, # Images → logits
    x:Tensor, # Images, uint8 or float in [0,1]
    y:Tensor # Their classes
)->float: # In [0,1]
    "Share of images whose largest logit is their class"
    return (predict_batches(model, x).argmax(1) == y).float().mean().item()

def _check(train_h, train_y, test_h, test_y):
    for n,h,y in (('train',train_h,train_y),('test',test_h,test_y)):
        if h.ndim != 2 or len(h) != len(y) or not len(h): raise ValueError(f'{n}_h must be N×features with one label each, got {tuple(h.shape)} and {tuple(y.shape)}')
    if train_h.shape[1] != test_h.shape[1]: raise ValueError(f'train_h and test_h differ in width: {train_h.shape[1]} and {test_h.shape[1]}')
    if len(torch.unique(train_y)) < 2: raise ValueError('train_y holds one class only: nothing to tell apart')

@torch.no_grad()
def knn_accuracy(
    train_h:Tensor, # Features N×d of labelled images
    train_y:Tensor, # Their classes
    test_h:Tensor, # Features M×d
    test_y:Tensor, # Their classes
    k:int=20, # Neighbours that vote
    temperature:float=None # None: one vote each; else votes weigh exp(cosine / temperature)
)->float: # Accuracy in [0,1]
    "Classify by the `k` nearest training features in cosine similarity"
    _check(train_h, train_y, test_h, test_y)
    if not 1 <= k <= len(train_h): raise ValueError(f'k must be 1 … {len(train_h)} (the training features), got {k}')
    if temperature is not None and not temperature > 0: raise ValueError(f'temperature must be > 0, got {temperature}')
    a, n, right = F.normalize(train_h.float(), dim=1), int(train_y.max())+1, 0
    for h,y in zip(test_h.split(1024), test_y.split(1024)):
        s, i = (F.normalize(h.float(), dim=1) @ a.T).topk(k, 1)
        w = torch.ones_like(s) if temperature is None else ((s-s[:,:1])/temperature).exp()
        votes = torch.zeros(len(h), n, device=s.device).scatter_add_(1, train_y[i], w)
        # a tie goes to the class of the nearer neighbour
        votes = votes.scatter_add_(1, train_y[i[:,:1]], torch.full_like(s[:,:1], 1e-4))
        right += (votes.argmax(1) == y).sum().item()
    return right/len(test_y)

def linear_probe(
    train_h:Tensor, # Features N×d of labelled images
    train_y:Tensor, # Their classes
    test_h:Tensor, # Features M×d
    test_y:Tensor, # Their classes
    C=None, # Inverse of the L2 penalty; None: chosen by cross-validation on the training features
    seed:int=0 # Of the cross-validation's folds
)->float: # Accuracy in [0,1] on the test features
    "Logistic regression on frozen features (scikit-learn, L-BFGS), standardised by the training set's mean and deviation"
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    _check(train_h, train_y, test_h, test_y)
    X, y = train_h.double().numpy(), train_y.numpy()
    fit = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=1. if C is None else C))
    folds = min(5, int(np.unique(y, return_counts=True)[1].min()))
    if C is None and folds > 1:
        fit = GridSearchCV(fit, {'logisticregression__C': np.logspace(-4, 1, 6)}, cv=StratifiedKFold(folds, shuffle=True, random_state=seed))
    return float((fit.fit(X, y).predict(test_h.double().numpy()) == test_y.numpy()).mean())
