"""Packed documents that do not see one another: the loss of each is its own, whatever it is packed with."""

from types import SimpleNamespace

import pytest
import test_text_models
import test_xlnet_and_bart
import torch
from texts import FRAMINGS, part, story

from ptmrun import rng
from ptmrun.batch import Tokens
from ptmrun.data.text import corpus, tokenizer_training
from ptmrun.models import attention_mask
from ptmrun.objectives import clm, denoising, mlm, plm

LENGTH, SPLIT = 48, 21  # the first document and its mark
OBJECTIVES = {
    "bert": (mlm, {"ratio": 0.3, "replaced": 0.1, "kept": 0.1, "whole_word": False, "spans": False}),
    "gpt": (clm, {}),
    "lstm": (clm, {}),
    "elmo": (clm, {}),
    "xlnet": (plm, {"span": 5, "context": 3}),
    "transformer": (denoising, {"infill": 0.3, "span": 3.0, "shuffle": True}),
}
KINDS = list(OBJECTIVES)


def encoder(kind, attention="sdpa"):
    if kind in test_xlnet_and_bart.FAMILIES:
        made = test_xlnet_and_bart.encoder(kind, length=LENGTH, dropout=0.0)
    else:
        made = test_text_models.encoder(kind, length=LENGTH)
    if kind in ("bert", "gpt", "transformer"):
        made.net.set_attn_implementation(attention)
    return made


def packed(made, first, second, apart=True):
    """Two documents of drawn tokens, where sentences end at the same places: the frame's tokens, or text and mark alone."""
    known = made.vocabulary
    ids = torch.empty(2, LENGTH, dtype=torch.long)
    for place, seed in ((slice(0, SPLIT), first), (slice(SPLIT, LENGTH), second)):
        drawn = torch.randint(6, 40, ids.shape, generator=torch.Generator().manual_seed(seed))
        ids[:, place] = drawn[:, place]
    ids[:, 4::9] = 5
    ids[:, [SPLIT - 1, LENGTH - 1]] = known.end
    there = torch.ones_like(ids, dtype=torch.bool)
    documents = (torch.arange(LENGTH) >= SPLIT).long().expand_as(ids) if apart else None
    return Tokens(ids, there, torch.zeros_like(ids), documents)


def loss(made, kind, tokens):
    module, options = OBJECTIVES[kind]
    objective = module.Objective(made, SimpleNamespace(**options)).eval()
    return objective({"inputs": tokens, "rows": rng.BatchRandom(3, 0, 0, 2, 2)})[0].total


@pytest.mark.parametrize("kind", list(FRAMINGS))
@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("length", [12, 40, 400])
def test_blocks_number_their_documents(kind, framed, length):
    """Each mark ends one, also where the last block goes on at the beginning, or all of a short corpus is repeated; what frames
    a block is of its first and last one. Unknown tokens, which some tokenizers call by the mark's name, end none."""
    texts = [*story(3, 2), "The harbour 日本 opened."]
    known = tokenizer_training.train(kind, 300, FRAMINGS[kind], part(story(30, 20)))
    blocks = corpus.tokenised(part(texts), known).blocks(length, framed, apart=True)
    tokens = blocks.batch(torch.arange(len(blocks)))
    size = [len(x) + 1 for x in known.encode(texts)]
    stream = torch.cat([torch.full((n,), i) for i, n in enumerate(size * 100)])
    before = [isinstance(token, int) for token, _ in known.single.parts].index(False) if framed else 0
    for row, found in enumerate(tokens.documents):
        wanted = stream[row * blocks.room : (row + 1) * blocks.room]
        wanted = wanted - wanted[0]
        ends = [wanted[:1]] * before, [wanted[-1:]] * (length - blocks.room - before)
        assert torch.equal(found, torch.cat([*ends[0], wanted, *ends[1]]))
    assert corpus.tokenised(part(texts), known).blocks(length, framed).batch(torch.arange(1)).documents is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_a_sum_over_documents(kind, attention):
    """L(A, B) + L(A', B') = L(A, B') + L(A', B) where each document is read alone, and not where attention crosses the mark."""
    made = encoder(kind, attention)
    gaps = {}
    with torch.no_grad():
        for apart in (True, False):
            a, b, c, d = (
                loss(made, kind, packed(made, first, second, apart)).double()
                for first, second in ((1, 2), (3, 4), (1, 4), (3, 2))
            )
            assert abs(a - c) > 1  # the second document matters
            gaps[apart] = abs(float(a + b - c - d)) / float(a)
    assert gaps[True] < 1e-6
    assert gaps[False] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_first_document_is_read_as_if_it_were_alone(kind):
    made = encoder(kind)
    tokens = packed(made, 1, 2)
    end = SPLIT - 1 if kind in ("gpt", "lstm", "elmo") else SPLIT  # to causal models the mark begins the next one
    alone = tokens.map(lambda x: x[:, :end])._replace(documents=None)
    with torch.no_grad():
        found, expected = made.hidden(tokens)[:, :end], made.hidden(alone)
        if kind == "elmo":  # from the right it begins with its own mark
            whole = made.hidden(tokens.map(lambda x: x[:, :SPLIT])._replace(documents=None))[:, :end]
            expected = torch.cat([expected[..., :128], whole[..., 128:]], -1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "xlnet"])
