"""downstream=token_classification: column files, alignment of words and sub-words, span F1, floors."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from conftest import HandMade
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import FRAMINGS, part
from torch import nn

from ptmrun.config import specs
from ptmrun.data.text import tokenizer_training
from ptmrun.data.text.batches import TextBatches
from ptmrun.data.text.tokenizer import Template, Tokenizer
from ptmrun.downstream import token_head
from ptmrun.downstream.token_classification import head, metrics
from ptmrun.downstream.token_classification.read import read_splits
from ptmrun.downstream.token_classification.split import NONE
from ptmrun.errors import UserError

TRAIN = """-DOCSTART- -X- O

# a comment of several words
EU B-ORG
rejects O
German B-MISC
call O

Peter B-PER
Blackburn I-PER
met O
Ann B-PER

Ann B-PER
met O
EU B-ORG
"""
TEST = """Peter B-PER
rejects O
unheard O

EU B-ORG
"""


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    """Knows few words whole, so that most are cut into sub-words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        documents = ["EU rejects German call . Peter Blackburn met Ann . Ünited Nations , (new) York's 1,5"] * 20
        return tokenizer_training.train(request.param, 300, FRAMINGS[request.param], part(documents))


def options(root, **changes):
    given = {"token_column": 0, "tag_column": "last", "scheme": "auto", "repair": False, "encoding": "utf-8", "errors": "strict"}
    return SimpleNamespace(**{"root": str(root)} | given | changes)


def write(folder: Path, train: str | bytes = TRAIN, test: str | bytes | None = TEST, suffix: str = ".conll") -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"train": train, "test": test}.items():
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / f"{name}{suffix}").write_bytes(data)
    return folder


class Words:
    """A tokenizer with a token for every word."""

    def __init__(self):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}, "[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        self.plain, self.vocabulary = made, SimpleNamespace(pad=3)
        self.single = Template("[CLS] $A [SEP]", made.token_to_id)

    def frame(self, ids, pair_ids, length):
        return Tokenizer.frame(self, ids, pair_ids, length)


def read(folder, tokenizer, length=64, **changes):
    notes: list[str] = []
    found, classes, fingerprint = read_splits(options(folder, **changes), tokenizer, length, notes)
    return found, classes, fingerprint, notes


def refused(folder, tokenizer, **changes) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, tokenizer, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Encoder(HandMade):
    """A token's hidden state is its embedding and those of the tokens around it; padding adds nothing."""

    width, depth, length = 32, 1, 64

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, self.width)

    def hidden(self, tokens):
        x = self.embedding(tokens.ids) * tokens.mask[..., None]
        return x + 0.3 * nn.functional.pad(x, (0, 0, 1, 0))[:, :-1] + 0.3 * nn.functional.pad(x, (0, 0, 0, 1))[:, 1:]


def batches(split, size, accumulate=1):
    return TextBatches(split, lambda x: x, size, accumulate, 0, "finetune", False)


def whole(split):
    """Predictions that are right wherever the model sees a word."""
    tags = []
    for answers, row in zip(split.answers(torch.arange(len(split))), split.rows.tolist(), strict=True):
        tags.append(answers[: len(split.ids[row])].clamp(min=0))
    tags = torch.cat(tags).short()
    return {"tags": tags, "confidence": torch.ones(len(tags))}


