"""Every text model with every objective that fits it: from raw text to a fine-tuned classifier, resumed and run again."""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import drop_digests, latest
from texts import sentence, story
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from ptmrun import cli
from ptmrun.compose import compose
from ptmrun.config import choices, specs
from ptmrun.data.text import tokenizer
from ptmrun.errors import UserError
from ptmrun.models import gpt
from ptmrun.reports import figures
from ptmrun.runs import config_file, folder
from ptmrun.stages import trials
from ptmrun.stages.prepare import prepare
from ptmrun.storage import tensor_files
from ptmrun.training import flops, loop
from ptmrun.training.loop import backward
from ptmrun.training.signals import Stop

MODELS = [m for m in choices.names("model") if "text" in specs.spec("model", m).needs]
FITTING = [
    (m, t) for m in MODELS for t in choices.names("task") if specs.spec("task", t).requires <= specs.spec("model", m).provides
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
    assert ("bits_per_byte" in judged[0]) == (task == "clm" and model == "gpt"), "WordPiece has no token for every byte"
    nats = judged[1].get("loss_mlm", judged[1]["held_loss"])
    assert judged[1]["perplexity"] == pytest.approx(math.exp(nats))
    looks = folder.Run.open(first).samples()
    assert [x["step"] for x in looks] == ([] if model == "transformer" else [0, 4])
    if "masked_accuracy" in judged[0] or task == "plm":
        for look in looks:  # the same tokens stand in brackets, the right ones and the guessed ones
            assert all(a.count("[") == b.count("[") > 0 for a, b in zip(look["given"], look["said"], strict=True))
        assert looks[0]["given"] == looks[1]["given"]
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
    assert "and its linear head apart" in out
    assert "Loaded again: largest difference 0.0e+00 on 8 test samples" in " ".join(out.split())
    assert json.loads(Path("exported/classes.json").read_text()) == ["bad", "good"]
    if model != "lstm":
        texts = AutoTokenizer.from_pretrained("exported")(["How lovely."], return_tensors="pt")
        assert torch.isfinite(AutoModel.from_pretrained("exported")(**texts).last_hidden_state).all()


def interrupted_before(monkeypatch, number: int) -> list[int]:
    """From here on the backward pass of this number is one that Ctrl-C comes before; the list grows with each."""
    step, seen = backward, []

    def stop_once(*args):
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, "backward", stop_once)
    monkeypatch.setattr(flops, "of_steps", lambda *_: 1e6)  # whose backward passes are none of training
    return seen


@pytest.mark.parametrize(("model", "task"), FITTING)
def test_micro_batches_and_resuming_change_nothing(ptmrun, corpus, model, task, monkeypatch):
    """Without dropout 1 x 6 = 2 x 3 but for rounding; with it, interrupted before a step and resumed, bit for bit."""
    same = [f"model={model}", f"task={task}", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", *SHORT]
    losses = []
    for extra in ([], ["pretrain.accumulate=2"]):
        assert ptmrun(*same, "model.dropout=0", *extra)[0] == 0
        lines = [json.loads(x) for x in (latest() / "metrics.jsonl").read_text().splitlines()]
        losses.append([x[k] for x in lines if "grad_norm" in x for k in ("loss", "grad_norm")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert ptmrun(*same, "device.workers=2")[0] == 0
    undisturbed = folder.Run.open(latest()).manifest["weights_sha256"]
    seen = interrupted_before(monkeypatch, 4)
    assert ptmrun(*same)[0] != 0
    code, _, err = ptmrun("resume", latest())
    assert code == 0, err
    assert len(seen) == 5, "only the last step was made again"
    assert folder.Run.open(latest()).manifest["weights_sha256"] == undisturbed


def numbered(content: str, count: int) -> str:
    """The content so many times, with its number in place of #: no two samples are equal."""
    return "".join(content.replace("#", str(i)) for i in range(count))


LABELLED = {
    "token_classification": (
        "tags/train.conll",
        numbered("Rome B-LOC\nfell O\n# O\n\nHe O\nwent O\n# O\n\n", 12),
    ),
    "question_answering": (
        "squad.json",
        json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": f"Ann has {i} cats.",
                                "qas": [
                                    {"id": str(i), "question": "How many?", "answers": [{"text": str(i), "answer_start": 8}]}
                                ],
                            }
                        ]
                    }
                    for i in range(24)
                ]
            }
        ),
    ),
    "text_multilabel": (
        "table.csv",
        "text,label\n" + numbered('Nice and small #.,"a,b"\nDull #.,a\nSmall #.,b\n', 8),
    ),
    "text_classification": (
        "pairs.csv",
        "text,other,label\n" + numbered("Rain.,It is wet #.,yes\nRain.,It is dry #.,no\n", 12),
    ),
    "translation": ("pairs.tsv", "source\ttarget\n" + numbered("a cat #\tun gato\nthe dog #\tel perro\n", 12)),
}


