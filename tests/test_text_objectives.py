"""Objectives on text: against transformers' own losses, masks by their statistics, and accumulation."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_text_models import LENGTH, SIZE, encoder, texts, vocabulary
from torch import nn

from ptmrun import rng
from ptmrun.batch import Tokens
from ptmrun.config import specs
from ptmrun.errors import UserError
from ptmrun.objectives import clm, masking, mlm, mlm_nsp
from ptmrun.training.loop import gradients

LENGTHS = (16, 9, 5, 16, 12, 3, 7, 16, 10, 4, 16, 11, 8, 6, 13, 15)


def options(**changes):
    return SimpleNamespace(**{"ratio": 0.15, "replaced": 0.1, "kept": 0.1, "whole_word": False, "spans": False} | changes)


def batch(lengths=LENGTHS, step=3):
    follows = torch.rand(len(lengths), generator=torch.Generator().manual_seed(7)) < 0.5
    return {"inputs": texts(lengths), "rows": rng.BatchRandom(0, step, 0, len(lengths), len(lengths)), "next": follows}


def pieces(data, parts):
    """The micro-batches of a batch, each padded no further than it must be."""
    total = len(data["next"])
    found = []
    for start in range(0, total, total // parts):
        stop = start + total // parts
        tokens = data["inputs"].map(lambda x, rows=slice(start, stop): x[rows])
        longest = int(tokens.mask.sum(1).max())
        tokens = tokens.map(lambda x, n=longest: x[:, :n])
        rows = rng.BatchRandom(data["rows"].seed, data["rows"].step, start, stop, total)
        found.append({"inputs": tokens, "rows": rows, "next": data["next"][start:stop]})
    return found


def packed(rows, width, seed=0, words=60):
    """Texts without padding but for the last quarter, [CLS] first, [SEP] in the middle and last; a third goes on with a word."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, words, (rows, width), generator=generator)
    ids[:, 0] = 2
    count = torch.where(torch.arange(rows) < rows * 3 // 4, width, 8 + torch.randint(0, width - 8, (rows,), generator=generator))
    place = torch.arange(width).expand(rows, -1)
    ids = torch.where((place == count[:, None] - 1) | (place == count[:, None] // 2), 3, ids)
    return Tokens(ids, place < count[:, None], torch.zeros_like(ids))


def masked(tokens, step=0, **changes):
    rows = rng.BatchRandom(5, step, 0, len(tokens.ids), len(tokens.ids))
    known = vocabulary()
    return known, masking.Masking(known, tokens.ids.shape[1], options(**changes))(tokens, rows)


KINDS = [{}, {"whole_word": True}, {"spans": True}, {"whole_word": True, "spans": True}]


@pytest.mark.parametrize("changes", KINDS, ids=lambda c: "+".join(c) or "tokens")
def test_masks_by_their_statistics(changes):
    """Over a million tokens: 15 % +- 0.1 are hidden; of these 80, 10, 10 % +- 0.5 masked, replaced, kept; special ones never."""
    text = hidden = 0
    kinds = np.zeros(3)
    for step in range(4):
        tokens = packed(2500, 120, seed=step)
        known, found = masked(tokens, step, **changes)
        maskable = tokens.mask & ~known.special[tokens.ids]
        assert not (found.hidden & ~maskable).any()
        assert torch.equal(found.tokens.ids[~found.hidden], tokens.ids[~found.hidden])
        before, after = tokens.ids[found.hidden], found.tokens.ids[found.hidden]
        assert not known.special[after[after != known.mask]].any()
        same = (after == before).double()
        # of 55 ordinary tokens a random one is by chance the token itself
        chance = 1 / 55
        replaced = ((after != before) & (after != known.mask)).sum() / (1 - chance)
        kinds += [float((after == known.mask).sum()), float(replaced), float(same.sum() - replaced * chance)]
        text, hidden = text + int(maskable.sum()), hidden + int(found.hidden.sum())
    assert text > 1_000_000
    assert hidden / text == pytest.approx(0.15, abs=0.001)
    assert kinds / hidden == pytest.approx([0.8, 0.1, 0.1], abs=0.005)


def test_every_place_is_hidden_about_equally_often():
    """Of spans only the first places of a text are hidden somewhat more often, because a cut span keeps its beginning."""
    for changes in KINDS:
        tokens = Tokens(torch.full((8000, 120), 10), torch.ones(8000, 120, dtype=torch.bool), torch.zeros(8000, 120).long())
        share = masked(tokens, **changes)[1].hidden.float().mean(0)
        assert share.mean().item() == pytest.approx(0.15, abs=0.001)
        assert share.min() > 0.13, changes
        assert share.max() < 0.17, changes


def test_random_tokens_are_drawn_evenly():
    tokens = packed(2500, 120)
    _, found = masked(tokens, ratio=0.9, replaced=1.0, kept=0.0)
    counts = found.tokens.ids[found.hidden].bincount(minlength=SIZE)
    assert counts[:5].sum() == 0
    assert counts[5:].min() > 0.9 * counts[5:].float().mean()
    assert counts[5:].max() < 1.1 * counts[5:].float().mean()


def test_number_of_hidden_tokens():
    """15 % of each text as near as whole numbers allow, on average exactly; at least one."""
    for length, least, most in ((100, 15, 15), (50, 7, 8), (20, 3, 3), (8, 1, 2), (3, 1, 1), (1, 1, 1)):
        ids = torch.full((4000, 100), 10)
        tokens = Tokens(ids, torch.arange(100).expand(4000, -1) < length, ids * 0)
        count = masked(tokens)[1].hidden.sum(1)
        assert (count.min(), count.max()) == (least, most)
        if length >= 7:
            assert count.float().mean().item() == pytest.approx(0.15 * length, abs=0.03)
    nothing = Tokens(torch.full((2, 4), 3), torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4).long())
    assert not masked(nothing)[1].hidden.any()


@pytest.mark.parametrize("spans", [False, True])
def test_whole_words_are_whole(spans):
    tokens = packed(500, 60)
    known, found = masked(tokens, whole_word=True, spans=spans)
    inside = known.continues[tokens.ids[:, 1:]] & (tokens.ids[:, :-1] >= 5) & tokens.mask[:, 1:]
    assert inside.sum() > 5000
    assert torch.equal(found.hidden[:, 1:][inside], found.hidden[:, :-1][inside])
    apart = masked(tokens)[1].hidden
    assert not torch.equal(apart[:, 1:][inside], apart[:, :-1][inside])


def test_spans_are_geometric():
    """Runs in long texts, hidden so rarely that they hardly touch: 1 to 10 long, P(l) ~ 0.8^l, mean 3.8; one choice for each."""
    ids = torch.arange(8000).expand(100, -1) % 55 + 5
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), ids * 0)
    known, found = masked(tokens, ratio=0.01, spans=True)
    edges = torch.nn.functional.pad(found.hidden, (1, 1)).int().diff(dim=1)
    begins, ends = edges.eq(1).nonzero()[:, 1], edges.eq(-1).nonzero()[:, 1]
    lengths = ends - begins
    counts = lengths.bincount(minlength=12).double()
    expected = 0.8 ** torch.arange(10)
    expected = expected / expected.sum()
    assert counts[11:].sum() < 0.03 * counts.sum()  # two that touch
    assert counts[1:11] / counts.sum() == pytest.approx(expected.double(), abs=0.03)
    assert lengths.double().mean().item() == pytest.approx(3.8, abs=0.25)
    kinds = [
        torch.where(after == known.mask, 0, torch.where(after == before, 2, 1))
        for after, before in zip(found.tokens.ids, tokens.ids, strict=True)
    ]
    mixed = [len(set(kinds[row][a:b].tolist()) - {2}) for row, a, b in runs(found.hidden)]
    assert sum(n > 1 for n in mixed) < 0.03 * len(mixed)


