"""What a model family is: a file of models/ with its `FAMILY`, which makes an `Encoder`.

An encoder knows nothing of the objective it serves. Beside what the class below names it has, by what its YAML `provides`:

    those of images:    channels, preprocessing(mean, std), prepare(images)
    those with patches: patch, grid, embed(images), positions, encode(tokens, last)
    those with maps:    feature_map(images) [B, C, S, S] -> [B, D, h, w], map_shape (D, h = w), above_map (modules between map and
                        features)
    those of pixels:    vocabulary, unit, tokens(images), logits(tokens), complete(tokens, noise), images(tokens)
    those of texts:     vocabulary, unit, length, hidden(tokens) [B, T] -> [B, T, D] (no padding influences what is no
                        padding; with tokens.documents no document influences another one, here and in all that follows),
                        logits(hidden) of chosen positions [n, D] -> float32 [n, vocabulary]
    those of sounds:    mel (log_mel.LogMel), most (frames), count(waves) [B], extract(waves) -> ([B, t, F], no padding [B, t]),
                        encode(extracted, no padding, hidden) [B, t, D], log_mel(waves) -> (spectra of each frame, no padding)
    of pairs of texts:  next_sentence(hidden) -> [B, 2]
    those that read in one direction: next_tokens(inputs) -> (logits [n, vocabulary], the tokens themselves [n])
"""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from torch import Tensor, nn

from ptmrun.batch import Framing

IMAGENET = (0.485, 0.456, 0.406, 0.229, 0.224, 0.225)  # means and standard deviations of its channels