@pytest.mark.parametrize("problem", LABELLED)
def test_an_interrupted_fine_tuning_is_resumed_bit_for_bit(ptmrun, corpus, problem, monkeypatch):
    file, content = LABELLED[problem]
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(content)
    own = {"text_classification": ["downstream.pair_column=other"], "translation": ["downstream.beams=1"]}.get(problem, [])
    words = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}", *SHORT, "finetune.steps=4", "stage=finetune+evaluate"]
    words += [f"model={'transformer' if problem == 'translation' else 'bert'}", f"downstream={problem}", *own]
    words += [f"downstream.root={file if '/' not in file else Path(file).parent}"]
    code, _, err = ptmrun(*words)
    assert code == 0, err
    whole = latest()
    seen = interrupted_before(monkeypatch, 3)
    assert ptmrun(*words)[0] != 0
    code, _, err = ptmrun("resume", latest())
    assert code == 0, err
    assert len(seen) == 5, "the first two steps were not made again"
    [weights] = (whole / "checkpoints/finetuned").iterdir()
    again = latest() / "checkpoints/finetuned" / weights.name
    assert tensor_files.sha256(tensor_files.load(again)[0]) == tensor_files.sha256(tensor_files.load(weights)[0])
    assert (latest() / "predictions.parquet").read_bytes() == (whole / "predictions.parquet").read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_packed_documents_read_alone(ptmrun, corpus, model):
    """Micro-batches change nothing; that no document sees another does."""
    same = [f"model={model}", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "model.dropout=0", *SHORT]
    losses = []
    for extra in (
        [],
        ["pretrain.document_mask=true"],
        ["pretrain.document_mask=true", "pretrain.accumulate=2"],
    ):
        code, _, err = ptmrun(*same, *extra)
        assert code == 0, err
        lines = [json.loads(x) for x in (latest() / "metrics.jsonl").read_text().splitlines()]
        losses.append([x["loss"] for x in lines if "grad_norm" in x])
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[1][0] - losses[0][0]) > 1e-5 * losses[0][0]
    assert (latest() / "figures/text_attention.png").exists() == (model != "lstm")


def loaded(*overrides):
    from ptmrun.data.text import load as texts
    from ptmrun.stages.networks import family_of, module_of, problem_of

    cfg = compose(["dataset=text", "model.length=32", *overrides])
    read, problem = module_of(cfg, "dataset").read, problem_of(cfg)
    return texts.load(read, cfg, family_of(cfg), problem, None, lambda *_: None)


@pytest.mark.parametrize("model", MODELS)
def test_the_first_probe_sees_features_as_training_will(corpus, model):
    """Also of models that drop units without a layer for it."""
    data = ["dataset=text", f"dataset.root={corpus / 'labelled.csv'}", *SHORT, "stage=finetune+evaluate"]
    cfg = compose([f"model={model}", *data, "model.dropout=0.3"])
    context = prepare(folder.Run.create(cfg, [], {"parents": []}), cfg, Stop())
    encoder, split = context.encoder(), context.data.train.evenly_spaced(8)
    plain = torch.from_numpy(context.features(encoder, split))
    dropped = trials.dropped_features(context, encoder, split, 1)
    assert len(dropped) == trials.DROPPED * len(split)
    moved = (dropped - plain.repeat(trials.DROPPED, 1)).norm()
    encoder.train()
    with torch.no_grad():
        trained = torch.cat([encoder.features(context.processor(next(split.all()))) for _ in range(trials.DROPPED)])
    assert moved == pytest.approx(float((trained - plain.repeat(trials.DROPPED, 1)).norm()), rel=0.3)


