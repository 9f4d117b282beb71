"""Tokenizers: the same in every process, exact where they are said to be, and read by transformers as they are written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from texts import END, FRAMINGS, part, story
from transformers import AutoTokenizer, BartConfig, BertConfig, GPT2Config, XLNetConfig

from ptmrun.batch import Framing
from ptmrun.data.text import sentences, tokenizer, tokenizer_training
from ptmrun.data.text.processor import TextProcessor
from ptmrun.data.text.sentences import pieces
from ptmrun.data.text.split import padded
from ptmrun.errors import UserError

KINDS = list(FRAMINGS)
LONG = story(30, 40)


@pytest.fixture(scope="module")
def trained():
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tokenizer_training.train(kind, 500, FRAMINGS[kind], part(LONG))
        return made[kind]

    return make


@pytest.mark.parametrize(
    "document",
    [
        "One.\n\n\nTwo.\n",
        "Prose. More of it! And",
        "a" * 25_000,
        "word " * 5000 + "\nx",
        "\n\nx\n",
        "x",
        "A b.\nC\nd. E f. G\n \n\nH",
    ],
)
def test_pieces_are_the_document(document):
    parts = pieces(document)
    assert "".join(parts) == document
    assert all(0 < len(p) <= sentences.LONGEST for p in parts)


def test_pieces_are_sentences():
    assert pieces("One.\n\nTwo.\n") == ["One.\n\n", "Two.\n"]
    assert pieces("One line.\n\n  Two lines. Still two.\n") == ["One line.\n\n", "  Two lines. Still two.\n"]
    assert pieces('He said "Go." Then 3.5 kg fell!') == ['He said "Go."', " Then 3.5 kg fell!"]
    assert pieces("no stops\nin lower case\n") == ["no stops\n", "in lower case\n"]
    assert [len(p) for p in pieces("word " * 5000)] == [9999, 9995, 5006]  # at spaces


def test_lines_of_a_width_are_no_sentences():
    """Nor are paragraphs; headings and other paragraphs stay apart."""
    wrapped = "HARBOURS\n\nThe harbour was\nsmall. It had one\nquay. Nobody came.\n\nThe end"
    assert pieces(wrapped) == ["HARBOURS", "\n\nThe harbour was\nsmall.", " It had one\nquay.", " Nobody came.", "\n\nThe end"]
    assert pieces("One. Two. Three.\nFour. Five.\n") == ["One.", " Two.", " Three.", "\nFour.", " Five.\n"]
    table = [f"row {i}\n" for i in range(100)]
    assert pieces(wrapped + ":\n" + "".join(table))[-100:] == table


def test_a_long_text_is_encoded_in_slices(trained, monkeypatch):
    """So that a file that is one document takes little memory; the numbers are the same."""
    texts = pieces("\n".join(LONG))
    whole = trained("wordpiece").encode(texts)
    monkeypatch.setattr(tokenizer, "TOGETHER", 7)
    for a, b in zip(whole, trained("wordpiece").encode(texts), strict=True):
        assert np.array_equal(a, b)
    given = list(tokenizer_training.texts_of(part(["\n".join(LONG)])))
    assert max(map(len, given)) == 7
    assert [x for some in given for x in some] == texts


CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from texts import FRAMINGS, part, story
from ptmrun.data.text import tokenizer_training
made = [tokenizer_training.train(kind, 500, FRAMINGS[kind], part(story(30, 40))) for kind in FRAMINGS]
print(*(t.fast.backend_tokenizer.to_str().replace("\\n", "") for t in made), sep="\\n")
"""


