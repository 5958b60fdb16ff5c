"""The projection head, the classifier on one of its layers, and the assembled models"""
import torch, torch.nn as nn
from torch import Tensor
from simclrv2_nb.augment import check_images

__all__ = ['ProjectionHead', 'SimCLRModel', 'Classifier', 'Normalized', 'feature_dim']

def _dense(c_in, c_out, bias=False):
    l = nn.Linear(c_in, c_out, bias=bias)
    nn.init.normal_(l.weight, std=0.01)
    if bias: nn.init.zeros_(l.bias)
    return l

class ProjectionHead(nn.Module):
    "Dense layers without bias, each with batch norm: ReLU after all but the last, whose batch norm has no shift"
    def __init__(self,
        in_features:int, # Width of the encoder's output, and of every hidden layer
        out_features:int=128, # Width of the projection z
        num_layers:int=3 # L ≥ 1: SimCLR v1 has 2, SimCLRv2 3
    ):
        super().__init__()
        if num_layers < 1: raise ValueError(f'num_layers must be ≥ 1, got {num_layers}')
        if in_features < 1 or out_features < 1: raise ValueError(f'in_features and out_features must be ≥ 1, got {in_features} and {out_features}')
        self.in_features,self.out_features,self.num_layers = in_features,out_features,num_layers
        last = nn.BatchNorm1d(out_features)
        last.register_parameter('bias', None)
        self.layers = nn.Sequential(
            *[nn.Sequential(_dense(in_features, in_features), nn.BatchNorm1d(in_features), nn.ReLU(inplace=True)) for _ in range(num_layers-1)],
            nn.Sequential(_dense(in_features, out_features), last))

    def hiddens(self,
        h:Tensor # Encoder outputs, N×in_features
    )->list: # [h0 … hL]: the input, then the output of each layer
        "What every layer says; `fine-tune from layer k` means from `hiddens(h)[k]`"
        res = [h]
        for l in self.layers: res.append(l(res[-1]))
        return res

    def forward(self, h):
        "N×in_features → N×out_features, the last of `hiddens`"
        return self.layers(h)

def feature_dim(
    encoder:nn.Module, # Any module that maps images to vectors
    x:Tensor=None # A batch of images to try it on, needed where the encoder does not say (`num_features`)
)->int: # Width of the vectors
    "The width of an encoder's output"
    n = getattr(encoder, 'num_features', None)
    if n is not None: return n
    if x is None: raise ValueError(f'{type(encoder).__name__} has no `num_features`: pass a batch of images, or set the attribute')
    was = encoder.training
    with torch.no_grad(): h = encoder.eval()(x[:1])
    encoder.train(was)
    if h.ndim != 2: raise ValueError(f'the encoder must map images to vectors N×features, got shape {tuple(h.shape)}: end it with pooling and flatten')
    return h.shape[1]

class SimCLRModel(nn.Module):
    "An encoder and its projection head: what stage one trains"
    def __init__(self,
        encoder:nn.Module, # Maps images to vectors: ours, timm's, torchvision's or your own
        head:ProjectionHead=None # None: three layers, 128 out
    ):
        super().__init__()
        self.encoder = encoder
        self.head = ProjectionHead(feature_dim(encoder)) if head is None else head
        n = getattr(encoder, 'num_features', None)
        if n is not None and n != self.head.in_features: raise ValueError(f'the encoder gives {n} features, the head wants {self.head.in_features}')
        self.supervised,self.supervised_layer = None,None   # a classifier that came with a checkpoint, and the head layer it sits on

    def forward(self, x):
        "Images → projections z, N×out_features"
        return self.head(self.encoder(x))

class Classifier(nn.Module):
    "The encoder, the first `from_layer` layers of its projection head, and a linear layer: what stages two and three train"
    def __init__(self,
        model:SimCLRModel, # Shared, not copied: `finetune_learner` makes the copy
        from_layer:int=None, # 0: the encoder's output, 1: after the head's first layer …; None: where the checkpoint's classifier sits
        num_classes:int=None # None: take the checkpoint's own linear layer
    ):
        super().__init__()
        L = model.head.num_layers
        if from_layer is None:
            from_layer = model.supervised_layer
            if from_layer is None: raise ValueError(f'from_layer is not recorded with this model: say which of 0 … {L} (released 1 % and 10 % models: 1; linear evaluation and 100 %: 0)')
        if not 0 <= from_layer <= L: raise ValueError(f'from_layer must be 0 … {L} (the head has {L} layers), got {from_layer}')
        self.encoder,self.from_layer = model.encoder,from_layer
        self.head = nn.Sequential(*list(model.head.layers)[:from_layer])
        width = model.head.out_features if from_layer == L else model.head.in_features
        if num_classes is None:
            if model.supervised is None: raise ValueError('num_classes is needed: this model came without a classifier')
            if model.supervised.in_features != width: raise ValueError(f'the classifier that came with the model wants {model.supervised.in_features} features, layer {from_layer} has {width}')
            self.supervised = model.supervised
        else:
            if num_classes < 2: raise ValueError(f'num_classes must be ≥ 2, got {num_classes}')
            self.supervised = nn.Linear(width, num_classes)
            nn.init.zeros_(self.supervised.weight); nn.init.zeros_(self.supervised.bias)   # the reference's zero_init_logits_layer

    def features(self, x):
        "Images → what the linear layer sees"
        return self.head(self.encoder(x))

    def forward(self, x):
        "Images → logits, N×num_classes"
        return self.supervised(self.features(x))

class Normalized(nn.Module):
    "An encoder with the mean/std normalisation it was pretrained with inside, so that everybody outside speaks [0,1]"
    def __init__(self,
        encoder:nn.Module, # timm's or torchvision's, for instance
        mean, # One number a channel, for instance (0.485, 0.456, 0.406)
        std # One number a channel, > 0
    ):
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32).reshape(-1), torch.as_tensor(std, dtype=torch.float32).reshape(-1)
        if mean.shape != std.shape or (std <= 0).any(): raise ValueError(f'mean and std must have one number a channel and std > 0, got {mean.tolist()} and {std.tolist()}')
        self.encoder = encoder
        self.register_buffer('mean', mean.view(1,-1,1,1)); self.register_buffer('std', std.view(1,-1,1,1))
    @property
    def num_features(self): return getattr(self.encoder, 'num_features', None)
    def forward(self, x): return self.encoder((check_images(x, self.mean.shape[1]) - self.mean) / self.std)
