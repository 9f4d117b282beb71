"""Every text model with every objective that fits it: from raw text to a fine-tuned classifier, resumed and run again."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import latest
from texts import sentence, story
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ptmrun import config, rng, run, trials
from ptmrun.models import bert
from ptmrun.prepare import prepare
from ptmrun.signals import Stop

MODELS = [m for m in config.choices("model") if "text" in config.spec("model", m).needs]
FITTING = [
    (m, t) for m in MODELS for t in config.choices("task") if config.spec("task", t).requires <= config.spec("model", m).provides
]
SHORT = [
    "model.length=32",
    "pretrain.steps=4",
    "pretrain.batch_size=6",
    "pretrain.log_every=2",
    "pretrain.probes=1",
    "pretrain.checkpoint_every=0",
    "finetune.steps=2",
    "finetune.seeds=1",
    "finetune.batch_size=6",
    "finetune.checkpoint_every=0",
    "evaluate.baselines=[chance,raw,frozen]",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file of 24 documents, and a table of 60 texts of two classes."""
    import numpy as np

    root = tmp_path_factory.mktemp("texts")
    (root / "corpus.txt").write_text("\n\n".join(story(24, 6)), encoding="utf-8")
    generator = np.random.default_rng(1)
    with open(root / "labelled.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(60):
            rows.writerow([sentence(generator) + (" How lovely." if i % 2 else " How dull."), ["bad", "good"][i % 2]])
    return root


@pytest.mark.parametrize(("model", "task"), FITTING)
def test_from_raw_text_to_a_classifier_and_again(ptmrun, corpus, model, task):
    data = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}", f"downstream.root={corpus / 'labelled.csv'}"]
    code, out, err = ptmrun(f"model={model}", f"task={task}", *data, *SHORT)
    assert code == 0, err
    first = latest()
    results = json.loads((first / "results.json").read_text())
    assert results["metric"] == "accuracy"
    assert results["n_test"] == 12
    assert set(results["baselines"]) == {"chance", "raw", "frozen"}
    assert results["baselines"]["raw"] > 0.9  # one word tells
    assert results["pretrain"]["steps"] == 4
    lines = [json.loads(x) for x in (first / "metrics.jsonl").read_text().splitlines()]
    judged = [x for x in lines if "held_loss" in x]
    assert [x["step"] for x in judged] == [0, 4]
    assert ("bits_per_byte" in judged[0]) == (task == "clm")
    assert {p.name for p in (first / "checkpoints/tokenizer").iterdir()} >= {"tokenizer.json"}
    assert (first / "checkpoints/encoder/tokenizer.json").read_bytes() == (
        first / "checkpoints/tokenizer/tokenizer.json"
    ).read_bytes()
    assert {"curves.png", "confusion.png", "lengths.png", "text_attribution.png"} <= {
        p.name for p in (first / "figures").iterdir()
    }
    code, out, err = ptmrun("reproduce", first)
    assert code == 0, err
    assert "bit-exact" in out
    code, out, err = ptmrun("export", first, "exported")
    assert code == 0, err
    assert "and its linear head apart. Loaded again: largest difference 0.0e+00 on 12 test texts" in " ".join(out.split())
    assert json.loads(Path("exported/classes.json").read_text()) == ["bad", "good"]
    if model != "lstm":
        texts = AutoTokenizer.from_pretrained("exported")(["How lovely."], return_tensors="pt")
        assert torch.isfinite(AutoModel.from_pretrained("exported")(**texts).last_hidden_state).all()


