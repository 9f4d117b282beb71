"""DALL-E (Ramesh et al. 2021, "Zero-shot text-to-image generation"): a codec makes a few codes of an image, and transformers'
GPT2LMHeadModel reads a caption and then these codes as one sequence. Of images without captions it reads the codes alone.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from ptmrun.batch import ImageSpec
from ptmrun.errors import UserError
from ptmrun.models import base, gpt, library_format, sampling
from ptmrun.models.base import Family
from ptmrun.models.codec import Codec
from ptmrun.storage import tensor_files

SIZES = {  # channels of the codec; width and blocks of the transformer, heads of 32
    "tiny": (32, 128, 4),
    "small": (64, 256, 6),
    "base": (128, 512, 12),
}
HEAD = 32
SCALE = 0.1  # of the first positions of codes


def resolve(options: Any, spec: Any) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why). Raises UserError for data without images."""
    changes: dict[str, Any] = {}
    notes = []
    if isinstance(spec, ImageSpec):
        changes |= {"length": 1, "vocabulary": 1}
        notes.append("images without captions: what is drawn follows no text")
    elif not hasattr(spec, "image"):
        raise UserError("model=dalle: draws pictures, and the data has none; dataset=shapes has, with captions")
    if options.size == "auto":
        width, hidden, depth = SIZES["tiny"]
        changes["size"] = "tiny"
        notes.append(f"model.size=tiny: a codec of {width} channels, a transformer of width {hidden} and {depth} blocks")
    return changes, notes


def build(options: Any, spec: Any, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options."""
    image, text = (spec, None) if isinstance(spec, ImageSpec) else spec
    return Encoder(options, image, text, attention)


class Encoder(base.Encoder):
    """Its features are those of the codec's encoder, the mean over the places. `vocabulary`: how many tokens a caption may be of;
    codes come after them. `length`: tokens of a caption, the one that starts it included."""

    from_library = False
    trims = True
    can_draw = True

    ready: Tensor

    def __init__(self, options: Any, image: ImageSpec, text: Any, attention: str):
        super().__init__()
        channels, width, depth = SIZES[options.size]
        self.codec = Codec(image.size, image.channels, channels, options.codes)
        self.width, self.depth, self.grid = channels, len(self.codec.encoder) - 1, self.codec.grid
        self.length, self.vocabulary, self.start, self.pad = 1, 1, 0, 0
        if text:
            self.length, self.vocabulary = text.length, text.vocabulary.size
            self.start, self.pad = text.vocabulary.end, text.vocabulary.pad
        config = GPT2Config(
            vocab_size=self.vocabulary + options.codes,
            n_positions=self.length + self.draws,
            n_embd=width,
            n_layer=depth,
            n_head=width // HEAD,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=options.dropout,
            embd_pdrop=options.dropout,
            attn_pdrop=options.dropout,
            bos_token_id=self.start,
            eos_token_id=self.start,
            pad_token_id=self.pad,
            attn_implementation=attention,
        )
        self.gpt = GPT2LMHeadModel(config)
        with torch.no_grad():  # rows and columns of the grid, so that what is above a code need not be found out first
            places = build_2d_sinusoidal_position_embedding(self.grid, self.grid, width)
            self.gpt.transformer.wpe.weight[self.length :] = SCALE * places
        self.register_buffer("ready", torch.zeros((), dtype=torch.uint8))  # 1: the codec has been trained, 2: the transformer too

    @property
    def draws(self) -> int:
        return self.grid**2

    def images_of(self, inputs: Any) -> Tensor:
        return inputs if isinstance(inputs, Tensor) else inputs.images

    def text_of(self, inputs: Any) -> Any:
        return None if isinstance(inputs, Tensor) else inputs.tokens

    def captions_of(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """(tokens [B, length], which of them are no padding); of images alone the token that starts a caption."""
        text = self.text_of(inputs)
        return self.no_caption(len(inputs), inputs.device) if text is None else self.padded(text)

    def padded(self, tokens: Any) -> tuple[Tensor, Tensor]:
        """Tokens of captions as `captions_of` gives them."""
        more = self.length - tokens.ids.shape[1]
        return F.pad(tokens.ids, (0, more), value=self.pad), F.pad(tokens.mask, (0, more), value=False)

    def no_caption(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        ids = torch.full((count, self.length), self.pad, device=device)
        ids[:, 0] = self.start
        return ids, torch.arange(self.length, device=device).expand(count, -1) < 1

    def logits(self, captions: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """[B, length], [B, n] -> (logits [B, length + n - 1, vocabulary + codes], the tokens that they are of)."""
        sequence = torch.cat([captions, codes + self.vocabulary], 1)
        output = self.gpt(inputs_embeds=self.gpt.transformer.wte(sequence[:, :-1]), use_cache=False)
        return output.logits.float(), sequence[:, 1:]

    @torch.no_grad()
    def draw(
        self,
        noise: Tensor,
        text: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """By classifier-free guidance (sampling.guided)."""
        if int(self.ready) < 2:
            raise UserError("the model has learned codes of images, and not to draw; go on with: task=dalle init=RUN")
        none, _ = self.no_caption(len(noise), noise.device)
        new, guided = none, text is not None and guidance != 1
        if text is not None:
            new = self.padded(text)[0]
        if guided:
            new = torch.cat([new, none])
        codes, cache = [], DynamicCache()  # given by its place, as its name has changed in transformers
        for column in noise.T:
            output = self.gpt(None, cache, inputs_embeds=self.gpt.transformer.wte(new), use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1, self.vocabulary :].float()
            if guided:
                logits = sampling.guided(logits, guidance)
            code = sampling.sample(logits, column, temperature, top_k, top_p)[:, None]
            codes.append(code)
            new = torch.cat([code] * (2 if guided else 1)) + self.vocabulary
        return self.codec.images(torch.cat(codes, 1))

    def features(self, inputs: Any) -> Tensor:
        """[B, ...] -> [B, width]"""
        return self.codec.maps(self.images_of(inputs)).mean((2, 3))

    def local_features(self, inputs: Any) -> Tensor:
        """Of each place: [B, ...] -> [B, grid * grid, width]."""
        return self.codec.maps(self.images_of(inputs)).flatten(2).transpose(1, 2)

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        return int(name.split("codec.encoder.")[1].split(".")[0]) if "codec.encoder." in name else self.depth + 1

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: all but the codec's encoder."""
        del self.gpt
        self.codec.trim()

    def save(self, folder: Path, mean: list[float], std: list[float], tokenizer: Any = None) -> None:
        """A folder that transformers' GPT-2 classes read, with the codec beside it; replaced as a whole."""
        about = library_format.processor(self.codec.side, mean, std)
        library_format.save(self.gpt, folder, {}, about, self.own(), tokenizer)

    def own(self) -> dict[str, Tensor]:
        """All tensors but those of the library's network."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("gpt.")}

    def load(self, folder: Path) -> None:
        """What `save` wrote. Raises UserError when a tensor does not fit."""
        library_format.load(self.gpt, folder, library_format.tensors_of(folder))
        file = folder / library_format.FITTED
        tensor_files.into(self, tensor_files.load(file)[0] | {f"gpt.{k}": v for k, v in self.gpt.state_dict().items()}, file)


FAMILY = Family(resolve=resolve, build=build, sizes=SIZES, framing=gpt.FRAMING, tokenizer=gpt.TOKENIZER)