def test_training_is_the_same_in_every_process(trained, tmp_path, monkeypatch):
    here = [trained(kind).fast.backend_tokenizer.to_str().replace("\n", "") for kind in KINDS]
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false" if os.environ.get("TOKENIZERS_PARALLELISM") == "true" else "true")
    done = subprocess.run([sys.executable, "-c", CODE, str(Path(__file__).parent)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == here


def test_hash_order_does_not_reach_the_tokenizer():
    """Every training has hash tables of its own, whose order the library lets through for two of three kinds."""
    for kind in ("wordpiece", "unigram"):
        prints = set()
        make = {"wordpiece": tokenizer_training.wordpiece, "unigram": tokenizer_training.unigram}[kind]
        for _ in range(6):
            prints.add(make(300, ["[UNK]"], "[UNK]", part(LONG[:4]), False, lambda *_: None).to_str())
        assert len(prints) == 1


def test_the_cache(tmp_path, monkeypatch):
    texts, framing = part(LONG), FRAMINGS["bpe"]
    first = tokenizer_training.train("bpe", 400, framing, texts)
    monkeypatch.setattr(tokenizer_training, "bpe", None)  # it is not trained again
    assert tokenizer_training.train("bpe", 400, framing, texts).fingerprint == first.fingerprint
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".json"]
    for changed in (("bpe", 401, framing, texts), ("bpe", 400, framing, part(LONG[:-1])), ("bpe", 400, framing, texts, True)):
        with pytest.raises(TypeError):
            tokenizer_training.train(*changed)


def test_a_cached_tokenizer_that_was_cut_short_is_trained_again(tmp_path):
    first = tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], part(LONG[:2]))
    [file] = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for content in (whole[:-7], b"", b"{}"):
        file.write_bytes(content)
        assert tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], part(LONG[:2])).fingerprint == first.fingerprint
        assert file.read_bytes() == whole


def test_without_a_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "file" / "x"))
    assert tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], part(LONG[:2])).vocabulary.size == 300


def test_byte_level_gives_back_any_text(trained):
    made = trained("bpe")
    generator = np.random.default_rng(0)
    odd = [*"aé\u0301漢字🙂\u200d\n\r\t \x00\x07\u2028\ufeff", END, "<|pad|>", "  ", "'s", "\ud7ff\ue000", "\U0010ffff"]
    texts = ["".join(generator.choice(odd, 60_000)), "\n".join(LONG), "", " ", "\n\n"]
    encoded = made.encode(texts)
    assert sum(map(len, encoded)) > 10**5
    assert [made.decode(ids) for ids in encoded] == texts
    assert not made.vocabulary.special[torch.from_numpy(np.concatenate(encoded))].any()  # the name of a mark in a text is text


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_words_come_back(trained, kind):
    made = trained(kind)
    ids = made.encode(["The  harbour opened\nthe Café <sep>[SEP] 漢"])[0]
    text = made.decode(ids)
    assert text.startswith("The harbour opened the Café")
    assert not made.vocabulary.special[torch.from_numpy(ids[:-1])].all()
    assert "sep" not in text.split("Café")[0]
    known = set(ids.tolist()) - {made.vocabulary.unknown}
    assert not made.vocabulary.special[list(known)].any()
    assert ids[-1] == made.vocabulary.unknown


def test_encode(trained):
    made = trained("wordpiece")
    texts = ["The harbour.", "", "The  harbour .", LONG[0]]
    encoded = made.encode(texts)
    assert [e.tolist() for e in encoded] == [made.fast.encode(t, add_special_tokens=False) for t in texts]
    assert encoded[0].dtype == np.int32
    assert len(encoded[1]) == 0
    assert np.array_equal(encoded[0], encoded[2])
    assert made.encode([]) == []


def test_case(trained):
    cased, uncased = (
        trained("wordpiece"),
        tokenizer_training.train("wordpiece", 500, FRAMINGS["wordpiece"], part(LONG), lowercase=True),
    )
    pair = ["the café", "The Café"]
    assert len({tuple(e) for e in map(tuple, cased.encode(pair))}) == 2
    assert len({tuple(e) for e in map(tuple, uncased.encode(pair))}) == 1
    assert uncased.decode(uncased.encode(pair)[1]) == "the café"


@pytest.mark.parametrize("kind", KINDS)
def test_frame(trained, kind):
    made = trained(kind)
    texts = ["The harbour opened the garden.", "It followed the captain of silver."]
    a, b = made.encode(texts)
    for pair in (None, b):
        ids, types = made.frame(a, pair, 1000)
        wanted = made.fast(*texts[: 1 if pair is None else 2], return_token_type_ids=True)
        assert ids.tolist() == wanted["input_ids"]
        assert types.tolist() == wanted["token_type_ids"]
        assert ids.dtype == types.dtype == np.int64
    assert ("token_type_ids" in made.fast(texts[0])) == (kind != "bpe")


