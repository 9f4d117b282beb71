"""What a finished run says of new inputs: on the command line, in files and in Python."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from texts import story

import ptmrun as package
from ptmrun.commands import preflight, verify
from ptmrun.compose import compose
from ptmrun.data.images import load as images
from ptmrun.errors import UserError
from ptmrun.runs import config_file, console
from ptmrun.runs.folder import Run
from ptmrun.stages import evaluate, trials
from ptmrun.stages.networks import module_of
from ptmrun.stages.prepare import prepare
from ptmrun.storage import tensor_files
from ptmrun.training.signals import Stop


@pytest.fixture(scope="session")
def digits(done_run, tmp_path_factory):
    """The test images of `done_run` as files, in the order of its predictions."""
    folder = tmp_path_factory.mktemp("digits")
    cfg = config_file.load(done_run / "config.yaml")
    data = images.load(module_of(cfg, "dataset").read, cfg.dataset, 0, lambda *_: None)
    for i, pixels in enumerate(data.test.pixels[data.test.rows]):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{i:03}.png")
    return folder


def known(folder, **wanted):
    """The rows of predictions.parquet with these values."""
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_of_images_are_those_of_the_run(done_run, digits, ptmrun):
    code, out, err = ptmrun("predict", done_run, digits, "out=x.csv", "top=3")
    assert (code, out) == (0, ""), err
    rows, expected = read_csv("x.csv"), known(done_run, repeat=0)
    assert [row["input"] for row in rows] == sorted(str(p) for p in digits.iterdir())
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], [row["confidence"] for row in expected], atol=1e-5)
    assert list(rows[0])[:5] == ["input", "prediction", "confidence", "class_1", "probability_1"]
    assert list(rows[0])[-2:] == ["probability_3", "unlike"]
    shares = [float(row["unlike"]) for row in rows]
    assert min(shares) >= 0
    assert max(shares) <= 100
    assert 20 < np.mean(shares) < 80
    assert f"{len(rows)} rows written to x.csv" in err


def test_a_bad_image_is_a_row_and_ends_nothing(done_run, digits, ptmrun):
    Path("new").mkdir()
    (Path("new") / "a.png").write_bytes((digits / "000.png").read_bytes())
    Path("new/b.png").write_bytes(b"")
    Path("new/c.png").write_bytes((digits / "001.png").read_bytes()[:90])
    Path("new/notes.txt").write_text("no image")
    Path("list.csv").write_text("file_name,what\nnew/a.png,x\n,y\nnew/a.png\n")
    named = ["new", "new/a*.png", "gone.png", "list.csv"]
    code, out, err = ptmrun("predict", done_run, *named, "--json")
    assert code == 1
    rows = [json.loads(line) for line in out.splitlines()]
    names = ["new/a.png", "new/b.png", "new/c.png", "new/a.png", "gone.png", "new/a.png", "list.csv:3", "list.csv:4"]
    assert [row["input"] for row in rows] == names
    errors = [row.get("error", "") for row in rows]
    assert errors[1] == "is no image of a kind that can be read"
    assert errors[2].startswith("cannot be decoded: ")
    assert errors[4] == "no such file or directory"
    assert errors[6:] == ["no path in file_name", "1 fields where the first line has 2"]
    first = known(done_run, repeat=0, index=0)[0]
    good = [row for row in rows if "error" not in row]
    assert [row["prediction"] for row in good] == [first["prediction"]] * 3
    assert list(good[0]["probabilities"]) != sorted(good[0]["probabilities"])
    assert len(good[0]["probabilities"]) == 5
    assert "5 of 8 inputs could not be read" in err
    assert "files of other kinds are left out: 1 .txt" in err


def test_all_repeats_are_averaged(done_run, digits, ptmrun):
    code, out, err = ptmrun("predict", done_run, digits / "000.png", digits / "001.png", "repeats=all", "top=10", "--json")
    assert code == 0, err
    rows, model = [json.loads(line) for line in out.splitlines()], package.load(done_run)
    every = [model, *(package.load(done_run) for _ in range(1))]
    other = every[1]._predictor
    other.model = package.load(done_run, every_repeat=True)._predictor.others[0]
    pictures = [digits / "000.png", digits / "001.png"]
    for row, *each in zip(rows, *(m.predict(pictures, top=10) for m in every), strict=True):
        for name, chance in row["probabilities"].items():
            assert chance == pytest.approx(np.mean([x["probabilities"][name] for x in each]), abs=1e-6)
    assert {row["prediction"] for row in known(done_run, index=0)} >= {rows[0]["prediction"]}


MISUSE = {
    "out=x.txt": "out=x.txt: expected a file ending in .csv .jsonl .parquet",
    "out=there.csv": "out=there.csv: is there already; choose a file that is not",
    "out=gone/x.csv": "out=gone/x.csv: no such folder gone",
    "tops=3": "predict tops=3: no such setting of this verb (did you mean top?)",
    "top=0": "top=0: expected greater than or equal to 1",
    "empty": "empty: holds no file of a kind that can be read",
}


@pytest.mark.parametrize("word", MISUSE)
def test_misuse_is_one_line(done_run, digits, ptmrun, word):
    Path("there.csv").write_text("mine")
    Path("empty").mkdir()
    code, out, err = ptmrun("predict", done_run, digits, word)
    assert (code, out) == (2, "")
    assert MISUSE[word] in err
    assert Path("there.csv").read_text() == "mine"


def test_files_may_have_an_equals_sign(done_run, digits, ptmrun):
    for name in ("a=b.png", "top=b.png"):
        shutil.copy(digits / "000.png", name)
    code, out, err = ptmrun("predict", done_run, "a=b.png", "./top=b.png", "--json")
    assert code == 0, err
    assert [row["input"] for row in map(json.loads, out.splitlines())] == ["a=b.png", "top=b.png"]
    code, _, err = ptmrun("predict", done_run, "a=b.png", "dataset.root=x")
    assert code == 2
    assert err.startswith("ptmrun: predict dataset.root=x: no such setting of this verb")


def test_a_run_that_is_read_is_not_changed(done_run, digits, ptmrun):
    before = {p: p.stat().st_mtime_ns for p in done_run.rglob("*")}
    assert ptmrun("predict", done_run, digits / "000.png")[0] == 0
    assert ptmrun("embed", done_run, digits / "000.png", "out=x.npy")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in done_run.rglob("*")} == before


def test_features_of_images(done_run, digits, ptmrun):
    Path("broken.png").write_bytes(b"no image")
    pictures = [digits / "000.png", "broken.png", digits / "001.png"]
    code, _, err = ptmrun("embed", done_run, *pictures, "out=x.npy")
    assert code == 1
    assert "features of 2 inputs written to x.npy, their names to x.jsonl" in err
    whole, model = np.load("x.npy"), package.load(done_run)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all(1).tolist() == [True, False, True]
    errors = [json.loads(line).get("error") for line in Path("x.jsonl").read_text().splitlines()]
    assert errors == [None, "is no image of a kind that can be read", None]
    images = model.preprocess([digits / "000.png", digits / "001.png"])
    with model._predictor.networks.autocast():
        expected = model._predictor.encoder.features(images).detach().numpy()
    np.testing.assert_allclose(whole[[0, 2]], expected, atol=1e-5)
    assert ptmrun("embed", done_run, pictures[0], "out=p.parquet", "parts=true")[0] == 0
    [row] = pq.read_table("p.parquet").to_pylist()
    parts = np.array(row["features"], dtype=np.float32)
    np.testing.assert_allclose(parts.mean(0), whole[0], atol=1e-5)  # this model's features are the mean of those of its patches
    assert ptmrun("embed", done_run, pictures[0], "out=w.csv", "weights=pretrained")[0] == 0
    [before] = read_csv("w.csv")
    assert len(before) == 1 + whole.shape[1]
    assert not np.allclose([float(v) for v in list(before.values())[1:]], whole[0])


def test_a_run_in_python(done_run, digits):
    model = package.load(str(done_run))
    expected = known(done_run, repeat=0)[:2]
    picture = Image.open(digits / "000.png")
    rows = model.predict([digits / "000.png", picture, np.asarray(picture), str(digits / "gone.png"), 7])
    assert [row.get("prediction") for row in rows] == [expected[0]["prediction"]] * 3 + [None] * 2
    assert rows[3] == {"error": "no such file or directory"}
    assert rows[4]["error"] == "expected a path, a picture or an array of uint8, found int"
    assert model.predict(picture) == model.predict([picture])
    assert model.classes == [str(i) for i in range(10)]
    assert model.config.model.name == "vit"
    assert model.results["metric"] == "accuracy"
    assert type(model.model).__module__.startswith("transformers.")
    assert [None if x is None else x.shape for x in model.embed([picture, "gone.png"])] == [model.embed(picture)[0].shape, None]


# What a text run of each problem is made from: its file, how that begins, and two or three samples of it, numbered by @.
TEXTS = {
    "text_classification": ("pairs.csv", "text,other,label\n", "Rain.,It is wet @.,yes\nRain.,It is dry and fine @.,no\n"),
    "text_multilabel": ("table.csv", "text,label\n", 'Nice and small @.,"a,b"\nDull @.,a\nSmall @.,b\n'),
    "token_classification": ("tags/train.conll", "", "# sent_id = @\nRome B-LOC\nfell O\n@ O\n\nHe O\nwent O\n@ O\n# O\n\n"),
    "translation": ("pairs.tsv", "source\ttarget\n", "a cat @\tun gato\nthe dog @ ran\tel perro\n"),
    "question_answering": ("squad.json", "", ""),
}
OWN = {
    "text_classification": ["downstream.pair_column=other"],
    "translation": ["downstream.beams=1", "model=transformer", "model.vocabulary=300"],
}
SMALL = ["model.length=32", "model.vocabulary=200", "finetune.seeds=2", "device=cpu", "device.precision=fp32"]


def squad(count):
    def paragraph(i):
        asked = {"id": str(i), "question": "How many?", "answers": [{"text": str(i), "answer_start": 8}]}
        return {"context": f"Ann has {i} cats.", "qas": [asked]}

    return json.dumps({"data": [{"paragraphs": [paragraph(i) for i in range(count)]}]})


def made(problem, *words):
    """A run with texts in the folder that one is in, whose fine-tuned models are random weights."""
    Path("corpus.txt").write_text("\n\n".join(story(12, 4)), encoding="utf-8")
    own = ["model=lstm", "dataset=text", "dataset.root=corpus.txt", f"downstream={problem}", "stage=finetune+evaluate", *SMALL]
    cfg = compose([*own, *words])
    context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
    for trial in trials.trials(context.cfg, "tuned", None):
        model, _ = trials.new_model(context, trial)
        if hasattr(model, "head"):
            torch.nn.init.normal_(model.head.weight)
        trials.save_finetuned(context, trial, model, relative=False)
    evaluate.save_predictions(context, context.problem)
    context.run.update(status="done")
    return context.run.folder.resolve()


def untrained_run(problem):
    """Such a run, and the numbers of its test samples in its file."""
    name, first, samples = TEXTS[problem]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(first + "".join(samples.replace("@", str(i)) for i in range(20)) if samples else squad(40))
    folder = made(problem, f"downstream.root={name.split('/')[0]}", *OWN.get(problem, []))
    return folder, [int(row.split()[1]) for row in json.loads((folder / "splits.json").read_text())["test"]]


@pytest.mark.parametrize("problem", TEXTS)
def test_predictions_of_texts_are_those_of_the_run(ptmrun, problem):
    folder, test = untrained_run(problem)
    code, out, err = ptmrun("predict", folder, TEXTS[problem][0], "--json")
    assert code == 0, err
    rows, expected = [json.loads(line) for line in out.splitlines()], known(folder, repeat=0)
    assert len(rows) == 40 + 20 * (problem == "text_multilabel")
    assert len(test) == len(expected) > 3
    for row, right in zip((rows[i] for i in test), expected, strict=True):
        if problem == "text_multilabel":
            assert "; ".join(row["prediction"]) == right["prediction"]
        elif problem == "token_classification":
            assert (row["words"], " ".join(row["prediction"])) == (right["words"], right["prediction"])
            np.testing.assert_allclose(row["confidence"], right["confidence"], atol=1e-5)
        else:
            assert row["prediction"] == right["prediction"]
        if problem.startswith("text"):
            assert row["confidence"] == pytest.approx(right["confidence"], abs=1e-5)
    other_files(ptmrun, folder, problem)
    if problem == "question_answering":
        for row in rows:
            context = f"Ann has {row['input'].split(':')[1]} cats."
            assert context[row["start"] : row["end"]] == row["prediction"] == next(iter(row["probabilities"]))
    code, _, err = ptmrun("predict", folder, TEXTS[problem][0], "repeats=all", "out=all.csv")
    if problem == "translation":
        assert (code, "repeats=all: answers of downstream=translation cannot be averaged; leave it out" in err) == (2, True)
    else:
        assert (code, len(read_csv("all.csv"))) == (0, len(rows)), err


MORE = {  # other files for a run of each problem: their content, and what is read of them
    "text_classification": {
        "new.jsonl": ('{"text": "Rain.", "other": "wet"}\n{"text": "Rain."}\n', [None, "has no other"]),
        "new.txt": ("Rain.", 2),
    },
    "text_multilabel": {"new.txt": ("Nice.\n\nDull.\n", [None, None])},
    "token_classification": {
        "new.txt": ("Rome fell yesterday.\nHe went\n", [None, None]),
        "words.conll": ("Rome\nfell\n\nHe\nwent\n", [None, None]),
        "list.jsonl": ('{"words": ["Rome", "fell"]}\n{"words": []}\n', [None, "is empty"]),
    },
    "translation": {
        "new.tsv": ("a cat\tun gato\na dog\tel perro\n", [None, None]),
        "new.en": ("a cat\n\na dog\n", [None, None]),
        "new.csv": ("source\na cat\n", [None]),
    },
    "question_answering": {
        "q.csv": ("question,context\nHow many?,Ann has 3 cats.\nWho?,\n", [None, "is empty"]),
        "q.json": (
            '{"data": [{"paragraphs": [{"context": "Ann has 3 cats.", "qas": [{"id": "x", "question": "Who?"}]}]}]}',
            [None],
        ),
        "other.json": ('{"data": 3}', ["data: expected a list"]),
    },
}


def other_files(ptmrun, folder, problem):
    for name, (content, expected) in MORE[problem].items():
        Path(name).write_text(content)
        code, out, err = ptmrun("predict", folder, name, "--json")
        if expected == 2:
            assert (code, out) == (2, "")
            assert f"{name}: expected a table (.csv .tsv .jsonl .ndjson .json .parquet) with two columns of texts" in err
            continue
        assert [error for _, error in inputs_and_errors(out)] == expected, name
        assert code == int(any(expected)), err


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A run that tells texts of two classes apart."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("reviews"))
    try:
        rows = "".join(f'"{kind} number {i}, indeed",{kind}\n' for i in range(20) for kind in ("good", "bad"))
        Path("reviews.csv").write_text(f"review,label\n{rows}")
        return made("text_classification", "downstream.root=reviews.csv", "finetune.seeds=1")
    finally:
        os.chdir(before)


def inputs_and_errors(out):
    return [(row["input"], row.get("error")) for row in map(json.loads, out.splitlines())]


def test_texts_of_every_kind(ptmrun, reviews):
    Path("new.csv").write_text('review,stars\n"good, indeed",5\n,1\ntoo,many,fields\n"bad\nand long",2\n')
    Path("new.jsonl").write_text('{"review": "good"}\n{"review": 7}\nno json\n{"other": "x"}\n{"review": "a\\u0000b"}\n')
    Path("latin.txt").write_bytes("schön".encode("latin-1"))
    Path("two.txt").write_text("good, indeed\nbad too\n")
    code, out, err = ptmrun("predict", reviews, "new.csv", "new.jsonl", "latin.txt", "two.txt", "gone.txt", "--json")
    assert code == 1
    assert inputs_and_errors(out) == [
        ("new.csv:2", None),
        ("new.csv:3", "is empty"),
        ("new.csv:4", "3 fields where the first line has 2"),
        ("new.csv:6", None),
        ("new.jsonl:1", None),
        ("new.jsonl:2", "expected text in review, found int"),
        ("new.jsonl:3", "is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("new.jsonl:4", "has no review"),
        ("new.jsonl:5", "holds NUL (\\u0000), so this is no text"),
        ("latin.txt", "latin.txt: byte 3 is not utf-8; name its dataset.encoding (such as latin-1 or utf-16), "
         "or set dataset.errors=replace"),
        ("two.txt", None),
        ("gone.txt", "no such file or folder"),
    ]  # fmt: skip
    assert "8 of 12 inputs could not be read" in err
    code, out, _ = ptmrun("predict", reviews, "two.txt", "documents=lines")
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["two.txt:1", "two.txt:2"]
    assert re.fullmatch(r"two\.txt:1\t(good|bad)\t[01]\.\d{3}\t\((good|bad) [01]\.\d{3}\)", out.splitlines()[0])


def test_texts_from_standard_input(ptmrun, reviews):
    Path("in.txt").write_text("good, indeed\n\nbad too\n")
    before = os.dup(0)
    with open("in.txt") as file:
        os.dup2(file.fileno(), 0)
    try:
        code, out, err = ptmrun("predict", reviews, "-", "--json")
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert code == 0, err
    assert inputs_and_errors(out) == [("/dev/stdin:1", None), ("/dev/stdin:3", None)]
    model = package.load(reviews)
    asked = model.predict(["good, indeed", "bad too", "", 3])
    assert [row["prediction"] for row in asked[:2]] == [json.loads(line)["prediction"] for line in out.splitlines()]
    assert [row["error"] for row in asked[2:]] == ["is empty", "expected text, found int"]
    with pytest.raises(UserError, match="expected a text, as in the training of this run"):
        model.predict([("good", "bad")])


def test_which_column_is_asked_for(ptmrun, reviews):
    Path("two.csv").write_text("title,body,label\na,good,x\n")
    code, _, err = ptmrun("predict", reviews, "two.csv")
    assert (code, err) == (
        2,
        "ptmrun: two.csv: which column is to be read? Name it, as in column=NAME; it has: title, body, label\n",
    )
    assert ptmrun("predict", reviews, "two.csv", "column=body")[0] == 0
    code, _, err = ptmrun("predict", reviews, "two.csv", "column=text")
    assert (code, err) == (
        2,
        "ptmrun: two.csv: has no column text; it has: title, body, label; name another, as in column=NAME\n",
    )


def test_features_of_texts(ptmrun, reviews):
    Path("a.txt").write_text("good")
    Path("b.txt").write_text("good number 3, indeed good and more of it")
    code, _, err = ptmrun("embed", reviews, "b.txt", "a.txt", "out=x.npy", "parts=true")
    assert code == 0, err
    parts, model = np.load("x.npy"), package.load(reviews)
    seen = [int(np.isfinite(row).all(1).sum()) for row in parts]
    assert seen == [
        len(model.preprocess(["good number 3, indeed good and more of it"]).ids[0]),
        len(model.preprocess("good").ids[0]),
    ]
    whole = model.embed(["good number 3, indeed good and more of it", "good"])
    for own, count, expected in zip(parts, seen, whole, strict=True):
        np.testing.assert_allclose(own[:count].mean(0), expected, atol=1e-5)  # this model's features are their mean


def test_documents_for_programs(done_run, ptmrun, monkeypatch):
    """list, compare, check and verify: with --json one document is all that stands on standard output."""
    code, out, _ = ptmrun("list", done_run.parent, "--json")
    [run] = [entry for entry in json.loads(out) if Path(entry["run"]).name == done_run.name]
    expected = json.loads((done_run / "results.json").read_text())
    assert (code, run["status"], run["score"], run["metric"]) == (0, "done", expected["score"], "accuracy")
    assert run["settings"]["model"]["name"] == "vit"
    code, out, err = ptmrun("compare", done_run, done_run, "--json")
    compared = json.loads(out)
    assert (code, compared["runs"], compared["settings"]) == (0, {"A": [str(done_run)] * 2}, {})
    assert compared["scores"]["5 labels per class"]["A"]["mean"] == pytest.approx(expected["score"])
    assert Path(compared["folder"], "compare.html").exists()
    assert "The settings do not differ." in err
    findings = [preflight.Finding("ok", "data", "there"), preflight.Finding("failed", "loss", "nan")]
    monkeypatch.setattr(preflight, "check", lambda cfg: console.console.print("a table") or findings)
    code, out, err = ptmrun("check", "task=mae", "--json")
    assert (code, err) == (1, "a table\n")
    assert json.loads(out) == {"passed": False, "findings": [f._asdict() for f in findings]}
    code, out, _ = ptmrun("verify", "--json")
    assert (code, json.loads(out)["mnist5k_mim"]["seeds"]) == (0, [0, 1, 2])
    promise = verify.certificate("mnist5k_mim")
    scores = dict.fromkeys(promise.expected, 0.5)
    monkeypatch.setattr(verify, "measure", lambda *_: verify.Measured(Run.open(done_run), scores, 9.0))
    code, out, err = ptmrun("verify", "mnist5k_mim", "--json")
    result = json.loads(out)["mnist5k_mim"]
    assert (code, result["passed"], result["seconds"]) == (1, False, 9.0)
    assert result["scores"].keys() == promise.expected.keys()
    assert "DRIFT" in err


def test_a_reference_that_ptmrun_did_not_write_is_refused(done_run, digits, ptmrun, tmp_path):
    folder = tmp_path / "spoilt"
    shutil.copytree(done_run, folder)
    file = folder / "checkpoints" / "reference.safetensors"
    tensors, _ = tensor_files.load(file)
    for spoilt, expected in (
        ({**tensors, "train": tensors["train"][:, :5]}, "holds features of another model; refused"),
        ({**tensors, "train": tensors["train"] * torch.nan}, "not the features that ptmrun writes there; refused"),
        ({"train": tensors["train"]}, "not the features that ptmrun writes there; refused"),
    ):
        tensor_files.save(file, spoilt)
        code, _, err = ptmrun("predict", folder, digits / "000.png")
        assert (code, err.endswith(f"{expected}\n")) == (2, True)
    file.unlink()
    code, out, _ = ptmrun("predict", folder, digits / "000.png", "--json")
    assert (code, "unlike" in json.loads(out)) == (0, False)


def test_noise_is_unlike_the_training_images(done_run, digits):
    """A picture of noise is farther from the training images than nearly all held-out ones."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    model = package.load(done_run)
    usual = [row["unlike"] for row in model.predict(sorted(digits.iterdir()))]
    assert model.predict([noise])[0]["unlike"] > np.quantile(usual, 0.8)
