"""Images with captions that the `datasets` library reads: from the Hugging Face hub, or a local folder."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from ptmrun.data.sources import PairSource, hub
from ptmrun.data.sources.captions import CAPTION, cleaned
from ptmrun.data.sources.dialect import folded
from ptmrun.errors import UserError, nearest


def read(options: Any) -> PairSource:
    """Raises UserError where no image of the training split has a caption."""
    by_split = hub.splits(options)
    column = caption_column(by_split["train"].features, options.caption_column)
    source = hub.of_splits(by_split, options)
    parts, captions, together, notes = {}, {}, {}, list(source.notes)
    chosen = []
    for split, part in source.parts.items():
        rows, places = by_split[split], part.images.places  # type: ignore[union-attr]
        values = rows[column]
        texts = [captions_of(values[int(row)], f"{split} row {row}") for row in places]
        good = np.array([bool(own) for own in texts], dtype=bool)
        if not good.all():
            first = part.images.label_of(int(np.argmin(good)))  # type: ignore[union-attr]
            notes.append(f"{int((~good).sum()):,} of {len(good):,} images have no caption and are left out: {first} ...")
            chosen.append([split, places[good].tolist()])
        if not good.any():
            raise UserError(f"dataset.caption_column={column}: no image of the {split} split has a caption")
        labels, groups = (None if x is None else x[good] for x in (part.labels, part.groups))
        parts[split] = replace(part, images=part.images.at(places[good]), labels=labels, groups=groups)  # type: ignore[union-attr]
        captions[split] = [own for own in texts if own]
        if options.together:
            together[split] = hub.groups(rows, options.together, split, "dataset.together")[places[good]].tolist()
    fingerprint = source.fingerprint
    if chosen:
        fingerprint += f"-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()}"
    return PairSource(replace(source, parts=parts, notes=notes, fingerprint=fingerprint), captions, together or None)


def caption_column(features: Any, wanted: str) -> str:
    """The column that is asked for; of auto the first that is called as captions are, else the only one of texts or of lists of
    them. Raises UserError."""
    fits = [name for name, feature in features.items() if is_text(feature) or is_text(getattr(feature, "feature", None))]
    if wanted != "auto":
        if wanted not in fits:
            raise UserError(
                f"dataset.caption_column={wanted}: no column of texts, or lists of them, of that name{nearest(wanted, fits)}"
            )
        return wanted
    named = {folded(name): name for name in reversed(fits)}
    usual = [named[name] for name in CAPTION if name in named]
    if not usual and len(fits) != 1:
        raise UserError(f"dataset.caption_column: choose the column of captions; the columns are {', '.join(features)}")
    return [*usual, *fits][0]


def is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def captions_of(value: Any, where: str) -> list[str]:
    """Those of a row, each on one line; none where it has none."""
    texts = [cleaned(text, where) for text in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(text for text in texts if text))
