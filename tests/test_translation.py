"""Translation: against transformers' loss and hand-made scores; files of pairs, good and bad."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from conftest import latest
from texts import part

from ptmrun.batch import TextSpec
from ptmrun.config import compatibility
from ptmrun.data import splits
from ptmrun.data.text import tokenizer_training
from ptmrun.data.text.batches import TextBatches
from ptmrun.downstream import token_head, translation
from ptmrun.errors import UserError
from ptmrun.models import transformer

WORDS = {"the": "la", "cat": "gata", "house": "casa", "sees": "vé", "old": "vieja", "white": "blanca", "night": "noche"}
LENGTH = 16


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        chosen = torch.randint(len(WORDS), (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator)
        names = [list(WORDS)[i] for i in chosen]
        found.append((" ".join(names), " ".join(WORDS[n] for n in names)))
    return found


def tsv(path: Path, rows: list[tuple[str, ...]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode(encoding))
    return path


def options(root, **changes):
    given = {"source_column": "auto", "target_column": "auto", "encoding": "utf-8", "errors": "strict"}
    return SimpleNamespace(**{**given, "root": str(root), "beams": 2, "most_tokens": "auto", "bleu_tokenizer": "auto"} | changes)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A tokenizer of the English side alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tokenizer_training.train("bpe", 300, transformer.FRAMING, part([source for source, _ in pairs(200)]))


@pytest.fixture
def read(own):
    """The splits of 40 pairs (24, 8, 8), and the notes."""

    def reading(**changes):
        drawn, notes = pairs(40), []
        for name, rows in (("train", drawn[:24]), ("val", drawn[24:32]), ("test", drawn[32:])):
            tsv(Path("par") / f"{name}.tsv", rows)
        return (*translation.read_splits(options("par", **changes), own, LENGTH, notes), notes)

    return reading


def model(own, smoothing=0.0, dropout=0.0, length=LENGTH):
    torch.manual_seed(0)
    options = SimpleNamespace(size="tiny", dropout=dropout, pool="mean", initial="library", shape=None)
    encoder = transformer.build(options, TextSpec(own.vocabulary, length), "sdpa")
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return translation.Translator(encoder, translation.Search(2, 12, own), smoothing)


def batch_of(split, indices):
    return {"inputs": next(split.batches([indices])), "labels": split.answers(indices)}


def test_pairs_are_read(read, own):
    sets, classes, fingerprint, notes = read()
    drawn, test = pairs(40), sets["test"]
    assert {name: len(split) for name, split in sets.items()} == {"train": 24, "val": 8, "test": 8}
    assert classes == []
    assert len(fingerprint) == 64
    assert list(zip(test.read(), test.right(), strict=True)) == drawn[32:]
    chosen = test.subset(torch.tensor([5, 2])).evenly_spaced(1)
    assert (chosen.read(), chosen.right()) == ([drawn[37][0]], [drawn[37][1]])
    target = test.answers(torch.tensor([0, 3]))
    start, end = own.vocabulary.start, own.vocabulary.end
    for row, (_, right) in enumerate((drawn[32], drawn[35])):
        framed = [start, *own.encode([right])[0][: LENGTH - 2].tolist(), end]
        assert target.ids[row][target.mask[row]].tolist() == framed
    assert sets["train"].search.longest == max(map(len, sets["train"].targets)) <= LENGTH
    assert notes[0].startswith("the first line of train.tsv is taken for a pair of texts; if it names the columns, ")
    assert notes[1].startswith("tokens a word: 1.00 in the source, ")
    assert "the tokenizer knows one of the languages badly" in notes[1]
    cut = sum(len(own.encode([right])[0]) > LENGTH - 2 for _, right in drawn[:24])
    assert notes[2] == f"{cut} of 24 targets are longer than model.length and are cut; scores are against whole ones"
    assert read(most_tokens=5)[0]["train"].search.longest == 5


def test_tables_with_names(own):
    rows = [{"en": a, "es": b} for a, b in pairs(6)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("pairs.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in pairs(6)))
    named = translation.read_splits(options("pairs.jsonl", source_column="es", target_column="en"), own, LENGTH, [])[0]["train"]
    assert list(zip(named.right(), named.read(), strict=True)) == pairs(6)
    assert translation.read_splits(options("pairs.csv"), own, LENGTH, [])[0]["train"].right() == [b for _, b in pairs(6)]
    Path("pairs.tsv").write_text("Target\tSource\n" + "".join(f"{b}\t{a}\n" for a, b in pairs(6)))
    assert translation.read_splits(options("pairs.tsv"), own, LENGTH, [])[0]["train"].right() == [b for _, b in pairs(6)]
    with pytest.raises(UserError, match=r"target_column=en: is the column of the texts too"):
        translation.read_splits(options("pairs.jsonl", source_column="en", target_column="en"), own, LENGTH, [])


def test_what_a_source_lacks_is_held_out_of_it_and_limits_hold(own):
    tsv(Path("one.tsv"), pairs(50))
    sets = translation.read_splits(options("one.tsv"), own, LENGTH, [])[0]
    limits = SimpleNamespace(name="x", test_fraction=0.2, val_fraction=0.1, split_seed=0, limit=None, test_limit=4, folds=None)
    train, val, test, made = splits.divide(sets, limits, "texts", [])
    assert (len(train), len(val), len(test)) == (36, 4, 4)
    assert sorted(made) == ["test", "train", "val"]
    for split in (train, val, test):
        assert all(" ".join(WORDS[n] for n in a.split()) == b for a, b in zip(split.read(), split.right(), strict=True))


@torch.no_grad()
def test_loss_is_the_library_s(read, own):
    split, made = read()[0]["train"], model(own).eval()
    batch = batch_of(split, torch.arange(7))
    loss, metrics = made(batch)
    target = batch["labels"]
    labels = target.ids.masked_fill(~target.mask, -100)
    theirs = made.encoder.bart(input_ids=batch["inputs"].ids, attention_mask=batch["inputs"].mask.long(), labels=labels)
    assert loss.n == int(target.mask.sum())
    assert float(loss.total / loss.n) == pytest.approx(float(theirs.loss), abs=1e-5)
    right = (theirs.logits.argmax(-1) == labels).sum()
    assert metrics["token_accuracy"] == (right, loss.n)
    logs = theirs.logits[target.mask].log_softmax(-1)
    made.label_smoothing = 0.1
    smoothed = -(0.9 * logs[range(loss.n), target.ids[target.mask]] + 0.1 * logs.mean(1)).sum()
    assert float(made(batch)[0].total) == pytest.approx(float(smoothed), rel=1e-5)
    assert made.initial_loss(batch) == pytest.approx(math.log(own.vocabulary.size))
    off = 0.1 / own.vocabulary.size
    entropy = torch.distributions.Categorical(torch.tensor([0.9 + off] + [off] * (own.vocabulary.size - 1))).entropy()
    assert made.lowest_loss(batch) == pytest.approx(float(entropy), rel=1e-4)


def test_accumulation_changes_nothing(read, own):
    split, made = read()[0]["train"], model(own, smoothing=0.1)
    gradients, losses = [], []
    for accumulate in (1, 4):
        made.zero_grad()
        batches = next(TextBatches(split, lambda x: x, 8, accumulate, 3, "x", pairs=False).iterate(0, 1))
        assert len(batches) == accumulate
        found = [made(batch)[0] for batch in batches]
        assert accumulate == 1 or len({loss.n for loss in found}) > 1  # unequal, or the test says little
        total = sum(loss.total for loss in found) / sum(loss.n for loss in found)
        total.backward()
        losses.append(total.item())
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
        for batch in batches:
            for ids, row, mask in zip(batch["ids"].tolist(), batch["labels"].ids, batch["labels"].mask, strict=True):
                assert row[mask].tolist() == split.targets[ids].tolist()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert torch.allclose(*gradients, atol=1e-6)


def test_predictions_are_those_of_the_library_and_costs_add_up(read, own):
    split, made = read()[0]["test"], model(own)
    found = made.predict(split.all(3))
    assert made.training
    assert (found["ids"].dtype, len(found["ids"])) == (torch.int64, 8)
    for row in (0, 7):
        alone = made.encoder.eval().translate(next(split.batches([torch.tensor([row])])), 2, 12)[0]
        assert found["ids"][row][: len(alone)].tolist() == alone.tolist()
        assert set(found["ids"][row][len(alone) :].tolist()) <= {own.vocabulary.pad}
    found |= made.reference_nll(batch_of(split, indices) for indices in torch.arange(8).split(3))
    with torch.no_grad():
        loss = made.eval()(batch_of(split, torch.arange(8)))[0]
    assert float(found["nats"].sum()) == pytest.approx(float(loss.total), rel=1e-5)
    metrics = translation.metrics(found, split, [], 15)
    assert metrics["perplexity"] == pytest.approx(math.exp(float(loss.total) / loss.n), rel=1e-5)
    assert "tok:13a" in metrics["signatures"]["bleu"]
    assert translation.valid(found, split, [])
    ids = found["ids"]
    for wrong in ({"ids": ids[1:]}, {"ids": ids.float()}, {"ids": ids + own.vocabulary.size}, {"nats": found["nats"][1:]}):
        assert not translation.valid(found | wrong, split, [])
    assert not translation.valid({"ids": ids}, split, [])


def test_scores_by_hand(own):
    tsv(Path("t.tsv"), [("x", "a b c d e"), ("y", "f g h i j")])
    split = translation.read_splits(options("t.tsv"), own, LENGTH, [])[0]["train"]

    def said(*texts):
        coded = [torch.tensor(ids) for ids in own.encode(list(texts))]
        return {"ids": torch.nn.utils.rnn.pad_sequence(coded, batch_first=True, padding_value=own.vocabulary.pad)}

    right, half = said("a b c d e", "f g h i j"), said("a b c d x", "f g h i x")
    assert translation.score(right, split) == pytest.approx(1)
    assert translation.per_sample_scores(right, split).tolist() == pytest.approx([1, 1])
    assert translation.score(half, split) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # chrF2 of "abcdx" and "abcde", spaces left out: of orders 1 to 5, 4/5 3/4 2/3 1/2 0/1 are shared, of 6 there are none
    each = translation.per_sample_scores(half, split)
    assert each.tolist() == pytest.approx([(4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 5] * 2, abs=1e-6)
    assert translation.score(said("", "k"), split) == 0
    table = translation.columns_of_predictions(half, split, [])
    assert {k: v.to_pylist()[1] for k, v in table.items()} == {
        "source": "y",
        "reference": "f g h i j",
        "prediction": "f g h i x",
    }


SCRIPTS = {
    "zh": ("我今天去了北京的博物馆,看到了许多古老的东西。", "我昨天去了北京的博物馆,看到了许多古老的东西。"),
    "char": ("ฉันไปพิพิธภัณฑ์เมื่อวานนี้", "ฉันไปพิพิธภัณฑ์เมื่อเช้านี้"),
    "13a": ("Мы вчера были в старом музее.", "Мы сегодня были в старом музее."),
}


@pytest.mark.parametrize("tokenizer", SCRIPTS)
def test_bleu_follows_the_script_of_the_targets(tokenizer, own):
    """And says so; what is wanted goes first. Values of sacrebleu's command."""
    reference, written = SCRIPTS[tokenizer]
    tsv(Path("t.tsv"), [("x", reference), ("y", reference)])
    notes = []
    split = translation.read_splits(options("t.tsv"), own, LENGTH, notes)[0]["train"]
    assert split.bleu_tokenizer == tokenizer
    chosen = f"BLEU counts by the script of the targets: downstream.bleu_tokenizer={tokenizer}"
    assert (chosen in notes) == (tokenizer != "13a")
    ids = [torch.tensor(x) for x in own.encode([written] * 2)]
    found = {"ids": torch.stack(ids), "nats": torch.zeros(2)}
    score = sacrebleu.corpus_bleu([split.written(found["ids"])[0]] * 2, [[reference] * 2], tokenize=tokenizer).score / 100
    assert translation.score(found, split) == pytest.approx(score)
    assert score > 0.3
    result = translation.metrics(found, split, [], 10)
    assert (result["bleu"], f"tok:{tokenizer}|" in result["signatures"]["bleu"]) == (pytest.approx(score), True)
    wanted = translation.read_splits(options("t.tsv", bleu_tokenizer="intl"), own, LENGTH, [])[0]["train"]
    assert "tok:intl" in translation.metrics(found, wanted, [], 10)["signatures"]["bleu"]


