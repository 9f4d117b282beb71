"""Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): transformers' ImageGPTForCausalImageModeling.

An image is made smaller, its pixels become the nearest of a few colours (k-means of training images), and these tokens are
read in raster order after a start token.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, ImageGPTConfig, ImageGPTForCausalImageModeling
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from ptmrun.batch import ImageSpec
from ptmrun.errors import UserError
from ptmrun.models import base, library_format, sampling
from ptmrun.models.base import Family
from ptmrun.storage import tensor_files

SIZES = {  # width, blocks, heads, the most tokens per side that `auto` takes, colours for gray and for RGB
    "micro": (128, 3, 4, 10, 8, 64),
    "mini": (192, 8, 6, 16, 16, 64),
    "small": (512, 24, 8, 32, 16, 512),
    "medium": (1024, 36, 8, 32, 16, 512),
    "large": (1536, 48, 16, 48, 16, 512),
}
SCALE = 0.1  # of the first embeddings; with transformers' 0.02 the loss falls more slowly
MOST_PIXELS = 50_000  # that k-means sees


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why). `layer` stays auto: the probes choose it. Raises UserError."""
    size, channels = spec
    notes = []
    name = options.size
    if name == "auto":
        name = "micro" if size <= 40 else "mini"
        notes.append(f"model.size={name}: width {SIZES[name][0]}, {SIZES[name][1]} blocks, for images of {size}x{size}")
    _, depth, _, most, grays, colours = SIZES[name]
    side = options.side
    if side == "auto":
        side = min(size, most)
        notes.append(f"model.side={side}: images are read as {side * side} tokens; attention grows with the square of that")
    clusters = options.clusters
    if clusters == "auto":
        clusters = colours if channels > 1 else grays
        notes.append(f"model.clusters={clusters}: colours that pixels are quantised to")
    if not 2 <= side <= size:
        raise UserError(f"model.side={side}: expected 2 to {size}, the images' own side")
    if clusters < 2:
        raise UserError(f"model.clusters={clusters}: expected at least 2")
    if options.layer != "auto" and options.layer > depth:
        raise UserError(f"model.layer={options.layer}: the model has {depth} blocks")
    return {"size": name, "side": side, "clusters": clusters}, notes


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options. Its attention is always PyTorch's fused one."""
    channels = spec.channels
    width, depth, heads, *_ = SIZES[options.size]
    config = ImageGPTConfig(
        vocab_size=options.clusters + 1 + (options.classes or 0),  # the first after the colours starts a sequence, or one a class
        n_positions=options.side**2,
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
    )
    return Encoder(config, options.side, channels, options.layer, options.classes or 0)


