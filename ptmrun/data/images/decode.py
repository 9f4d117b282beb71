"""Pictures of any kind -> uint8 tensors [C, S, S]: once, into a memory-mapped cache, when they fit; else while training."""

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ptmrun.data.images import levels
from ptmrun.data.sources import Pictures
from ptmrun.errors import UserError
from ptmrun.storage.content import number
from ptmrun.storage.files import cache_folder, end_with_parent, new_entry

Image.MAX_IMAGE_PIXELS = 200_000_000
ORIENTATION = 0x0112  # in EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SURVEYED, PEEKED = 512, 16  # pictures of a split
GRAY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


class Broken(Exception):
    """A picture that is not there, or cannot be decoded."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """What goes wrong inside is Broken: each of Pillow's many decoders raises what it likes at damaged bytes."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise Broken(str(error)) from error


def picture(source: Pictures, index: int) -> Image.Image:
    """The decoded picture, upright. Raises Broken."""
    with warnings.catch_warnings(), decoding():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata, which does not matter for the pixels
        with source.picture(index) as image:
            raw = str(next(iter(getattr(image, "tile", [])), ""))
            image.load()
            if image.mode == "I" and re.search(r"'I;32[BN]?'", raw):  # without a sign, which Pillow's own has
                image.info["unsigned"] = True
            if image.mode.startswith("RGB") and ";16" in raw:  # of which Pillow takes the upper 8 bits
                image.info["upper"] = True
            return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """As its EXIF says that it was taken, which need not be whole: what else stands there does not matter for the pixels."""
    turn = None
    with contextlib.suppress(Broken), decoding():
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return image.copy() if turn is None else image.transpose(turn)


def reason(error: BaseException) -> str:
    """Why a picture could not be decoded."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "is no image of a kind that can be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"cannot be decoded: {error}"


def tensor(image: Image.Image, size: int, channels: int, scales: levels.Ranges | None = None) -> Tensor:
    """Any mode -> uint8 [channels, size, size]: more than 8 bits scaled to 8 as in the whole data set (see levels.py),
    transparency on white, short side resized, centre cropped."""
    image = opaque(image, scales).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def opaque(image: Image.Image, scales: levels.Ranges | None) -> Image.Image:
    """In 8 bits, without transparency."""
    image = levels.to_8_bits(image, scales)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def some(source: Pictures, most: int) -> Iterator[Image.Image]:
    """Evenly spaced pictures, but for those that cannot be decoded."""
    for i in np.unique(np.linspace(0, len(source) - 1, most).astype(int)):
        with contextlib.suppress(Broken):
            yield picture(source, int(i))


def survey(source: Pictures) -> tuple[int, int, levels.Ranges]:
    """(median short side, channels, values of those beyond 8 bits) of evenly spaced pictures; channels is 1 when all of them are
    gray, else 3."""
    sides, gray, ranges = [], True, levels.Ranges()
    for image in some(source, SURVEYED):
        sides.append(min(image.size))
        gray &= image.mode in GRAY_MODES
        ranges = levels.joined(ranges, levels.surveyed(image))
    if not sides:
        raise UserError(f"no image of the data can be decoded; the first is {source.label_of(0)}")
    return int(np.median(sides)), 1 if gray else 3, ranges


def other_ranges(others: Iterable[Pictures], ranges: levels.Ranges) -> levels.Ranges:
    """`ranges` of a training split, widened by those of other splits: where it has none, by a look at a few pictures of each."""
    for source in others:
        for image in some(source, SURVEYED if ranges else PEEKED):
            ranges = levels.joined(ranges, levels.surveyed(image))
    return ranges


class Decoder(Dataset):
    """index -> (uint8 [C, S, S], decoded); a picture that cannot be decoded is mid-gray."""

    def __init__(self, source: Pictures, size: int, channels: int, scales: levels.Ranges):
        self.source, self.size, self.channels, self.scales = source, size, channels, scales

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        try:
            with decoding():
                return tensor(picture(self.source, int(index)), self.size, self.channels, self.scales), True
        except Broken:
            return torch.full((self.channels, self.size, self.size), 128, dtype=torch.uint8), False

    def batches(self, index_lists: Iterable[list[int]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Decoded batches in the order of the index lists, however many workers there are."""
        yield from DataLoader(self, batch_sampler=index_lists, num_workers=workers, worker_init_fn=end_with_parent)


