"""downstream=question_answering: SQuAD's files, windows, the official scores, floors."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import HandMade, latest
from texts import FRAMINGS, part
from torch import nn

from ptmrun.config import specs
from ptmrun.data.splits import divide
from ptmrun.data.text import tokenizer_training
from ptmrun.data.text.batches import TextBatches
from ptmrun.downstream import token_head
from ptmrun.downstream.question_answering import floors, head, metrics
from ptmrun.downstream.question_answering.answers import best_span, guesses, n_best
from ptmrun.downstream.question_answering.read import read_splits
from ptmrun.errors import UserError

READING = {"encoding": "utf-8", "errors": "strict"}
LONG = " ".join(f"In {1900 + i} the town of Aville{i} had {i} bakers." for i in range(12))


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        documents = [f"{LONG} Where did Ann Lee bake? Ann Lee baked in Ünited Paris (1907)."] * 20
        return tokenizer_training.train(request.param, 300, FRAMINGS[request.param], part(documents))


def options(root, **changes):
    return SimpleNamespace(
        **{"root": str(root), "stride": 16, "answer_length": 30, "max_mismatched": 0.01, "scoring": "auto", **READING} | changes
    )


def qa(name: str, question: str, context: str, *answers: str) -> dict:
    """A question with answers where they first stand in the context; without answers it has none."""
    found = [{"text": a, "answer_start": context.index(a)} for a in answers]
    return {"id": name, "question": question, "answers": found, **({} if answers else {"is_impossible": True})}


def squad(*paragraphs: tuple[str, list[dict]]) -> dict:
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": c, "qas": q} for c, q in paragraphs]}]}


ANN = "Ann Lee baked in Ünited  Paris (1907). Bob met her in Rome."
TRAIN = squad(
    (ANN, [qa("a", "Where did Ann Lee bake?", ANN, "Ünited  Paris"), qa("b", "When?", ANN, "1907", "(1907)")]),
    (LONG, [qa("c", "Which town had 9 bakers?", LONG, "Aville9"), qa("d", "And 0?", LONG, "Aville0")]),
)


def write(folder: Path, **files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        (folder / f"{name}.json").write_bytes(data)
    return folder


def read(folder, tokenizer, length=48, **changes):
    notes: list[str] = []
    found, classes, fingerprint = read_splits(options(folder, **changes), tokenizer, length, notes)
    assert classes == []
    return found, fingerprint, notes


def perfect(split) -> dict[str, torch.Tensor]:
    """What a model says that knows where the answer is, or that there is none, and sees it in one window."""
    parts = []
    for own, row in zip(split.own(), split.rows.tolist(), strict=True):
        window, first, last = split.targets[row][:3]
        for w in own:
            logits = torch.zeros(len(split.ids[w]), 2)
            if not split.questions[row].answers:
                logits[-1] = 5.0
            elif w == window:
                logits[first, 0] = logits[last, 1] = 5.0
            parts.append(logits)
    return {"logits": torch.cat(parts)}


class Encoder(HandMade):
    """Hidden states of a tiny transformer block; knows where tokens stand, and padding changes nothing."""

    width, depth, length = 32, 1, 64

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, 32), nn.Embedding(64, 32)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)

    def hidden(self, tokens):
        x = self.embedding(tokens.ids) + self.positions(torch.arange(tokens.ids.shape[1]))
        return self.block(x, src_key_padding_mask=~tokens.mask)


def batches(split, size, accumulate=1):
    return TextBatches(split, lambda x: x, size, accumulate, 0, "finetune", False)


def test_questions_are_read(tmp_path, tokenizer):
    found, _, notes = read(write(tmp_path / "a", train=TRAIN, test=TRAIN), tokenizer)
    split = found["train"]
    assert [q.name for q in split.asked()] == ["a", "b", "c", "d"]
    assert split.questions[1].answers == ["1907", "(1907)"]
    assert (len(split), split.labels, split.answered, split.nothing) == (4, None, True, False)
    assert split.read()[0] == "Where did Ann Lee bake?"
    assert notes[0].startswith("train: the contexts of ")
    assert notes[0].endswith(f"of 4 questions are read in several windows, {len(split.windows)} in all (model.length=48)")
    assert len(list(found)) == 2


def test_warned_of_what_training_never_shows(tmp_path, tokenizer):
    more = squad((LONG, [qa("x", "Why?", LONG), qa("y", "Who?", LONG)]), (ANN, [qa("z", "When?", ANN, "1907")]))
    notes = read(write(tmp_path / "a", train=TRAIN, test=more), tokenizer)[2]
    assert notes[0].startswith(
        "Warning: 2 of 3 questions of the test split have no answer, but all of the training split have one"
    )
    assert not any("Warning" in line for line in read(write(tmp_path / "b", train=more, test=more), tokenizer)[2])


def test_windows(tmp_path, tokenizer):
    """Together they show every token of the context, each begins `stride` after the one before, and none is too long."""
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer)[0]["train"]
    context = tokenizer.encode([LONG])[0]
    own = [split.windows[w] for w in split.own()[2]]
    assert len(own) >= 3
    assert [w.first for w in own] == [16 * i for i in range(len(own))]
    assert own[-1].first + own[-1].size == len(context) > own[-2].first + own[-2].size
    asked = tokenizer.encode(["Which town had 9 bakers?"])[0]
    for w in own:
        ids, types = tokenizer.frame(asked, context[w.first : w.first + w.size], 48)
        assert w.ids.tolist() == ids.tolist()
        assert w.types.tolist() == types.tolist()
        assert w.ids[w.place : w.place + w.size].tolist() == context[w.first : w.first + w.size].tolist()
        assert len(w.ids) <= 48
    assert all(len(w.ids) == 48 for w in own[:-1])


def test_a_large_stride_leaves_nothing_out(tmp_path, tokenizer):
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer, stride=1000)[0]["train"]
    own = [split.windows[w] for w in split.own()[2]]
    assert [w.first + w.size for w in own[:-1]] == [w.first for w in own[1:]]


def test_long_questions_leave_room(tmp_path, tokenizer):
    train = squad((ANN, [qa("a", "Where? " * 100, ANN, "Rome")]))
    split = read(write(tmp_path / "a", train=train), tokenizer)[0]["train"]
    assert all(len(w.ids) <= 48 and w.size >= 1 for w in split.windows)
    assert metrics.score(perfect(split), split) == 1
    with pytest.raises(UserError, match=r"model\.length=3"):
        read(tmp_path / "a", tokenizer, length=3)


def test_training_shows_the_answer(tmp_path, tokenizer):
    """A batch has one window a question, that with the answer in its middle, and labels where the answer stands in it."""
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer, stride=8)[0]["train"]
    indices = torch.tensor([2, 0, 1])
    (tokens,) = split.batches([indices])
    labels = split.answers(indices)
    assert tokens.ids.shape[0] == 3
    for row, label, answer in zip(tokens.ids, labels, ["Aville9", "Ünited  Paris", "1907"], strict=True):
        text = tokenizer.decode(row[label[0, 0] : label[0, 1] + 1])
        assert text.replace(" ", "").strip() == answer.replace(" ", "")
    number = split.targets[2][0]
    first, last = split.targets[2][1:3]
    window = split.windows[number]
    margins = []
    for w in (split.windows[i] for i in split.own()[2]):
        a, b = first - window.place + window.first - w.first, last - window.place + window.first - w.first
        if a >= 0 and b < w.size:
            margins.append(min(a, w.size - 1 - b))
    assert len(margins) > 1
    assert min(first - window.place, window.size - 1 - (last - window.place)) == max(margins)
    assert split.lengths.tolist() == [len(split.ids[split.targets[i][0]]) for i in range(4)]


def test_a_perfect_model_is_right(tmp_path, tokenizer):
    """Also about an answer that only the last window holds; the same after a subset."""
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer)[0]["train"]
    found = perfect(split)
    assert metrics.valid(found, split, [])
    assert guesses(found, split) == ["Ünited  Paris", "1907", "Aville9", "Aville0"]
    assert metrics.metrics(found, split, [], 15) == {"f1": 1.0, "exact_match": 1.0, "signatures": {"f1": "squad"}}
    last = LONG[LONG.rindex("Aville") :].split()[0]
    train = squad((LONG, [qa("z", "Which town?", LONG, last), qa("y", "Which?", LONG, "1900")]))
    split = read(write(tmp_path / "b", train=train), tokenizer)[0]["train"]
    assert split.targets[0][0] == split.own()[0][-1] > 0
    assert guesses(perfect(split), split) == [last, "1900"]
    part = split.subset(torch.tensor([1]))
    assert metrics.valid(perfect(part), part, [])
    assert not metrics.valid(perfect(split), part, [])
    assert guesses(perfect(part), part) == ["1900"]


def test_only_the_context_answers(tmp_path, tokenizer):
    """Question, special tokens, ends before starts and spans that are too long are no answers, however sure the model is."""
    split = read(write(tmp_path / "a", train=squad((ANN, [qa("a", "Where did Ann Lee bake?", ANN, "Rome")]))), tokenizer)[0][
        "train"
    ]
    found = perfect(split)
    window = split.windows[split.targets[0][0]]
    found["logits"][: window.place] = 50
    found["logits"][-1] = 50
    assert guesses(found, split) == ["Rome"]
    logits, spans = np.zeros((6, 2)), np.array([[i, i + 1] for i in range(6)])
    logits[4, 0] = logits[1, 1] = 9  # the end before the start
    assert best_span(logits, spans, 3)[0] == 9
    logits[1] = [8, 0]
    logits[4] = [0, 7]  # four tokens
    assert best_span(logits, spans, 4) == (15, 1, 4)
    assert best_span(logits, spans, 3) == (8, 1, 1)
    spans[1] = 1  # a token that stands for nothing
    assert best_span(logits, spans, 4) == (7, 2, 4)


@pytest.mark.parametrize(
    ("guess", "answers", "f1", "exact"),
    [
        ("The Ünited Paris!", ["ünited paris"], 1, 1),
        ("the cat sat", ["a cat"], 2 / 3, 0),
        ("cat cat", ["cat"], 2 / 3, 0),
        ("Rome", ["Paris", "in Rome"], 2 / 3, 0),
        ("Rome", ["Paris", "Rome."], 1, 1),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("another", ["other"], 0, 0),
        ("3.5", ["35"], 1, 1),
        ("the", ["an"], 0, 1),
        ("a  b\tan c", ["b c"], 1, 1),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
    ],
)
def test_official_scores(guess, answers, f1, exact):
    """Values of evaluate-v1.1.py and, without answers, of evaluate-v2.0.py."""
    assert metrics.f1_of(guess, answers) == pytest.approx(f1)
    assert metrics.exact_of(guess, answers) == exact


@pytest.mark.parametrize(
    ("guess", "answer", "f1", "exact"),
    [
        ("《红楼梦》", "红楼梦", 1, 1),
        ("曹雪芹先生", "曹雪芹", 2 * 3 / 8, 0),
        ("北京", "上海", 0, 0),
        ("1990年,北京。", "1990年北京", 1, 1),
        ("กรุงเทพ", "กรุง", 2 * 4 / 11, 0),
        ("¿Madrid?", "madrid", 1, 1),
        ("la «Madrid» vieja", "la Madrid", 2 * 2 / 5, 0),
        ("दिल्ली।", "दिल्ली", 1, 1),
        ("The cat!", "cat", 1, 1),
    ],
)
def test_scores_of_other_scripts(guess, answer, f1, exact):
    """As MLQA's script counts them: characters of Chinese and Thai, punctuation of all languages."""
    assert metrics.f1_of(guess, [answer], "mlqa") == pytest.approx(f1)
    assert metrics.exact_of(guess, [answer], "mlqa") == exact