def test_tokens_of_any_length_are_drawn_short(corpus):
    data = loaded("model=gpt", f"dataset.root={corpus / 'corpus.txt'}", "stage=pretrain")
    long = data.tokenizer.fast.backend_tokenizer
    long.add_tokens(["-" * 5000, "-" * 16, "-" * 17])
    ids = [long.token_to_id("-" * n) for n in (5000, 16, 17)]
    assert data.tokenizer.pieces(ids) == ["-" * 15 + "…", "-" * 16, "-" * 15 + "…"]


def test_test_texts_that_came_with_the_data_are_counted_in_the_corpus():
    Path("own").mkdir()
    Path("own/train.csv").write_text("text,label\n" + "".join(f"Text {i}.,{'ab'[i % 2]}\n" for i in range(30)))
    Path("own/test.csv").write_text("text,label\n" + "".join(f"Text {i}.,{'ab'[i % 2]}\n" for i in range(25, 35)))
    notes = loaded("model=lstm", "dataset.root=own").notes
    assert "5 texts of the corpus are in the test split too, which came so; they are pretrained on" in notes


def test_columns_by_number_of_labelled_texts_beside_a_corpus(corpus):
    Path("labelled.csv").write_text("".join(f"Text {i}.,{'ab'[i % 2]}\n" for i in range(30)))
    columns = ["downstream.text_column=1", "downstream.label_column=2", "downstream.root=labelled.csv"]
    data = loaded("model=lstm", f"dataset.root={corpus / 'corpus.txt'}", *columns)
    assert data.classes == ["a", "b"]


def test_what_a_limit_does_not_reach_is_said(corpus):
    root = f"dataset.root={corpus / 'corpus.txt'}"
    for task, said in (("mlm", False), ("mlm_nsp", True)):
        data = loaded("model=bert", f"task={task}", root, "dataset.limit=2", "stage=pretrain")
        assert any("draws its pairs from the whole corpus" in note for note in data.notes) == said
        assert len(data.corpus) == 2


def test_tf_idf_of_texts_without_words():
    from ptmrun.data.text import tf_idf

    emoji = tf_idf.words(["😀 😀 🐈", "🐈 a"])
    assert sorted(emoji.vocabulary_) == ["a", "🐈", "😀"]
    words = tf_idf.words(["a cat, the cat", "😀"], ngram_range=(1, 2))
    assert sorted(words.vocabulary_) == ["cat", "cat the", "the", "the cat"]


def used(data) -> set[tuple[int, ...]]:
    """The token numbers of every document that is pretrained on, or judged by meanwhile."""
    both = (data.corpus.blocks.corpus, data.val_corpus.blocks.corpus)
    return {tuple(corpus.document(i)) for corpus in both for i in range(len(corpus))}


@pytest.mark.parametrize("where", ["its own", "the same path", "a copy", "a part of it"])
def test_nothing_is_pretrained_on_texts_that_are_held_out_to_test(corpus, where):
    table = corpus / "labelled.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    Path("copy.csv").write_text("".join(lines if where == "a copy" else lines[:41]), encoding="utf-8")
    other = {"its own": [], "the same path": [f"downstream.root={corpus}/../{corpus.name}/labelled.csv"]}
    count = 40 if where == "a part of it" else 60
    for fold in (["dataset.folds=3", "dataset.fold=1"], []):
        data = loaded("model=bert", f"dataset.root={table}", *other.get(where, ["downstream.root=copy.csv"]), *fold)
        tested = {tuple(x) for x in data.tokenizer.encode(data.test.read())}
        assert len(data.test) in ((13, 20) if fold else (8, 12))
        assert len(tested) == len(data.test)
        assert not used(data) & tested
        assert len(used(data)) == 60 - len(data.test)
        assert len(data.test) + len(data.train) + len(data.val) == count
        assert any(line.startswith(f"{len(data.test)} texts of the corpus are held out to test with") for line in data.notes)