@pytest.mark.parametrize(("model", "task"), FITTING)
def test_micro_batches_and_resuming_change_nothing(ptmrun, corpus, model, task, monkeypatch):
    """1 x 6 = 2 x 3 but for rounding; with two worker processes, and interrupted before a step and resumed, bit for bit."""
    same = [f"model={model}", f"task={task}", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "model.dropout=0", *SHORT]
    losses, runs = [], []
    for extra in ([], ["pretrain.accumulate=2"], ["device.workers=2"]):
        assert ptmrun(*same, *extra)[0] == 0
        runs.append(run.Run.open(latest()))
        lines = [json.loads(x) for x in (latest() / "metrics.jsonl").read_text().splitlines()]
        losses.append([x[k] for x in lines if "grad_norm" in x for k in ("loss", "grad_norm")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert runs[2].manifest["weights_sha256"] == runs[0].manifest["weights_sha256"]
    drawn, seen = rng.Rows.uniform, []

    def stop_once(self, *args, **kwargs):
        seen.append(self.step)
        if self.step == 3 and "stopped" not in seen:
            seen.append("stopped")
            raise KeyboardInterrupt
        return drawn(self, *args, **kwargs)

    if task != "clm":  # which draws nothing
        monkeypatch.setattr(rng.Rows, "uniform", stop_once)
        assert ptmrun(*same)[0] != 0
        code, _, err = ptmrun("resume", latest())
        assert code == 0, err
        assert "stopped" in seen
        assert run.Run.open(latest()).manifest["weights_sha256"] == runs[0].manifest["weights_sha256"]


def test_nothing_is_pretrained_on_texts_that_are_held_out_to_test(corpus):
    from ptmrun.compose import compose
    from ptmrun.context import part_of
    from ptmrun.data import texts
    from ptmrun.downstream import classification

    table = f"dataset.root={corpus / 'labelled.csv'}"
    for fold in (["dataset.folds=3", "dataset.fold=1"], []):
        cfg = compose(["model=bert", "dataset=text", table, "model.length=32", *fold])
        data = texts.load(part_of(cfg, "dataset").read, cfg, bert, classification, None, lambda *_: None)
        assert len(data.test) == (20 if fold else 12)
        used = {tuple(x.blocks.corpus.document(i)) for x in (data.corpus, data.held) for i in range(len(x.blocks.corpus))}
        tested = {tuple(x) for x in data.tokenizer.encode(data.test.read())}
        assert len(tested) > 10
        assert not used & tested
        assert len(used) >= 0.9 * (60 - len(data.test))


def test_other_labelled_texts_need_no_other_pretraining(ptmrun, corpus):
    same = ["model=gpt", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", *SHORT]
    assert ptmrun(*same)[0] == 0
    first = latest()
    code, _, err = ptmrun(*same, f"downstream.root={corpus / 'labelled.csv'}", "skip_done=true")
    assert code == 0, err
    assert run.Run.open(latest()).manifest["reused"] == {"pretrain": first.name}
    pairs = [[x for x in run.Run.open(f).metrics() if x["stage"] == "pretrain"] for f in (first, latest())]
    assert any("effective_rank" in x for x in pairs[0])
    assert not any("effective_rank" in x or "probe_linear" in x for x in pairs[1]), "of other texts"
    assert [x["held_loss"] for x in pairs[0] if "held_loss" in x] == [x["held_loss"] for x in pairs[1] if "held_loss" in x]
    assert ptmrun(*same, "skip_done=true", "model.length=24")[0] == 0
    assert "reused" not in run.Run.open(latest()).manifest


def test_a_folder_of_transformers_brings_its_shape_and_tokenizer(ptmrun, corpus, tmp_path):
    """Features are the library's own; what the folder has no weights for is said."""
    same = ["dataset=text", f"dataset.root={corpus / 'labelled.csv'}", *SHORT]
    assert ptmrun("model=bert", "stage=pretrain", *same)[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(latest() / "checkpoints/encoder")
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    theirs = BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    words = ["model=bert", "stage=finetune+evaluate", f"init={tmp_path / 'theirs'}", *same]
    code, out, err = ptmrun(*words, "finetune=linear")
    assert code == 0, err
    out = " ".join(out.split())
    assert "model.shape=[48, 3, 4]: as published" in out
    assert "positions: the first 32 of 512" in out
    assert "missing: cls.predictions.bias" in out
    assert "Warning: its config differs" not in out
    cfg = config.load(latest() / "config.yaml")
    context = prepare(run.Run.open(latest()), cfg, Stop())
    split = context.data.test
    text = tokenizer(list(split.read()), padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**text).last_hidden_state
        mask = text["attention_mask"][..., None]
        wanted = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(torch.from_numpy(context.features(context.pretrained(), split)), wanted, rtol=1e-4, atol=1e-5)
    assert (split.lengths.diff() < 0).any()  # these are not sorted by length, but answered so
    model, _ = trials.classifier(context, trials.trials(cfg, "tuned", None)[0])
    in_order = model.predict(context.inputs(batch) for batch in split.all())["logits"]
    torch.testing.assert_close(trials.said(context, model, split)["logits"], in_order)
    code, _, err = ptmrun(*words, "model.shape=[48,3]")
    assert code == 2
    assert "model.shape=[48, 3]: expected width, layers and heads" in err


def test_a_run_goes_on_with_its_parents_tokenizer(ptmrun, corpus, tmp_path):
    data = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}"]
    assert ptmrun("model=gpt", *data, *SHORT)[0] == 0
    parent = latest()
    for changes in (
        [f"dataset.root={corpus / 'labelled.csv'}"],
        [f"downstream.root={corpus / 'labelled.csv'}", "model.length=24"],
    ):
        code, _, err = ptmrun(f"init={parent}", "stage=finetune", *changes)
        assert code == 0, err
    assert (latest() / "checkpoints/tokenizer/tokenizer.json").read_bytes() == (
        parent / "checkpoints/tokenizer/tokenizer.json"
    ).read_bytes()
    samples = json.loads((parent / "samples.json").read_text())["samples"]
    assert [x["step"] for x in samples] == [0, 4]
    assert samples[0]["given"] == samples[1]["given"]
    assert samples[0]["said"] != samples[1]["said"]
    assert "Samples" in (parent / "report.html").read_text()


def test_the_built_in_text_needs_no_labels(ptmrun):
    code, out, err = ptmrun("model=gpt", *SHORT, "dataset.limit=40")
    assert code == 0, err
    assert "Data: pydoc, 40 train" in out
    assert "The data has no classes to tell apart: only the pretraining stage runs." in out


def test_text_that_diverges_is_replayed(ptmrun, corpus):
    data = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "stage=pretrain"]
    wild = [
        "pretrain.lr=1e9",
        "pretrain.warmup=0",
        "pretrain.clip=null",
        "pretrain.max_skipped=1",
        "on_nan=stop",
        "pretrain.steps=20",
    ]
    code, _, err = ptmrun("model=gpt", *data, *[x for x in SHORT if "pretrain.steps" not in x], *wild)
    assert code == 2
    assert "to see where it begins: ptmrun replay" in err
    code, out, err = ptmrun("replay", latest())
    assert code == 0, err
    assert "batch: nothing but whole numbers" in out