@pytest.mark.parametrize(
    ("context", "answer", "scoring"),
    [("In Paris she saw “La Vie”.", "“La Vie”", "squad"), ("曹雪芹写了《红楼梦》。", "《红楼梦》", "mlqa")],
)
def test_scores_are_counted_by_script(tmp_path, tokenizer, context, answer, scoring):
    """What is in English is counted as SQuAD's script does, which keeps such marks."""
    root, notes = write(tmp_path / "x", train=squad((context, [qa("a", "?", context, answer)]))), []
    split = read_splits(options(root), tokenizer, 48, notes)[0]["train"]
    assert split.scoring == scoring
    assert any("downstream.scoring=mlqa" in note for note in notes) == (scoring == "mlqa")
    start = context.index(answer)
    inner = {"spans": torch.tensor([[start + 1, start + len(answer) - 1]])}
    right = float(scoring == "mlqa")
    found = metrics.metrics(inner, split, [], 10)
    assert found == {"f1": right, "exact_match": right, "signatures": {"f1": scoring}}
    assert metrics.per_sample_scores(inner, split).tolist() == [right]
    assert metrics.columns_of_predictions(inner, split, [])["exact_match"].to_pylist() == [right]
    assert read_splits(options(root, scoring="squad"), tokenizer, 48, [])[0]["train"].scoring == "squad"


