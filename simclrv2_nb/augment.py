"""Every image op of the reference, batched, with an independent draw per image, on any device"""
import math, warnings
from collections import namedtuple
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['check_images', 'adjust_brightness', 'adjust_contrast', 'adjust_saturation', 'adjust_hue', 'to_grayscale',
           'gaussian_blur', 'resample_matrix', 'crop_resize', 'random_crop_boxes', 'eval_crop', 'SimCLRAugment', 'FineTuneAugment']

def check_images(
    x, # What should be a batch of images, N×C×H×W, float, in [0,1]
    channels:int=None, # The number of channels it must have, if that matters
    name:str='x' # What to call it in the message
)->Tensor: # `x` as a plain `Tensor`
    "Raise `TypeError` or `ValueError`, saying what was seen and what to do, unless `x` is a batch of float images in [0,1]"
    if not isinstance(x, Tensor): raise TypeError(f'{name} must be a torch.Tensor of shape N×C×H×W, got {type(x).__name__}')
    if not x.is_floating_point():
        raise TypeError(f'{name} must be float in [0,1], got {x.dtype}: divide uint8 images by 255 (fastai: `IntToFloatTensor` in `after_batch`)')
    if x.ndim != 4: raise ValueError(f'{name} must have 4 dimensions N×C×H×W, got shape {tuple(x.shape)}: for one image use `x[None]`')
    if channels and x.shape[1] != channels:
        raise ValueError(f'{name} has {x.shape[1]} channels, expected {channels}: build the encoder with `in_channels={x.shape[1]}` or convert the images')
    if not x.numel(): raise ValueError(f'{name} is empty, shape {tuple(x.shape)}')
    if torch.compiler.is_compiling() or torch.jit.is_tracing(): return x.as_subclass(Tensor)
    x = x.as_subclass(Tensor)
    lo, hi = (o.item() for o in x.detach().aminmax())
    if not (lo >= -1e-3 and hi <= 1+1e-3):
        raise ValueError(f'{name} must lie in [0,1], got values from {lo:.4g} to {hi:.4g}: SimCLRv2 uses no mean/std normalisation '
                         '(remove `Normalize`; divide 0–255 images by 255)')
    return x

def _per_image(f, x):
    "`f`, a number or one per image, shaped to broadcast over `x` (N×C×H×W)"
    f = torch.as_tensor(f, dtype=x.dtype, device=x.device)
    if f.ndim > 1 or (f.ndim == 1 and len(f) not in (1, len(x))):
        raise ValueError(f'one factor per image expected: {len(x)} images, factors of shape {tuple(f.shape)}')
    return f.reshape(-1, 1, 1, 1)

def adjust_brightness(
    x:Tensor, # Images, N×C×H×W
    factor:Tensor, # One per image: multiplies (v2), or is added with `add=True`
    add:bool=False # Additive brightness of SimCLR v1
)->Tensor: # Not clipped
    "Scale the pixels of each image (SimCLRv2), or shift them (v1)"
    return x + _per_image(factor, x) if add else x * _per_image(factor, x)

def adjust_contrast(
    x:Tensor, # Images, N×C×H×W
    factor:Tensor # One per image, ≥ 0; 1 changes nothing
)->Tensor: # Not clipped
    "Stretch each channel of each image about its own mean"
    m = x.mean((2,3), keepdim=True)
    return (x-m) * _per_image(factor, x) + m

def _is_grey(x, op):
    if x.shape[1] not in (1,3): raise ValueError(f'{op} needs 1 or 3 channels, got {x.shape[1]}: use strength=0 or your own colour ops')
    return x.shape[1] == 1

def adjust_saturation(
    x:Tensor, # Images, N×C×H×W with C = 3, or 1 (then nothing changes)
    factor:Tensor # One per image, ≥ 0; 0 is grey, 1 changes nothing
)->Tensor: # Not clipped
    "Scale the saturation in HSV, S ← clip(S·factor, 0, 1); hue and V = max are kept"
    if _is_grey(x, 'adjust_saturation'): return x
    v = x.amax(1, keepdim=True)
    s = torch.where(v > 0, (v - x.amin(1, keepdim=True)) / v, 0.)
    ratio = (s * _per_image(factor, x)).clamp(0, 1) / torch.where(s > 0, s, 1.)
    return v - (v-x) * ratio