def test_the_longest_is_truncated_first(trained):
    made = trained("wordpiece")
    a, b = np.arange(100, 110), np.arange(200, 204)
    for length, first, second in ((17, 10, 4), (16, 9, 4), (11, 4, 4), (10, 4, 3), (5, 1, 1), (4, 1, 0)):
        ids, types = made.frame(a, b, length)
        assert ids.tolist() == [2, *a[:first], 3, *b[:second], 3]
        assert types.tolist() == [0] * (first + 2) + [1] * (second + 1)
    assert made.frame(b, a, 11)[0].tolist() == [2, *b, 3, *a[:4], 3]
    assert made.frame(a, None, 5)[0].tolist() == [2, 100, 101, 102, 3]
    with pytest.raises(UserError, match=r"^model\.length=3: the special tokens alone are 3"):
        made.frame(a, b, 3)


def test_a_batch_is_padded_at_the_end(trained):
    made = trained("wordpiece")
    frames = [made.frame(np.array(a), np.array(b), 8) for a, b in (([10, 11], [13]), ([12], [14]))]
    tokens = padded(*map(list, zip(*frames, strict=True)), made.vocabulary.pad)
    assert tokens.ids.tolist() == [[2, 10, 11, 3, 13, 3], [2, 12, 3, 14, 3, 0]]
    assert tokens.mask.tolist() == [[True] * 6, [True] * 5 + [False]]
    assert tokens.types.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]


def test_vocabulary(trained):
    v = {kind: trained(kind).vocabulary for kind in KINDS}
    assert (v["wordpiece"].size, v["bpe"].size) == (500, 500)
    assert 250 < v["unigram"].size <= 500
    w = v["wordpiece"]
    assert (w.pad, w.unknown, w.start, w.end, w.mask) == (0, 1, 2, 3, 4)
    assert w.special.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    b = v["bpe"]
    assert (b.pad, b.unknown, b.start, b.end, b.mask) == (1, 0, 0, 0, None)
    u = v["unigram"]
    assert u.start is None
    assert {u.pad, u.unknown, u.end, u.mask} < set(u.special.nonzero()[:, 0].tolist())
    assert int(u.special.sum()) == 5
    for kind in KINDS:
        made, x = trained(kind), v[kind]
        for word in ("harbour", "Café", "captain"):
            ids = torch.from_numpy(made.encode([f" the {word}ed, opened?"])[0])
            marks = x.continues[ids].tolist()
            pieces_of = made.fast.convert_ids_to_tokens(ids.tolist())
            starts = [p for p, goes_on in zip(pieces_of, marks, strict=True) if not goes_on]
            assert len(starts) == 5, (kind, pieces_of, marks)  # the, word, the comma, opened, the question mark
            assert x.stops[ids].tolist() == [False] * (len(ids) - 1) + [True]
    tokens = trained("bpe").fast.convert_ids_to_tokens(b.stops.nonzero()[:, 0].tolist())
    assert {"!", ".", "?"} <= set(tokens)
    assert not {",", "'", '"', "Ċ"} & set(tokens)


