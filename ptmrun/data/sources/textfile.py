"""The text of a file, decoded a chunk at a time, and its lines."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from ptmrun.errors import UserError

CHUNK = 2**20  # bytes read at a time
PACKED = {  # what files begin with that hold texts in another form
    b"PK\x03\x04": "a zip archive or spreadsheet; unpack it, or save the sheet as .csv",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"BZh91AY": "packed by bzip2; unpack it",
    b"\xfd7zXZ": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"\xd0\xcf\x11\xe0": "an old Office file; save the sheet as .csv",
}
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32's other one begins as UTF-16's


def lines(path: Path, encoding: str, errors: str) -> Iterator[str]:
    """The lines of a file without their ends, a chunk of it in memory at a time; else see `decoded`."""
    rest: list[str] = []
    for text in decoded(path, encoding, errors):
        first, *more = text.split("\n")
        rest.append(first)
        if more:
            yield "".join(rest)
            yield from more[:-1]
            rest = more[-1:]
    if last := "".join(rest):
        yield last


def decoded(path: Path, encoding: str, errors: str) -> Iterator[str]:
    """The text of a file, chunk by chunk. Any line ends, which become \\n, and a byte order mark are fine.

    Raises UserError for bytes that are not text, unless errors=replace.
    """
    try:
        if not getattr(codecs.lookup(encoding), "_is_text_encoding", True):
            raise LookupError
    except LookupError:
        raise UserError(f"dataset.encoding={encoding}: no such encoding; expected one such as utf-8, latin-1 or utf-16") from None
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    ends_of_lines = io.IncrementalNewlineDecoder(None, translate=True)
    place = 0
    try:
        with open(path, "rb") as file:
            while True:
                data = file.read(CHUNK)
                if what := next((what for mark, what in PACKED.items() if not place and data.startswith(mark)), None):
                    raise UserError(f"{path}: is no text but {what}")
                held = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeError as error:
                    byte = place - held + getattr(error, "start", 0)
                    raise UserError(
                        f"{path}: byte {byte} is not {encoding}; name its dataset.encoding (such as latin-1 or utf-16), "
                        "or set dataset.errors=replace"
                    ) from None
                if "\0" in text:
                    if errors == "strict":
                        try:
                            byte = place - held + len(text[: text.index("\0")].encode(encoding))
                            if place or not data.startswith(MARKS):
                                byte -= len("".encode(encoding))  # a mark that `encode` wrote and the file has not there
                        except UnicodeError:  # an encoding that cannot write all that it reads
                            byte = place + max(data.find(b"\0"), 0)
                        raise UserError(
                            f"{path}: byte {byte} is NUL, so this is no text; remove it, or set dataset.errors=replace"
                        )
                    text = text.replace("\0", "\ufffd")
                if place == 0:
                    text = text.removeprefix("\ufeff")
                yield ends_of_lines.decode(text, final=not data)
                if not data:
                    break
                place += len(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def units(paths: list[Path], encoding: str, errors: str) -> str:
    """What documents=auto is: see conf/dataset/text.yaml."""
    if len(paths) > 1:
        return "file"
    seen = gap = False
    for line in lines(paths[0], encoding, errors):
        if line.strip():
            if gap:
                return "blank_lines"
            seen = True
        else:
            gap = seen
    return "lines"