def test_translations_that_are_held_out_to_test_are_not_pretrained_on():
    pytest.importorskip("sacrebleu")
    documents = story(40, 1)
    Path("pairs.csv").write_text(
        "source,target\n" + "".join(f'"{a}","{b}"\n' for a, b in zip(*[iter(documents)] * 2, strict=True))
    )
    Path("both.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    data = loaded("model=transformer", "dataset.root=both.jsonl", "downstream=translation", "downstream.root=pairs.csv")
    assert len(used(data)) == 40 - 2 * len(data.test) == 32
    assert not used(data) & {tuple(x) for x in data.tokenizer.encode([*data.test.read(), *data.test.right()])}


def test_a_corpus_of_nothing_but_test_texts_is_refused(corpus):
    Path("one.jsonl").write_text(
        json.dumps({"text": loaded("model=bert", f"dataset.root={corpus / 'labelled.csv'}").test.read()[0]})
    )
    with pytest.raises(UserError, match=r"^dataset\.root=one\.jsonl: all texts are held out to test with; expected others"):
        loaded("model=bert", "dataset.root=one.jsonl", f"downstream.root={corpus / 'labelled.csv'}")


def test_labelled_texts_without_labels_are_refused(ptmrun, corpus):
    Path("senti.csv").write_text("text,sentiment\nGood,pos\nBad,neg\n")
    code, _, err = ptmrun(
        "model=gpt", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "downstream.root=senti.csv", *SHORT
    )
    assert code == 2
    assert "downstream.label_column=label: senti.csv has no such column; it has: text, sentiment" in err


def test_other_labelled_texts_need_no_other_pretraining(ptmrun, corpus):
    same = ["model=gpt", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", *SHORT]
    assert ptmrun(*same)[0] == 0
    first = latest()
    code, _, err = ptmrun(*same, f"downstream.root={corpus / 'labelled.csv'}", "skip_done=true")
    assert code == 0, err
    assert folder.Run.open(latest()).manifest["reused"] == {"pretrain": first.name}
    pairs = [[x for x in folder.Run.open(f).metrics() if x["stage"] == "pretrain"] for f in (first, latest())]
    assert any("effective_rank" in x for x in pairs[0])
    assert not any("effective_rank" in x or "probe_linear" in x for x in pairs[1]), "of other texts"
    assert [x["held_loss"] for x in pairs[0] if "held_loss" in x] == [x["held_loss"] for x in pairs[1] if "held_loss" in x]
    assert ptmrun(*same, "skip_done=true", "model.length=24")[0] == 0
    assert "reused" not in folder.Run.open(latest()).manifest


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
    cfg = config_file.load(latest() / "config.yaml")
    context = prepare(folder.Run.open(latest()), cfg, Stop())
    split = context.data.test
    text = tokenizer(list(split.read()), padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**text).last_hidden_state
        mask = text["attention_mask"][..., None]
        wanted = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(
        torch.from_numpy(context.features(context.starting_encoder(), split)), wanted, rtol=1e-4, atol=1e-5
    )
    assert (split.lengths.diff() < 0).any()  # these are not sorted by length, but answered so
    model, _ = trials.new_model(context, trials.trials(cfg, "tuned", None)[0])
    in_order = model.predict(context.processor(batch) for batch in split.all())["logits"]
    torch.testing.assert_close(trials.predict_split(context, model, split)["logits"], in_order)
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


@pytest.fixture(scope="module")
def writers(corpus, tmp_path_factory):
    """Runs of GPT and of the LSTM that were only pretrained."""
    before, found = Path.cwd(), {}
    os.chdir(tmp_path_factory.mktemp("writers"))
    try:
        for model in ("gpt", "lstm"):
            words = [f"model={model}", "dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "stage=pretrain", *SHORT]
            assert cli.run(words) == 0
            found[model] = latest()
    finally:
        os.chdir(before)
    return found


def shown(folder):
    return folder.relative_to(Path.cwd().resolve())


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_a_language_model_goes_on_with_a_text(ptmrun, writers, model):
    """The seed and the number of a sample decide on it, whatever the other settings; nothing is written into the run."""
    before = files_of(writers[model])

    def written(*settings):
        code, out, err = ptmrun("generate", writers[model], *settings)
        assert (code, err) == (0, "")
        return out.removesuffix("\n").split("\n---\n")

    asked = ["prompt=The river opened", "tokens=12"]
    three = written(*asked, "samples=3")
    assert len(set(three)) == 3
    assert all(text.startswith("The river opened") and len(text) > 20 for text in three)
    assert written(*asked) == three[:1]
    assert written(*asked, "seed=1")[0] not in three
    greedy = written(*asked, "temperature=0", "seed=1")
    assert greedy == written(*asked, "top_k=1") == written(*asked, "top_p=1e-6") != three[:1]
    assert written("tokens=12", "temperature=0") != [""]  # a text of its own
    assert files_of(writers[model]) == before


WRITTEN = "a\x1b[2J\r\u202eb\nمی\u200cخواهم\xa0\t1"


def test_a_sample_ends_with_its_text_and_steers_no_terminal(ptmrun, writers, monkeypatch):
    def generate(self, tokens, noise, *settings):
        escape = words.encode([WRITTEN])[0].tolist()
        return torch.tensor([[*tokens[0].tolist(), *escape, words.vocabulary.end, *escape]])

    words = tokenizer.of_run(writers["gpt"] / "checkpoints/tokenizer", gpt.FRAMING)
    monkeypatch.setattr(gpt.Encoder, "generate", generate)
    asked = ("generate", writers["gpt"], "prompt=<|endoftext|>", "tokens=9")
    assert ptmrun(*asked) == (0, f"<|endoftext|>{WRITTEN}\n", "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ptmrun(*asked) == (0, "<|endoftext|>a\\x1b[2J\\r\\u202eb\nمی\u200cخواهم\xa0\t1\n", "")


def test_as_many_tokens_as_fit_unless_asked_for(ptmrun, writers):
    for model, note in (("gpt", "ptmrun: tokens=31: as many as model.length=32 has room for\n"), ("lstm", "")):
        code, out, err = ptmrun("generate", writers[model], "temperature=0")
        assert (code, bool(out), err) == (0, True, note)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("temperature=x", "temperature=x: expected number"),
        ("temperature=-1", "temperature=-1: expected greater than or equal to 0"),
        ("temperature=inf", "temperature=inf: expected a finite number"),
        ("top_p=0", "top_p=0: expected greater than 0"),
        ("top_p=2", "top_p=2: expected less than or equal to 1"),
        ("top_k=0", "top_k=0: expected greater than or equal to 1"),
        ("tokens=0", "tokens=0: expected 'auto' or greater than or equal to 1"),
        ("samples=1.5", "samples=1.5: expected integer"),
        ("seed=-1", "seed=-1: expected greater than or equal to 0"),
        ("prompt=\udcff", "prompt=\\udcff: expected string, unable to parse raw data as a unicode string"),
        ("tokens=32", "model.length=32: 33 tokens were asked for; give a shorter text or generate fewer"),
        ("prompt=" + "river " * 40, "tokens long, and model.length=32 has room for no more; shorten it"),
        ("words=3", "generate words=3: no such setting of this verb"),
    ],
)
def test_what_cannot_be_generated_is_one_line(ptmrun, writers, setting, expected):
    code, out, err = ptmrun("generate", writers["gpt"], setting)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_what_was_trained_elsewhere_or_not_at_all(ptmrun, corpus, writers):
    """Runs that start from another speak with its model; the others say what is missing."""
    data = ["dataset=text", f"dataset.root={corpus / 'labelled.csv'}", *SHORT]
    asked = ["prompt=The river", "tokens=8"]
    assert ptmrun("stage=finetune", f"init={writers['gpt']}", *data)[0] == 0
    assert ptmrun("generate", latest(), *asked) == ptmrun("generate", writers["gpt"], *asked)
    assert ptmrun("model=gpt", "stage=finetune", *data)[0] == 0
    code, _, err = ptmrun("generate", latest(), *asked)
    assert (code, err) == (2, f"ptmrun: {shown(latest())}: its model was never pretrained; start from one that was: init=RUN\n")
    assert ptmrun("model=bert", "stage=pretrain", *data)[0] == 0
    code, _, err = ptmrun("generate", latest(), *asked)
    assert (code, err) == (2, f"ptmrun: {shown(latest())}: model=bert does not go on with texts; there is: model=gpt, lstm\n")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("checkpoints/encoder/model.safetensors", b"\x80\x04.", "not a whole safetensors file"),
        ("checkpoints/encoder/model.safetensors", None, "missing"),
        ("checkpoints/encoder", None, "has not pretrained its model yet; go on with: ptmrun resume"),
        ("checkpoints/tokenizer/tokenizer.json", b"{}", "not a tokenizer that ptmrun wrote"),
        ("checkpoints/tokenizer", None, "checkpoints/tokenizer: missing in the run"),
        ("config.yaml", (b"length: 32", b"length: auto"), "has not pretrained its model yet"),
        ("config.yaml", (b"size: tiny", b"size: mini"), "does not fit the model"),
        ("config.yaml", (b"size: tiny", b"size: auto"), ""),  # which is tiny
    ],
)
def test_a_run_that_was_tampered_with(ptmrun, writers, tmp_path, name, content, expected):
    shutil.copytree(writers["gpt"], tmp_path / "bad")
    drop_digests(tmp_path / "bad")
    (tmp_path / "bad" / "checkpoints" / "tokenizer" / "SHA256SUMS").unlink()
    file = tmp_path / "bad" / name
    if content is None:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    elif isinstance(content, tuple):
        assert content[0] in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(*content))
    else:
        file.write_bytes(content)
    code, out, err = ptmrun("generate", tmp_path / "bad", "tokens=2")
    assert (code, bool(out)) == ((2, False) if expected else (0, True))
    assert expected in err
    assert err.count("\n") == bool(expected)


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