def decoded_once(decoder: Decoder, fingerprint: str, workers: int, progress: Callable[[int], None]) -> tuple[Tensor, np.ndarray]:
    """All pictures decoded once: uint8 [N, C, S, S] and which could be decoded, [N] bool.

    Stored as a memory-mapped file in the cache folder, by the data's fingerprint, size, channels, scales and what decodes; where
    that folder cannot be written, in memory."""
    file = cache_file(decoder, fingerprint, "pixels")
    shape = (len(decoder), decoder.channels * decoder.size**2 + 1)  # the last byte of a row says whether it was decoded
    if (known := loaded(file, shape, np.uint8)) is not None:
        return unpack(known, decoder)
    part: Path | None = None
    rows: np.ndarray
    try:
        part = new_entry(file)
        needed = shape[0] * shape[1]
        stats = os.statvfs(file.parent)
        if stats.f_bavail * stats.f_frsize < needed + 2**26:  # a full disk under a memory map would be a crash
            raise OSError("too little space")
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    except OSError:
        part = None
        rows = np.empty(shape, dtype=np.uint8)
    try:
        start = 0
        for images, good in decoder.batches(chunks(len(decoder)), workers):
            stop = start + len(images)
            rows[start:stop, :-1] = images.flatten(1).numpy()
            rows[start:stop, -1] = good.numpy()
            start = stop
            progress(stop)
        if isinstance(rows, np.memmap) and part:
            rows.flush()
            os.replace(part, file)
    finally:
        if part:
            part.unlink(missing_ok=True)
    return unpack(rows, decoder)


def identities(decoder: Decoder, fingerprint: str, look: Callable[[], list[int]]) -> np.ndarray:
    """What the pixels of each picture are, int64 [N] (see storage/content.py), and 0 of those that cannot be decoded: what a
    first `look` at all of them gave, which is stored in the cache folder."""
    file = cache_file(decoder, fingerprint, "identities")
    if (known := loaded(file, (len(decoder),), np.int64)) is not None:
        return np.array(known)
    result = np.array(look(), dtype=np.int64)
    with contextlib.suppress(OSError):
        part = new_entry(file)
        try:
            with open(part, "wb") as opened:
                np.save(opened, result)
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
    return result


def numbers(images: Tensor, good: Iterable[bool]) -> list[int]:
    """Of images [N, C, S, S]; 0 of those that could not be decoded."""
    return [number(image.tobytes()) if fine else 0 for image, fine in zip(images.numpy(), good, strict=True)]


def streamed(decoder: Decoder, workers: int, progress: Callable[[int], None]) -> list[int]:
    """The numbers of all pictures, which are decoded for that."""
    found: list[int] = []
    for images, good in decoder.batches(chunks(len(decoder)), workers):
        found += numbers(images, good.tolist())
        progress(len(found))
    return found


def chunks(count: int, size: int = 256) -> list[list[int]]:
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def cache_file(decoder: Decoder, fingerprint: str, what: str) -> Path:
    """Where what is decoded of these pictures, in this size and by this version of Pillow, is stored."""
    key = f"{fingerprint}/{decoder.size}/{decoder.channels}/{PIL.__version__}"
    if decoder.scales:
        key += f"/{json.dumps(decoder.scales, sort_keys=True)}"
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{what}.npy"


def loaded(file: Path, shape: tuple[int, ...], kind: Any) -> np.ndarray | None:
    """The array in a file of the cache, mapped into memory; None where it is not there, or not whole."""
    try:
        rows = np.lib.format.open_memmap(file, mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.shape == shape and rows.dtype == kind else None


def unpack(rows: np.ndarray, decoder: Decoder) -> tuple[Tensor, np.ndarray]:
    images = torch.from_numpy(rows[:, :-1]).unflatten(1, (decoder.channels, decoder.size, decoder.size))
    return images, rows[:, -1].astype(bool)