class Encoder(base.Encoder):
    """`layer` is the block whose output gives the features: the middle one, until `choose` or the config names another. Images
    of a class begin with its own token, where there are `classes`; -1: with the token of none."""

    layered = True
    learns_buffers = True
    trims = True
    can_draw = True
    completes = True

    unit = "pixel"  # what a token is
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attn\.c_attn",
        "attention": r".*\.attn\.c_proj",
        "feed_forward": r".*\.mlp\.c_proj",
    }

    def __init__(self, config: ImageGPTConfig, side: int, channels: int, layer: int | str, classes: int = 0):
        super().__init__()
        self.width, self.depth, self.classes = config.hidden_size, config.num_hidden_layers, classes
        self.side, self.channels, self.vocabulary = side, channels, config.vocab_size - 1 - classes
        self.gpt = ImageGPTForCausalImageModeling(config)
        with torch.no_grad():  # sines as the first positions, so that what is above a pixel need not be found out first
            sines = build_2d_sinusoidal_position_embedding(side, side, self.width)
            self.gpt.transformer.wpe.weight.copy_(SCALE * sines)
            nn.init.normal_(self.gpt.transformer.wte.weight, std=SCALE)
        self.free = layer == "auto"
        self.clusters: Tensor
        self.chosen: Tensor
        self.register_buffer("clusters", torch.zeros(self.vocabulary, channels))
        self.register_buffer("chosen", torch.tensor((self.depth + 1) // 2 if self.free else layer))

    @property
    def layer(self) -> int:
        """A plain number where the encoder is trimmed, as graphs of it need."""
        return self.depth if isinstance(self.gpt.lm_head, nn.Identity) else int(self.chosen)

    def choose(self, scores: list[float]) -> None:
        """Takes the features from the layer (1 ... depth) with the best score, unless the config names one."""
        if self.free:
            self.chosen.fill_(1 + max(range(len(scores)), key=scores.__getitem__))

    def learn_buffers(self, images: Tensor) -> dict[str, Tensor]:
        """The colours: k-means of the pixels of normalised images [N, C, S, S], dark to bright, as the buffers to set.

        Always on one thread, because the sums of several come in any order. Raises UserError when there are fewer colours.
        """
        pixels = self.pixels(images).flatten(0, 1).double().cpu()
        pixels = pixels[:: -(-len(pixels) // MOST_PIXELS)]
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are fewer colours is said below
            means = KMeans(self.vocabulary, n_init=1, max_iter=100, random_state=0).fit(pixels.numpy()).cluster_centers_
        centres = torch.from_numpy(means)
        if (there := len(centres.unique(dim=0))) < self.vocabulary:
            raise UserError(f"model.clusters={self.vocabulary}: the training images have {there} colours; choose at most that")
        return {"clusters": centres[centres.sum(1).argsort()].float().to(images.device)}

    def saved_buffers(self, folder: Path) -> dict[str, Tensor]:
        """The buffers of the encoder that `save` wrote: colours and layer, but not the weights. Raises UserError."""
        file = folder / library_format.FITTED
        tensors, wanted = tensor_files.load(file)[0], dict(self.named_buffers(recurse=False))
        if {k: (v.shape, v.dtype) for k, v in tensors.items()} != {k: (v.shape, v.dtype) for k, v in wanted.items()}:
            raise UserError(f"{file}: does not fit the model, which has {self.vocabulary} colours of {self.channels} channels")
        if not tensor_files.finite(tensors["clusters"]) or not 1 <= tensors["chosen"] <= self.depth:
            raise UserError(f"{file}: its colours or its layer are not what ptmrun writes there; refused")
        return tensors if self.free else tensors | {"chosen": self.chosen}

    def pixels(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, side * side, C], made smaller as ImageGPTImageProcessor does."""
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        return images.flatten(2).transpose(1, 2)

    def tokens(self, images: Tensor) -> Tensor:
        """The nearest colour of each pixel in raster order: [B, C, S, S] -> [B, T] int64."""
        with torch.autocast(images.device.type, enabled=False):  # distances in full precision
            pixels, clusters = self.pixels(images), self.clusters.to(images.dtype)
            return (pixels @ clusters.T - clusters.square().sum(1) / 2).argmax(-1)

    def images(self, tokens: Tensor) -> Tensor:
        """The colours of tokens: [B, T] -> [B, C, side, side]."""
        return self.clusters[tokens].transpose(1, 2).unflatten(2, (self.side, self.side))

    def started(self, tokens: Tensor, classes: Tensor | None = None) -> Tensor:
        """With the start token in front, or that of the class of each [B]: [B, n] -> [B, n + 1]."""
        first = tokens.new_full((tokens.shape[0],), -1) if classes is None else classes
        return torch.cat([self.vocabulary + 1 + first[:, None], tokens], 1)

    @property
    def net(self) -> ImageGPTForCausalImageModeling:
        """The library's network."""
        return self.gpt

    def layers(self, tokens: Tensor, count: int, classes: Tensor | None = None) -> list[Tensor]:
        """What each of the first `count` blocks gives at every position that sees the tokens before it: [B, T, D] each."""
        body = self.gpt.transformer
        hidden = body.drop(body.wte(self.started(tokens, classes)[:, :-1]) + body.wpe.weight[: tokens.shape[1]])
        outputs = []
        for block in body.h[:count]:
            hidden = hidden + attend(block.attn, block.ln_1(hidden))
            hidden = hidden + block.mlp(block.ln_2(hidden))
            outputs.append(hidden)
        return outputs

    def logits(self, tokens: Tensor, classes: Tensor | None = None) -> Tensor:
        """Of each token from those before it: [B, T] -> float32 [B, T, vocabulary]."""
        hidden = self.gpt.transformer.ln_f(self.layers(tokens, self.depth, classes)[-1])
        return self.gpt.lm_head(hidden)[..., : self.vocabulary].float()

    def next_tokens(self, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(logits [B * T, vocabulary], the tokens themselves [B * T]) of each pixel from those before it: [B, C, S, S], [B]."""
        tokens = self.tokens(images)
        return self.logits(tokens, classes).flatten(0, 1), tokens.flatten()

    def pooled(self, hidden: Tensor, layer: int) -> Tensor:
        """As in the paper: through the norm that follows the layer, then the mean of the positions."""
        body = self.gpt.transformer
        return (body.h[layer].ln_1 if layer < self.depth else body.ln_f)(hidden).mean(1)

    def features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D]"""
        return self.pooled(self.layers(self.tokens(images), self.layer)[-1], self.layer)

    def local_features(self, images: Tensor) -> Tensor:
        """Of each pixel, from those before it: [B, C, S, S] -> [B, T, D]."""
        return self.layers(self.tokens(images), self.layer)[-1]

    def layer_features(self, images: Tensor) -> Tensor:
        """Of every layer: [B, C, S, S] -> [B, depth, D]."""
        outputs = self.layers(self.tokens(images), self.depth)
        return torch.stack([self.pooled(hidden, i) for i, hidden in enumerate(outputs, 1)], 1)

    @torch.no_grad()
    def complete(
        self,
        tokens: Tensor,
        noise: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Samples what follows the first n tokens: [B, n] and uniform noise [B, T - n] -> [B, T]; with classes [B] by guidance,
        as models/dalle.py does it with captions."""
        guided = classes is not None and guidance != 1
        new, cache = self.started(tokens, classes), DynamicCache()  # given by its place, as its name has changed in transformers
        if guided:
            new = torch.cat([new, self.started(tokens)])
        for column in noise.T:
            logits = self.gpt(new, cache, use_cache=True).logits[:, -1, : self.vocabulary]
            if guided:
                logits = sampling.guided(logits, guidance)
            pixel = sampling.sample(logits, column, temperature, top_k, top_p)[:, None]
            tokens = torch.cat([tokens, pixel], 1)
            new = torch.cat([pixel] * (2 if guided else 1))
        return tokens

    @property
    def draws(self) -> int:
        return self.side**2

    def draw(
        self,
        noise: Tensor,
        text: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """text: classes [B]"""
        nothing = noise.new_zeros(len(noise), 0, dtype=torch.int64)
        return self.images(self.complete(nothing, noise, temperature, top_k, top_p, guidance, text))

    def completed(self, images: Tensor, noises: list[Tensor], *sampling: Any) -> dict[str, Tensor]:
        """The upper half is given, and as many of the numbers are used as the lower one has pixels."""
        tokens = self.tokens(images)
        given = tokens.shape[1] // 2
        original = self.images(tokens)
        half = original.clone()
        half[:, :, original.shape[2] // 2 :] = 0
        shown = {"original": original, "given": half}
        for i, noise in enumerate(noises, 1):
            shown[f"completed {i}"] = self.images(self.complete(tokens[:, :given], noise[:, given:], *sampling))
        return shown

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the blocks above the layer, and the head."""
        body = self.gpt.transformer
        if self.layer < self.depth:
            body.ln_f = body.h[self.layer].ln_1
        body.h, self.depth = body.h[: self.layer], self.layer
        self.gpt.lm_head = nn.Identity()

    def untrimmed(self, name: str) -> str:
        """The norm at the end is the first of the block that came next."""
        cut = self.depth < self.gpt.config.num_hidden_layers
        return name.replace(".ln_f.", f".h.{self.depth}.ln_1.") if cut else name

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if ".wte." in name or ".wpe." in name:
            return 0
        block = re.search(r"\.h\.(\d+)\.", name)
        return int(block[1]) + 1 if block else self.depth + 1

    def save(self, folder: Path, mean: list[float], std: list[float]) -> None:
        """A folder that transformers' ImageGPT classes and `AutoImageProcessor` read; replaced as a whole."""
        rgb = 3 // self.channels  # gray images get three equal channels there
        about = library_format.processor(self.side, mean * rgb, std * rgb, "ImageGPTImageProcessor")
        about |= {"do_convert_rgb": True, "resample": 2, "do_color_quantize": True}  # 2: bilinear
        about["clusters"] = self.clusters.repeat(1, rgb).tolist()
        library_format.save(self.gpt, folder, {}, about, dict(self.named_buffers(recurse=False)))

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder of other images, as they are: images are made smaller instead, and must have as many channels."""
        return tensors, []

    def load(self, folder: Path) -> None:
        """Weights, colours and layer that `save` wrote. Raises UserError when a tensor is missing, unexpected or misshapen."""
        file = folder / "model.safetensors"
        weights = {f"gpt.{name}": value for name, value in tensor_files.load(file)[0].items()}
        tensor_files.into(self, weights | self.saved_buffers(folder), file)


def attend(attention: Any, hidden: Tensor) -> Tensor:
    """ImageGPTAttention.forward by PyTorch's fused kernel, which does not keep the weights: [B, T, D] -> [B, T, D]."""
    split = attention.c_attn(hidden).unflatten(2, (3, attention.num_heads, -1)).transpose(1, 3)  # [B, heads, 3, T, D / heads]
    query, key, value = split.unbind(2)
    dropout = attention.attn_dropout.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
    return attention.resid_dropout(attention.c_proj(mixed.transpose(1, 2).flatten(2)))


FAMILY = Family(resolve=resolve, build=build, sizes=SIZES)
