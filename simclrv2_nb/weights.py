"""Models in and out: safetensors with the architecture beside the numbers"""
import json, os
from pathlib import Path
import torch, torch.nn as nn
from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
from simclrv2_nb.resnet import ResNet
from simclrv2_nb.head import ProjectionHead, SimCLRModel, Classifier

__all__ = ['save', 'load']

_FORMAT = 'simclrv2_nb 1'

def _architecture(model):
    "What `load` needs to build `model` again"
    if not isinstance(model, (SimCLRModel, Classifier)): raise TypeError(f'model must be a SimCLRModel or a Classifier, got {type(model).__name__}')
    if not isinstance(model.encoder, ResNet):
        raise TypeError(f'the encoder must be a `resnet.ResNet`, got {type(model.encoder).__name__}: save its `state_dict` with safetensors instead')
    arch = dict(kind=type(model).__name__, encoder=model.encoder.config)
    if isinstance(model, SimCLRModel):
        h, lin = model.head, model.supervised
        return dict(arch, head=dict(in_features=h.in_features, out_features=h.out_features, num_layers=h.num_layers),
                    supervised=None if lin is None else [lin.in_features, lin.out_features], supervised_layer=model.supervised_layer)
    layers, k = model.head, model.from_layer
    last = k > 0 and layers[-1][1].bias is None          # the head's own last layer has no shift
    head = dict(in_features=model.encoder.num_features, num_layers=k if last else k+1)
    if last: head['out_features'] = layers[-1][0].out_features
    return dict(arch, head=head, from_layer=k, num_classes=model.supervised.out_features)

def _build(a):
    m = SimCLRModel(ResNet(**a['encoder']), ProjectionHead(**a['head']))
    if a['kind'] == 'Classifier': return Classifier(m, a['from_layer'], a['num_classes'])
    if a['supervised']: m.supervised = nn.Linear(*a['supervised'])
    m.supervised_layer = a['supervised_layer']
    return m

def save(
    model:nn.Module, # A `SimCLRModel` or a `Classifier` on a `ResNet`
    path # File to write, by habit `.safetensors`
)->Path: # The file
    "Write a model's numbers and architecture; the file appears whole or not at all"
    path = Path(path)
    meta = {'format': _FORMAT, 'architecture': json.dumps(_architecture(model))}
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        save_file({k: v.detach().cpu().contiguous() for k,v in model.state_dict().items()}, tmp, meta)
        tmp.replace(path)
    finally: tmp.unlink(missing_ok=True)
    return path

def load(
    path # A file that `save` wrote
)->nn.Module: # The model, on the CPU, in eval mode
    "Build the model again and fill in its numbers; nothing in the file is executed"
    path = Path(path)
    if not path.is_file(): raise FileNotFoundError(f'no such file: {path}')
    try:
        with safe_open(path, 'pt') as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except SafetensorError as e: raise ValueError(f'{path} is damaged or no safetensors file ({e})') from e
    if meta.get('format') != _FORMAT: raise ValueError(f'{path} was not written by `weights.save`: its format is {meta.get("format")!r}, expected {_FORMAT!r}')
    try: model = _build(json.loads(meta['architecture']))
    except (KeyError, TypeError, ValueError) as e: raise ValueError(f'{path}: its architecture cannot be built ({e})') from e
    want = model.state_dict()
    bad = [f'missing {k}' for k in want.keys()-tensors.keys()] + [f'left over {k}' for k in tensors.keys()-want.keys()]
    bad += [f'{k} is {tuple(tensors[k].shape)}, not {tuple(want[k].shape)}' for k in want.keys()&tensors.keys() if want[k].shape != tensors[k].shape]
    if bad: raise ValueError(f'{path} does not fit its architecture: {"; ".join(sorted(bad)[:5])}' + (f' and {len(bad)-5} more' if len(bad) > 5 else ''))
    model.load_state_dict(tensors)
    return model.eval()