def test_files_are_read(tmp_path, tokenizer):
    found, classes, _, notes = read(write(tmp_path / "a"), tokenizer)
    train, test = found["train"], found["test"]
    assert classes == ["O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    assert train.words == [["EU", "rejects", "German", "call"], ["Peter", "Blackburn", "met", "Ann"], ["Ann", "met", "EU"]]
    assert [t.tolist() for t in train.tags] == [[3, 0, 1, 0], [5, 6, 0, 5], [5, 0, 3]]
    assert (len(train), len(test), train.labels, train.answered) == (3, 2, None, True)
    assert notes == ["3 kinds of names in BIO tags: F1 is that of whole names"]


def test_columns(tmp_path, tokenizer):
    """Tabs go before spaces; # begins a comment only where there are not the columns of a word; line ends do not matter."""
    text = "# sent_id = 1\r\n1\tNew York\tPROPN\r\n2\t#\tSYM\r\n \r\n# x\r\n1\tmet\tVERB\r\n"
    folder = write(tmp_path / "a", b"\xef\xbb\xbf" + text.encode(), None, ".tsv")
    found, classes, _, notes = read(folder, tokenizer, token_column=1)
    assert found["train"].words == [["New York", "#"], ["met"]]
    assert classes == ["PROPN", "SYM", "VERB"]
    assert notes == ["3 tags: F1 is that of words"]
    _, classes, _, _ = read(folder, tokenizer, token_column=1, tag_column=0)
    assert classes == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "words", "note"),
    [
        ("# id 0a1b\tdomain=en\nAnn\tB-PER\nmet\tO\n", ["Ann", "met"], "1 lines that begin with # are read as comments"),
        ("# id 0a1b domain=en\nAnn _ _ B-PER\nmet _ _ O\n", ["Ann", "met"], "1 lines that begin with # are read as comments"),
        ("#sent=3 x\n#doc y\nAnn B-PER\nmet O\n", ["Ann", "met"], "2 lines that begin with # are read as comments"),
        ("#\tO\nAnn\tB-PER\n", ["#", "Ann"], None),
        ("#tag O\nAnn B-PER\n", ["#tag", "Ann"], None),
        ("# # \n5 CD\n\nsee VB\n# #\n", ["#", "5", "see", "#"], None),
        ("#1 B-X\nAnn O\n", ["#1", "Ann"], None),
        ("Token\tNER_Tag\nAnn\tB-PER\nmet\tO\n", ["Ann", "met"], "1 header lines are left out"),
        ("# x\nword _ label\n\nAnn _ B-PER\nmet _ O\n", ["Ann", "met"], "1 header lines are left out"),
        ("word O\nAnn B-PER\nword O\n", ["word", "Ann", "word"], None),
        ("text pos\nAnn pos\nmet VB\n", ["text", "Ann", "met"], None),
    ],
)
def test_lines_that_are_no_words(tmp_path, tokenizer, text, words, note):
    found, _, _, notes = read(write(tmp_path / "a", text, None), tokenizer)
    assert [word for sentence in found["train"].words for word in sentence] == words
    assert [n for n in notes if "#" in n or "header" in n] == ([note] if note else [])


CONLLU = """# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\t_\t_\t_\t_\t_\t_\t_\t1:x\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
"""


@pytest.mark.parametrize(
    ("suffix", "changes"), [(".conllu", {}), (".conllu", {"tag_column": 3}), (".tsv", {"token_column": 1, "tag_column": 3})]
)
def test_conllu(tmp_path, tokenizer, suffix, changes):
    found, classes, _, notes = read(write(tmp_path / "a", CONLLU, None, suffix), tokenizer, **changes)
    assert found["train"].words == [["vamos", "nos", "a", "el", "mar"]]
    assert classes == ["ADP", "DET", "NOUN", "PRON", "VERB"]
    assert "3 lines of CoNLL-U that number no word (2-3, 4.1) are left out" in notes
    said = "1 files in CoNLL-U: tags are parts of speech, column 3 (downstream.tag_column)"
    assert (said in notes) == (not changes)


def test_numbers_of_words_are_no_words(tmp_path, tokenizer):
    folder = write(tmp_path / "a", CONLLU.replace("1-2", "9"), None, ".tsv")
    lines = [line for line in CONLLU.splitlines() if line[1] == "\t"]
    folder = write(tmp_path / "a", "\n".join(lines), None, ".tsv")
    assert "column 0 numbers the words; expected words (downstream.token_column=1?)" in refused(folder, tokenizer)