def test_questions_without_an_answer(tmp_path, tokenizer):
    train = squad((ANN, [qa("a", "Where did Ann Lee bake?", ANN, "Ünited  Paris"), qa("b", "Who slept?", ANN)]))
    split = read(write(tmp_path / "a", train=train), tokenizer)[0]["train"]
    assert split.nothing
    assert split.targets[1][1:3].tolist() == [len(split.ids[split.targets[1][0]]) - 1] * 2
    assert guesses(perfect(split), split) == ["Ünited  Paris", ""]
    right = metrics.metrics(perfect(split), split, [], 15)
    assert right["unanswered"] == right["answered"] == {"f1": 1.0, "exact_match": 1.0, "n": 1}
    found = perfect(split)
    start = sum(len(split.ids[w]) for w in split.own()[0]) + split.windows[split.targets[1][0]].place
    found["logits"][start : start + 3, 0] = found["logits"][start + 8 : start + 11, 1] = 6
    wrong = metrics.metrics(found, split, [], 15)
    assert (wrong["f1"], wrong["unanswered"]["f1"]) == (0.5, 0)
    both = read(write(tmp_path / "b", train=TRAIN, test=train), tokenizer)[0]["test"]
    assert not both.nothing
    assert guesses(perfect(both), both)[1] != ""
    columns = metrics.columns_of_predictions(found, split, [])
    assert columns["label"].to_pylist() == ["Ünited  Paris", ""]
    assert columns["id"].to_pylist() == ["a", "b"]
    assert columns["exact_match"].to_pylist() == metrics.per_sample_scores(found, split).tolist() == [1, 0]


