"""Tar shards in the format of webdataset whose samples have captions: .txt or .caption files, a caption a line, or a key of .json
files."""

from typing import Any

from ptmrun.data.sources import PairSource, Source
from ptmrun.data.sources.captions import CAPTION
from ptmrun.data.sources.dialect import folded
from ptmrun.data.sources.picture_labels import name_of
from ptmrun.data.sources.shards import CAPTIONS, InShards, Sample, fingerprint, groups_of, labelled, shards_of, with_image
from ptmrun.errors import UserError, printable


def read(options: Any) -> PairSource:
    """Raises UserError where no sample has a caption."""
    notes: list[str] = []
    shards = shards_of(options, notes)
    sets = {split: with_image(split, files, notes) for split, files in shards.items()}
    captions = {}
    for split, samples in sets.items():
        texts = [captions_of(sample, options) for sample in samples]
        sets[split] = [sample for sample, own in zip(samples, texts, strict=True) if own]
        if lacking := len(samples) - len(sets[split]):
            notes.append(f"{lacking:,} of {len(samples):,} images of the {split} split have no caption and are left out")
        if not sets[split]:
            raise UserError(
                f"{samples[0].key}: no image of the {split} split has a caption: expected a .txt beside it, or one of "
                f"{', '.join(CAPTION)} in its .json (dataset.caption_column)"
            )
    sets, numbers, classes = labelled(sets, options, notes)
    parts = {}
    for split, samples in sets.items():
        parts[split] = InShards(samples).part(numbers.get(split), groups_of(samples, options), options)
        captions[split] = [captions_of(sample, options) for sample in samples]
    together = {split: [str(name_of(s.facts.get(options.together), s.key)) for s in samples] for split, samples in sets.items()}
    if options.together and (lacking_of := [s.key for x in sets.values() for s in x if s.facts.get(options.together) is None]):
        raise UserError(f"dataset.together={options.together}: {lacking_of[0]} has no such value in its .json")
    source = Source(parts, classes, fingerprint(shards, options), notes)
    return PairSource(source, captions, together if options.together else None)


def captions_of(sample: Sample, options: Any) -> list[str]:
    """Those of a sample, each on one line; none where it has none. Raises UserError for what is no text."""
    known = {folded(name): name for name in sample.facts}
    if options.caption_column != "auto":
        given = sample.facts.get(options.caption_column)
    elif files := [sample.texts[ending] for ending in CAPTIONS if ending in sample.texts]:
        given = [line for text in files for line in text.splitlines()]
    else:
        given = next((sample.facts[known[name]] for name in CAPTION if name in known), None)
    each = given if isinstance(given, list) else [given]
    if wrong := [x for x in each if not isinstance(x, str | None)]:
        raise UserError(f"{sample.key}: expected a caption, found {printable(repr(wrong[0]))[:60]}")
    texts = [" ".join(text.split()) for text in each if text]
    if any("\0" in text or not encodes(text) for text in texts):
        raise UserError(f"{sample.key}: its caption holds NUL or half a surrogate pair, so this is no text; mend it")
    return list(dict.fromkeys(text for text in texts if text))


def encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