@pytest.mark.parametrize("form", ["{0}-{1}", "{0}_{1}", "{0}:{1}", "{1}-{0}", "{1}_{0}", "{0}/{1}"])
@pytest.mark.parametrize("marks", ["BIE S", "BIL U", "BME S", "BME W", "BII B", "bii b"])
def test_tags_in_other_spellings(tmp_path, marks, form):
    if marks.islower() and form.startswith("{1}"):
        pytest.skip("words may end so")
    kinds = [
        ("Ann", marks[0], "per"),
        ("van", marks[1], "per"),
        ("Dam", marks[2], "per"),
        ("saw", "", ""),
        ("EU", marks[4], "ORG-X"),
    ]
    outside = "o" if marks.islower() else "O"
    text = "".join(f"{word}\t{form.format(mark, kind) if mark else outside}\n" for word, mark, kind in kinds)
    found, classes, _, notes = read(write(tmp_path / "a", text, text), Words())
    assert classes == ["O", "B-ORG-X", "I-ORG-X", "B-per", "I-per"]
    for split in found.values():
        assert [classes[tag] for tag in split.tags[0]] == ["B-per", "I-per", "I-per", "O", "B-ORG-X"]
    assert any(note.startswith("tags such as ") for note in notes) == (form != "{0}-{1}" or marks.islower())
    _, classes, _, notes = read(write(tmp_path / "a", text, text), Words(), scheme="plain")
    assert form.format(marks[0], "per") in classes


def test_words_of_a_segmentation(tmp_path):
    text = "我 S\n喜 B\n欢 E\n自 B\n然 M\n了 E\n"
    found, classes, _, notes = read(write(tmp_path / "a", text, None, ".bmes"), Words())
    assert [classes[tag] for tag in found["train"].tags[0]] == ["B", "B", "I", "B", "I", "I"]
    assert notes == ["1 kind of names in BIO tags: F1 is that of whole names"]


def test_words_that_have_no_token_are_not_called_cut(tmp_path, tokenizer):
    text = "Ann B-PER\n\u202f O\n\u00ad O\nmet O\n"
    split, *_, notes = read(write(tmp_path / "a", text, None), tokenizer)
    removed = int((split["train"].places[0] < 0).sum())
    assert removed >= 1
    assert f"train: {removed} of 4 words have no token, as the tokenizer leaves them out: they count as O" in notes
    assert not any("model.length" in note for note in notes)
    _, *_, notes = read(tmp_path / "a", tokenizer, length=3)
    assert any("words are not seen (model.length=3)" in note for note in notes)


CELLS = [
    "Ann",
    "met",
    "#",
    "# id",
    "B-PER",
    "I_PER",
    "PER-B",
    "O",
    "o",
    "B",
    "S",
    "1",
    "1-2",
    "2.1",
    "_",
    "word",
    "tag",
    "",
    "-DOCSTART-",
]
LINES = st.lists(st.sampled_from(CELLS), min_size=1, max_size=4).flatmap(
    lambda c: st.sampled_from(["\t", " "]).map(lambda s: s.join(c))
)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.one_of(LINES, st.just("")), max_size=8),
    st.sampled_from([{}, {"token_column": 1}, {"scheme": "bio", "repair": True}]),
)
def test_any_file_is_read_or_refused_in_a_line(tmp_path, lines, changes):
    folder = write(tmp_path / "a", "\n".join([*lines, ""]), None, ".conllu")
    message = ""
    try:
        found, classes, _, _ = read(folder, Words(), **changes)
        assert all(0 <= tag < len(classes) for tags in found["train"].tags for tag in tags)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or str(folder) in message or "downstream." in message