CONFIGS = {
    "wordpiece": [BertConfig()],
    "bpe": [GPT2Config(), BartConfig()],
    "unigram": [XLNetConfig()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_saved(trained, kind, tmp_path):
    made = trained(kind)
    texts = [LONG[0], "Ünknown 漢 words!", ""]
    for i, config in enumerate([None, *CONFIGS[kind]]):
        folder = tmp_path / str(i)
        folder.mkdir()
        if config is not None:  # as in the folder of a model, whose kind transformers looks at too
            config.save_pretrained(folder)
        made.save(folder)
        read = AutoTokenizer.from_pretrained(folder)
        assert read(texts)["input_ids"] == made.fast(texts)["input_ids"]
        assert read(texts, texts)["input_ids"] == made.fast(texts, texts)["input_ids"]
        assert read(texts[0])["input_ids"] == made.frame(made.encode(texts)[0], None, 10**6)[0].tolist()
        assert (read.pad_token_id, len(read)) == (made.vocabulary.pad, made.vocabulary.size)
        assert read.mask_token_id == made.vocabulary.mask
        again = tokenizer_training.choose(SimpleNamespace(tokenizer=str(folder)), "bpe", FRAMINGS[kind], part(LONG), [])
        assert again.fingerprint == made.fingerprint
        assert again.kind == kind
        assert torch.equal(again.vocabulary.continues, made.vocabulary.continues)
    assert not any(str(tmp_path) in p.read_text() for p in folder.iterdir())


def test_transformers_truncates_to_the_length_of_the_model(trained, tmp_path):
    made = trained("wordpiece")
    processor = TextProcessor(made, 12, torch.device("cpu"))
    processor.preprocessing[0].save(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.model_max_length == 12
    assert read(LONG[0], truncation=True)["input_ids"] == processor.read([LONG[0]]).ids[0].tolist()
    assert len(made.encode([LONG[0]])[0]) > 12


def test_a_tokenizer_of_another_family(trained, tmp_path):
    """Its own special tokens stand in for the family's; those that it lacks are added."""
    backend = json.loads(trained("wordpiece").fast.backend_tokenizer.to_str())
    backend["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    trained("wordpiece").save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    other = Framing(
        {"cls_token": "<s>", "sep_token": "</s>", "eos_token": "</e>", "unk_token": "<unk>", "pad_token": "<pad>"},
        "<s> $A </s>",
        "<s> $A </s> $B:1 </s>:1",
    )
    made = tokenizer.load(str(tmp_path), other)
    v = made.vocabulary
    assert (v.size, v.pad, v.unknown, v.start, v.end, v.mask) == (501, 0, 1, 2, 500, None)
    a = made.encode([LONG[0]])[0]
    assert len(a) > 100  # not cut to the 8 of the file
    assert made.frame(a[:2], a[:1], 10)[0].tolist() == [2, *a[:2], 3, a[0], 3]


def test_vocabulary_sizes():
    assert tokenizer_training.tokens_in_all("auto", part(["x" * 100]), 10, 20, "") == 2000
    documents = part(["x" * 1_000_000])
    assert tokenizer_training.tokens_in_all("auto", documents, 10, 20, "") == 3000
    assert tokenizer_training.tokens_in_all("auto", documents, 4000, 20, "") == 8000
    assert tokenizer_training.tokens_in_all("auto", documents, 40_000, 40_010, "") == 40_010
    for kind, least in (("bpe", 258), ("unigram", None), ("wordpiece", 9)):
        with pytest.raises(UserError, match=rf"^model\.vocabulary=8: expected at least {least or ''}"):
            tokenizer_training.train(kind, 8, FRAMINGS[kind], part(LONG))
    characters = {c for d in LONG for c in d if not c.isspace()}
    least = len(characters) + 2 + 5
    assert tokenizer_training.train("unigram", least, FRAMINGS["unigram"], part(LONG)).vocabulary.size == least


def test_rare_characters_are_unknown_to_wordpiece():
    """Half of the vocabulary is for characters, the frequent first."""
    texts = part(["abcab abcab " * 50 + "".join(map(chr, range(0x4E00, 0x4E80)))])
    made = tokenizer_training.train("wordpiece", 60, FRAMINGS["wordpiece"], texts)
    assert made.vocabulary.size <= 60
    assert made.vocabulary.unknown not in made.encode(["abcab"])[0]
    assert len(made.encode(["abcab"])[0]) == 1
    assert made.vocabulary.unknown in made.encode([chr(0x4E7F)])[0]


def test_bad_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    damaged = {"unknown": '{"model": {"type": "Other"}}', "list": "[]", "null": "null", "cut": '{"model'}
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(content)
        (tmp_path / name / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for source in (str(tmp_path / name) for name in ("empty", "none", *damaged)):
        with pytest.raises(UserError) as caught:
            tokenizer_training.choose(SimpleNamespace(tokenizer=source), "bpe", FRAMINGS["bpe"], part(LONG), [])
        assert str(caught.value).startswith(
            f"model.tokenizer={source}: expected auto, wordpiece, bpe, unigram, a transformers folder"
        )
        assert "\n" not in str(caught.value)


def test_large_texts_are_sampled(monkeypatch):
    texts = part(["a.", "b.", "c.", "d."])
    assert list(tokenizer_training.texts_of(texts)) == [["a.", "b.", "c.", "d."]]
    monkeypatch.setattr(tokenizer_training, "ENOUGH", 4)
    assert list(tokenizer_training.texts_of(texts)) == [["a.", "c."]]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_runs_tokenizer_is_read_as_data(kind, tmp_path):
    made = tokenizer_training.train(kind, 300, FRAMINGS[kind], part(story(20, 5)))
    made.save(tmp_path)
    again = tokenizer.of_run(tmp_path, FRAMINGS[kind])
    text = story(1, 5, seed=3)[0]
    assert again.fingerprint == made.fingerprint
    assert again.encode([text])[0].tolist() == made.encode([text])[0].tolist()
    whole = (tmp_path / "tokenizer.json").read_text()
    for spoilt in ("", "[1]", whole[:-20], whole.replace(FRAMINGS[kind].special["pad_token"], "other")):
        (tmp_path / "tokenizer.json").write_text(spoilt)
        with pytest.raises(UserError, match="not a tokenizer that ptmrun wrote"):
            tokenizer.of_run(tmp_path, FRAMINGS[kind])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"cannot be read|not a regular file"):
        tokenizer.of_run(tmp_path, FRAMINGS[kind])


THAI = ["ประเทศไทยมีอาหารอร่อยมากมายและผู้คนก็เป็นมิตร" * (3 + i % 4) + str(i) for i in range(60)]


def options(**changes):
    return SimpleNamespace(**{"tokenizer": "auto", "vocabulary": 500, "lowercase": False} | changes)


def test_a_script_without_spaces_gets_a_tokenizer_that_knows_it():
    """WordPiece takes a line for one word, which is too long for it."""
    alone = tokenizer_training.train("wordpiece", 500, FRAMINGS["wordpiece"], part(THAI))
    assert tokenizer_training.unknown_share(alone, THAI) > 0.9
    notes = []
    chosen = tokenizer_training.choose(options(), "wordpiece", FRAMINGS["wordpiece"], part(THAI), notes)
    assert chosen.kind == "unigram"
    assert tokenizer_training.unknown_share(chosen, THAI) == 0
    assert notes == ["model.tokenizer=unigram: wordpiece would not know 100% of the characters of the texts"]
    asked = tokenizer_training.choose(options(tokenizer="wordpiece"), "bpe", FRAMINGS["wordpiece"], part(THAI), notes)
    assert asked.kind == "wordpiece", "what is asked for is trained"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_texts_with_spaces_keep_the_tokenizer_of_the_family(kind):
    notes = []
    assert tokenizer_training.choose(options(), kind, FRAMINGS[kind], part(LONG), notes).kind == kind
    assert notes == []


def test_the_share_of_unknown_characters(trained):
    """Of 8 characters without the space, one word of 4."""
    assert tokenizer_training.unknown_share(trained("wordpiece"), ["The ☃☃☃☃☃"]) == pytest.approx(5 / 8)
    assert tokenizer_training.unknown_share(trained("bpe"), ["The ☃☃☃☃☃"]) == 0
    assert tokenizer_training.unknown_share(trained("bpe"), []) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_lower_case_is_that_alone(kind):
    """Accents and vowel signs stay, in byte-level BPE too."""
    texts = ["Un ÉTÉ à Paris, मैं यहाँ हूँ"] * 50 + LONG
    small = tokenizer_training.train(kind, 700, FRAMINGS[kind], part(texts), lowercase=True)
    [upper], [lower] = small.encode(["Un ÉTÉ मैं"]), small.encode(["un été मैं"])
    assert upper.tolist() == lower.tolist()
    assert small.decode(upper).strip().replace(" ##", "") == "un été मैं"
    [plain] = small.encode(["un ete"])
    assert plain.tolist() != lower[: len(plain)].tolist()
