"""Token numbers in files, the blocks packed from them and the pairs of sentences: nothing lost, nothing twice."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import FRAMINGS, part, story

from ptmrun.data.text import corpus, sentences, tokenizer_training
from ptmrun.errors import UserError

DOCUMENTS = [*story(12, 6), "One sentence alone.", "Prose is cut. At every stop! Is it? yes."]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: tokenizer_training.train(kind, 400, FRAMINGS[kind], part(story(30, 20))) for kind in FRAMINGS}


def made(tokenizers, documents=DOCUMENTS, kind="wordpiece"):
    return corpus.tokenised(part(documents), tokenizers[kind])


@pytest.mark.parametrize("kind", list(FRAMINGS))
def test_documents_and_sentences(tokenizers, kind, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH", 700)  # several batches
    steps = []
    found = corpus.tokenised(part(DOCUMENTS), tokenizers[kind], lambda *x: steps.append(x))
    assert len(steps) > 2
    assert steps[-1] == ("tokenising", len(DOCUMENTS), len(DOCUMENTS))
    assert found.ids.dtype == np.uint16
    assert len(found) == len(DOCUMENTS)
    assert found.tokens == len(found.ids) == found.starts[-1]
    assert found.bytes == sum(len(d.encode()) for d in DOCUMENTS)
    encode = tokenizers[kind].encode
    for i, document in enumerate(DOCUMENTS):
        first, last = found.spans[i]
        cut = [piece.strip() for piece in sentences.pieces(document)]
        assert last - first == len(cut)
        own = [found.ids[found.starts[s] : found.starts[s + 1]].tolist() for s in range(first, last)]
        if kind == "bpe":
            assert tokenizers[kind].decode(found.document(i)) == document
        else:
            assert own == [e.tolist() for e in encode(cut)]
        assert list(chain(*own)) == found.document(i).tolist()


def test_texts_without_tokens(tokenizers):
    """They keep their number, and have no sentence; in a document, their bytes are those of the sentence before."""
    odd = ["A harbour.\n\x01\nTwo.", "\x01", "Three."]
    found = made(tokenizers, odd)
    assert np.diff(found.spans).ravel().tolist() == [2, 0, 1]
    assert found.sizes.tolist() == [len("A harbour.\n\x01\n"), len("Two."), len("Three.")]
    assert len(found.document(1)) == 0
    assert found.blocks(5).total == found.tokens + 2  # a mark for each document that has tokens
    with pytest.raises(UserError, match="no tokens"):
        made(tokenizers, ["\x01"]).blocks(5)


def test_large_vocabularies_take_larger_numbers(tokenizers, monkeypatch):
    known = tokenizers["wordpiece"]
    assert made(tokenizers).ids.dtype == np.uint16
    monkeypatch.setattr(known, "vocabulary", replace(known.vocabulary, size=2**16 + 1))
    monkeypatch.setattr(known, "fingerprint", "other")
    assert made(tokenizers).ids.dtype == np.int32


def test_tokenised_once(tokenizers, monkeypatch, tmp_path):
    first = made(tokenizers)
    monkeypatch.setattr(corpus, "write", None)
    again = made(tokenizers)
    for name in ("ids", "starts", "sizes", "documents", "spans"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert isinstance(again.ids, np.memmap)
    assert len(list((tmp_path / "cache").glob("*.corpus"))) == 1
    with pytest.raises(TypeError):
        made(tokenizers, DOCUMENTS[:-1])
    with pytest.raises(TypeError):
        made(tokenizers, kind="bpe")


CODE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from texts import FRAMINGS, part, story
from ptmrun.data.text import corpus, tokenizer_training
corpus.BATCH = 1000
made = tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], part(story(20, 10)))
def progress(title, done, total):
    if done > 5:
        os.kill(os.getpid(), signal.SIGKILL)
corpus.tokenised(part(story(20, 10)), made, progress)
"""