def test_the_empty_answer_must_win_in_every_window(tmp_path, tokenizer):
    train = squad((LONG, [qa("a", "Which town had 9 bakers?", LONG, "Aville9"), qa("b", "Who?", LONG)]))
    split = read(write(tmp_path / "a", train=train), tokenizer)[0]["train"].subset(torch.tensor([0]))
    found, place = perfect(split), 0
    for w in split.own()[0]:
        place += len(split.ids[w])
        if w != split.targets[0][0]:
            found["logits"][place - 1] = 20
    assert guesses(found, split) == ["Aville9"]


def likeliest(logits, split, row) -> dict[str, float]:
    """Every answer that the windows of a question can give, with its best score."""
    question, place, found = split.questions[split.rows[row]], 0, {}
    for w in (w for own in split.own()[:row] for w in own):
        place += len(split.ids[w])
    if split.nothing:
        found[""] = np.inf
    for window in (split.windows[w] for w in split.own()[row]):
        spans = split.spans[question.context][window.first : window.first + window.size].tolist()
        for i, (a, stop) in enumerate(spans):
            for j, (start, b) in enumerate(spans[i : i + split.longest], i):
                if stop > a and b > start:
                    text = split.contexts[question.context][a:b]
                    score = float(logits[place + window.place + i, 0]) + float(logits[place + window.place + j, 1])
                    found[text] = max(found.get(text, -np.inf), score)
        place += len(window.ids)
        if split.nothing:
            found[""] = min(found[""], float(logits[place - 1, 0]) + float(logits[place - 1, 1]))
    return found


