"""Tar shards in the format of webdataset: files whose names are the same up to the first dot are one sample, such as 0001.jpg,
0001.cls, 0001.json and 0001.txt. Only the headers are read before training; a sample is then read from its place in its shard, in
any order.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.data.sources.folders import SPLITS, absent, files_below, nfc, place_of, readable
from ptmrun.data.sources.imagefolder import ENDINGS, SUFFIXES
from ptmrun.data.sources.picture_labels import likely, name_of, numbered
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

CLASS, FACTS, CAPTIONS = ".cls", ".json", (".txt", ".caption")
SMALL = (CLASS, FACTS, *CAPTIONS)  # endings of what is read at once
LARGEST = 1_000_000  # bytes of such a file


class Place(NamedTuple):
    """Where a file stands in a shard."""

    shard: Path
    offset: int
    size: int


@dataclass
class Sample:
    """key: the shard and the name up to the first dot. texts: what its small files hold, by their endings."""

    key: str
    image: Place | None = None
    texts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # of its .json


class InShards:
    """Images in shards, in a fixed order."""

    def __init__(self, samples: list[Sample]):
        self.names = [sample.key for sample in samples]
        places = [sample.image for sample in samples if sample.image]
        numbers = {shard: i for i, shard in enumerate(dict.fromkeys(place.shard for place in places))}
        self.shards = list(numbers)
        self.places = np.array([(numbers[p.shard], p.offset, p.size) for p in places], dtype=np.int64).reshape(-1, 3)

    def part(self, numbers: np.ndarray | None, groups: np.ndarray | None, options: Any) -> Part:
        return Part(self, numbers, groups, blocks=self.places[:, 0] if options.window else None)

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Image.Image:
        shard, offset, size = map(int, self.places[index])
        with open(self.shards[shard], "rb") as file:
            return Image.open(io.BytesIO(os.pread(file.fileno(), size, offset)))

    def label_of(self, index: int) -> str:
        return self.names[index]


def read(options: Any) -> Source:
    """Images, with the classes of .cls files or of a key of .json files. Raises UserError."""
    notes: list[str] = []
    shards = shards_of(options, notes)
    sets = {split: with_image(split, files, notes) for split, files in shards.items()}
    sets, numbers, classes = labelled(sets, options, notes)
    groups = {split: groups_of(samples, options) for split, samples in sets.items()}
    parts = {split: InShards(samples).part(numbers.get(split), groups[split], options) for split, samples in sets.items()}
    return Source(parts, classes, fingerprint(shards, options), notes)


def shards_of(options: Any, notes: list[str]) -> dict[str, list[Path]]:
    """The shards of each split: by the folder that they are in, or by the first word of their names. Raises UserError."""
    if not options.root:
        raise UserError("dataset.root: the folder of .tar files is needed, as in dataset.root=shards")
    root = place_of(options.root)
    if not root.exists():
        raise UserError(f"dataset.root={options.root}: {absent(root, 'folder or .tar file')}")
    paths = files_below(root, {".tar"}, notes) if root.is_dir() else [root]
    if not paths:
        packed = [p.name for p in files_below(root, {".tgz", ".gz", ".zst", ".xz", ".bz2"})]
        why = f"; {printable(packed[0])} is compressed, which has no random access: unpack it to a .tar" if packed else ""
        raise UserError(f"dataset.root={options.root}: holds no .tar files{why}")
    shards: dict[str, list[Path]] = {"train": []}
    for path in paths:
        folders = path.relative_to(root).parts[:-1] if root != path else ()
        words = [*folders, re.split("[-_.]", path.name)[0]]
        split = next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), "train")
        shards.setdefault(split, []).append(path)
    if not shards["train"]:
        there = " and ".join(split for split in shards if split != "train")
        raise UserError(f"dataset.root={options.root}: there is {there}, but no train-*.tar")
    return shards


def with_image(split: str, shards: list[Path], notes: list[str]) -> list[Sample]:
    """The samples of some shards that have an image. Raises UserError where none has."""
    samples, others = list[Sample](), Counter[str]()
    lacking = 0
    for shard in shards:
        for sample in samples_of(shard, others):
            if sample.image:
                samples.append(sample)
            else:
                lacking += 1
    if others:
        shown = ", ".join(f"{count:,} {printable(ending)}" for ending, count in others.most_common(5))
        notes.append(f"files of other kinds in the shards of the {split} split are left out: {shown}")
    if lacking:
        notes.append(f"{lacking:,} samples of the {split} split have no image and are left out")
    if not samples:
        raise UserError(f"{printable(str(shards[0]))}: no images ({ENDINGS} ...) in the shards of the {split} split")
    return samples


def samples_of(shard: Path, others: Counter[str]) -> Iterator[Sample]:
    """The samples of a shard, in its order. Raises UserError for what is no tar file, or cut short."""
    sample = None
    try:
        with tarfile.open(shard, "r:") as archive, open(shard, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if not member.isreg() or name.startswith(".") or member.issparse():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                stem, _, rest = name.partition(".")
                key = f"{readable(shard.name)}:{readable(f'{folder}/{stem}' if folder else stem)}"
                if sample is None or sample.key != key:
                    if sample:
                        yield sample
                    sample = Sample(key)
                take(sample, Place(shard, member.offset_data, member.size), f".{rest.lower()}", file.fileno(), others)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{printable(str(shard))}: not a whole, uncompressed .tar file: {printable(str(error))}") from None
    except OSError as error:
        raise UserError(f"{printable(str(shard))}: cannot be read: {error.strerror}") from None
    if sample:
        yield sample


def take(sample: Sample, place: Place, ending: str, file: int, others: Counter[str]) -> None:
    """Gives a sample one of its files. Raises UserError."""
    if ending in SUFFIXES:
        if sample.image:
            raise UserError(f"{sample.key}: two images; a sample has one (its name ends at the first dot)")
        sample.image = place
    elif ending not in SMALL:
        others[ending] += 1
    elif place.size > LARGEST:
        raise UserError(f"{sample.key}{ending}: has {place.size:,} bytes; expected at most {LARGEST:,}")
    else:
        try:
            text = os.pread(file, place.size, place.offset).decode("utf-8-sig")
            if ending == FACTS:
                facts = json.loads(text)
                if not isinstance(facts, dict):
                    raise ValueError("expected an object")
                sample.facts = facts
            else:
                sample.texts[ending] = text
        except (ValueError, RecursionError) as error:
            raise UserError(f"{sample.key}{ending}: {printable(str(error))[:120]}") from None


def labelled(
    sets: dict[str, list[Sample]], options: Any, notes: list[str]
) -> tuple[dict[str, list[Sample]], dict[str, np.ndarray], list[str]]:
    """(the samples that have a label, its number, the classes); all samples where there are no labels. Raises UserError."""
    wanted = options.label_column
    if wanted is None:
        return sets, {}, []
    of_files = wanted == "auto" and any(CLASS in sample.texts for sample in sets["train"])
    key = None
    if not of_files:
        columns = dict.fromkeys(name for sample in sets["train"] for name in sample.facts)
        key = likely(columns) if wanted == "auto" else wanted
        if key is None:
            return sets, {}, []
        if key not in columns:
            there = ", ".join(map(printable, columns)) or "none"
            raise UserError(f"dataset.label_column={wanted}: no .json file of the shards has such a key; they have: {there}")
    notes.append(f"labels are {'the .cls files' if of_files else f'the key {printable(str(key))} of the .json files'}")

    def value(sample: Sample) -> str | None:
        return name_of(sample.texts.get(CLASS) if key is None else sample.facts.get(key), sample.key)

    values = {split: [value(sample) for sample in samples] for split, samples in sets.items()}
    found = numbered(values, f"dataset.label_column={wanted}", lambda split, row: sets[split][row].key)
    notes += found.notes
    return {s: [sets[s][row] for row in rows] for s, rows in found.rows.items()}, found.numbers, found.classes


def groups_of(samples: list[Sample], options: Any) -> np.ndarray | None:
    """The value of each sample's .json for the key dataset.group, where one is asked for. Raises UserError."""
    if options.group is None:
        return None
    values = [name_of(sample.facts.get(options.group), sample.key) for sample in samples]
    if None in values:
        raise UserError(f"dataset.group={options.group}: {samples[values.index(None)].key} has no such value in its .json")
    return np.array([nfc(str(value)) for value in values])


def fingerprint(shards: dict[str, list[Path]], options: Any) -> str:
    digest = hashlib.sha256(json.dumps([options.label_column, options.group]).encode())
    for split, paths in shards.items():
        for path, content in zip(paths, hashes(paths), strict=True):
            digest.update(os.fsencode(f"{split}/{path.name}/") + content.encode() + b"\n")
    return digest.hexdigest()