STREAM = """
import sys
sys.path.insert(0, sys.argv[1])
from texts import FRAMINGS, story
from ptmrun.data.text import corpus, tokenizer_training
from ptmrun.data.sources import text
from texts import options
document = story(1, 2000)[0] + "\\n\\n"
with open("large.txt", "w") as file:
    for _ in range(int(sys.argv[2])):
        file.write(document)
corpus.BATCH = 2**18
part = text.read(options("dataset=text", "dataset.root=large.txt")).parts["train"]
small = text.read(options("dataset=text", "dataset.root=small.txt")).parts["train"]
known = tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], small)
found = corpus.tokenised(part, known)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(part.size, int(peak) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there a process's peak of memory is not told")
def test_a_corpus_need_not_fit_into_memory():
    """Ten times the text takes no more memory, but for what batches of BATCH characters take."""
    Path("small.txt").write_text(story(1, 50)[0])

    def taken(copies: int) -> tuple[int, int]:
        argv = [sys.executable, "-c", STREAM, str(Path(__file__).parent), str(copies)]
        size, peak = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        return int(size), int(peak)

    (size, peak), (large, high) = taken(10), taken(100)
    assert large - size > 10e6
    assert high - peak < large - size


def test_killed_in_between(tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", CODE, str(Path(__file__).parent)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    [left] = (tmp_path / "cache").glob(".*.new")
    assert not list((tmp_path / "cache").glob("[!.]*.corpus"))
    assert (left / "ids").exists()
    texts = part(story(20, 10))
    known = tokenizer_training.train("bpe", 300, FRAMINGS["bpe"], texts)
    found = corpus.tokenised(texts, known)
    assert [known.decode(found.document(i)) for i in range(20)] == story(20, 10)


def test_an_error_in_between_leaves_nothing(tokenizers, tmp_path):
    def progress(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.tokenised(part(DOCUMENTS), tokenizers["wordpiece"], progress)
    assert not list((tmp_path / "cache").glob("*corpus*"))
    assert not list((tmp_path / "cache").glob(".*"))
    assert len(made(tokenizers)) == len(DOCUMENTS)


def test_a_broken_cache_is_made_again(tokenizers, tmp_path):
    first = made(tokenizers).ids.tolist()
    [folder] = (tmp_path / "cache").glob("*.corpus")
    os.truncate(folder / "ids", 10)
    assert made(tokenizers).ids.tolist() == first
    (folder / "starts").unlink()
    assert made(tokenizers).ids.tolist() == first


def test_another_process_may_be_faster(tokenizers, tmp_path, monkeypatch):
    """Both make the files; the first to be done has its folder there when the other puts its own in place."""
    replace = os.replace

    def late(new, folder):
        shutil.copytree(new, folder)
        replace(new, folder)

    monkeypatch.setattr(os, "replace", late)
    found = corpus.tokenised(part(DOCUMENTS), tokenizers["wordpiece"])
    monkeypatch.setattr(os, "replace", replace)
    assert found.ids.tolist() == made(tokenizers).ids.tolist()
    assert [p.name[0] == "." for p in (tmp_path / "cache").glob("*.corpus")] == [False]


def test_a_cache_that_cannot_be_written(tokenizers, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: token numbers of 0 MB .*; point PTMRUN_CACHE at a folder with room$"):
        made(tokenizers)


@pytest.mark.parametrize("kind", list(FRAMINGS))
@pytest.mark.parametrize("framed", [True, False])
def test_blocks_lose_and_repeat_nothing(tokenizers, kind, framed):
    found = made(tokenizers, kind=kind)
    end = tokenizers[kind].vocabulary.end
    stream = list(chain(*([*found.document(i).tolist(), end] for i in range(len(found)))))
    length = 24
    room = length - tokenizers[kind].single.extra * framed
    assert len(stream) % room
    blocks, count = found.blocks(length, framed), -(-len(stream) // room)
    assert len(blocks) == count
    tokens = blocks.batch(torch.arange(count))
    assert tokens.ids.shape == (count, length)
    assert tokens.mask.all()
    text = tokens.ids
    if framed:
        wanted = tokenizers[kind].frame(np.array(stream[:room]), None, length)
        assert tokens.ids[0].tolist() == wanted[0].tolist()
        assert (tokens.types == torch.from_numpy(wanted[1])).all()
        where = next(i for i, (t, _) in enumerate(tokenizers[kind].single.parts) if isinstance(t, str))
        text = tokens.ids[:, where : where + room]
    assert text.flatten().tolist() == (stream + stream)[: count * room]


def test_blocks_depend_on_their_number_alone(tokenizers):
    found = made(tokenizers)
    blocks = found.blocks(16)
    whole = blocks.batch(torch.arange(len(blocks))).ids
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks.batch(order).ids, whole[order])
    assert torch.equal(blocks.batch(torch.tensor([3])).ids[0], whole[3])
    assert torch.equal(made(tokenizers).blocks(16).batch(torch.tensor([3])).ids[0], whole[3])


def test_a_corpus_shorter_than_a_block(tokenizers):
    found = made(tokenizers, ["The harbour."])
    end = tokenizers["wordpiece"].vocabulary.end
    text = [*found.document(0).tolist(), end]
    blocks = found.blocks(50, framed=False)
    assert len(blocks) == 1
    assert blocks.batch(torch.tensor([0])).ids[0].tolist() == (text * 50)[:50]


def test_subsets(tokenizers):
    found = made(tokenizers)
    some = found.subset(torch.tensor([5, 2]))
    assert [some.document(i).tolist() for i in (0, 1)] == [found.document(i).tolist() for i in (5, 2)]
    assert some.tokens == len(found.document(5)) + len(found.document(2))
    assert some.bytes == len(DOCUMENTS[5].encode()) + len(DOCUMENTS[2].encode())
    end = tokenizers["wordpiece"].vocabulary.end
    stream = [*found.document(5).tolist(), end, *found.document(2).tolist(), end]
    blocks = some.blocks(len(stream), framed=False)
    assert blocks.batch(torch.tensor([0])).ids[0].tolist() == stream


def test_hold_out(tokenizers):
    found = made(tokenizers)
    rest, held = corpus.hold_out(found, 0.2, 0, "val")
    assert (len(rest), len(held)) == (11, 3)
    both = sorted(map(tuple, [*rest.spans.tolist(), *held.spans.tolist()]))
    assert both == sorted(map(tuple, found.spans.tolist()))
    again, other = corpus.hold_out(found, 0.2, 0, "val")[1], corpus.hold_out(found, 0.2, 1, "val")[1]
    assert np.array_equal(again.spans, held.spans)
    assert not np.array_equal(other.spans, held.spans)
    assert [len(x) for x in corpus.hold_out(found.subset(torch.tensor([0, 1])), 0.01, 0, "val")] == [1, 1]
    assert [len(x) for x in corpus.hold_out(found.subset(torch.tensor([0, 1])), 0.99, 0, "val")] == [1, 1]
    assert [len(x) for x in corpus.hold_out(found.subset(torch.arange(4)), 0.1, 0, "val")] == [2, 2]


def test_one_document_is_cut(tokenizers):
    found = made(tokenizers, story(1, 50))
    rest, held = corpus.hold_out(found, 0.2, 0, "val")
    assert [*rest.document(0), *held.document(0)] == found.document(0).tolist()
    assert held.tokens / found.tokens == pytest.approx(0.2, abs=0.03)
    assert rest.bytes + held.bytes == found.bytes
    two = made(tokenizers, ["The harbour. The river."])
    assert [x.document(0).tolist() for x in corpus.hold_out(two, 0.01, 0, "val")] == [
        e.tolist() for e in tokenizers["wordpiece"].encode(["The harbour.", "The river."])
    ]
    with pytest.raises(UserError, match=r"^dataset\.documents: the only document has one sentence"):
        corpus.hold_out(made(tokenizers, ["The harbour."]), 0.2, 0, "val")


def parts_of(tokens, row, vocabulary):
    """The two texts of a pair, by its types and special tokens."""
    ids, types = tokens.ids[row][tokens.mask[row]], tokens.types[row][tokens.mask[row]]
    text = ~vocabulary.special[ids]
    return ids[text & (types == 0)].tolist(), ids[text & (types == 1)].tolist()


def find(whole, run):
    return [i for i in range(len(whole) - len(run) + 1) if whole[i : i + len(run)] == run]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@pytest.mark.parametrize("length", [12, 60, 500])
def test_pairs(tokenizers, kind, length):
    unique = [d.replace("times", f"{i} times") for i, d in enumerate(story(8, 9))]
    found = made(tokenizers, [*unique, "Alone here."], kind)
    vocabulary, pairs = tokenizers[kind].vocabulary, found.sentence_pairs(length)
    draws = torch.rand(400, pairs.draws, generator=torch.Generator().manual_seed(0))
    tokens, follows = pairs.batch(draws)
    assert follows.dtype == torch.bool
    assert 0.42 < follows.float().mean() < 0.58
    assert tokens.ids.shape[1] == int(tokens.mask.sum(1).max()) <= length
    assert (tokens.ids[~tokens.mask] == vocabulary.pad).all()
    wholes = [found.document(i).tolist() for i in range(len(found))]
    starts = set(found.starts.tolist())
    firsts = {int(found.starts[a]) for a, _ in found.spans}
    flat = found.ids.tolist()
    begun, most = set(), max(pairs.room // 2, int(np.diff(found.starts).max()))
    for row in range(400):
        a, b = parts_of(tokens, row, vocabulary)
        assert 0 < len(a) <= most  # whole sentences in half the room, or one
        assert b
        assert tokens.ids[row][tokens.mask[row]].tolist() == tokenizers[kind].frame(np.array(a), np.array(b), length)[0].tolist()
        together = any(find(w, a + b) for w in wholes)
        if follows[row]:
            assert together
        if length > 12:
            assert together == bool(follows[row])
            assert any(i in starts and i not in firsts for i in find(flat, b))  # at a sentence, never the first of a document
            begun |= set(find(flat, b))
    if length > 12:
        assert len(begun) > 0.8 * (len(found.starts) - 1 - len(found))
    alone = pairs.batch(draws[7:8])  # a pair depends on its own numbers alone, but for padding
    assert parts_of(alone[0], 0, vocabulary) == parts_of(tokens, 7, vocabulary)


def test_pairs_begin_anywhere_in_millions_of_sentences(tokenizers):
    """Between two neighbouring float32 numbers there are sentences too."""
    pairs = made(tokenizers).sentence_pairs(40)

    class Asked(Exception):
        pass

    class Index:
        def __len__(self):
            return 2**28

        def __getitem__(self, at):
            raise Asked(*at.tolist())

    pairs.sentence = Index()
    draws = torch.zeros(4, 6)
    draws[:, 0], draws[:, 4] = 0.5, torch.tensor([0.0, 0.2, 0.5, 0.99])
    with pytest.raises(Asked) as asked:
        pairs.batch(draws)
    assert [at - 2**27 for at in asked.value.args] == [0, 3, 8, 15]


def test_long_first_texts_lose_their_beginning(tokenizers):
    found = made(tokenizers, ["The harbour opened. " + "The river " * 30 + ".\nThe river.", "Another text. Of two."])
    tokens, follows = found.sentence_pairs(20).batch(torch.tensor([[0.0, 0.0, 0.1, 0.0, 0.0, 0.0]]))
    a, b = parts_of(tokens, 0, tokenizers["wordpiece"].vocabulary)
    assert follows.tolist() == [True]
    assert tokens.ids.shape == (1, 20)
    second = tokenizers["wordpiece"].encode(["The river."])[0].tolist()
    assert b == second
    assert a == found.document(0).tolist()[: -len(second)][-(17 - len(second)) :]


def test_pairs_with_documents_of_one_sentence(tokenizers):
    found = made(tokenizers, ["Harbour one. Harbour two. Harbour three.", "River.", "Garden."])
    draws = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    tokens, follows = found.sentence_pairs(40).batch(draws)
    river, garden = (tokenizers["wordpiece"].encode([t])[0].tolist() for t in ("River.", "Garden."))
    seconds = [parts_of(tokens, i, tokenizers["wordpiece"].vocabulary)[1] for i in range(200)]
    assert all((b in (river, garden)) != bool(y) for b, y in zip(seconds, follows, strict=True))
    assert river in seconds
    assert garden in seconds


def test_pairs_that_cannot_be(tokenizers):
    with pytest.raises(
        UserError, match=r"^dataset\.documents: sentences from another document are needed, and there is 1 document"
    ):
        made(tokenizers, story(1, 5)).sentence_pairs(20)
    with pytest.raises(UserError, match=r"^dataset\.documents: each document has one sentence"):
        made(tokenizers, ["One.", "Two.", "Three."]).sentence_pairs(20)
    with pytest.raises(UserError, match=r"^model\.length=3"):
        made(tokenizers).sentence_pairs(3)
