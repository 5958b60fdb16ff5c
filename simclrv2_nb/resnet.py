"""ResNet and SK-ResNet of SimCLRv2, any depth and width"""
import math, re
import torch, torch.nn as nn, torch.nn.functional as F
from torch import Tensor
from simclrv2_nb.augment import check_images

__all__ = ['ResNet', 'encoder', 'official_encoders']

DEPTHS = {18:(2,2,2,2), 34:(3,4,6,3), 50:(3,4,6,3), 101:(3,4,23,3), 152:(3,8,36,3), 200:(3,24,36,3)}
official_encoders = [f'r{d}_{w}x_sk{s}' for d in (50,101,152) for w in (1,2) for s in (0,1)] + ['r152_3x_sk1']

def conv(c_in, c_out, k, stride=1, bias=False):
    "A convolution as the reference pads and initialises it: truncated normal of standard deviation 1/√fan_in"
    c = nn.Conv2d(c_in, c_out, k, stride, (k-1)//2, bias=bias)
    std = (c_in*k*k)**-0.5 / 0.87962566103423978   # what is left of the deviation after cutting at two of them
    nn.init.trunc_normal_(c.weight, std=std, a=-2*std, b=2*std)
    if bias: nn.init.zeros_(c.bias)
    return c

def conv_bn(c_in, c_out, k, stride=1, relu=True, gamma=1.):
    "Convolution, batch norm and, if wanted, ReLU"
    bn = nn.BatchNorm2d(c_out)
    nn.init.constant_(bn.weight, gamma)
    return nn.Sequential(conv(c_in, c_out, k, stride), bn, *([nn.ReLU(inplace=True)] if relu else []))

class MaxPool(nn.Module):
    "3×3/2 max pooling aligned as TensorFlow's SAME: an even side is padded at the far end only"
    def forward(self, x): return F.max_pool2d(x, 3, 2, padding=(x.shape[2]%2, x.shape[3]%2), ceil_mode=True)

class AvgPool(nn.Module):
    "2×2 average pooling of the SK shortcut, with TensorFlow's padding at the far end"
    def __init__(self, stride): super().__init__(); self.stride = stride
    def forward(self, x):
        if self.stride == 1: return F.avg_pool2d(F.pad(x, (0,1,0,1), mode='replicate'), 2, 1)   # = padded cells left out of the mean
        return F.avg_pool2d(F.pad(x, (0,x.shape[3]%2,0,x.shape[2]%2)), 2, 2)

class SE(nn.Module):
    "Squeeze and excitation: a gate per channel computed from the spatial mean"
    def __init__(self, c, hidden):
        super().__init__()
        self.reduce,self.expand = conv(c, hidden, 1, bias=True),conv(hidden, c, 1, bias=True)
    def forward(self, x): return x * self.expand(F.relu(self.reduce(x.mean((2,3), keepdim=True)))).sigmoid()

class SKConv(nn.Module):
    "Selective kernel: two 3×3 branches in one convolution, mixed per channel by a softmax"
    def __init__(self, c_in, c, stride, sk_ratio):
        super().__init__()
        self.branches = conv_bn(c_in, 2*c, 3, stride)
        self.squeeze = conv_bn(c, max(int(c*sk_ratio), 32), 1)
        self.expand = conv(self.squeeze[0].out_channels, 2*c, 1)
    def forward(self, x):
        a, b = self.branches(x).chunk(2, 1)
        wa, wb = self.expand(self.squeeze((a+b).mean((2,3), keepdim=True))).chunk(2, 1)
        w = torch.sigmoid(wa-wb)                                     # softmax over a pair
        return a*w + b*(1-w)

class Block(nn.Module):
    "A residual block: basic (two 3×3) or bottleneck (1×1, 3×3, 1×1)"
    def __init__(self, c_in, f, stride, bottleneck, project, sk_ratio, se_ratio):
        super().__init__()
        c_out, sk = f*(4 if bottleneck else 1), sk_ratio > 0
        self.shortcut = nn.Identity()
        if project and sk: self.shortcut = nn.Sequential(AvgPool(stride), *conv_bn(c_in, c_out, 1, relu=False))
        elif project:      self.shortcut = conv_bn(c_in, c_out, 1, stride, relu=False)
        if bottleneck:
            mid = SKConv(f, f, stride, sk_ratio) if sk else conv_bn(f, f, 3, stride)
            self.residual = nn.Sequential(conv_bn(c_in, f, 1), mid, conv_bn(f, c_out, 1, relu=False, gamma=0.))
        else: self.residual = nn.Sequential(conv_bn(c_in, f, 3, stride), conv_bn(f, c_out, 3, relu=False, gamma=0.))
        self.se = SE(c_out, max(1, int(f*se_ratio))) if se_ratio > 0 else nn.Identity()
    def forward(self, x): return F.relu(self.se(self.residual(x)) + self.shortcut(x), inplace=True)

class ResNet(nn.Module):
    "The encoder: images in [0,1] to a vector each"
    def __init__(self,
        depth:int=50, # 18, 34, 50, 101, 152 or 200
        width_multiplier:float=1, # Times 64 channels in the first group; fractions (1/4, 1/8) work
        sk_ratio:float=0., # Selective kernels if > 0 (the released ones: 1/16); the stem and shortcuts become ResNet-D's
        se_ratio:float=0., # Squeeze-and-excitation if > 0
        cifar_stem:bool=False, # A 3×3 stem without pooling, for images up to 32 pixels
        in_channels:int=3 # Channels of the images
    ):
        super().__init__()
        if depth not in DEPTHS: raise ValueError(f'depth must be one of {list(DEPTHS)}, got {depth}')
        if not width_multiplier*64 >= 1: raise ValueError(f'width_multiplier must be at least 1/64, got {width_multiplier}')
        if sk_ratio < 0 or se_ratio < 0: raise ValueError(f'sk_ratio and se_ratio must be ≥ 0, got {sk_ratio} and {se_ratio}')
        if in_channels < 1: raise ValueError(f'in_channels must be ≥ 1, got {in_channels}')
        self.config = dict(depth=depth, width_multiplier=width_multiplier, sk_ratio=sk_ratio, se_ratio=se_ratio, cifar_stem=cifar_stem, in_channels=in_channels)
        self.in_channels = in_channels
        w, c, bottleneck = int(64*width_multiplier), in_channels, depth >= 50
        if cifar_stem:     convs = [conv(c, w, 3)]
        elif sk_ratio > 0: convs = [*conv_bn(c, w//2, 3, 2), *conv_bn(w//2, w//2, 3), conv(w//2, w, 3)]
        else:              convs = [conv(c, w, 7, 2)]
        self.stem = nn.Sequential(*convs)
        self.stem_out = nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(inplace=False), *([] if cifar_stem else [MaxPool()]))
        self.groups, c = nn.ModuleList(), w
        for g,n in enumerate(DEPTHS[depth]):
            f, blocks = int(64*2**g*width_multiplier), []
            for i in range(n):
                blocks.append(Block(c, f, 2 if g and not i else 1, bottleneck, not i, sk_ratio, se_ratio))
                c = f*(4 if bottleneck else 1)
            self.groups.append(nn.Sequential(*blocks))
        self.num_features = c

    def endpoints(self,
        x:Tensor # Images, N×C×H×W, float in [0,1]
    )->dict: # Name to tensor, in the order of the network
        "Every stage's output: `initial_conv` (before batch norm), `initial_max_pool`, `block_group1` … `block_group4`, `final_avg_pool`"
        x = check_images(x, self.in_channels)
        res = {'initial_conv': self.stem(x)}
        res['initial_max_pool'] = x = self.stem_out(res['initial_conv'])
        for i,g in enumerate(self.groups): res[f'block_group{i+1}'] = x = g(x)
        res['final_avg_pool'] = x.mean((2,3))
        return res

    def forward(self, x):
        "Images N×C×H×W in [0,1] → N×`num_features`"
        x = self.stem_out(self.stem(check_images(x, self.in_channels)))
        for g in self.groups: x = g(x)
        return x.mean((2,3))

def encoder(
    name:str, # 'r{depth}_{width}x_sk{0|1}', for instance 'r50_2x_sk1' or 'r18_0.25x_sk0'
    **kw # More for `ResNet`: cifar_stem, in_channels, se_ratio
)->ResNet:
    "An encoder by the name the released ones carry"
    m = re.fullmatch(r'r(\d+)_(\d+(?:\.\d+)?)x_sk([01])', str(name))
    if not m or int(m[1]) not in DEPTHS:
        raise ValueError(f"unknown encoder {name!r}: names look like 'r50_1x_sk0' or 'r18_0.25x_sk1', depth one of {list(DEPTHS)}; published: {', '.join(official_encoders)}")
    w = float(m[2])
    return ResNet(int(m[1]), int(w) if w.is_integer() else w, sk_ratio=0.0625*int(m[3]), **kw)
