"""Which files a folder of the user's holds, and which splits its folders name."""

import contextlib
import glob
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ptmrun.errors import UserError, nearest, printable

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
FOREIGN = {"__macosx", "__pycache__"}  # and what is hidden: folders that programs make beside the user's
BESIDE = {"metadata.csv", "metadata.jsonl", "thumbs.db", "desktop.ini"}  # files that are no samples
RUN = ("manifest.json", "config.yaml")  # of a run folder
MOST_ENDINGS = 6
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
STDIN = Path("/dev/stdin")


def files_below(folder: Path, suffixes: Collection[str], notes: list[str] | None = None) -> list[Path]:
    """Files with one of these endings below a folder, sorted by path; links to folders are followed. Left out are what is
    hidden, what programs make (FOREIGN), ptmrun's own run folders and links that lead nowhere; these, and other endings, are
    counted in `notes`.

    Raises UserError when a folder cannot be read.
    """
    found, endings, runs, dangling = [], Counter[str](), 0, 0
    for where, names, is_run in walk(folder):
        runs += is_run
        for name in names:
            path, ending = Path(where) / name, Path(name).suffix.lower()
            if name.startswith(".") or name.lower() in BESIDE:
                continue
            if not path.exists():
                dangling += 1
            elif ending in suffixes:
                found.append(path)
            else:
                endings[ending or "no ending"] += 1
    if notes is not None:
        order = sorted(endings, key=lambda ending: (-endings[ending], ending))
        shown = [f"{endings[ending]:,} {printable(ending)}" for ending in order[:MOST_ENDINGS]]
        shown += ["..."] if len(endings) > MOST_ENDINGS else []
        notes += [f"files of other kinds are left out: {', '.join(shown)}"] if endings else []
        notes += [f"run folders of ptmrun are left out: {runs}"] if runs else []
        notes += [f"links that lead nowhere are left out: {dangling}"] if dangling else []
    return sorted(found)


def chosen(names: list[str], suffixes: Collection[str], note: Callable[[str], None], json: bool = True) -> Iterator[Path]:
    """The files that are named (- is standard input): themselves, those below folders (see `files_below`), and those that
    patterns match. What is not there is given as it is. Unless `json`, .json files count as in `without_json`.

    Raises UserError for a folder without such files.
    """
    for name in names:
        place = STDIN if name == "-" else place_of(name)
        matching = [place] if place.exists() else [Path(p) for p in sorted(glob.glob(str(place), recursive=True))]
        for path in matching or [place]:
            if not path.is_dir():
                yield path
                continue
            notes: list[str] = []
            files = files_below(path, suffixes, notes)
            files = files if json else without_json(files)
            if not files:
                raise UserError("; ".join([f"{printable(str(path))}: holds no file of a kind that can be read", *notes]))
            for line in notes:
                note(f"{printable(str(path))}: {line}")
            yield from files


def without_json(files: list[Path]) -> list[Path]:
    """Without .json files where others are beside them, which they mostly describe."""
    return [p for p in files if p.suffix.lower() != ".json"] if len({p.suffix.lower() for p in files}) > 1 else files


def walk(folder: Path) -> Iterator[tuple[str, list[str], bool]]:
    """(folder, names of its files, whether it is a run folder, which has none then) of a folder and all below it, each once."""

    def fail(error: OSError) -> None:
        raise UserError(f"{printable(str(error.filename))}: cannot be read: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for where, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if where != str(folder) and all(name in names for name in RUN):
            folders.clear()
            yield where, [], True
            continue
        inside = []
        for name in sorted(folders):
            place = os.path.realpath(os.path.join(where, name))
            if not name.startswith(".") and name.lower() not in FOREIGN and place not in seen:
                seen.add(place)
                inside.append(name)
        folders[:] = inside
        yield where, names, False


def split_folders(root: Path, notes: list[str]) -> dict[str, Path]:
    """The folders of a root that are called as splits are. Without one for training there are none, and the root is all.

    Raises UserError where two are of the same split, or where all are called so but none is for training.
    """
    folders = [p for p in visible(root) if p.is_dir()]
    splits: dict[str, Path] = {}
    for path in folders:
        if (name := SPLITS.get(path.name.lower())) is None:
            continue
        if name in splits:
            raise UserError(f"{root}: {splits[name].name} and {path.name} are both the {name} split; put them together")
        splits[name] = path
    if "train" not in splits:
        if splits and len(splits) == len(folders):
            there = " and ".join(path.name for path in splits.values())
            raise UserError(f"{root}: there is {there}, but no folder train; add it, or point dataset.root at one of them")
        return {}
    others = [p.name for p in folders if p.name.lower() not in SPLITS and p.name.lower() not in FOREIGN]
    if others:
        how = "to pretrain on such a folder: stage=pretrain with dataset.root there, then init=RUN"
        notes.append(f"beside the splits, {', '.join(map(printable, others[:5]))} is not used ({how})")
    return splits


def place_of(root: str) -> Path:
    """The path that a root means: ~ is the home folder, and a name that is not there may be so in another Unicode form."""
    place = Path(root).expanduser()
    if os.path.lexists(place):
        return place
    actual = Path(*place.parts[:1]) if place.is_absolute() else Path()
    for name in place.parts[1:] if place.is_absolute() else place.parts:
        if not os.path.lexists(actual / name):
            with contextlib.suppress(OSError):
                same = [other for other in os.listdir(actual) if nfc(other) == nfc(name)]
                name = same[0] if len(same) == 1 else name
        actual /= name
    return actual if os.path.lexists(actual) else place


def absent(place: Path, what: str) -> str:
    """That a path is not there, from where it was looked for, and what is there that has nearly its name."""
    where = "" if place.is_absolute() else f" in {Path.cwd()}"
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(place.parent) if not name.startswith(".")]
    near = nearest(place.name, names)
    return printable(f"no such {what}{where}{near if near.startswith(' (') else ''}")


def nfc(name: str) -> str:
    """A name in one Unicode form: macOS and other systems write the same letters differently."""
    return unicodedata.normalize("NFC", name)


def unpack(path: Path) -> str:
    """What to do where a path is an archive; else nothing."""
    if not path.is_file() or path.suffix.lower() not in ARCHIVES:
        return ""
    return f"; {printable(path.name)} is packed: unpack it, and name the folder or file that comes out of it"


def inner_root(root: Path, suffixes: Collection[str]) -> Path:
    """The root, or where all that it holds is one folder with folders in it, that one, and so on: what an archive unpacks to."""
    while True:
        entries = [p for p in visible(root) if p.name.lower() not in FOREIGN]
        folders = [p for p in entries if p.is_dir()]
        loose = any(p.suffix.lower() in suffixes for p in entries if not p.is_dir())
        if len(folders) != 1 or loose or folders[0].name.lower() in SPLITS:
            return root
        if not any(p.is_dir() for p in visible(folders[0])):
            return root
        root = folders[0]


def readable(name: str) -> str:
    """A file's name as text, whatever bytes it has on disk."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def visible(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: cannot be read: {error.strerror}") from None