def test_bleu_of_languages_that_need_a_library(own, monkeypatch):
    japanese, korean = "昨日は博物館に行きました", "나는 어제 박물관에 갔다"
    for there, expected in ((True, ["ja-mecab", "ko-mecab"]), (False, ["char", "13a"])):
        monkeypatch.setattr(translation, "installed", lambda tokenizer, there=there: there)
        assert [translation.by_script([text]) for text in (japanese, korean)] == expected

    def refuse(**options):
        raise RuntimeError("Please install\nmecab")

    monkeypatch.setattr("sacrebleu.metrics.BLEU", refuse)
    with pytest.raises(UserError, match=r"^downstream.bleu_tokenizer=ja-mecab: sacrebleu cannot make it: Please install mecab$"):
        translation.words_of("ja-mecab", [japanese])


def test_words_of_scripts_without_spaces_are_characters(own):
    tsv(Path("t.tsv"), [("the old museum of the city", "这个城市的老博物馆")] * 2)
    split = translation.read_splits(options("t.tsv"), own, LENGTH, [])[0]["train"]
    line = translation.coverage(split, own.encode(split.references))[0]
    assert float(re.search(r"([\d.]+) in the target", line)[1]) <= 3


def test_the_floor_is_the_nearest_translation(own):
    tsv(Path("p/train.tsv"), [("the old cat", "uno"), ("a white house", "dos"), ("house house", "tres")])
    tsv(Path("p/test.tsv"), [("white houses in a house", "x"), ("cat", "y"), ("zzz", "z")])
    tsv(Path("p/val.tsv"), [("a", "b")])
    sets = translation.read_splits(options("p"), own, LENGTH, [])[0]
    found = translation.baseline_predictions("raw", SimpleNamespace(test=sets["test"]), sets["train"], None)
    assert sets["test"].written(found["ids"]) == ["dos", "uno", "uno"]


