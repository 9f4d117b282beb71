"""Files of sounds: wav, flac, ogg, mp3 ... of any rate, number of channels and width -> float32 values of one channel."""

import importlib.util
import math
import os
from pathlib import Path

import numpy as np

from ptmrun.data.sources.folders import readable
from ptmrun.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64")
ENDINGS = ".wav .flac .ogg .opus .mp3 .aiff"  # the best known of them
MARGIN = 0.1  # seconds that are read beyond what is wanted, as resampling looks ahead


class Broken(Exception):
    """A sound that is not there, or cannot be decoded."""


def need(extra: str, *packages: str) -> None:
    """Raises UserError where a package of an extra is not installed."""
    if lacking := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"sounds need {' and '.join(lacking)}; install with: pip install 'ptmrun[{extra}]'")


def read(path: str | os.PathLike[str], rate: int, most: int) -> np.ndarray:
    """The first values of a file, at most `most`, at `rate` a second: the mean of its channels, float32 [T]. As transformers'
    audio_utils.load_audio by soundfile and soxr, but of a long file no more is read than is wanted.

    Raises Broken.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            own = file.samplerate
            values = file.read(math.ceil((most / rate + MARGIN) * own), dtype="float32", always_2d=True)
    except MemoryError:
        raise
    except Exception as error:  # of many decoders, some in other libraries
        raise Broken(reason(error)) from None
    return resampled(values.mean(1) if values.shape[1] > 1 else values[:, 0], own, rate, most)


def resampled(values: np.ndarray, own: int, rate: int, most: int) -> np.ndarray:
    """Values [T] of a sound as it was recorded, `own` a second. Raises Broken for what is no sound."""
    import soxr

    if not len(values):
        raise Broken("holds no sound: 0 seconds")
    if not np.isfinite(values).all():
        raise Broken("holds values that are not finite")
    if own != rate:
        count = math.ceil(len(values) * rate / own)
        values = soxr.resample(values.astype(np.float32), own, rate, quality="soxr_hq")
        values = np.pad(values, (0, max(0, count - len(values))))[:count]
    return np.ascontiguousarray(values[:most], dtype=np.float32)


def reason(error: BaseException) -> str:
    """Why a sound could not be decoded."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"cannot be decoded: {' '.join(str(getattr(error, 'error_string', error)).split())}"


class SoundFiles:
    """Files of sounds in a fixed order."""

    def __init__(self, root: Path, paths: list[str]):
        import soundfile
        import soxr

        self.root, self.paths = root, paths
        self.decoder = f"soundfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"

    def __len__(self) -> int:
        return len(self.paths)

    def wave(self, index: int, rate: int, most: int) -> np.ndarray:
        return read(self.root / self.paths[index], rate, most)

    def rate_of(self, index: int) -> int:
        import soundfile

        try:
            return int(soundfile.info(self.root / self.paths[index]).samplerate)
        except (soundfile.SoundFileError, OSError, RuntimeError):
            return 0

    def label_of(self, index: int) -> str:
        return readable(self.paths[index])