def test_attention_of_chosen_sentences(ptmrun, corpus, monkeypatch):
    seen = []

    def drawer(run, pieces, maps):
        seen.extend(zip(pieces, maps, strict=True))

    monkeypatch.setitem(figures.DRAWERS, "attention_maps", drawer)
    data = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}", "stage=pretrain"]
    code, _, err = ptmrun("model=bert", *data, *SHORT, "pretrain.sentences=['The harbour.','A garden opened the river!']")
    assert code == 0, err
    assert [(pieces[0], pieces[-2], pieces[-1]) for pieces, _ in seen] == [("[CLS]", ".", "[SEP]"), ("[CLS]", "!", "[SEP]")]
    for pieces, weights in seen:
        assert weights.shape == (len(pieces), len(pieces))
        torch.testing.assert_close(weights.sum(1).cpu(), torch.ones(len(pieces)))


@pytest.mark.parametrize("model", MODELS)
def test_check_finds_nothing_wrong_with_the_defaults(ptmrun, corpus, model):
    data = ["dataset=text", f"dataset.root={corpus / 'corpus.txt'}", f"downstream.root={corpus / 'labelled.csv'}"]
    code, out, err = ptmrun("check", f"model={model}", *data, *SHORT)
    assert code == 0, out + err
    for stage in ("pretrain", "finetune"):
        assert f"ok       {stage}: first loss" in out, out
        assert f"ok       {stage}: gradients" in out