class Encoder(nn.Module, abc.ABC):
    """Inputs -> features. Where it is built on a library's network, that is `net`, its parameter names kept."""

    net: Any
    width: int  # of its features
    depth: int  # in blocks
    kind: str = ""  # the name of its network in the family's `published`
    from_library = True  # its `net` is a library's, so that weights from outside fit
    names: Mapping[str, str] = MappingProxyType({})  # other names of its parameters (patterns) -> the library's
    places: Mapping[str, str] = MappingProxyType({})  # where fine-tuning methods put what they add
    why_no_classifier = ""  # why the library has no classifier like it
    patch: int | None = None  # side of a patch in pixels
    resize: int | None = None  # side in pixels that images are scaled to inside
    longest: int | None = None  # tokens of a text that it can write; None: any number
    auxiliary_width: int = 0  # of the features of an auxiliary branch, which `auxiliary` switches on
    layered = False  # its features may come from any layer: `layer`, `layer_features`, `choose`
    attends = False  # it has `attention`
    aligns = False  # it has `image_embeddings(images)` and `text_embeddings(tokens)`, [B, D] each
    can_generate = False  # it has `generate`
    can_draw = False  # it has `draw` and `draws`
    completes = False  # it has `completed`
    classes = 0  # that pictures may be drawn of, and learned as
    trims = False  # `trim` leaves something out
    learns_buffers = False  # it learns buffers from inputs before it is trained: `learn_buffers`, `saved_buffers`

    @abc.abstractmethod
    def features(self, inputs: Any) -> Tensor:
        """[B, ...] -> [B, width]"""

    @abc.abstractmethod
    def depth_of(self, name: str) -> int:
        """How deep a parameter sits: 0 embeddings or stem, 1 ... depth its blocks, depth + 1 the rest."""

    @abc.abstractmethod
    def save(self, folder: Path, *preprocessing: Any) -> None:
        """A folder in the library's own format; replaced as a whole. `preprocessing` is that of the data."""

    @abc.abstractmethod
    def load(self, folder: Path) -> None:
        """What `save` wrote. Raises UserError when a tensor does not fit."""

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder of other data (sizes, lengths) as this one takes them, and notes on what was changed."""
        return tensors, []

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(the library's own model of these weights for a task of downstream.base.Model, a description for config.json where it
        writes none); None where there is none."""
        return None

    def trim(self) -> None:
        """Leaves out for good what `features` does not need."""

    def untrimmed(self, name: str) -> str:
        """What one of its weights is called in an encoder that is not trimmed."""
        return name

    @property
    def cam_layers(self) -> list[nn.Module]:
        """The modules that end a stage, the last of them with the map that features come from, for Grad-CAM."""
        return []

    @property
    def above_map(self) -> list[nn.Module]:
        """Modules with weights between the last of the `stage_maps` and the features."""
        return []

    @property
    def embeddings(self) -> nn.Module | None:
        """Of words, for attributions to tokens."""
        return None

    @property
    def pair_head(self) -> list[nn.Module]:
        """What next-sentence prediction alone trains."""
        return []

    def attention(self, inputs: Any) -> Tensor:
        """How much each token looks at each [B, T, T], or each patch flows into the features [B, h, w]."""
        raise TypeError(f"{type(self).__name__} has no attention to show")

    def generate(
        self, tokens: Tensor, noise: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
    ) -> Tensor:
        """The n given tokens, and m after them: [B, n] and uniform noise [B, m] -> [B, n + m]."""
        raise TypeError(f"{type(self).__name__} does not write")

    def images_of(self, inputs: Any) -> Tensor:
        """Of inputs that are images, or have them: [B, C, S, S]."""
        return inputs

    def text_of(self, inputs: Any) -> Any:
        """Of inputs that have texts (Tokens); None where they have none."""
        return None

    @property
    def draws(self) -> int:
        """How many random numbers a picture takes."""
        raise TypeError(f"{type(self).__name__} does not draw")

    def draw(
        self,
        noise: Tensor,
        text: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Pictures [B, C, side, side] from uniform noise [B, draws]; of a caption each, where the model reads texts (Tokens), or
        of a class [B], where it has some (None: of none), to which they keep by `guidance`."""
        raise TypeError(f"{type(self).__name__} does not draw")

    def completed(self, images: Tensor, noises: list[Tensor], *sampling: Any) -> dict[str, Tensor]:
        """{title: pictures} [B, C, side, side]: images as the model sees them, what is given of them, and what it makes of it by
        each of the noises [B, draws]."""
        raise TypeError(f"{type(self).__name__} completes no pictures")

    def local_features(self, inputs: Any) -> Tensor:
        """Of each patch, place of the feature map or token: [B, ...] -> [B, n, D]."""
        raise TypeError(f"{type(self).__name__} has no features of parts of its inputs")

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Maps of an image in one or several sides, the finest first: [B, C, S, S] -> [B, D, h, w] each."""
        local = self.local_features(images)
        side = math.isqrt(local.shape[1])
        return [local.transpose(1, 2).unflatten(2, (side, side))]

    def local_mask(self, inputs: Any) -> Tensor | None:
        """Which of these are no padding, [B, n] bool; None: all."""
        return getattr(inputs, "mask", None)

    def layer_features(self, inputs: Any) -> Tensor:
        """Of every layer: [B, depth, width]."""
        raise TypeError(f"{type(self).__name__} has features of one layer")

    def choose(self, scores: list[float]) -> None:
        """Takes the features from the layer with the best score from here on."""

    def learn_buffers(self, inputs: Any) -> dict[str, Tensor]:
        """Buffers from some inputs."""
        return {}

    def saved_buffers(self, folder: Path) -> dict[str, Tensor]:
        """The same of the encoder that `save` wrote."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """An encoder inside of another one, its attribute of the same name, that begins with weights of its own: model.<name>_init
    names them, and model.<name>_options has the settings of it. model: what it is called; shared: keys of it that are the whole
    model's."""

    init: str
    model: str
    family: "Family"
    options: Any
    shared: tuple[str, ...] = ()


def settings(values: Mapping[str, Any]) -> list[str]:
    """Options of a part as they are typed, [name:value]."""
    return [f"{key}:{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in values.items()]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The functions and constants of a model family. `spec` is what its data are: a batch.ImageSpec, TextSpec or the like."""

    resolve: Callable[[Any, Any], tuple[dict[str, Any], list[str]]]  # (options, spec) -> {key: value} of what is auto, and notes
    build: Callable[[Any, Any, str], Encoder]  # (resolved options, spec, attention) -> with initial weights
    published: Mapping[str, str] = field(default_factory=dict)  # `kind` of an encoder -> name of published weights
    as_published: Mapping[str, Any] = field(
        default_factory=dict
    )  # values of options left auto where `init` is weights from outside
    sizes: Mapping[str, tuple] = field(default_factory=dict)
    shape: tuple[str, ...] = ()  # keys of a folder's config.json: which of `sizes` it holds, or width, layers and heads
    described: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    """(options, config.json of a folder) -> those that are auto, where `sizes` and `shape` do not say it."""
    normalised: tuple[float, ...] = IMAGENET  # how the inputs of published weights are normalised
    fitting: Callable[[Any, int], int] = lambda options, side: side  # the nearest side of images that the model takes
    framing: Framing | None = None  # of texts: special tokens
    tokenizer: str = ""  # of texts: its kind
    of: Callable[[Any], "Family"] | None = None  # options -> the family that they make of it, where that depends on them
    framed: bool = True  # of texts: packed sequences carry special tokens
    parts: Callable[[Any], Mapping[str, Part]] = lambda options: {}  # by name, those that begin with weights of their own