def runs(hidden):
    edges = torch.nn.functional.pad(hidden, (1, 1)).int().diff(dim=1)
    begins, ends = edges.eq(1).nonzero().tolist(), edges.eq(-1).nonzero().tolist()
    return [(row, a, b) for (row, a), (_, b) in zip(begins, ends, strict=True)]


def test_spans_end_at_special_tokens():
    """The texts of a pair choose apart: both sides of [SEP] are hidden together no more often than by chance."""
    ids = torch.full((20_000, 81), 10)
    ids[:, 40] = 3
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), ids * 0)
    hidden = masked(tokens, spans=True)[1].hidden
    both = (hidden[:, 39] & hidden[:, 41]).float().mean().item()
    inside = (hidden[:, 20] & hidden[:, 22]).float().mean().item()
    assert both == pytest.approx(0.15**2, abs=0.005)
    assert inside > 0.06


@pytest.mark.parametrize("changes", KINDS, ids=lambda c: "+".join(c) or "tokens")
def test_masks_are_functions_of_their_rows(changes):
    """The same for the same step, others for another; not changed by padding, by other rows, or by what padding holds."""
    data = batch()
    made = masking.Masking(vocabulary(), LENGTH, options(**changes))
    whole, again = made(data["inputs"], data["rows"]), made(data["inputs"], data["rows"])
    assert torch.equal(whole.hidden, again.hidden)
    assert torch.equal(whole.tokens.ids, again.tokens.ids)
    assert not torch.equal(whole.hidden, made(data["inputs"], batch(step=4)["rows"]).hidden)
    for parts in (4, 16):
        for i, micro in enumerate(pieces(data, parts)):
            found = made(micro["inputs"], micro["rows"])
            rows, width = slice(i * 16 // parts, (i + 1) * 16 // parts), micro["inputs"].ids.shape[1]
            assert torch.equal(found.hidden, whole.hidden[rows, :width])
            assert not whole.hidden[rows, width:].any()
            assert torch.equal(found.tokens.ids, whole.tokens.ids[rows, :width])


def test_shares_that_do_not_fit():
    with pytest.raises(UserError, match=r"^task.replaced=0.6 and task.kept=0.5: expected at most 1 together"):
        masking.Masking(vocabulary(), LENGTH, options(replaced=0.6, kept=0.5))


def labels(tokens, hidden):
    return torch.where(hidden, tokens.ids, -100)


def test_bert_losses_are_transformers():
    """The same masked inputs and labels in BertForPreTraining: masked tokens, next sentence, and the sum of both."""
    model, data = encoder("bert"), batch()
    ours = mlm_nsp.Objective(model, options())
    shown, hidden = ours.masking(data["inputs"], data["rows"])
    label = (~data["next"]).long()
    with torch.no_grad():
        theirs = model.net(
            shown.ids, shown.mask.long(), shown.types, labels=labels(data["inputs"], hidden), next_sentence_label=label
        )
        loss, found = ours(data)
        alone, _ = mlm.Objective(model, options())(data)
    assert loss.n == 16
    assert float(loss.total / loss.n) == pytest.approx(float(theirs.loss), rel=1e-5)
    logits, wanted = theirs.prediction_logits, labels(data["inputs"], hidden)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    assert found["loss_mlm"].n == alone.n == int(hidden.sum())
    assert float(found["loss_mlm"].total / found["loss_mlm"].n) == pytest.approx(float(expected), rel=1e-5)
    assert float(alone.total / alone.n) == pytest.approx(float(expected), rel=1e-5)
    expected = nn.functional.cross_entropy(theirs.seq_relationship_logits, label)
    assert float(found["loss_nsp"].total / found["loss_nsp"].n) == pytest.approx(float(expected), rel=1e-5)
    right = (logits.argmax(-1) == wanted)[hidden].float().mean()
    assert float(found["masked_accuracy"].total / found["masked_accuracy"].n) == pytest.approx(float(right))
    right = (theirs.seq_relationship_logits.argmax(-1) == label).float().mean()
    assert float(found["nsp_accuracy"].total / found["nsp_accuracy"].n) == pytest.approx(float(right))


def test_next_sentence_labels():
    """A head that says "follows" for every pair is right where the second text follows."""
    model, data = encoder("bert"), batch()
    with torch.no_grad():
        model.net.cls.seq_relationship.weight.zero_()
        model.net.cls.seq_relationship.bias.copy_(torch.tensor([5.0, -5.0]))
        _, found = mlm_nsp.Objective(model, options())(data)
    assert 0 < int(data["next"].sum()) < 16
    assert int(found["nsp_accuracy"].total) == int(data["next"].sum())


def test_gpt_loss_is_transformers():
    model, data = encoder("gpt"), batch()
    tokens = data["inputs"]
    with torch.no_grad():
        loss, found = clm.Objective(model, None)(data)
        theirs = model.net(tokens.ids, attention_mask=tokens.mask.long(), labels=torch.where(tokens.mask, tokens.ids, -100))
    assert loss.n == sum(n - 1 for n in LENGTHS)
    assert float(loss.total / loss.n) == pytest.approx(float(theirs.loss), rel=1e-5)
    assert set(found) == {"bits_per_token", "accuracy"}
    bits = found["bits_per_token"]
    assert float(bits.total / bits.n) == pytest.approx(float(theirs.loss) / math.log(2), rel=1e-5)
    right = (theirs.logits[:, :-1].argmax(-1) == tokens.ids[:, 1:])[tokens.mask[:, 1:]].float().mean()
    assert float(found["accuracy"].total / found["accuracy"].n) == pytest.approx(float(right))


def test_a_second_stack_counts_as_much():
    """With both stacks every token but the first, and every token but the last, is predicted."""
    one, two, data = encoder("lstm"), encoder("elmo"), batch()
    assert 2 * clm.Objective(one, None)(data)[0].n == clm.Objective(two, None)(data)[0].n


OBJECTIVES = [("bert", mlm), ("bert", mlm_nsp), ("gpt", clm), ("lstm", clm), ("elmo", clm)]
NAMES = [f"{kind}-{task.__name__.split('.')[-1]}" for kind, task in OBJECTIVES]


@pytest.mark.parametrize(("kind", "task"), OBJECTIVES, ids=NAMES)
def test_accumulation_changes_nothing(kind, task):
    """One batch of 16 and four of 4, padded apart: the same loss, metrics and gradient, in float64."""
    data, found = batch(sorted(LENGTHS)), []
    torch.set_default_dtype(torch.float64)
    try:
        for parts in (1, 4):
            objective = task.Objective(encoder(kind), options(ratio=0.5))
            sums = gradients(objective, objective, pieces(data, parts), lambda i: contextlib.nullcontext())
            gradient = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
            found.append(({name: total / n for name, (total, n) in sums.items()}, gradient))
    finally:
        torch.set_default_dtype(torch.float32)
    (whole, one), (parts, four) = found
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-6), name
    assert one.keys() == four.keys()
    for name, value in one.items():
        assert float((four[name] - value).norm()) <= 1e-6 * float(value.norm()) + 1e-12, name