@pytest.mark.parametrize("nothing", [False, True])
def test_the_best_answers_to_a_question(tmp_path, tokenizer, nothing):
    """As by looking at every span; different texts, the prediction first, with probabilities as in run_squad."""
    train = json.loads(json.dumps(TRAIN))
    if nothing:
        train["data"][0]["paragraphs"][0]["qas"].append(qa("e", "Who slept?", ANN))
    split = read(write(tmp_path / "a", train=train), tokenizer, answer_length=5)[0]["train"]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(sum(len(split.ids[w]) for own in split.own() for w in own), 2, generator=generator).mul(3).round()
        found = {"logits": logits}
        best = n_best(found, split, 7)
        assert list(best) == [q.name for q in split.asked()]
        assert [answers[0]["text"] for answers in best.values()] == guesses(found, split)
        for row, answers in enumerate(best.values()):
            wanted = likeliest(logits, split, row)
            assert len({x["text"] for x in answers}) == len(answers) == 7
            assert [x["score"] for x in answers] == sorted(wanted.values(), reverse=True)[:7]
            assert all(wanted[x["text"]] == x["score"] for x in answers)
            listed = torch.tensor([x["score"] for x in answers], dtype=torch.float64).softmax(0)
            torch.testing.assert_close(torch.tensor([x["probability"] for x in answers], dtype=torch.float64), listed)
    part = split.subset(torch.tensor([1]))
    every = n_best({"logits": perfect(part)["logits"]}, part, 10**6)["b"]
    assert {x["text"] for x in every} == set(likeliest(perfect(part)["logits"], part, 0))


def test_questions_of_one_id_have_an_entry_each(tmp_path, tokenizer):
    test = squad(
        ("Rome fell.", [qa("a", "What?", "Rome", "Rome"), qa("a", "Who?", "Rome", "Rome"), qa("b", "Who?", "Rome", "Rome")])
    )
    split = read(write(tmp_path / "a", train=TRAIN, test=test), tokenizer)[0]["test"]
    assert list(n_best({"logits": perfect(split)["logits"]}, split, 3)) == ["a", "a (2)", "b"]


def test_the_best_answers_where_there_is_nothing_to_say(tmp_path, tokenizer):
    """No span, or numbers whose sums no float32 holds: still JSON."""
    test = squad(("", [qa("a", "Where?", "")]), ("Rome", [qa("b", "Where?", "Rome", "Rome")]))
    split = read(write(tmp_path / "a", train=TRAIN, test=test), tokenizer)[0]["test"]
    logits = torch.full((sum(len(split.ids[w]) for own in split.own() for w in own), 2), 3e38)
    best = n_best({"logits": logits}, split, 3)
    assert best["a"] == [{"text": "", "probability": 1.0, "score": pytest.approx(6e38)}]
    assert best["b"][0]["text"] == guesses({"logits": logits}, split)[1]
    json.dumps(best, allow_nan=False)


def test_a_run(ptmrun):
    """From files to scores; n_best.json has the answers of predictions.parquet first."""
    Path("corpus.txt").write_text("\n\n".join([LONG, ANN] * 5), encoding="utf-8")
    write(Path("squad"), train=TRAIN, test=TRAIN)
    data = ["model=gpt", "dataset=text", "dataset.root=corpus.txt", "downstream=question_answering", "downstream.root=squad"]
    small = ["pretrain.steps=2", "pretrain.probes=0", "finetune.steps=2", "finetune.seeds=2", "evaluate.baselines=[chance]"]
    where = ["device=cpu", "device.precision=fp32", "device.threads=1", "device.workers=0"]
    counts = ["downstream.labels_per_class=[2,null]", "downstream.n_best=3"]
    code, _, err = ptmrun(*data, *small, *where, *counts)
    assert code == 0, err
    best = json.loads((latest() / "n_best.json").read_text())
    rows = pq.read_table(latest() / "predictions.parquet").to_pylist()
    assert {r["sample"] for r in rows} == {f"squad/test.json: {r['id']}" for r in rows}
    said = {r["id"]: r["prediction"] for r in rows if r["labels_per_class"] is None and r["repeat"] == 0}
    assert {name: answers[0]["text"] for name, answers in best.items()} == said
    assert [len(answers) for answers in best.values()] == [3, 3, 3, 3]
    assert all(answer.keys() == {"text", "probability", "score"} for answers in best.values() for answer in answers)


