"""CLIP as published (Radford et al. 2021, arXiv:2103.00020): transformers' CLIPModel, a vision transformer and a text transformer
that reads from left to right, whose end token stands for the text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from ptmrun.batch import Framing, Pair, PairSpec, Tokens, Vocabulary
from ptmrun.errors import UserError
from ptmrun.models import base, library_format, text_base, vit
from ptmrun.models.base import Family
from ptmrun.storage import tensor_files

SIZES = {  # width, blocks, heads and inner width of the images' and the texts' transformer, width of the common space; patch
    "tiny": ((96, 3, 3, 384, 128, 2, 2, 512, 128), None),
    "base_patch32": ((768, 12, 12, 3072, 512, 12, 8, 2048, 512), 32),
    "base_patch16": ((768, 12, 12, 3072, 512, 12, 8, 2048, 512), 16),
    "large_patch14": ((1024, 24, 16, 4096, 768, 12, 12, 3072, 768), 14),
}
PARTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")  # of a shape, in a folder's config.json
WANTED = 4  # patches a side, where they are chosen here
PUBLISHED = {f"clip-{size}": f"openai/clip-vit-{size.replace('_', '-')}" for size in SIZES if size != "tiny"}
AS_PUBLISHED = {"size": "base_patch32", "tokenizer": PUBLISHED["clip-base_patch32"]}
NORMALISED = (0.48145466, 0.4578275, 0.40821073, 0.26862954, 0.26130258, 0.27577711)
START, END = "<|startoftext|>", "<|endoftext|>"
FRAMING = Framing(
    {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END},
    f"{START} $A {END}",
    f"{START} $A {END} $B {END}",
)
HIGHEST = 2  # with this number of the end token the library takes a text to end at its highest token, as old configs want


def patch_of(options: Any) -> int | None:
    """Of options that need not be resolved; None: by the images."""
    if options.patch != "auto":
        return options.patch
    return SIZES[options.size][1] if options.size in SIZES else None


def resolve(options: Any, spec: PairSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why). Raises UserError for a patch that does not divide the image, a shape that
    is none, and a tokenizer whose end token has a number that the library takes for another."""
    size, changes, notes = spec.image.size, dict[str, Any](), list[str]()
    if options.size == "auto":
        changes["size"] = "tiny"
        if not options.shape:
            notes.append("model.size=tiny: 3 blocks of width 96 for images, 2 of width 128 for texts, which learn in minutes")
    if (shape := options.shape) and (len(shape) != 9 or shape[0] % shape[2] or shape[4] % shape[6]):
        what = "width, blocks, heads, inner width of both transformers and the width of the common space"
        raise UserError(f"model.shape={shape}: expected 9 numbers: {what}; heads divide widths")
    fits = [p for p in range(2, size // 2 + 1) if size % p == 0]
    if not fits:
        raise UserError(f"dataset.image_size={size}: cannot be cut into patches; choose an even size")
    patch = patch_of(options)
    if patch is None:
        patch = min(fits, key=lambda p: abs(size / p - WANTED))
        notes.append(f"model.patch={patch}: {size // patch}x{size // patch} patches")
    if patch not in fits:
        raise UserError(f"model.patch={patch}: expected a divisor of the image's side {size}: {', '.join(map(str, fits))}")
    if spec.text.vocabulary.end == HIGHEST:
        why = f"the end of a text is its token {HIGHEST}, which transformers' CLIP takes for the highest number of a text"
        raise UserError(f"model.tokenizer={options.tokenizer}: {why}; use another tokenizer")
    activation = "quick_gelu" if options.activation == "auto" else options.activation
    return {**changes, "patch": patch, "activation": activation}, notes


def fitting(options: Any, size: int) -> int:
    """The side nearest to `size` that patches of a given size divide, at least two of them."""
    patch = patch_of(options)
    return size if patch is None else patch * max(2, round(size / patch))


def described(options: Any, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are auto, by the config.json of a CLIPModel."""
    whole: dict[str, Any] = {"projection_dim": CLIPConfig().projection_dim, **theirs}
    vision, text = (filled(whole, name, kind) for name, kind in (("vision", CLIPVisionConfig), ("text", CLIPTextConfig)))
    shape = (*(part[key] for part in (vision, text) for key in PARTS), whole["projection_dim"])
    values: dict[str, Any] = {}
    if options.size == "auto" and options.shape is None:
        known = [name for name, (own, patch) in SIZES.items() if own == shape and patch in (None, vision["patch_size"])]
        values = {"size": known[0]} if known else {"size": "tiny", "shape": list(shape)}
    if options.patch == "auto":
        values["patch"] = vision["patch_size"]
    if options.activation == "auto":
        values["activation"] = vision["hidden_act"]
    return values


def filled(theirs: Mapping[str, Any], name: str, kind: Any) -> dict[str, Any]:
    """The config of one of the two transformers, with what it leaves out, as the library's default."""
    parts = [part for key in (f"{name}_config", f"{name}_config_dict") if isinstance(part := theirs.get(key), dict)]
    return {key: value for part in (kind().to_dict(), *parts) for key, value in part.items()}


def build(options: Any, spec: PairSpec, attention: str) -> "Encoder":
    """An encoder with the library's initial weights, from resolved options."""
    shape, vocabulary = options.shape or SIZES[options.size][0], spec.text.vocabulary
    both = {"hidden_act": options.activation, "attention_dropout": options.dropout, "projection_dim": shape[8]}
    vision = dict(zip(PARTS, shape[:4], strict=True)) | {"image_size": spec.image.size, "num_channels": spec.image.channels}
    text = dict(zip(PARTS, shape[4:8], strict=True)) | {"max_position_embeddings": spec.text.length}
    config = CLIPConfig(
        vision_config={**vision, **both, "patch_size": options.patch},
        text_config={
            **text,
            **both,
            "vocab_size": vocabulary.size,
            "bos_token_id": vocabulary.start,
            "eos_token_id": vocabulary.end,
            "pad_token_id": vocabulary.pad,
        },
        projection_dim=shape[8],
        attn_implementation=attention,
    )
    return Encoder(config, vocabulary, f"clip-{'x'.join(map(str, shape)) if options.shape else options.size}")


class Encoder(base.Encoder):
    """`features` are what the library pools of images. bias: of similarities, where an objective has one, as SigLIP's."""

    patch: int

    trims = True
    aligns = True
    attends = True
    why_no_classifier = "its own takes the mean of the patches"

    def __init__(self, config: CLIPConfig, vocabulary: Vocabulary, kind: str):
        super().__init__()
        vision, text = config.vision_config, config.text_config
        self.width, self.depth = vision.hidden_size, max(vision.num_hidden_layers, text.num_hidden_layers)
        self.blocks = {"vision": vision.num_hidden_layers, "text": text.num_hidden_layers}
        self.patch, self.channels, self.grid = vision.patch_size, vision.num_channels, vision.image_size // vision.patch_size
        self.vocabulary, self.length, self.kind = vocabulary, text.max_position_embeddings, kind
        self.net = CLIPModel(config)
        self.bias = nn.Parameter(torch.tensor(0.0))

    @property
    def scale(self) -> nn.Parameter:
        """The logarithm of what similarities are multiplied by."""
        return self.net.logit_scale

    def features(self, pair: Pair) -> Tensor:
        """Of the images, the class token: [B, width]."""
        return self.net.vision_model(pair.images).pooler_output

    def local_features(self, pair: Pair) -> Tensor:
        """Of each patch: [B, N, width]."""
        return self.net.vision_model(pair.images).last_hidden_state[:, 1:]

    def local_mask(self, pair: Pair) -> None:
        return None

    def images_of(self, pair: Pair) -> Tensor:
        return pair.images

    def text_of(self, pair: Pair) -> Tokens:
        return pair.tokens

    def image_embeddings(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D]"""
        return self.net.get_image_features(images).pooler_output

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, D]"""
        return self.net.get_text_features(tokens.ids, tokens.mask.long()).pooler_output

    @torch.no_grad()
    def attention(self, pair: Pair) -> Tensor:
        """How much each patch flows into the features: [B, grid, grid], see `vit.rollout`."""
        net = self.net.vision_model
        used = net.config._attn_implementation
        net.set_attn_implementation("eager")
        blocks = net(pair.images, output_attentions=True).attentions
        net.set_attn_implementation(used)
        return vit.rollout(blocks)[:, 0, 1:].unflatten(1, (self.grid, self.grid))

    def depth_of(self, name: str) -> int:
        """The transformers end at the same depth, and begin at 0."""
        if "embeddings." in name or "pre_layrnorm." in name:
            return 0
        block = re.search(r"(vision|text)_model\.encoder\.layers\.(\d+)\.", name)
        return int(block[2]) + 1 + self.depth - self.blocks[block[1]] if block else self.depth + 1

    def trim(self) -> None:
        """Leaves the images' transformer."""
        net = self.net
        net.text_model = net.visual_projection = net.text_projection = net.logit_scale = self.bias = None  # type: ignore[assignment]

    def preprocessing(self, mean: list[float], std: list[float]) -> dict[str, Any]:
        return library_format.processor(self.grid * self.patch, mean, std)

    def save(self, folder: Path, mean: list[float], std: list[float], tokenizer: Any) -> None:
        """A folder that CLIPModel, AutoTokenizer and AutoImageProcessor read, with the bias beside; replaced as a whole."""
        library_format.save(self.net, folder, {}, self.preprocessing(mean, std), {"bias": self.bias}, tokenizer)

    def load(self, folder: Path) -> None:
        """Also weights for images of another size and longer texts, see `adjusted`."""
        library_format.load(self.net, folder, self.adjusted(library_format.tensors_of(folder))[0])
        with torch.no_grad():
            self.bias.copy_(tensor_files.load(folder / library_format.FITTED)[0]["bias"])

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of images of another size or colour and of longer texts, as this encoder takes them, and notes on what was
        changed, as in `vit`."""
        changed, notes = text_base.truncate_positions(tensors, "text_model.embeddings.position_embedding.weight", self.length)
        for name, value in tensors.items():
            if name.endswith("vision_model.embeddings.position_embedding.weight") and value.ndim == 2:
                places, more = vit.positions_for(value[None], self.grid)
                changed[name], notes = places[0], [*notes, *more]
            elif name.endswith("patch_embedding.weight") and value.ndim == 4:
                changed[name], more = vit.patches_for(value, self.channels, self.patch)
                notes = [*notes, *more]
        return changed, notes


FAMILY = Family(
    resolve=resolve,
    build=build,
    published=PUBLISHED,
    as_published=AS_PUBLISHED,
    described=described,
    normalised=NORMALISED,
    fitting=fitting,
    framing=FRAMING,
    tokenizer="bpe",
)
