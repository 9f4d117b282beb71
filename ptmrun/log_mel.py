"""Spectrograms of sounds: the logarithm of their energy on the mel scale, on any device."""

import torch
from torch import Tensor, nn

from ptmrun.batch import Waves

LOWEST = 50.0  # Hz
FLOOR = 1e-4  # of an energy, where 1 is the mean of a sound of variance 1: 40 dB below it all is alike
USUAL = 40  # bands


class LogMel(nn.Module):
    """Sounds of variance 1 -> frames of `stack` spectra side by side. rate: values a second; hop, window: values from one
    spectrum to the next, and in each. A frame rests on values of its sound alone: padding changes none."""

    taper: Tensor
    bank: Tensor

    def __init__(self, rate: int, bands: int = USUAL, stack: int = 1, hop: int | None = None, window: int | None = None):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.hop, self.window, self.stack, self.bands = hop or rate // 100, window or rate // 40, stack, bands
        self.size = 2 ** (self.window - 1).bit_length()  # of the Fourier transform
        bank = mel_filter_bank(self.size // 2 + 1, bands, LOWEST, rate / 2, rate, norm=None, mel_scale="htk")
        weights = torch.from_numpy(bank).float()
        self.register_buffer("bank", weights / weights.sum(0).clamp(min=1e-12), persistent=False)
        taper = torch.hann_window(self.window)
        self.register_buffer("taper", taper / taper.square().sum().sqrt(), persistent=False)

    @property
    def least(self) -> int:
        """Values that a frame rests on."""
        return self.window + (self.stack - 1) * self.hop

    def count(self, values: Tensor) -> Tensor:
        """Frames of sounds of so many values, int64 [B]; a shorter one than a frame has one."""
        return (((values - self.window).div(self.hop, rounding_mode="floor") + 1) // self.stack).clamp(min=1)

    def forward(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """[B, T] -> (float32 [B, t, stack * bands], which frames are no padding [B, t] bool)."""
        with torch.autocast(waves.values.device.type, enabled=False):
            values = nn.functional.pad(waves.values.float(), (0, max(0, self.least - waves.values.shape[1])))
            spectra = torch.fft.rfft(values.unfold(1, self.window, self.hop) * self.taper, self.size)
            energy = (spectra.real.square() + spectra.imag.square()) @ self.bank
            logs = (energy + FLOOR).log()
        whole = logs.shape[1] // self.stack
        frames = logs[:, : whole * self.stack].unflatten(1, (whole, self.stack)).flatten(2)
        return frames, torch.arange(whole, device=frames.device) < self.count(waves.mask.sum(1))[:, None]
