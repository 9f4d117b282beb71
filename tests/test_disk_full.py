"""A disk that is full at each kind of write: one line, what was there stays whole, and `resume` ends as ever."""

import builtins
import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import transformers.modeling_utils
import yaml
from conftest import TINY, draw, latest
from PIL import Image
from safetensors import SafetensorError
from test_cli_runs import same

from ptmrun import cli
from ptmrun.compose import compose
from ptmrun.runs.folder import Run
from ptmrun.storage import tensor_files

SMALL = [*TINY, "finetune.seeds=1", "evaluate.baselines=[chance]", "pretrain.probes=0"]
FIGURES = ("augmented", "reconstructions", "attention", "curves", "confusion", "scores", "embedding")
LATER = [  # (file, which of its writes fails), in the order in which a run comes to them
    ("manifest.json", 1),
    ("splits.json", 1),
    ("checkpoints/examples.safetensors", 1),
    ("checkpoints/trained_on.safetensors", 1),
    ("config.yaml", 1),
    ("log.txt", 3),
    ("figures/augmented.png", 1),
    ("metrics.jsonl", 2),
    ("checkpoints/state/pretrain.safetensors", 1),
    ("checkpoints/state/pretrain.safetensors", 2),
    ("checkpoints/heads.safetensors", 1),
    ("checkpoints/encoder/config.json", 1),
    ("checkpoints/encoder/model.safetensors", 1),
    ("checkpoints/encoder/preprocessor_config.json", 1),
    *((f"figures/{name}.png", 1) for name in ("reconstructions", "attention", "curves")),
    ("manifest.json", 3),
    ("checkpoints/state/finetune_5-tuned-0.safetensors", 2),
    ("checkpoints/finetuned/5-tuned-0.safetensors", 1),
    ("checkpoints/reference.safetensors", 1),
    ("checkpoints/logits/5-tuned-0.safetensors", 1),
    ("checkpoints/logits/5-tuned-0-val.safetensors", 1),
    ("predictions.parquet", 1),
    *((f"figures/{name}.png", 1) for name in ("confusion", "scores", "embedding")),
    ("results.json", 1),
    ("report.html", 1),
]