def test_floors(tmp_path, tokenizer):
    """chance: "Rome" is the most frequent answer in training. raw: the sentence that shares most words with the question."""
    texts = [f"{name} saw Rome." for name in ("Ann", "Bob", "Cid")]
    train = squad(*[(text, [qa(text, "What?", text, "Rome")]) for text in texts], (ANN, [qa("x", "When?", ANN, "1907")]))
    other = "in the hills. Then New York fell. The king saw Ann Lee near Boston."
    test = squad(
        (ANN, [qa("a", "Where did Bob meet her?", ANN, "Rome")]),
        (other, [qa("b", "Whom did the king see near Boston?", other, "Ann Lee"), qa("c", "What fell then?", other, "New York")]),
        (other, [qa("e", "Near what was Ann Lee?", other, "Boston")]),
        ("no capitals here", [qa("d", "who?", "no capitals here", "no capitals")]),
    )
    found = read(write(tmp_path / "a", train=train, test=test), tokenizer)[0]
    data = SimpleNamespace(**found)

    def answers(kind):
        return guesses(floors.baseline_predictions(kind, data, found["train"].subset(torch.tensor([3])), None), found["test"])

    assert answers("chance") == ["Rome", "Then New York", "Then New York", "Then New York", "no"]
    assert answers("raw") == ["Rome", "Ann Lee", "Then New York", "Boston", "no"]
    assert metrics.score(floors.baseline_predictions("raw", data, found["train"], None), found["test"]) == pytest.approx(
        (3 + 4 / 5 + 2 / 3) / 5
    )


def test_it_learns_what_it_was_shown(tmp_path, tokenizer):
    """The loss begins at the mean of ln(tokens) and falls; predictions of windows become answers."""
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer)[0]["train"]
    torch.manual_seed(0)
    model = head.build(Encoder(tokenizer.vocabulary.size), SimpleNamespace(), SimpleNamespace())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for (batch,) in batches(split, 4).iterate(0, 40):
        loss, shown = model(batch)
        assert loss.n == shown["both_right"].n == 4
        losses.append(float(loss.total.detach()) / 4)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert model.initial_loss(batch) == pytest.approx(np.log(split.lengths.numpy()).mean(), rel=1e-6)
    assert losses[0] == pytest.approx(model.initial_loss(batch), rel=0.1)
    assert losses[-1] < 0.1
    assert int(shown["both_right"].total) == 4
    trained = split.subset(torch.tensor([0, 1]))
    found = model.predict(trained.all(2))
    assert metrics.valid(found, trained, [])
    torch.testing.assert_close(found["logits"], model.predict(trained.all(64))["logits"], rtol=1e-4, atol=1e-4)


def test_every_answer_that_a_window_shows_is_right(tmp_path, tokenizer):
    """The loss is that of the probability of all of them together, in float64; what another window shows is left out."""
    text = "Rome saw Ann in Rome with Bob and Rome again"
    answers = [{"text": "Rome", "answer_start": i} for i in (16, 0, 34)] + [{"text": "Ann in Rome", "answer_start": 9}]
    train = squad((text, [{"id": "a", "question": "Where?", "answers": answers}]), (text, [qa("b", "Who?", text, "Bob")]))
    split = read(write(tmp_path / "a", train=train), tokenizer)[0]["train"]
    torch.manual_seed(0)
    model = head.Reader(Encoder(tokenizer.vocabulary.size))
    ((batch,),) = batches(split, 2).iterate(0, 1)
    chances = torch.full((*batch["inputs"].ids.shape, 2), -torch.inf)
    chances[batch["inputs"].mask] = model.logits(batch["inputs"], batch["inputs"].mask).detach()
    chances = chances.double().softmax(1)
    loss = 0.0
    for row, places in enumerate(batch["labels"]):
        kept = [(int(a), int(b)) for a, b in places if a >= 0]
        words = [tokenizer.decode(batch["inputs"].ids[row, a : b + 1]).strip() for a, b in kept]
        wanted = ["Rome", "Rome", "Rome", "Ann in Rome"] if len(kept) > 1 else ["Bob"]
        assert words == [tokenizer.decode(ids).strip() for ids in tokenizer.encode(wanted)]
        for side in (0, 1):
            loss -= np.log(sum(float(chances[row, place, side]) for place in {pair[side] for pair in kept}))
    assert float(model(batch)[0].total.detach()) == pytest.approx(loss / 2, rel=1e-6)