def test_where_a_document_stands_changes_nothing(kind):
    """Of models without positions that are learned."""
    made = encoder(kind)
    tokens = packed(made, 1, 2)
    begin = SPLIT - (kind == "lstm")
    alone = tokens.map(lambda x: x[:, begin:])._replace(documents=None)
    with torch.no_grad():
        torch.testing.assert_close(made.hidden(tokens)[:, begin:], made.hidden(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt", "xlnet", "transformer"])
def test_attention_stays_within_documents(kind):
    made = encoder(kind)
    with torch.no_grad():
        found = made.attention(packed(made, 1, 2))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, LENGTH))
    cut = SPLIT - (kind == "gpt")
    assert not found[:, :cut, cut:].any()
    assert not found[:, cut:, :cut].any()
    if kind == "gpt":
        assert not found.triu(1).any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_in_bfloat16_and_with_padding(kind, attention):
    made = encoder(kind, attention).train()
    tokens = packed(made, 1, 2)
    tokens = Tokens(tokens.ids, tokens.mask & (torch.arange(LENGTH) < LENGTH - 4), tokens.types, tokens.documents)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(made, kind, tokens)
    found.backward()
    grads = [p.grad for p in made.parameters() if p.grad is not None]
    assert found.isfinite()
    assert grads
    assert all(g.isfinite().all() for g in grads)


def test_a_query_always_sees_itself():
    mask = torch.tensor([[True, True, False]])
    seen = attention_mask.visible(Tokens(mask.long(), mask, mask.long(), torch.tensor([[0, 1, 1]])))
    assert seen.tolist() == [[[True, False, False], [False, True, False], [False, True, True]]]


def test_a_document_that_lacks_tokens_has_a_mask_for_them():
    """A span ends with its document, which has no other trace of what is missing; without documents it may go on."""
    made = encoder("transformer")
    known, noise = made.vocabulary, torch.Generator().manual_seed(0)
    ids = torch.randint(6, 40, (400, LENGTH), generator=noise)
    ids[:, 5::6] = known.end
    objective = denoising.Objective(made, SimpleNamespace(infill=0.3, span=3.0, shuffle=True))
    lost = {}
    for apart in (True, False):
        documents = (torch.arange(LENGTH) // 6).expand_as(ids) if apart else None
        tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids), documents)
        found = objective.corrupted(tokens, rng.BatchRandom(3, 0, 0, 400, 400))
        lost[apart] = 0
        for row in range(400):
            source = found.ids[row][found.mask[row]].tolist()
            parts = "".join(chr(x) for x in source).split(chr(known.end))[:-1]
            if apart:
                numbers = found.documents[row][found.mask[row]].tolist()
                assert numbers == [source[:i].count(known.end) for i in range(len(source))]
            lost[apart] += sum(len(part.replace(chr(known.mask), "")) < 5 and chr(known.mask) not in part for part in parts)
    assert lost[True] == 0
    assert lost[False] > 100