def test_texts_that_are_cut_are_counted(tmp_path, ptmrun):
    rows = [f"{'word ' * (3 if i % 4 else 40)}{'good' if i % 2 else 'bad'},{'good' if i % 2 else 'bad'}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(f"{i} {row}" for i, row in enumerate(rows)) + "\n")
    argv = ["model=lstm", "dataset=text", "dataset.root=reviews.csv", "model.length=16", "pretrain.steps=2", "stage=pretrain"]
    code, out, err = ptmrun(*argv, "device=cpu", "device.threads=1", "pretrain.batch_size=4", "pretrain.probes=0")
    assert code == 0, err
    assert "15 of 60 labelled texts are longer than model.length=16 tokens and are cut; the longest has" in out
    assert "raise model.length to see all" in out
    code, out, err = ptmrun(*argv, "device=cpu", "model.length=64", "pretrain.batch_size=4", "pretrain.probes=0")
    assert code == 0, err
    assert "are cut" not in out


def test_a_tokenizer_that_knows_next_to_nothing_is_refused(tmp_path, ptmrun):
    (tmp_path / "thai.txt").write_text("\n".join("ประเทศไทยมีอาหารอร่อย" * 6 + str(i) for i in range(80)) + "\n")
    argv = ["model=bert", "dataset=text", "dataset.root=thai.txt", "model.length=16", "pretrain.steps=2", "stage=pretrain"]
    code, _, err = ptmrun(*argv, "device=cpu", "model.tokenizer=wordpiece")
    assert code == 2
    assert "model.tokenizer=wordpiece: does not know 100% of the characters of the texts to pretrain on" in err
    code, out, err = ptmrun(*argv, "device=cpu", "pretrain.batch_size=4", "pretrain.probes=0")
    assert code == 0, err
    assert "model.tokenizer=unigram: wordpiece would not know 100% of the characters of the texts" in out