def adjust_hue(
    x:Tensor, # Images, N×C×H×W with C = 3, or 1 (then nothing changes)
    factor:Tensor # One per image: the turn of the colour wheel, 1 is once round
)->Tensor: # Not clipped
    "Turn the hue, H ← (H + factor) mod 1; saturation and V are kept"
    if _is_grey(x, 'adjust_hue'): return x
    v, lo = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    r, g, b = x.split(1, 1)
    d = v - lo
    safe = torch.where(d > 0, d, 1.)
    h6 = torch.where(r == v, (g-b)/safe, torch.where(g == v, (b-r)/safe + 2, (r-g)/safe + 4))
    h6 = torch.where(d > 0, h6, 0.) + 6*_per_image(factor, x)
    k = (torch.tensor([5.,3.,1.], dtype=x.dtype, device=x.device).view(1,3,1,1) + h6) % 6
    return v - d * torch.minimum(k, 4-k).clamp(0, 1)

def to_grayscale(
    x:Tensor # Images, N×C×H×W with C = 3, or 1 (then nothing changes)
)->Tensor: # Same shape: the grey value in every channel
    "0.2989 R + 0.5870 G + 0.1140 B, in all three channels"
    if _is_grey(x, 'to_grayscale'): return x
    w = torch.tensor([.2989,.5870,.1140], dtype=x.dtype, device=x.device).view(1,3,1,1)
    return (x*w).sum(1, keepdim=True).expand_as(x)

def gaussian_blur(
    x:Tensor, # Images, N×C×H×W
    sigma:Tensor, # Standard deviation in pixels: a number or one per image, > 0
    kernel_size:int # As in the reference: image size // 10. The kernel has 2·(kernel_size // 2) + 1 taps
)->Tensor: # Same shape
    "Separable Gaussian blur with zero padding, so borders darken as in the reference"
    r = kernel_size // 2
    if not r: return x
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
    if (sigma <= 0).any(): raise ValueError(f'sigma must be > 0, got {sigma.min().item()}')
    i = torch.arange(-r, r+1, dtype=x.dtype, device=x.device)
    w = torch.exp(-i**2 / (2*sigma[:,None]**2))
    w = (w / w.sum(1, keepdim=True)).expand(len(x), -1)
    def band(n):
        "The n×n band matrix that blurs a line of n pixels, one per image"
        d = torch.arange(n, device=x.device)
        d = d[None,:] - d[:,None] + r
        return w[:, d.clamp(0, 2*r)] * ((d >= 0) & (d <= 2*r))
    return _two_sided(band(x.shape[2]), x, band(x.shape[3]))

def _two_sided(a, x, b):
    "a @ x @ bᵀ for every channel, never in half precision: a (N×S×H), x (N×C×H×W), b (N×T×W)"
    with torch.autocast(x.device.type, enabled=False): return (a[:,None] @ x) @ b[:,None].mT

def _keys(t, a):
    "Keys' cubic kernel at distances t and 1+t, for t in [0,1]"
    near = ((a+2)*t - (a+3))*t*t + 1
    u = t + 1
    far = ((a*u - 5*a)*u + 8*a)*u - 4*a
    return near, far

def resample_matrix(
    start:Tensor, # First pixel of the crop, one per image
    length:Tensor, # Pixels in the crop, one per image
    n_in:int, # Pixels in the whole line
    n_out:int, # Pixels wanted
    kernel:str='tf2' # 'tf2': half-pixel centres, a = −0.5. 'tf1': legacy, a = −0.75, edge clamped
)->Tensor: # N×n_out×n_in
    "One matrix per image that cuts `start:start+length` out of a line of `n_in` pixels and resizes it bicubically, as TensorFlow does"
    if kernel not in ('tf1','tf2'): raise ValueError(f"kernel must be 'tf2' or 'tf1', got {kernel!r}")
    start, length = start.long()[:,None], length.long()[:,None]
    o = torch.arange(n_out, device=start.device, dtype=torch.float32)
    scale = length.float() / n_out                              # float32, as in TensorFlow: it decides the rounding below
    src = (o+0.5)*scale - 0.5 if kernel == 'tf2' else o*scale
    base = src.floor()
    t = torch.round((src-base)*1024) / 1024                     # TensorFlow looks the weights up in a table of 1024 steps
    a = -0.5 if kernel == 'tf2' else -0.75
    (n0,f0), (n1,f1) = _keys(t.double(), a), _keys(1-t.double(), a)
    w = torch.stack([f0,n0,n1,f1], -1).float()
    i = base.long()[...,None] + torch.arange(-1, 3, device=start.device)
    if kernel == 'tf2':
        w = w * ((i >= 0) & (i < length[...,None]))
        w = w / w.sum(-1, keepdim=True)
    i = i.clamp_min(0).minimum(length[...,None]-1) + start[...,None]
    m = torch.zeros(len(start), n_out, n_in, device=start.device)
    return m.scatter_add_(2, i, w)