class Half:
    """A file of which half of what is written arrives; then the disk is full."""

    def __init__(self, file: io.IOBase):
        self.file = file

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self) -> "Half":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes | str) -> int:
        written = self.file.write(data[: len(data) // 2])
        if isinstance(self.file, io.FileIO):  # an unbuffered write says how much it wrote; the next one would fail
            return written
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Fails one write: the `turn`-th that goes to `name`, itself or by way of its `.part`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.name, self.turn, self.failed = "", 0, False
        opened, kept = builtins.open, safetensors.torch.save_file

        def guarded(file, mode="r", *args, **kwargs):
            found = opened(file, mode, *args, **kwargs)
            return Half(found) if set(mode) & set("wax") and isinstance(file, (str, os.PathLike)) and self.hits(file) else found

        def save_file(tensors, filename, metadata=None):
            kept(tensors, filename, metadata)
            if self.hits(filename):
                os.truncate(filename, os.path.getsize(filename) // 2)
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        for module in (builtins, io):
            monkeypatch.setattr(module, "open", guarded)
        monkeypatch.setattr(tensor_files, "save_file", save_file)
        monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", save_file)

    def fill(self, name: str, turn: int) -> None:
        self.name, self.turn, self.failed = name, turn, False

    def hits(self, path: str | os.PathLike) -> bool:
        parts = [p.removeprefix(".").removesuffix(".part") if p.endswith(".part") else p for p in Path(path).parts]
        if self.failed or not "/".join(parts).endswith(self.name) or not self.name:
            return False
        self.turn -= 1
        self.failed = self.turn == 0
        return self.failed


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    try:
        assert cli.run(SMALL) == 0
        return latest()
    finally:
        os.chdir(before)


def whole(folder: Path) -> None:
    """Every file that has its final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith(".") or any(p.startswith(".") for p in path.relative_to(folder).parts):
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".yaml":
                yaml.safe_load(path.read_text())
            case ".safetensors":
                safetensors.torch.load_file(path)
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case ".html":
                assert path.read_text().endswith("</html>\n")
    Run.open(folder).metrics()


def test_every_kind_of_file_is_here(undisturbed):
    """The list above is complete: a run writes nothing else, but for what is written once when the folder is made."""
    names = {str(p.relative_to(undisturbed)) for p in undisturbed.rglob("*") if p.is_file()}
    assert names - {name for name, _ in LATER} == {"overrides.yaml", ".lock"}


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "manifest.json"])
def test_a_folder_that_cannot_be_made_is_not_there(name, disk, ptmrun):
    disk.fill(name, 1)
    code, _, err = ptmrun(*SMALL)
    assert disk.failed
    assert (code, err) == (2, "ptmrun: outputs=outputs: no run folder can be made there: No space left on device\n")
    assert list(Path("outputs").iterdir()) == []


def test_a_run_that_meets_a_full_disk_at_every_write(undisturbed, disk, ptmrun):
    """One run, started and resumed again and again, each time until the next kind of file does not fit."""
    disk.fill("manifest.json", 4)
    folder = None
    for name, turn in LATER:
        if folder:
            disk.fill(name, turn)
        before = {} if folder is None else {p: p.read_bytes() for p in folder.glob("checkpoints/finetuned/*")}
        code, out, err = ptmrun(*(SMALL if folder is None else ["resume", folder]))
        folder = folder or latest()
        where = f"{name}, write {turn}: {out}{err}"
        assert disk.failed, where
        assert code == 2, where
        lines = err.splitlines()
        assert "No space left on device" in lines[0], where
        assert "resume" in lines[0] or lines[1:] == [f"ptmrun: the run so far is in outputs/{folder.name}"], where
        assert len(lines) <= 2, where
        assert "Traceback" not in out + err, where
        whole(folder)
        assert not [p for p in folder.rglob("*.part") if p.is_file()], where
        assert all(p.read_bytes() == content for p, content in before.items()), where
        assert json.loads((folder / "manifest.json").read_text())["status"] in ("failed", "running"), where
    code, _, err = ptmrun("resume", folder)
    assert code == 0, err
    whole(folder)
    same(folder, undisturbed)
    assert {p.name for p in folder.rglob("*")} == {p.name for p in undisturbed.rglob("*")}


@pytest.mark.parametrize(("name", "verb"), [("report.html", "report"), (".lock", "resume")])
def test_a_verb_that_cannot_write(undisturbed, tmp_path, name, verb, monkeypatch, ptmrun):
    """A read-only folder, as root too."""
    shutil.copytree(undisturbed, tmp_path / "run")
    opened = builtins.open

    def read_only(file, mode="r", *args, **kwargs):
        if set(mode) & set("wax") and str(tmp_path / "run") in str(Path(str(file)).absolute()):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, mode, *args, **kwargs)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", read_only)
    code, _, err = ptmrun(verb, tmp_path / "run")
    assert (code, err) == (2, f"ptmrun: run/{name}: Read-only file system\n")


def test_images_that_do_not_fit_the_cache_stay_in_memory(tmp_path, disk, monkeypatch, ptmrun):
    for i in range(30):
        draw(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png", shade=i % 5)
    argv = [*SMALL[2:], "dataset=imagefolder", f"dataset.root={tmp_path / 'pets'}", "dataset.image_size=16", "stage=pretrain"]
    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    code, _, err = ptmrun(*argv)
    assert code == 0, err
    assert not list(Path("cache").glob("*.pixels.npy"))
    first = latest()
    monkeypatch.undo()
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert ptmrun(*argv)[0] == 0
    assert len(list(Path("cache").glob("*.pixels.npy"))) == 1
    same(first, latest())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_unreadable_txt_does_not_fit(tmp_path, disk, ptmrun):
    for i in range(30):
        draw(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png", shade=i % 5)
    (tmp_path / "pets" / "a" / "x.png").write_bytes(b"no picture")
    argv = [*SMALL[2:], "dataset=imagefolder", f"dataset.root={tmp_path / 'pets'}", "dataset.image_size=16", "stage=pretrain"]
    disk.fill("unreadable.txt", 1)
    code, _, err = ptmrun(*argv, "dataset.max_unreadable=0.5")
    assert code == 2
    assert "unreadable.txt: No space left on device" in err
    assert not (latest() / "unreadable.txt").exists()
    assert ptmrun("resume", latest())[0] == 0
    assert (latest() / "unreadable.txt").read_text() == "a/x.png\n"


def test_a_line_of_metrics_that_does_not_fit_is_left_out_as_a_whole(disk):
    run = Run.create(compose(["name=x"]), [], {})
    run.metric({"stage": "a", "step": 1})
    disk.fill("metrics.jsonl", 1)
    with pytest.raises(OSError, match="No space left on device"):
        run.metric({"stage": "a", "step": 2})
    run.metric({"stage": "a", "step": 3})
    assert [line["step"] for line in run.metrics()] == [1, 3]
