"""Every training that README and docs show runs as it stands, with small settings and data (`make test-all`)."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from test_docs import OPEN, PAGES, commands, settings_of_run

from ptmrun.commands import table

pytestmark = pytest.mark.slow
SMALL = [
    "pretrain.steps=2", "pretrain.batch_size=8", "pretrain.probes=0", "finetune.steps=18", "finetune.batch_size=8",
    "finetune.seeds=1", "evaluate.baselines=[chance]", "dataset.limit=1500", "dataset.test_limit=20", "device.threads=1",
    "device.precision=fp32",
]  # fmt: skip
ELSEWHERE = {"results.md"}  # its tables are of data sets that are fetched or made by hand
OFFLINE = (  # published weights, a folder that only its reader has, and data that are fetched
    "init=pretrained",
    "model.text_init=my_gpt2",
    "experiment=vision_table",
)
PER_CLASS = 20


def pictures(folder: Path, count: int = 2 * PER_CLASS) -> list[str]:
    for i in range(count):
        draw(folder / f"{i:02}.png", shade=9 * i)
    return [f"{i:02}.png" for i in range(count)]


def class_folders(root: Path) -> None:
    for name in ("cat", "dog"):
        pictures(root / name, PER_CLASS)


def captioned(root: Path) -> None:
    rows = [f"{name},picture {i} of a bar" for i, name in enumerate(pictures(root))]
    (root / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")


def annotated(root: Path) -> None:
    """COCO's boxes and polygons."""
    names = pictures(root)
    corners = [2, 2, 10, 2, 10, 10, 2, 10]
    marks = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1 + i % 2,
            "bbox": [2, 2, 8, 8],
            "area": 64,
            "segmentation": [corners],
            "iscrowd": 0,
        }
        for i in range(len(names))
    ]
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 36} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "pot"}],
        "annotations": marks,
    }
    (root / "annotations.json").write_text(json.dumps(content))


def masked(root: Path) -> None:
    names = pictures(root / "images")
    for i, name in enumerate(names):
        draw(root / "masks" / name, shade=i % 2)


def spoken(root: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("jiwer")
    for name in ("high", "low"):
        (root / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            wave = np.sin(np.arange(8000) * (0.3 if name == "high" else 0.1) + i)
            soundfile.write(root / name / f"{i}.wav", wave, 8000)
            (root / name / f"{i}.txt").write_text(f"{name} tone")


def written(root: Path) -> None:
    root.mkdir()
    words = ["the", "dog", "and", "a", "cat", "see", "one", "bird", "on", "its", "tree"]
    for i in range(6):
        (root / f"{i}.txt").write_text("\n\n".join(" ".join(words[(i * j) % 10 :] + words) + "." for j in range(1, 30)))
    rows = [f"a {'good' if i % 2 else 'bad'} film number {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    Path("reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")


MADE: dict[str, Callable[[Path], None]] = {  # by dataset: what makes a folder for it
    "imagefolder": class_folders,
    "captions": captioned,
    "boxes": annotated,
    "coco_masks": annotated,
    "masks": masked,
    "audiofolder": spoken,
    "text": written,
}


def shown() -> dict[str, list[str]]:
    """{name of a test: words} of each run that a page shows."""
    runs = {}
    for page in PAGES:
        for command in commands(page) if page.name not in ELSEWHERE and page.parent.name != "zh" else []:
            words = shlex.split(command, comments=True)[1:]
            verb = not words or words[0] in table.VERBS or words[0].startswith("--") or words[0] == "-sc"
            if not verb and not OPEN.search(command) and not any(word in OFFLINE for word in words):
                runs.setdefault(" ".join(words), words)
    return {name: words for name, words in runs.items() if "model=conv1d" not in words}  # see test_plugins.py


@pytest.mark.parametrize("name", shown())
def test_a_documented_run(name, ptmrun):
    words = shown()[name]
    sweep = "-m" in words
    settings = [w for w in settings_of_run([w for w in words if w != "-m"], sweep) if not w.startswith("budget=")]
    known = dict(word.split("=", 1) for word in settings)
    if "dataset.root" in known:
        MADE[known["dataset"]](Path(known["dataset.root"]))
    if known.get("init") in ("RUN", "outputs/latest"):
        first = [] if "dataset" in known else ["dataset=digits"]
        assert ptmrun("model=vit", "stage=pretrain", *first, *SMALL)[0] == 0
        settings = [word.replace("init=RUN", "init=outputs/latest") for word in settings]
    code, _, err = ptmrun(*settings, *(word for word in SMALL if word.split("=")[0] not in known or "steps" in word))
    assert code == 0, err


def test_they_are_many():
    assert len(shown()) > 40