def crop_resize(
    x:Tensor, # Images, N×C×H×W
    boxes:Tensor, # Integers, N×4 (or 4 for all): top, left, height, width, in pixels
    size:int, # Side of the square result in pixels
    kernel:str='tf2', # Which of TensorFlow's bicubic kernels: 'tf2' or 'tf1' (the released networks)
    flip:Tensor=None # Booleans, one per image: mirror left to right
)->Tensor: # N×C×size×size, not clipped: bicubic overshoots
    "Cut a box out of each image and resize it: two small matrices per image, two batched products"
    boxes = torch.as_tensor(boxes).expand(len(x), 4)
    top, left, h, w = boxes.unbind(1)
    if not torch.compiler.is_compiling() and ((boxes[:,:2] < 0).any() or (boxes[:,2:] < 1).any() or (top+h > x.shape[2]).any() or (left+w > x.shape[3]).any()):
        raise ValueError(f'boxes (top, left, height, width) must lie inside the {x.shape[2]}×{x.shape[3]} image')
    top, left, h, w = boxes.to(x.device).unbind(1)
    rows, cols = resample_matrix(top, h, x.shape[2], size, kernel), resample_matrix(left, w, x.shape[3], size, kernel)
    if flip is not None: cols = torch.where(flip.to(x.device)[:,None,None], cols.flip(1), cols)
    return _two_sided(rows.to(x.dtype), x, cols.to(x.dtype))

def _uniform(generator, *shape, lo=0., hi=1.):
    "Uniform draws on the generator's own device (the CPU by default), so that a seed means the same on every device"
    return torch.rand(*shape, generator=generator, device=generator.device if generator is not None else 'cpu') * (hi-lo) + lo

def random_crop_boxes(
    n:int, # How many boxes
    height:int, # Of the image, in pixels
    width:int, # Of the image, in pixels
    min_scale:float=0.08, # Smallest share of the image's area, in (0,1]
    generator:torch.Generator=None # Source of randomness
)->Tensor: # Integers, n×4: top, left, height, width
    "TensorFlow's `sample_distorted_bounding_box` as SimCLR calls it: up to 100 tries an image, then the whole image"
    if not 0 < min_scale <= 1: raise ValueError(f'min_scale must be in (0,1], got {min_scale}')
    if n < 1 or height < 1 or width < 1: raise ValueError(f'n, height and width must be ≥ 1, got {n}, {height}, {width}')
    T, area = 100, float(height*width)
    u = _uniform(generator, 4, n, T)
    dev = u.device
    ratio = u[0]*(4/3-3/4) + 3/4                                   # width / height, uniform (not log-uniform)
    lo_area, hi_area = min_scale*area, area
    h_min = (lo_area/ratio).sqrt().round()
    h_max = (hi_area/ratio).sqrt().round()
    too_wide = (h_max*ratio).round() > width
    cut = ((width+0.5-1e-7)/ratio).trunc()
    cut = cut - ((cut*ratio).round() > width).float()
    h_max = torch.where(too_wide, cut, h_max).clamp_max(height)
    h_min = h_min.minimum(h_max)
    h = (h_min + (u[1]*(h_max-h_min+1)).floor()).minimum(h_max)      # the height is uniform, not the area
    w = (h*ratio).round()
    h = h + (w*h < lo_area).float(); w = (h*ratio).round()
    h = h - (w*h > hi_area).float(); w = (h*ratio).round()
    ok = (w*h >= lo_area) & (w*h <= hi_area) & (h <= height) & (w <= width) & (h > 0) & (w > 0) & (w*h >= 0.1*area)  # min_object_covered
    top  = (u[2]*(height-h)).floor().clamp_min(0)                    # the last possible offset is never drawn
    left = (u[3]*(width-w)).floor().clamp_min(0)
    boxes = torch.stack([top, left, h, w], -1)
    first = ok.float().argmax(1)
    whole = torch.tensor([0., 0., height, width], device=dev)
    return torch.where(ok.any(1, keepdim=True), boxes[torch.arange(n, device=dev), first], whole).long()

