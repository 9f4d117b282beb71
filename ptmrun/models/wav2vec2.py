"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477): transformers' Wav2Vec2Model, in its stable form with layer norms, on the
published convolutions over the sound itself, or on its log-mel spectrum."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ptmrun.batch import AudioSpec, Waves
from ptmrun.errors import UserError
from ptmrun.log_mel import USUAL, LogMel
from ptmrun.models import base, library_format, text_base
from ptmrun.models.base import Family
from ptmrun.storage import tensor_files

SIZES = {"tiny": (192, 4), "mini": (256, 6), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}  # width, blocks
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of the convolutions, as published
SPAN, BLOCKS = 4, 2  # frames of a span, and blocks of bands, that are hidden in training with labels
LEARNED = 32  # sounds at a time whose spectra are averaged


def resolve(options: Any, spec: AudioSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why). Raises UserError for sounds that are shorter than a frame."""
    return text_base.sized(options, SIZES)


def build(options: Any, spec: AudioSpec, attention: str) -> "Encoder":
    """An encoder of sounds of at most `length` values, from resolved options."""
    width, depth, heads = text_base.shape(options, SIZES)
    if options.frontend == "mel":
        mel = LogMel(spec.rate, USUAL, options.stack)
    else:
        stride, reach = math.prod(STRIDES), receptive()
        stack = max(1, round(100 * stride / spec.rate))  # spectra about 10 ms apart, as many for each of its frames
        mel = LogMel(spec.rate, USUAL, stack, hop=stride // stack, window=reach - (stack - 1) * (stride // stack))
    channels = mel.stack * mel.bands if options.frontend == "mel" else min(512, 32 * max(1, round(width / 64)))
    small = width < 768
    config = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        conv_dim=(channels,) * len(KERNELS),
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32 if small else 128,
        num_conv_pos_embedding_groups=heads if small else 16,
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        attn_implementation=attention,
    )
    return Encoder(config, mel, options.frontend, spec.length, text_base.named("wav2vec2", options), options.hide)


def spec_augment(frames: Tensor, share: float, stack: int) -> Tensor:
    """SpecAugment (Park et al. 2019, arXiv:1904.08779) of frames [B, t, stack * bands] with mean 0: spans of frames and, over the
    whole sound, blocks of bands become 0; each `share` of them in the mean."""
    count, length, bands = frames.shape[0], frames.shape[1], frames.shape[2] // stack
    begins = torch.rand(count, length + SPAN - 1) < share / SPAN
    hidden = begins.unfold(1, SPAN, 1).any(2)[..., None]
    width, place = (torch.rand(2, count, BLOCKS, 1) * torch.tensor([2 * share / BLOCKS, 1.0]).view(2, 1, 1, 1) * bands).unbind()
    at = torch.arange(bands)
    blocks = ((place - at) % bands < width).any(1).repeat(1, stack)[:, None]
    return frames.masked_fill((hidden | blocks).to(frames.device), 0.0)


def receptive() -> int:
    """Values that a frame of the convolutions rests on."""
    reach = 1
    for kernel, stride in zip(reversed(KERNELS), reversed(STRIDES), strict=True):
        reach = (reach - 1) * stride + kernel
    return reach


class Encoder(base.Encoder):
    """`net` is the library's network; with the log-mel front end it has that in the place of the convolutions. `mel` gives the
    spectra that belong to its frames with either front end; their mean and deviation, [bands], come from training sounds."""

    learns_buffers = True
    trims = True
    why_no_classifier = "the library's has one layer more"
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attention\.(k_proj|v_proj)",
        "attention": r".*\.attention\.out_proj",
        "feed_forward": r".*\.feed_forward\.output_dense",
    }

    def __init__(self, config: Wav2Vec2Config, mel: LogMel, frontend: str, length: int, kind: str, hide: float):
        super().__init__()
        self.width, self.depth, self.kind = config.hidden_size, config.num_hidden_layers, kind
        self.mel, self.frontend, self.hide = mel, frontend, hide
        self.most = int(mel.count(torch.tensor(length)))  # frames of a sound
        self.net = Wav2Vec2Model(config)
        self.from_library = frontend == "conv"
        if not self.from_library:
            self.net.feature_extractor = nn.Identity()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(mel.bands))
        self.register_buffer("std", torch.ones(mel.bands))

    def learn_buffers(self, waves: Waves) -> dict[str, Tensor]:
        """Mean and deviation of each band over the frames of some sounds."""
        total = torch.zeros(3, self.mel.bands, dtype=torch.float64, device=waves.values.device)
        for first in range(0, len(waves.values), LEARNED):
            frames, there = self.mel(waves.map(lambda x: x[first : first + LEARNED]))  # noqa: B023
            rows = frames[there].view(-1, self.mel.bands).double()
            total += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)])
        mean = total[1] / total[0]
        return {"mean": mean.float(), "std": (total[2] / total[0] - mean.square()).clamp(min=1e-6).sqrt().float()}

    def saved_buffers(self, folder: Path) -> dict[str, Tensor]:
        """The same of the encoder that `save` wrote. Raises UserError."""
        file = folder / library_format.FITTED
        tensors = tensor_files.load(file)[0]
        if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in self.fitted.items()}:
            raise UserError(f"{file}: does not fit the model, which has {self.mel.bands} bands")
        if not all(map(tensor_files.finite, tensors.values())):
            raise UserError(f"{file}: is not finite; refused")
        return tensors

    @property
    def fitted(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def log_mel(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """The spectra of each frame, every band with mean 0 and deviation 1: float32 [B, t, stack * bands]; and which frames are
        no padding, [B, t] bool."""
        frames, there = self.mel(waves)
        return (frames - self.mean.repeat(self.mel.stack)) / self.std.repeat(self.mel.stack), there

    def count(self, waves: Waves) -> Tensor:
        """Frames of each sound, [B]."""
        return self.mel.count(waves.mask.sum(1))

    def extract(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """What the front end gives: [B, T] -> ([B, t, F], which frames are no padding [B, t] bool)."""
        if self.frontend == "mel":
            return self.log_mel(waves)
        values = nn.functional.pad(waves.values, (0, max(0, self.mel.least - waves.values.shape[1])))
        frames = self.net.feature_extractor(values).transpose(1, 2)
        return frames, torch.arange(frames.shape[1], device=frames.device) < self.count(waves)[:, None]

    def encode(self, extracted: Tensor, there: Tensor, hide: Tensor | None = None) -> Tensor:
        """What the last block gives at every frame, [B, t, D]; those to `hide` [B, t] bool are one learned vector to it."""
        hidden, _ = self.net.feature_projection(extracted)
        if hide is not None:
            hidden = torch.where(hide[..., None], self.net.masked_spec_embed.to(hidden.dtype), hidden)
        return self.net.encoder(hidden, attention_mask=there).last_hidden_state

    def encoded(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """What the last block gives, [B, t, D], and which frames are no padding; while it is trained with labels, `spec_augment`
        hides some."""
        extracted, there = self.extract(waves)
        if self.training and self.hide:
            extracted = spec_augment(extracted, self.hide, self.mel.stack if self.frontend == "mel" else 1)
        return self.encode(extracted, there), there

    def normalised(self, extracted: Tensor) -> Tensor:
        """What the front end gives, through the norm that follows it: [B, t, F]."""
        return self.net.feature_projection.layer_norm(extracted)

    def local_features(self, waves: Waves) -> Tensor:
        """Of each frame: [B, T] -> [B, t, D]."""
        return self.encoded(waves)[0]

    def local_mask(self, waves: Waves) -> Tensor:
        return self.log_mel(waves)[1]

    def features(self, waves: Waves) -> Tensor:
        """[B, T] -> [B, D]: the mean of the frames."""
        return text_base.mean(*self.encoded(waves))

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the vector of hidden frames."""
        self.net.masked_spec_embed = None

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer and "encoder.layers" in name:
            return int(layer[1]) + 1
        return self.depth + 1 if "net.encoder.layer_norm" in name else 0

    def save(self, folder: Path, rate: int) -> None:
        """A folder that transformers' Wav2Vec2 classes and AutoFeatureExtractor read, where its front end is theirs; replaced
        as a whole."""
        about = {"library": "none", "frontend": self.frontend, "rate": rate}
        preprocessing = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": rate,
            "padding_value": 0.0,
            "do_normalize": True,
            "return_attention_mask": True,
        }
        library_format.save(self.saved, folder, about, preprocessing, self.fitted)

    @property
    def saved(self) -> nn.Module:
        """The library's network, or where that would not load there, one with it inside."""
        return self.net if self.from_library else nn.ModuleDict({"net": self.net})

    def load(self, folder: Path) -> None:
        """Weights, mean and deviation that `save` wrote. Raises UserError when a tensor does not fit."""
        self.load_state_dict(self.saved_buffers(folder), strict=False)
        library_format.load(self.saved, folder, library_format.tensors_of(folder))


FAMILY = Family(resolve=resolve, build=build, sizes=SIZES, shape=("hidden_size", "num_hidden_layers", "num_attention_heads"))
