"""Images with a text each -> what an encoder of both takes."""

from typing import Any

from torch import Tensor

from ptmrun.batch import Pair, PairSpec, Tokens
from ptmrun.data import modality
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.modality import Unreadable
from ptmrun.data.text.processor import TextProcessor


class PairProcessor(modality.Processor):
    """By the processors of both kinds. What it opens is a picture (or a path, an array), which has no text then, or a tuple of
    one and its text."""

    samples = Pair

    def __init__(self, image: ImageProcessor, text: TextProcessor):
        self.image, self.text, self.tokenizer, self.device = image, text, text.tokenizer, image.device

    def __call__(self, samples: Pair) -> Pair:
        return Pair(self.image(samples.images), self.text(samples.tokens))

    def texts(self, raw: list[str]) -> Tokens:
        """Texts alone, on the device."""
        return self.text(self.text.read(raw))

    def opened(self, raw: list[Any]) -> list[Any]:
        """(uint8 [C, S, S], text), or Unreadable."""
        pairs = [x if isinstance(x, tuple) and len(x) == 2 else (x, None) for x in raw]
        pictures = self.image.opened([picture for picture, _ in pairs])
        texts = self.text.opened(["-" if text is None else text for _, text in pairs])
        bad = [next((x for x in both if isinstance(x, Unreadable)), None) for both in zip(pictures, texts, strict=True)]
        return [why or (picture, text or "") for why, picture, (_, text) in zip(bad, pictures, pairs, strict=True)]

    def read(self, raw: list[Any]) -> Pair:
        return Pair(self.image.read([picture for picture, _ in raw]), self.text.read([text for _, text in raw]))

    def back(self, inputs: Pair | Tensor) -> Any:
        """The images, or those that a model gave."""
        return self.image.back(inputs if isinstance(inputs, Tensor) else inputs.images)

    def noise(self, count: int) -> Pair:
        return Pair(self.image.noise(count), self.text.noise(count))

    @property
    def spec(self) -> PairSpec:
        return PairSpec(self.image.spec, self.text.spec)

    @property
    def preprocessing(self) -> tuple[Any, ...]:
        """Means and deviations of the channels, and the tokenizer."""
        return *self.image.preprocessing, *self.text.preprocessing

    def configure(self, encoder: Any, options: Any) -> str | None:
        return self.image.configure(encoder, options)

    def mixing(self, options: Any) -> tuple[float, float]:
        return self.image.mixing(options)