def test_only_spaces_and_tabs_are_between_columns(tmp_path, tokenizer):
    """A number such as 10 000 has a space in it that does not break, Chinese has wide ones."""
    words = ["10\u00a0000", "\u00a0Ann", "a\u3000b", "\u202f"]
    for mark in ("  ", "\t"):
        text = "".join(f"{word}{mark}X{i}\n" for i, word in enumerate(words))
        split = read(write(tmp_path / "a", text, None), tokenizer)[0]["train"]
        assert split.words == [words]
        assert (split.places[0] >= 0).tolist() == [True, True, True, False]  # a space alone has no token


def test_first_sub_words_carry_tags(tmp_path, tokenizer):
    """Wherever the tokenizer cuts, the token at a word's place begins that word, whatever stands in it."""
    words = ["EU", "Blackburns", "New York", "Ünited", "(Nations),", "é", "[SEP]", "York's", "日本", "1,5"]
    folder = write(tmp_path / "a", "\n".join(f"{w}\tX{i}" for i, w in enumerate(words)), None)
    found, classes, _, _ = read(folder, tokenizer)
    split = found["train"]
    ids, places = split.ids[0], split.places[0]
    text = " ".join(words)
    encoding = tokenizer.plain.encode(text, add_special_tokens=False)
    starts = np.cumsum([0, *(len(w) + 1 for w in words[:-1])])
    special = tokenizer.vocabulary.special.numpy()
    inner = [i for i in range(len(ids)) if i not in (0, len(ids) - 1)]
    begin = int(np.argmax(~special[ids])) if special[ids[0]] else 0
    assert ids[begin : begin + len(encoding.ids)].tolist() == encoding.ids
    for word, start, place in zip(words, starts, places, strict=True):
        a, b = encoding.offsets[place - begin]
        assert text[a:b].strip(), word
        assert a + (text[a:b][0] == " ") == start, (word, text[a:b])
    answers = split.answers(torch.tensor([0]))[0]
    assert answers[torch.from_numpy(places)].tolist() == [classes.index(f"X{i}") for i in range(len(words))]
    assert int((answers != NONE).sum()) == len(words) < len(inner)


