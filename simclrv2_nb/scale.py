"""Precision and memory format for the machine at hand"""
import torch
from fastai.callback.fp16 import MixedPrecision, AMPMode
from fastai.callback.channelslast import ChannelsLast
from torch.amp import GradScaler
from fastcore.foundation import L

__all__ = ['CPUMixedPrecision', 'cpu_has_bf16', 'fast_precision']

class CPUMixedPrecision(MixedPrecision):
    "fastai's mixed precision where there is no GPU: bfloat16 autocast on the CPU"
    def __init__(self): super().__init__(amp_mode=AMPMode.BF16)
    def before_fit(self):
        self.autocast,self.learn.scaler,self.scales = torch.autocast('cpu', torch.bfloat16),GradScaler('cpu', enabled=False),L()

def cpu_has_bf16()->bool:
    "Does this processor multiply bfloat16 in hardware (AVX512_BF16, AMX)? Elsewhere bfloat16 is slower than float32"
    return bool(getattr(torch.cpu, '_is_avx512_bf16_supported', lambda: False)())

def fast_precision(
    device=None # Where training runs; None: the GPU if there is one
)->list: # fastai callbacks
    "The precision and memory format that is fastest here without changing what is learnt: bfloat16 and channels last where hardware has them"
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda':
        return [ChannelsLast(), MixedPrecision(amp_mode=AMPMode.BF16 if torch.cuda.is_bf16_supported() else AMPMode.FP16)]
    if device.type == 'cpu' and cpu_has_bf16(): return [ChannelsLast(), CPUMixedPrecision()]
    return []