@pytest.mark.parametrize(("kind", "task"), OBJECTIVES, ids=NAMES)
def test_gradients_reach_what_is_trained(kind, task):
    objective = task.Objective(encoder(kind), options())
    loss, _ = objective(batch())
    (loss.total / loss.n).backward()
    without = {name for name, p in objective.named_parameters() if p.grad is None}
    unused = ("pooler", "seq_relationship") if task is mlm else ()
    assert all(any(word in name for word in unused) for name in without)
    assert bool(without) == bool(unused)


@pytest.mark.parametrize(("kind", "task"), OBJECTIVES, ids=NAMES)
def test_initial_weights_say_nothing(kind, task):
    objective = task.Objective(encoder(kind, initial=True), options())
    with torch.no_grad():
        loss, _ = objective(batch())
    expected = math.log(SIZE) + (math.log(2) if task is mlm_nsp else 0)
    assert objective.initial_loss(batch()) == pytest.approx(expected)
    assert float(loss.total / loss.n) == pytest.approx(expected, rel=0.1)


def test_what_they_ask_for():
    assert mlm_nsp.Objective.pairs
    assert not mlm.Objective.pairs
    for task in (mlm, mlm_nsp):  # what masks need is not saved
        names = {f"encoder.{name}" for name in encoder("bert").state_dict()}
        assert task.Objective(encoder("bert"), options()).state_dict().keys() == names
    provides = {name: specs.spec("model", name).provides for name in ("bert", "gpt", "lstm")}
    requires = {name: specs.spec("task", name).requires for name in ("mlm", "mlm_nsp", "clm")}
    fits = {(model, task) for model in provides for task in requires if requires[task] <= provides[model]}
    assert fits == {("bert", "mlm"), ("bert", "mlm_nsp"), ("gpt", "clm"), ("lstm", "clm")}


@pytest.mark.parametrize(("kind", "task"), OBJECTIVES, ids=NAMES)
def test_they_learn(kind, task):
    """By heart, the same batch with the same masks: the loss falls to a third in a few steps."""
    objective, data, losses = task.Objective(encoder(kind, initial=True), options()), batch(LENGTHS[:4]), []
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2 if kind in ("lstm", "elmo") else 3e-3)
    for _ in range(40):
        loss, _ = objective(data)
        (loss.total / loss.n).backward()
        losses.append(float(loss.total.detach() / loss.n))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 3