def test_words_beyond_the_length_are_wrong(tmp_path, tokenizer):
    train = "\n".join(f"{'Ann' if i % 2 else 'met'} {'B-PER' if i % 2 else 'O'}" for i in range(40))
    found, classes, _, notes = read(write(tmp_path / "a", train, None), tokenizer, length=12)
    split = found["train"]
    assert len(split.ids[0]) <= 12
    seen = int((split.places[0] >= 0).sum())
    assert 2 <= seen < 11
    assert notes[-1] == f"train: {40 - seen} of 40 words are not seen (model.length=12): they count as O"
    result = metrics.metrics(whole(split), split, classes, 15)
    names = seen // 2
    assert result["recall"] == pytest.approx(names / 20)
    assert result["precision"] == 1
    assert result["accuracy"] == pytest.approx((names + 20) / 40)
    assert result["words_not_seen"] == 40 - seen
    plain = train.replace("B-PER", "NOUN").replace("O", "VERB", 1)
    found, classes, _, notes = read(write(tmp_path / "b", plain, None), tokenizer, length=12)
    split = found["train"]
    assert notes[-1].endswith("their tags count as wrong")
    assert metrics.score(whole(split), split) == pytest.approx(seen / 40)
    columns = metrics.columns_of_predictions(whole(split), split, classes)
    assert columns["prediction"][0].as_py().split()[seen:] == ["-"] * (40 - seen)
    assert columns["confidence"][0].as_py() == [1.0] * seen + [None] * (40 - seen)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O I-PER I-PER O I-LOC", {("PER", 1, 3), ("LOC", 4, 5)}),
        ("B I O I B", {("", 0, 2), ("", 3, 4), ("", 4, 5)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans(tags, expected):
    """As conlleval and seqeval find them."""
    assert metrics.spans(tags.split()) == expected


def scored(folder, tokenizer, predicted: list[list[str]], text: str):
    found, classes, _, _ = read(write(folder, TRAIN, text), tokenizer)
    split = found["test"]
    words = torch.tensor([classes.index(tag) for line in predicted for tag in line])
    return {"words": words}, split, classes


def test_f1_of_names(tmp_path, tokenizer):
    """Tjong Kim Sang's way: 2 of 4 found names are right, 2 of 3 true ones found."""
    text = "Peter B-PER\nBlackburn I-PER\nmet O\nEU B-ORG\n\nAnn B-PER\nmet O\nmet O\n"
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-PER", "B-ORG", "O"]]
    found, split, _ = scored(tmp_path / "a", tokenizer, predicted, text)
    assert metrics.counts(found, split).tolist() == [[2, 2, 1], [1, 2, 1]]
    assert metrics.score(found, split) == pytest.approx(2 * 2 / (3 + 4))
    assert metrics.counts(found, split, "PER").sum(0).tolist() == [2, 3, 2]
    assert metrics.counts(found, split, "ORG").sum(0).tolist() == [1, 1, 0]
    each = metrics.per_sample_scores(found, split)
    assert each.mean() == pytest.approx(metrics.score(found, split))
    assert each == pytest.approx([4 / 7 + (2 - 16 / 7) / 3.5, 4 / 7 + (2 - 12 / 7) / 3.5])


def test_half_a_name_is_none(tmp_path, tokenizer):
    text = "Peter B-PER\nBlackburn I-PER\n"
    for predicted in (["B-PER", "O"], ["O", "B-PER"], ["B-PER", "B-PER"], ["B-ORG", "I-ORG"]):
        found, split, _ = scored(tmp_path / "a", tokenizer, [predicted], text)
        assert metrics.score(found, split) == 0
    found, split, _ = scored(tmp_path / "a", tokenizer, [["I-PER", "I-PER"]], text)
    assert metrics.score(found, split) == 1


def test_metrics(tmp_path, tokenizer):
    found, classes, _, _ = read(write(tmp_path / "a"), tokenizer)
    split = found["test"]
    right = whole(split)
    result = metrics.metrics(right, split, classes, 15)
    assert (result["f1"], result["accuracy"], result["words"], result["words_not_seen"]) == (1, 1, 4, 0)
    assert result["per_class"]["PER"] == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "n": 1}
    assert result["per_class"]["MISC"] == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "n": 0}
    wrong = {**right, "tags": torch.full_like(right["tags"], classes.index("B-ORG"))}
    result = metrics.metrics(wrong, split, classes, 15)
    assert result["accuracy"] == 1 / 4
    assert (result["precision"], result["recall"]) == (1 / 4, 1 / 2)
    columns = metrics.columns_of_predictions(wrong, split, classes)
    assert columns["words"].to_pylist() == [["Peter", "rejects", "unheard"], ["EU"]]
    assert columns["label"].to_pylist() == ["B-PER O O", "B-ORG"]
    assert columns["prediction"].to_pylist() == ["B-ORG B-ORG B-ORG", "B-ORG"]


def test_plain_tags(tmp_path, tokenizer):
    folder = write(tmp_path / "a", "EU N\nmet V\ncall N\n\nAnn N\n", "met V\nEU V\n\nAnn N\ncall V\n")
    found, classes, _, _ = read(folder, tokenizer)
    split = found["test"]
    guess = whole(split) | {"confidence": torch.full((int(split.lengths.sum()),), 0.5)}
    guess["tags"][:] = classes.index("V")
    result = metrics.metrics(guess, split, classes, 10)
    assert result["f1"] == result["accuracy"] == metrics.score(guess, split) == 0.75
    assert result["confusion"] == [[0, 1], [0, 3]]
    assert result["per_class"]["V"]["precision"] == 0.75
    assert result["ece"] == pytest.approx(0.25)
    assert metrics.per_sample_scores(guess, split).tolist() == pytest.approx([1.0, 0.5])