def test_the_floor_of_sources_without_spaces(own):
    tsv(Path("p/train.tsv"), [("我今天去了博物馆", "museum"), ("他昨天在家里看书", "reading"), ("天气很好", "weather")])
    tsv(Path("p/test.tsv"), [("你昨天在家里看电影", "x"), ("今天天气不好", "y")])
    splits = translation.read_splits(options("p"), own, LENGTH, [])[0]
    found = translation.baseline_predictions("raw", SimpleNamespace(**splits), splits["train"], None)
    assert splits["test"].written(found["ids"]) == ["reading", "weather"]


def test_fewer_pairs(read):
    split = read()[0]["train"]
    five, ten = (set(token_head.subset(split, [], n, 1).tolist()) for n in (5, 10))
    assert (len(five), len(ten), five < ten) == (5, 10, True)
    assert token_head.subset(split, [], None, 1).tolist() == list(range(24))
    with pytest.raises(UserError, match="labels_per_class=25: there are 24 training samples"):
        token_head.subset(split, [], 25, 1)


def halves(folder: str, *languages: str, name: str = "train", rows: list[tuple[str, ...]]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for language, texts in zip(languages, zip(*rows, strict=True), strict=True):
        Path(folder, f"{name}.{language}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def test_files_of_lines(own):
    drawn = pairs(20)
    halves("par", "en", "es", rows=drawn[:12])
    halves("par", "en", "es", name="dev", rows=[*drawn[12:16], ("", " ")])
    halves("par/test", "en", "es", name="news.2020", rows=drawn[16:])
    Path("par/README.txt").write_text("About.")
    notes: list[str] = []
    sets, _, mark = translation.read_splits(options("par", source_column="es", target_column="en"), own, LENGTH, notes)
    found = {name: list(zip(split.right(), split.read(), strict=True)) for name, split in sets.items()}
    assert found == {"train": drawn[:12], "val": drawn[12:16], "test": drawn[16:]}
    assert notes[0] == "1 empty texts of the val split are skipped, the first at par/dev.es:5"
    halves("other", "en", "es", rows=drawn[:13])
    assert translation.read_splits(options("other", source_column="es", target_column="en"), own, LENGTH, [])[2] != mark
    halves("one", "en", "es", name="news", rows=drawn)
    assert len(translation.read_splits(options("one", source_column="en", target_column="es"), own, LENGTH, [])[0]["train"]) == 20


def test_bad_files_of_lines(own):
    def refused(**changes) -> str:
        with pytest.raises(UserError) as caught:
            translation.read_splits(options("par", **changes), own, LENGTH, [])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    named = {"source_column": "en", "target_column": "es"}
    halves("par", "en", "es", rows=pairs(3))
    asked = "downstream.root=par: files ending in .en .es: which are the source? Name both, as in downstream.source_column=en"
    assert refused().startswith(asked)
    assert refused(source_column="en").startswith(asked)
    assert refused(**named | {"target_column": "fr"}) == "par/train.fr: cannot be read: No such file or directory"
    assert refused(source_column="de", target_column="fr") == (
        "downstream.root=par: no texts there (files ending in .de .fr); files of other kinds are left out: 1 .en, 1 .es"
    )
    Path("par/train.es").write_text("una\n\ndos\n")
    assert refused(**named) == "par/train.es:2: is empty, but not in the other language; translate it, or empty both"
    Path("par/train.es").write_text("una\ndos\n")
    assert refused(**named) == "par/train.es:3: the file ends before its other half; expected as many lines in both"
    Path("par/train.es").write_text("una\ndos\ntres\ncuatro\n")
    assert refused(**named) == "par/train.en:4: the file ends before its other half; expected as many lines in both"
    Path("par/train.es").write_bytes(b"caf\xe9\n")
    assert refused(**named).startswith("par/train.es: byte 3 is not utf-8; name its downstream.encoding")


def test_a_header_of_a_tsv_file_is_no_pair(own):
    tsv(Path("h.tsv"), [("id", "target", "source"), ("1", "una", "one"), ("2", "dos", "two")])
    split = translation.read_splits(options("h.tsv"), own, LENGTH, [])[0]["train"]
    assert list(zip(split.read(), split.right(), strict=True)) == [("one", "una"), ("two", "dos")]


BAD = {
    "one column": (b"a\tb\nalone\n", {}, r"^bad.tsv:2: 1 fields where the first line has 2$"),
    "all one column": (b"a\nb\n", {}, r"^downstream.target_column=2: bad.tsv has no such column; it has: 1$"),
    "empty": (b"", {}, r"^downstream.source_column=1: bad.tsv has no such column; it is empty$"),
    "one side": (b"a\t\n", {}, r"^downstream.root=bad.tsv: all 1 texts are empty in the train split$"),
    "latin-1": ("a\tcaf\xe9\n".encode("latin-1"), {}, r"^bad.tsv: byte 5 is not utf-8; name its downstream.encoding"),
    "encoding": (b"a\tb\n", {"encoding": "utf-99"}, r"^downstream.encoding=utf-99: no such encoding"),
    "no column": (b"a\tb\n", {"target_column": 3}, r"^downstream.target_column=3: bad.tsv has no such column; it has: 1, 2$"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(own, case):
    data, changes, message = BAD[case]
    Path("bad.tsv").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        translation.read_splits(options("bad.tsv", **changes), own, LENGTH, [])
    assert "\n" not in str(caught.value)


def test_other_encodings(own):
    tsv(Path("l.tsv"), [("a", "café")], "latin-1")
    for given, text in (({"encoding": "latin-1"}, "café"), ({"errors": "replace"}, "caf\ufffd")):
        split = translation.read_splits(options("l.tsv", **given), own, LENGTH, [])[0]["train"]
        assert split.right() == [text]
        assert split.written(split.answers(torch.arange(1)).ids) == [text]


def test_without_its_library(own, monkeypatch):
    monkeypatch.setattr(translation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^downstream=translation: needs sacrebleu; .* 'ptmrun\[text\]'$"):
        translation.read_splits(options("nowhere"), own, LENGTH, [])


def test_models_without_a_decoder_are_refused(ptmrun):
    code, _, err = ptmrun("model=bert", "downstream=translation", "downstream.root=x")
    assert code == 2
    assert err.splitlines() == [
        "ptmrun: model=bert downstream=translation: the problem needs sequence_to_sequence, which the model does not have; "
        "with downstream=translation there is: model=transformer"
    ]
    assert compatibility.incompatible({"model": "transformer", "downstream": "translation", "dataset": "pydoc"}) == []


def test_a_run(ptmrun):
    tsv(Path("one.tsv"), pairs(40))
    Path("corpus.txt").write_text("\n\n".join(f"{a}\n{b}" for a, b in pairs(60, seed=1)))
    common = ["model=transformer", "dataset=text", "dataset.root=corpus.txt", "downstream=translation", "device=cpu"]
    small = ["model.vocabulary=300", "model.length=16", "pretrain.steps=2", "pretrain.batch_size=4", "pretrain.probes=0"]
    tuning = ["finetune.steps=2", "finetune.batch_size=4", "finetune.seeds=2", "evaluate.baselines=[raw]", "downstream.beams=1"]
    code, _, err = ptmrun(*common, *small)
    assert code == 2
    assert "downstream.root: downstream=translation needs a file or folder of its own" in err
    code, out, err = ptmrun(*common, *small, *tuning, "downstream.root=one.tsv", "device.precision=fp32", "device.threads=1")
    assert code == 0, err
    assert "tokens a word: " in out
    assert "Counted as: bleu nrefs:1|case:mixed|eff:no|tok:13a" in out
    assert "tok:13a" in (latest() / "report.html").read_text()
    results = json.loads((latest() / "results.json").read_text())
    assert results["metric"] == "bleu"
    assert results["n_test"] == 8
    assert results["baselines"].keys() == {"raw"}
    assert 1 < results["metrics"]["perplexity"] < 300 * 2