def test_accumulation(tmp_path, tokenizer):
    """1 x 8 equals 4 x 2, though windows are of different lengths."""
    paragraphs = [(" ".join(["word"] * i + ["Rome"]), i) for i in range(1, 9)]
    train = squad(*[(text, [qa(str(i), "Where?", text, "Rome")]) for text, i in paragraphs])
    split = read(write(tmp_path / "a", train=train), tokenizer)[0]["train"]
    torch.manual_seed(0)
    model = head.Reader(Encoder(tokenizer.vocabulary.size))
    results = []
    for accumulate in (1, 4):
        (micros,) = batches(split, 8, accumulate).iterate(0, 1)
        assert [len(m["labels"]) for m in micros] == [8 // accumulate] * accumulate
        parts = [model(micro)[0] for micro in micros]
        model.zero_grad()
        sum(p.total for p in parts).backward()
        results.append((sum(p.total for p in parts).item(), [p.grad.clone() for p in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def changed(change) -> dict:
    data = json.loads(json.dumps(TRAIN))
    change(data["data"][0]["paragraphs"][0]["qas"][1], data["data"][0])
    return data


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("", "train.json: is empty; expected SQuAD's JSON"),
        ('{"data":\n [}', "train.json: line 2 is no JSON (Expecting value)"),
        (b'{"data": "\xe9"}', "train.json: byte 10 is not utf-8; name its downstream.encoding"),
        ('{"data": %s}' % ("9" * 5000), "train.json: is no JSON (Exceeds the limit"),
        (changed(lambda q, a: q.update(question="who \ud800")), "qas[1].question: half a surrogate pair (\\ud800 ...); mend it"),
        ("[" * 100_000, "train.json: its lists are nested too deeply"),
        ({"data": []}, "train.json: holds no questions"),
        ([], "train.json: data is missing"),
        ({"data": {}}, "train.json: data: expected a list"),
        (changed(lambda q, a: a.pop("paragraphs")), "train.json: data[0].paragraphs is missing"),
        (changed(lambda q, a: a["paragraphs"][1].pop("context")), "train.json: data[0].paragraphs[1].context is missing"),
        (changed(lambda q, a: a["paragraphs"][1].update(context=3)), "train.json: data[0].paragraphs[1].context: expected text"),
        (changed(lambda q, a: q.pop("id")), "train.json: data[0].paragraphs[0].qas[1].id is missing"),
        (changed(lambda q, a: q.pop("answers")), "data[0].paragraphs[0].qas[1].answers is missing"),
        (changed(lambda q, a: q.update(answers=[])), "qas[1].answers is empty; expected an answer, or is_impossible"),
        (changed(lambda q, a: q["answers"][1].pop("text")), "qas[1].answers[1].text is missing"),
        (changed(lambda q, a: q["answers"][0].update(answer_start="3")), "answers[0].answer_start: expected a whole number"),
        (changed(lambda q, a: q.update(is_impossible=1)), "qas[1].is_impossible: expected true or false"),
        (
            changed(lambda q, a: q["answers"][0].update(answer_start=1000)),
            "1 of 4 questions have an answer that the context has not",
        ),
        (
            changed(lambda q, a: q["answers"][0].update(answer_start=-3)),
            "at its answer_start: b; mend them, or raise downstream.",
        ),
        (changed(lambda q, a: q["answers"][1].update(answer_start=0)), "at its answer_start: b; mend them"),
        (changed(lambda q, a: q["answers"][1].update(text="")), "at its answer_start: b; mend them"),
    ],
)
def test_bad_files(tmp_path, tokenizer, train, expected):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / "a", train=train), tokenizer)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_few_wrong_answers_are_left_out(tmp_path, tokenizer):
    wrong = changed(lambda q, a: q["answers"][0].update(answer_start=1))
    found, _, notes = read(write(tmp_path / "a", train=wrong), tokenizer, max_mismatched=0.25)
    assert [q.name for q in found["train"].asked()] == ["a", "c", "d"]
    assert [split.questions[split.rows[0]].name for split in found.values()] == ["a"]
    assert notes[0].endswith("1 of 4 questions have an answer that the context has not at its answer_start: b; they are left out")
    assert metrics.score(perfect(found["train"]), found["train"]) == 1