def test_the_mean_over_plain_tags_leaves_out_those_that_no_word_has_or_is_taken_for(tmp_path, tokenizer):
    folder = write(tmp_path / "a", "EU N\nmet V\ncall X\n\nAnn N\n", "met V\nEU V\n\nAnn V\ncall V\n")
    found, classes, _, _ = read(folder, tokenizer)
    split = found["test"]
    guess = whole(split) | {"confidence": torch.full((int(split.lengths.sum()),), 0.5)}
    guess["tags"][:] = classes.index("V")
    result = metrics.metrics(guess, split, classes, 10)
    assert (result["f1_macro"], result["absent"]) == (1, ["N", "X"])
    guess["tags"][: int(split.lengths[0])] = classes.index("N")
    result = metrics.metrics(guess, split, classes, 10)
    assert (result["f1_macro"], result["absent"]) == (pytest.approx((4 / 6 + 0) / 2), ["X"])


def test_floors(tmp_path, tokenizer):
    """chance: O. raw: Peter was a name in training, Ann and EU were; an unknown word is O."""
    found, classes, _, _ = read(write(tmp_path / "a"), tokenizer)
    data = SimpleNamespace(**found)

    def tags(kind, train):
        return [classes[t] for t in metrics.baseline_predictions(kind, data, train, None)["words"].tolist()]

    assert tags("chance", found["train"].subset(torch.tensor([1]))) == ["O"] * 4
    assert tags("raw", found["train"]) == ["B-PER", "O", "O", "B-ORG"]
    assert tags("raw", found["train"].subset(torch.tensor([0]))) == ["O", "O", "O", "B-ORG"]
    assert metrics.score(metrics.baseline_predictions("raw", data, found["train"], None), found["test"]) == 1
    assert metrics.score(metrics.baseline_predictions("chance", data, found["train"], None), found["test"]) == 0


def test_few(tmp_path, tokenizer):
    split = read(write(tmp_path / "a"), tokenizer)[0]["train"]
    two, all_of_them = token_head.subset(split, [], 2, 5), token_head.subset(split, [], None, 5)
    assert (len(two), len(set(two.tolist())), all_of_them.tolist()) == (2, 2, [0, 1, 2])
    assert token_head.subset(split, [], 1, 5).tolist() == two[:1].tolist()
    assert split.subset(two).words is split.words
    assert split.subset(two).read() == [split.texts[i] for i in two]
    with pytest.raises(UserError, match="labels_per_class=4: there are 3 training samples"):
        token_head.subset(split, [], 4, 5)


def test_it_learns_what_it_was_shown(tmp_path, tokenizer):
    """The loss begins at ln(tags) and ends near its lowest; predictions follow."""
    found, classes, _, _ = read(write(tmp_path / "a"), tokenizer)
    split = found["train"]
    torch.manual_seed(0)
    data = SimpleNamespace(classes=classes)
    model = head.build(Encoder(tokenizer.vocabulary.size), data, SimpleNamespace(label_smoothing=0.1))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for (batch,) in batches(split, 3).iterate(0, 60):
        loss, shown = model(batch)
        losses.append(float(loss.total.detach()) / loss.n)
        assert shown["accuracy"].n == loss.n == 11
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert model.initial_loss(batch) == math.log(7)
    assert losses[0] == pytest.approx(math.log(7), rel=0.25)
    assert losses[-1] == pytest.approx(model.lowest_loss(batch), abs=0.02)
    assert model.lowest_loss(batch) < losses[-1]
    predicted = model.predict(split.all(2))
    assert metrics.valid(predicted, split, classes)
    assert metrics.score(predicted, split) == 1
    assert not metrics.valid(predicted, found["test"], classes)
    assert not metrics.valid(predicted, split, classes[:3])
    assert not metrics.valid({**predicted, "tags": predicted["tags"].float()}, split, classes)
    assert all(torch.equal(v, model.predict(split.all(64))[k]) for k, v in predicted.items() if k == "tags")