def eval_crop(
    x:Tensor, # Images, N×C×H×W, in [0,1]
    size:int, # Side of the square result in pixels
    kernel:str='tf2' # 'tf1' for the released networks
)->Tensor: # N×C×size×size, in [0,1]
    "The central 0.875 of the shorter side, resized; images of `size` ≤ 32 are taken as they are"
    H, W = x.shape[-2:]
    if size <= 32:
        if (H,W) != (size,size): raise ValueError(f'up to 32 pixels nothing is cropped or resized: the images must be {size}×{size}, got {H}×{W}')
        return x.clamp(0, 1)
    side = round(0.875*min(H,W))                                     # Python rounds half to even, as the reference's rint does
    box = torch.tensor([(H-side+1)//2, (W-side+1)//2, side, side], device=x.device)
    return crop_resize(x, box, size, kernel).clamp(0, 1)

Draws = namedtuple('Draws', 'box flip jitter order factors grey blur sigma')

class FineTuneAugment:
    "Random crop and flip: what stages two and three (and linear evaluation) train on"
    def __init__(self,
        size:int, # Side of the square result in pixels
        min_scale:float=0.08, # Smallest share of the image's area that a crop takes
        kernel:str='tf2' # Which bicubic kernel
    ):
        if size < 1: raise ValueError(f'size must be ≥ 1, got {size}')
        if not 0 < min_scale <= 1: raise ValueError(f'min_scale must be in (0,1], got {min_scale}')
        self.size,self.min_scale,self.kernel = size,min_scale,kernel

    def draw(self, n, height, width, generator=None):
        "Everything random about `n` images: a `Draws`"
        box = random_crop_boxes(n, height, width, self.min_scale, generator)
        return Draws(box, _uniform(generator, n) < 0.5, *[None]*6)

    def apply(self, x, d):
        "The images as `d` wants them"
        return crop_resize(x, d.box, self.size, self.kernel, d.flip).clamp(0, 1)

    def __call__(self,
        x:Tensor, # Images, N×C×H×W, float in [0,1]
        generator:torch.Generator=None # Source of randomness
    )->Tensor: # One view of each, N×C×size×size, in [0,1]
        "One random view of every image"
        x = check_images(x)
        return self.apply(x, self.draw(len(x), *x.shape[2:], generator))

    def __repr__(self): return f"{type(self).__name__}({', '.join(f'{k}={v}' for k,v in vars(self).items())})"

class SimCLRAugment(FineTuneAugment):
    "Random crop, flip, colour jitter, grey and blur: one view of every image, each with its own draw"
    def __init__(self,
        size:int, # Side of the square result in pixels
        strength:float=1., # Of the colour ops: brightness, contrast, saturation 0.8·strength, hue 0.2·strength; 0 leaves colours alone
        blur:bool=True, # Blur half of the images (the reference does not on images of 32 pixels)
        min_scale:float=0.08, # Smallest share of the image's area that a crop takes
        kernel:str='tf2' # Which bicubic kernel
    ):
        super().__init__(size, min_scale, kernel)
        if not 0 <= strength <= 1.25: raise ValueError(f'strength must be in [0,1.25] (contrast needs 0.8·strength ≤ 1), got {strength}')
        if blur and size <= 32: warnings.warn(f'blur on {size}-pixel images removes what there is to see; the reference trains them with blur=False', stacklevel=2)
        self.strength,self.blur = strength,blur

    def draw(self, n, height, width, generator=None):
        "Everything random about `n` images: a `Draws`"
        d, s, u = super().draw(n, height, width, generator), self.strength, lambda *sh, **kw: _uniform(generator, *sh, **kw)
        factors = torch.stack([u(n, lo=max(1-.8*s, 0), hi=1+.8*s), u(n, lo=1-.8*s, hi=1+.8*s), u(n, lo=1-.8*s, hi=1+.8*s), u(n, lo=-.2*s, hi=.2*s)], 1)
        return d._replace(jitter=u(n) < 0.8, order=u(n, 4).argsort(1), factors=factors, grey=u(n) < 0.2, blur=u(n) < 0.5, sigma=u(n, lo=.1, hi=2.))

    def apply(self, x, d):
        "The images as `d` wants them"
        # without colour ops, clip once at the end; with them, the crop's overshoot feeds the first colour op, as in the reference
        x = crop_resize(x, d.box, self.size, self.kernel, d.flip)
        if self.strength: x = self._grey(self._jitter(x, d), d)
        x = x.clamp(0, 1)
        return self._blur(x, d) if self.blur else x

    def _jitter(self, x, d):
        "The four colour ops on the images chosen, each image in its own order, clipped after each"
        ops = [adjust_brightness, adjust_contrast] if x.shape[1] == 1 else [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]
        for step in range(4):
            for k,op in enumerate(ops):
                i = (d.jitter & (d.order[:,step] == k)).nonzero()[:,0]
                if not len(i): continue
                f, i = d.factors[i,k].to(x.device), i.to(x.device)
                x = x.index_copy(0, i, op(x[i], f).clamp(0, 1).to(x.dtype))
        return x

    def _grey(self, x, d):
        return x if x.shape[1] == 1 else torch.where(d.grey.to(x.device)[:,None,None,None], to_grayscale(x), x)

    def _blur(self, x, d):
        b = gaussian_blur(x, d.sigma.to(x.device), self.size//10).clamp(0, 1)
        return torch.where(d.blur.to(x.device)[:,None,None,None], b, x)