def test_other_encodings(tmp_path, tokenizer):
    latin = json.dumps(TRAIN, ensure_ascii=False).encode("latin-1")
    folder = write(tmp_path / "a", train=latin)
    assert read(folder, tokenizer, encoding="latin-1")[0]["train"].contexts[0] == ANN
    assert read(folder, tokenizer, errors="replace")[0]["train"].contexts[0] == ANN.replace("Ü", "\ufffd")


def test_few(tmp_path, tokenizer):
    split = read(write(tmp_path / "a", train=TRAIN), tokenizer)[0]["train"]
    three = token_head.subset(split, [], 3, 1)
    assert token_head.subset(split, [], 2, 1).tolist() == three[:2].tolist()
    assert [q.name for q in split.subset(three).asked()] == [split.questions[i].name for i in three]


def test_questions_about_one_context_stay_together(tmp_path, tokenizer):
    """In splits that are made, and in folds, also where a file repeats a context; limits count questions."""
    texts = [f"Ann saw Rome in {year}." for year in range(1900, 1920)]
    paragraphs = [(text, [qa(f"{text}{i}{j}", "Where?", text, "Rome") for j in range(3)]) for text in texts for i in range(2)]
    sets = read(write(tmp_path / "a", train=squad(*paragraphs)), tokenizer)[0]
    usual = {"name": "x", "test_fraction": 0.2, "val_fraction": 0.25, "split_seed": 0, "limit": None, "test_limit": None}

    def divided(**changes):
        splits = divide(sets, SimpleNamespace(**usual | {"folds": None, "fold": 0} | changes), "texts", [])[:3]
        contexts = [{split.contexts[q.context] for q in split.asked()} for split in splits]
        assert len(set.union(*contexts)) == sum(map(len, contexts))
        return splits, contexts

    splits, contexts = divided()
    assert [len(x) for x in splits] == [72, 24, 24]
    assert [len(x) for x in contexts] == [12, 4, 4]
    tested = [divided(folds=5, fold=i)[1][2] for i in range(5)]
    assert [len(x) for x in tested] == [4] * 5
    assert set.union(*tested) == set(texts)
    assert [len(x) for x in divided(test_limit=7)[0]] == [72, 24, 7]
    few = read(write(tmp_path / "b", train=TRAIN), tokenizer)[0]
    for changes, message in (
        ({}, "dataset=x: 4 texts in 2 parts that stay whole are too few to be split"),
        ({"folds": 3}, "dataset.folds=3: the training split has 2 parts that stay whole; expected at most as many folds"),
    ):
        with pytest.raises(UserError, match=message):
            divide(few, SimpleNamespace(**usual | {"folds": None, "fold": 0} | changes), "texts", [])


def test_config():
    options = specs.section("downstream", "question_answering", "text")
    assert specs.spec("downstream", "question_answering").needs == {"text"}
    assert set(options.model_fields) == {
        "name",
        "labels_per_class",
        "root",
        "stride",
        "answer_length",
        "n_best",
        "scoring",
        "max_mismatched",
        *READING,
    }