def test_accumulation(tmp_path, tokenizer):
    """1 x 8 equals 4 x 2, though sentences are of different lengths: loss and gradients."""
    lines = [[f"{'Ann' if (i + j) % 3 else 'rejects'} {'B-PER' if (i + j) % 3 else 'O'}" for j in range(1 + i)] for i in range(8)]
    split = read(write(tmp_path / "a", "\n\n".join("\n".join(x) for x in lines), None), tokenizer)[0]["train"]
    torch.manual_seed(0)
    model = head.Tagger(Encoder(tokenizer.vocabulary.size), 3, 0.1)
    results = []
    for accumulate in (1, 4):
        (micros,) = batches(split, 8, accumulate).iterate(0, 1)
        parts = [model(micro)[0] for micro in micros]
        assert sum(int(part.n) for part in parts) == 36
        model.zero_grad()
        sum(part.total for part in parts).backward()
        results.append((sum(part.total for part in parts).item(), [p.grad.clone() for p in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_schemes(tmp_path, tokenizer):
    """BIOES and BILOU are read as BIO; tags without kinds are; hyphens alone make no names."""
    bioes = "a B-PER\nb I-PER\nc E-PER\nd S-ORG\ne O\n"
    for text in (bioes, bioes.replace("E-", "L-").replace("S-", "U-")):
        found, classes, _, _ = read(write(tmp_path / "a", text, None), tokenizer)
        assert [classes[t] for t in found["train"].tags[0]] == ["B-PER", "I-PER", "I-PER", "B-ORG", "O"]
    found, classes, _, _ = read(write(tmp_path / "a", "a B\nb I\nc O\n", None), tokenizer)
    assert (classes, found["train"].bio) == (["O", "B", "I"], True)
    found, classes, _, _ = read(write(tmp_path / "a", "a BE-HL\nb IN\nc -LRB-\n", None), tokenizer)
    assert (classes, found["train"].bio) == (["-LRB-", "BE-HL", "IN"], False)
    found, classes, _, _ = read(write(tmp_path / "a", TRAIN, None), tokenizer, scheme="plain")
    assert (classes, found["train"].bio) == (["B-MISC", "B-ORG", "B-PER", "I-PER", "O"], False)


def test_repair(tmp_path, tokenizer):
    """IOB1, where names begin with I, becomes BIO."""
    folder = write(tmp_path / "a", "EU I-ORG\nmet O\nAnn I-PER\nPeter B-PER\nX I-PER\nEU I-ORG\n", None)
    assert f"{folder}/train.conll:1: I-ORG goes on with no B-ORG" in refused(folder, tokenizer)
    found, classes, _, notes = read(folder, tokenizer, repair=True)
    assert [classes[t] for t in found["train"].tags[0]] == ["B-ORG", "O", "B-PER", "B-PER", "I-PER", "B-ORG"]
    assert notes[0] == "3 tags I-... that go on with nothing were made B-... (downstream.repair)"
    folder = write(tmp_path / "b", "EU B-ORG\n\nX O\nmet I-ORG\n", None)
    assert "train.conll:4: I-ORG goes on with no B-ORG" in refused(folder, tokenizer)


@pytest.mark.parametrize(
    ("train", "test", "changes", "expected"),
    [
        ("EU B-ORG\nmet\n", None, {}, "train.conll:2: 1 columns; expected a word and its tag in 2 columns"),
        ("EU\tO\n\tB-ORG\n", None, {}, "train.conll:2: an empty column"),
        ("EU\nmet\n", None, {}, "train.conll:1: 1 columns; expected a word in column 0"),
        (
            TRAIN,
            None,
            {"tag_column": 4},
            "train.conll:4: 2 columns; expected a word in column 0 (downstream.token_column, from 0)",
        ),
        (TRAIN, None, {"token_column": 1}, "train.conll:4: 2 columns; expected a word in column 1"),
        (TRAIN, "EU B-ORG\nx B-LOC\ny B-GPE\n", {}, "lack the tags B-GPE (FOLDER/test.conll:3), B-LOC (FOLDER/test.conll:2)"),
        ("a N\nb V\n", "a N\n\nb ADV\n", {}, "the training files lack the tags ADV (FOLDER/test.conll:3)"),
        ("\n\n# nothing\n", None, {}, "train.conll: holds no sentences"),
        ("", None, {}, "train.conll: holds no sentences"),
        (TRAIN, "", {}, "test.conll: holds no sentences"),
        (b"caf\xe9 O\nEU B-ORG\n", None, {}, "train.conll: byte 3 is not utf-8; name its downstream.encoding (such as latin-1"),
        (b"\xef\xbb\xbfcaf\xe9 O\n", None, {}, "train.conll: byte 6 is not utf-8"),
        ("a\0b O\n", None, {}, "train.conll: byte 1 is NUL"),
        (TRAIN, None, {"encoding": "utf-99"}, "downstream.encoding=utf-99: no such encoding"),
        ("EU O\nmet O\n", None, {}, "train.conll: every word has the tag O; expected at least two tags"),
        ("EU B-ORG\nAnn PER\nmet O\n", None, {}, "train.conll:2: the tag PER among BIO tags"),
        ("EU N\nmet V\n", None, {"scheme": "bio"}, "train.conll:1: the tag N among BIO tags"),
        (None, TEST, {}, "FOLDER: test.conll says of which split it is, but not other.conll; call files"),
    ],
)
def test_bad_files(tmp_path, tokenizer, train, test, changes, expected):
    folder = tmp_path / "a"
    if train is None:
        write(folder, "x", test)
        (folder / "train.conll").rename(folder / "other.conll")
    else:
        write(folder, train, test)
    assert expected.replace("FOLDER", str(folder)) in refused(folder, tokenizer, **changes)


def test_other_encodings(tmp_path, tokenizer):
    text = "Ünited B-ORG\nmet O\n"
    for encoding in ("utf-8", "latin-1", "utf-16"):
        folder = write(tmp_path / "a", text.encode(encoding), None)
        found, _, mark, _ = read(folder, tokenizer, encoding=encoding)
        assert found["train"].words == [["Ünited", "met"]]
        assert mark == read(write(tmp_path / "b", text, None), tokenizer)[2]
    write(tmp_path / "a", text.encode("latin-1"), None)
    assert read(folder, tokenizer, errors="replace")[0]["train"].words == [["\ufffdnited", "met"]]


def test_no_files(tmp_path, tokenizer):
    assert refused(tmp_path / "nowhere", tokenizer) == f"downstream.root={tmp_path}/nowhere: no such file or folder"
    assert "expected a file train.conll (or .txt .tsv .bio .iob .iob2 .bmes .conllu)" in refused(tmp_path, tokenizer)
    folder = write(tmp_path / "a")
    (folder / "more.conll").write_text(TRAIN)
    assert "test.conll says of which split it is, but not more.conll" in refused(folder, tokenizer)


def test_places_of_files(tmp_path, tokenizer):
    """Folders name splits too, dev is val, and a file alone is train; the fingerprint is that of contents and reading."""
    for split, name in {"train": "a.bio", "dev": "b.bio", "test": "c.bio"}.items():
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / name).write_text(TRAIN)
    found, _, mark, _ = read(tmp_path / "in", tokenizer)
    assert list(found) == ["train", "val", "test"]
    alone, _, other, _ = read(tmp_path / "in" / "train" / "a.bio", tokenizer)
    assert list(alone) == ["train"]
    assert mark != other
    assert mark == read(tmp_path / "in", tokenizer)[2] != read(tmp_path / "in", tokenizer, repair=True)[2]


def test_config():
    options = specs.section("downstream", "token_classification", "text")
    spec = specs.spec("downstream", "token_classification")
    assert spec.needs == {"text"}
    known = {"name", "labels_per_class", "root", "token_column", "tag_column", "scheme", "repair", "encoding", "errors"}
    assert set(options.model_fields) == known
