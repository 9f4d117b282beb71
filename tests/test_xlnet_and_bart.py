"""XLNet with permutation language modelling and BART with denoising: against transformers, and what they must not see."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import BartForConditionalGeneration, XLNetLMHeadModel

from ptmrun import rng
from ptmrun.batch import TextSpec, Tokens, Vocabulary
from ptmrun.config import specs
from ptmrun.errors import UserError
from ptmrun.models import bert, local_attention_init, transformer, xlnet
from ptmrun.objectives import denoising, plm

PAD, UNKNOWN, MASK, START, END, STOP, SIZE, LENGTH = 0, 1, 2, 3, 4, 5, 60, 48
FAMILIES = {"xlnet": (xlnet, plm), "transformer": (transformer, denoising)}
TASKS = {"xlnet": {"span": 5, "context": 6}, "transformer": {"infill": 0.3, "span": 3.0, "shuffle": True}}


def vocabulary(size=SIZE):
    numbers = torch.arange(size)
    return Vocabulary(size, PAD, UNKNOWN, MASK, START, END, numbers < STOP, (numbers >= 50) & (numbers < 60), numbers == STOP)


FIRST = {"dropout": 0.1, "pool": "mean", "initial": "library", "shape": None}


def encoder(family, length=LENGTH, size="tiny", **changes):
    """Weights are larger than at the start, so that mistakes show."""
    module, _ = FAMILIES[family]
    torch.manual_seed(0)
    made = module.build(SimpleNamespace(**FIRST | {"size": size} | changes), TextSpec(vocabulary(), length), "sdpa")
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def objective(family, made=None, **changes):
    return FAMILIES[family][1].Objective(made or encoder(family), SimpleNamespace(**TASKS[family] | changes)).eval()


def tokens(lengths=(48, 40, 33, 48), width=None, seed=0):
    """START, text with stops, END inside and at the end; a pair in the first row."""
    drawn = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    ids, mask = torch.full((len(lengths), width), PAD), torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(STOP, SIZE, (n,), generator=drawn)
        ids[row, 5 : n - 1 : 9] = STOP
        ids[row, [0, n // 2, n - 1]] = torch.tensor([START, END, END])
        mask[row, :n] = True
    types = torch.zeros_like(ids)
    types[0, lengths[0] // 2 + 1 : lengths[0]] = 1
    return Tokens(ids, mask, types)


def batch(inputs=None, start=0, stop=None, step=0):
    inputs = tokens() if inputs is None else inputs
    stop = len(inputs.ids) if stop is None else stop
    return {"inputs": inputs.map(lambda x: x[start:stop]), "rows": rng.BatchRandom(7, step, start, stop, len(inputs.ids))}


def longer(inputs, by):
    """The same with more padding, which says something else and must not matter."""
    return Tokens(F.pad(inputs.ids, (0, by), value=PAD), F.pad(inputs.mask, (0, by)), F.pad(inputs.types, (0, by), value=1))


def one_hot(places, length):
    return F.one_hot(places, length).float()


def gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def measured(objective, batches):
    """(loss, gradients) of the sums of micro-batches, divided by the number of all their items."""
    objective.zero_grad()
    losses = [objective(b)[0] for b in batches]
    n = sum(float(loss.n) for loss in losses)
    total = sum(loss.total for loss in losses) / n
    total.backward()
    return float(total.detach()), gradients(objective)


# --- sizes


@pytest.mark.parametrize(
    ("module", "size", "length", "count"),
    [(xlnet, 32000, 512, 116_718_336 + 32000), (transformer, 50265, 1024, 139_420_416)],
    ids=["xlnet-base", "bart-base"],
)
def test_base_sizes_are_the_published_ones(module, size, length, count):
    """XLNet-base has 116.7 M parameters (transformers' XLNetModel) and the head's biases, BART-base 139.4 M."""
    with torch.device("meta"):
        made = module.build(SimpleNamespace(**FIRST | {"size": "base"}), TextSpec(vocabulary(size), length), "sdpa")
    assert sum(p.numel() for p in made.parameters()) == count
    assert made.kind == {"xlnet": "xlnet-base", "transformer": "transformer-base"}[module.__name__.split(".")[-1]]


def test_small_xlnet_is_as_wide_and_deep_as_small_bert():
    with torch.device("meta"):
        made = xlnet.build(SimpleNamespace(**FIRST | {"size": "small"}), TextSpec(vocabulary(), LENGTH), "sdpa")
    built = made.xlnet.config
    assert (made.width, made.depth, built.n_head, built.d_head, built.d_inner) == (512, 4, 8, 64, 2048)
    assert xlnet.SIZES["small"] == bert.SIZES["small"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_can_be_chosen(family):
    assert specs.spec("model", family).types["size"].split("|") == ["auto", *FAMILIES[family][0].SIZES]


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_is_the_smallest_and_depths_are_in_order(family):
    module = FAMILIES[family][0]
    changes, [note] = module.resolve(SimpleNamespace(size="auto", initial="library", shape=None), TextSpec(vocabulary(), LENGTH))
    assert changes == {"size": "tiny"}
    assert "width 128, 2" in note
    assert module.resolve(SimpleNamespace(size="mini", initial="library", shape=None), TextSpec(vocabulary(), LENGTH)) == ({}, [])
    made = encoder(family, size="mini")
    depths = {name: made.depth_of(name) for name, _ in made.named_parameters()}
    assert made.depth == {"xlnet": 4, "transformer": 6}[family]
    assert {k for k, v in depths.items() if v == 0} == {
        k for k in depths if any(word in k for word in ("word_embed", "mask_emb", ".embed_", "layernorm_embed", "shared"))
    }
    assert set(depths.values()) >= set(range(made.depth + 1))
    if family == "xlnet":
        assert depths["xlnet.transformer.layer.3.rel_attn.q"] == 4
        assert depths["xlnet.lm_loss.bias"] == 5
    else:
        assert depths["bart.model.encoder.layers.2.fc1.weight"] == 3
        assert depths["bart.model.decoder.layers.0.encoder_attn.q_proj.weight"] == 4
        assert depths["bart.model.decoder.layers.2.fc1.bias"] == 6


@torch.no_grad()
@pytest.mark.parametrize(("size", "heads"), [("tiny", 2), ("mini", 4)])
def test_heads_look_at_their_neighbours_at_first(size, heads):
    ids = torch.randint(STOP + 1, SIZE, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    made = {}
    for name, family in (("xlnet", xlnet), ("transformer", transformer)):
        torch.manual_seed(0)
        options = SimpleNamespace(**FIRST | {"size": size, "initial": "auto"})
        changes, notes = family.resolve(options, TextSpec(vocabulary(), LENGTH))
        assert changes == {"initial": "neighbours"}
        assert "look at nearby tokens" in notes[0]
        made[name] = family.build(SimpleNamespace(**vars(options) | changes), TextSpec(vocabulary(), LENGTH), "eager").eval()
        base = SimpleNamespace(**vars(options) | {"size": "base"})
        assert family.resolve(base, TextSpec(vocabulary(), LENGTH)) == ({"initial": "library"}, [])
    bart = made["transformer"].bart.model(ids, decoder_input_ids=ids, output_attentions=True)
    for blocks, offsets in (
        (made["xlnet"].xlnet.transformer(ids, output_attentions=True).attentions, local_attention_init.OFFSETS),
        (bart.encoder_attentions, local_attention_init.OFFSETS),
        (bart.decoder_attentions, local_attention_init.BEHIND),
        (bart.cross_attentions, local_attention_init.BEHIND),
    ):
        for i, block in enumerate(blocks):
            for head in range(heads):
                if (i, head) == (0, 0) and blocks is bart.cross_attentions:
                    continue  # which looks for what to copy
                there = {o: float(block[:, head].diagonal(o, 1, 2).mean()) for o in range(-6, 7)}
                assert max(there, key=there.get) == local_attention_init.offset(i, head, heads, offsets)
                assert max(there.values()) > 0.4


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_the_decoder_of_bart_copies_at_first(size):
    """Wherever the source stands: its first seven tokens are left out."""
    torch.manual_seed(0)
    made = transformer.build(
        SimpleNamespace(**FIRST | {"size": size, "initial": "neighbours"}), TextSpec(vocabulary(), LENGTH), "eager"
    ).eval()
    ids = STOP + 1 + torch.randperm(SIZE - STOP - 1)[None, :LENGTH]
    found = made.bart.model(ids[:, 7:], decoder_input_ids=ids, output_attentions=True).cross_attentions[0]
    assert float((found[0, 0, 7:-1].argmax(1) == torch.arange(1, LENGTH - 7)).float().mean()) > 0.7


def test_configs_say_what_fits():
    for family, task in (("xlnet", "plm"), ("transformer", "denoising")):
        model, wanted = specs.spec("model", family), specs.spec("task", task)
        assert model.module == f"ptmrun.models.{family}"
        assert wanted.module == f"ptmrun.objectives.{task}"
        assert model.needs == {"text"}
        assert set(wanted.requires) < set(model.provides)


# --- XLNet against transformers


def library_inputs(inputs):
    return {"input_ids": inputs.ids, "attention_mask": inputs.mask.float(), "token_type_ids": inputs.types}


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_plm_loss_is_transformers(size):
    """The same loss and gradients from XLNetLMHeadModel with the same masks; unused targets have label -100 there."""
    ours = objective("xlnet", encoder("xlnet", size=size))
    data = batch()
    inputs = data["inputs"]
    loss, gradient = measured(ours, [data])
    perm_mask, places, used = ours.choose(inputs, data["rows"])
    assert not used.all()
    ours.zero_grad()
    theirs = ours.encoder.xlnet(
        **library_inputs(inputs),
        perm_mask=perm_mask.float(),
        target_mapping=one_hot(places, inputs.ids.shape[1]),
        labels=inputs.ids.gather(1, places).masked_fill(~used, -100),
        use_mems=False,
    )
    theirs.loss.backward()
    assert loss == pytest.approx(float(theirs.loss.detach()), abs=1e-5)
    for name, value in gradients(ours).items():
        if name in gradient:
            torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert float(value.abs().max()) < 1e-6
    found = ours(data)[1]["accuracy"]
    right = theirs.logits.argmax(-1)[used] == inputs.ids.gather(1, places)[used]
    assert (int(found.total), found.n) == (int(right.sum()), int(used.sum()))


def test_xlnet_hidden_is_transformers():
    made = encoder("xlnet", size="mini")
    inputs = tokens()
    with torch.no_grad():
        theirs = made.xlnet.transformer(**library_inputs(inputs), use_mems=False).last_hidden_state
        hidden = made.hidden(inputs)
        torch.testing.assert_close(hidden[inputs.mask], theirs[inputs.mask], rtol=1e-5, atol=1e-5)
        logits = made.xlnet(**library_inputs(inputs), use_mems=False).logits
        torch.testing.assert_close(made.logits(hidden[inputs.mask]), logits[inputs.mask], rtol=1e-5, atol=1e-5)
        means = torch.stack([x[m].mean(0) for x, m in zip(theirs, inputs.mask, strict=True)])
        torch.testing.assert_close(made.features(inputs), means, rtol=1e-5, atol=1e-5)
        made.pool = "last"
        torch.testing.assert_close(made.features(inputs), theirs[[0, 1, 2, 3], [47, 39, 32, 47]], rtol=1e-5, atol=1e-5)


# --- what may be seen in permutation language modelling


def test_targets_see_only_what_comes_before_them():
    """A target's logits hang on the text and on targets before it, neither on itself nor on those after it."""
    ours = objective("xlnet", encoder("xlnet", size="mini"))
    data = batch(tokens((48,)))
    inputs = data["inputs"]
    perm_mask, places, used = ours.choose(inputs, data["rows"])
    assert used.all()
    mapping = one_hot(places, 48)

    def hidden(ids):
        with torch.no_grad():
            return ours.encoder.permuted(inputs._replace(ids=ids), perm_mask, mapping)[0]

    before = hidden(inputs.ids)
    seen_by = (~perm_mask[0][places[0]][:, places[0]]).sum(1)  # how many targets each one sees: 0 ... P - 1 is an order
    assert seen_by.sort().values.tolist() == list(range(8))
    for i, place in enumerate(places[0].tolist()):
        changed = inputs.ids.clone()
        changed[0, place] = 6 + (changed[0, place] - 5) % 40
        after = hidden(changed)
        for j in range(8):
            if seen_by[j] > seen_by[i]:
                assert float((after[j] - before[j]).abs().max()) > 1e-4
            else:
                assert torch.equal(after[j], before[j])
    for place in sorted(set(range(48)) - set(places[0].tolist())):  # all else, special tokens too, is seen by everyone
        changed = inputs.ids.clone()
        changed[0, place] = 6 + (changed[0, place] - 5) % 40
        assert ((hidden(changed) - before).abs().amax(1) > 1e-5).all()


def test_targets_are_a_sixth_of_the_text_in_spans():
    """Exactly a sixth, every token as likely, in spans of 1 to 5; never a special token; in every order."""
    ours = objective("xlnet", encoder("xlnet", length=128))
    count = 2000
    ids = torch.randint(STOP, SIZE, (count, 122), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = START
    ids[:, 121] = END
    inputs = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    perm_mask, places, used = ours.choose(inputs, rng.BatchRandom(0, 0, 0, count, count))
    assert used.shape == (count, 20)
    assert used.all()
    target = one_hot(places, 122).sum(1).bool()
    assert (target.sum(1) == 20).all()  # of 120
    assert not target[:, [0, 121]].any()
    shares = target[:, 1:121].float().mean(0)
    assert float((shares - 1 / 6).abs().max()) < 4.5 * math.sqrt(1 / 6 * 5 / 6 / count)
    runs = [len(run) for row in target[:, 1:121].tolist() for run in "".join(" #"[x] for x in row).split()]
    assert 1.9 < sum(runs) / len(runs) < 3.1  # lengths 1 to 5 as likely; one cut and one wrapped span a text
    alike = [runs.count(n) / len(runs) for n in range(1, 6)]
    assert min(alike) > 0.15
    assert sum(alike) > 0.97  # two spans side by side are rare
    turned = torch.cat([target[:, 1:121], target[:, 1:121]], 1).tolist()
    gaps = [max(len(run) for run in "".join("# "[x] for x in row).split()) for row in turned]
    assert sum(gaps) / len(gaps) < 36  # all over the text: contexts have 6 to 30 tokens
    first = perm_mask.gather(1, places[..., None].expand(-1, -1, 122)).gather(2, places[:, None].expand(-1, 20, -1)).sum(2)
    assert float((first.float().mean(0) - 10.5).abs().max()) < 4.5 * math.sqrt(33.25 / count)  # 1 ... 20 not seen, itself too
    assert not perm_mask.masked_select(~target[:, None]).any()  # text and special tokens are hidden from nobody
    assert (perm_mask | ~target[:, None])[~target].all()  # and see no target
    empty = ours.choose(tokens((3, 4)), rng.BatchRandom(0, 0, 0, 2, 2))[2]
    assert empty.tolist() == [[False], [True]]
    alone = Tokens(torch.tensor([[7]]), torch.tensor([[True]]), torch.tensor([[0]]))
    assert not ours.choose(alone, rng.BatchRandom(0, 0, 0, 1, 1))[2].any()  # nothing is left to tell it from


# --- BART against transformers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_denoising_loss_is_transformers(attention):
    module = encoder("transformer", size="mini")
    module.bart.set_attn_implementation(attention)
    ours = objective("transformer", module)
    data = batch()
    target = data["inputs"]
    loss, gradient = measured(ours, [data])
    source = ours.corrupted(target, data["rows"])
    ours.zero_grad()
    theirs = module.bart(source.ids, attention_mask=source.mask.long(), labels=target.ids.masked_fill(~target.mask, -100))
    theirs.loss.backward()
    assert loss == pytest.approx(float(theirs.loss.detach()), abs=1e-5)
    assert gradient.keys() == gradients(ours).keys()
    for name, value in gradients(ours).items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-4, atol=1e-6, msg=name)
    found = ours(data)[1]["accuracy"]
    right = (theirs.logits.argmax(-1) == target.ids)[target.mask]
    assert (int(found.total), found.n) == (int(right.sum()), int(target.mask.sum()))


def test_bart_hidden_is_its_encoder():
    made = encoder("transformer")
    inputs = tokens()
    with torch.no_grad():
        theirs = made.bart.model.encoder(inputs.ids, attention_mask=inputs.mask.long()).last_hidden_state
        torch.testing.assert_close(made.hidden(inputs)[inputs.mask], theirs[inputs.mask])
        means = torch.stack([x[m].mean(0) for x, m in zip(theirs, inputs.mask, strict=True)])
        torch.testing.assert_close(made.features(inputs), means, rtol=1e-5, atol=1e-5)


def test_translation_is_beam_search_and_deterministic():
    """One token after the other by the model's own logits; many beams find the best answer; padding does not matter."""
    made = encoder("transformer")
    source = tokens((20, 30, 9))
    found = made.translate(source, beams=1, length=12)
    assert found.shape[1] <= 12
    assert torch.equal(found, made.translate(source, beams=1, length=12))
    beams = made.translate(source, beams=4, length=12)
    assert torch.equal(beams, made.translate(longer(source, 7), beams=4, length=12))
    with torch.no_grad():
        target = Tokens(found, torch.ones_like(found, dtype=torch.bool), torch.zeros_like(found))
        likeliest = made.logits(made.decoded(source, target)).argmax(-1)
    for row, answer in zip(found.tolist(), likeliest.tolist(), strict=True):
        n = row.index(END) if END in row else 12
        assert row[: min(n, 11)] == answer[: min(n, 11)]  # the last of 12 has to be the end
    wide = made.translate(source, beams=30, length=2)  # two tokens, the second of them the end: the likeliest first one
    assert wide[:, 0].tolist() == [row[0] for row in found.tolist()]


# --- what denoising makes of a text


def test_infilling_replaces_a_share_in_spans():
    """Exactly 30 % of the text, in Poisson(3) spans, each one mask token; what is kept stays in order."""
    count, words = 300, 1000
    ours = objective("transformer", encoder("transformer", length=words + 3), shuffle=False)
    ids = torch.arange(STOP + 1, STOP + 1 + words).expand(count, -1) % (SIZE - 6) + 6
    middle = torch.full((count, 1), END)
    ids = torch.cat([middle * 0 + START, ids[:, :500], middle, ids[:, 500:], middle], 1)
    inputs = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    rows = rng.BatchRandom(3, 0, 0, count, count)
    source = ours.corrupted(inputs, rows)
    spans = source.ids == MASK
    kept = source.mask & ~spans
    assert (kept.sum(1) == 3 + 700).all()
    assert (source.ids[~source.mask] == PAD).all()
    starts, lengths = ours.spans(torch.full((count, 1), words), rows)
    there = starts <= words
    assert (there.sum(1) == spans.sum(1)).all()
    assert (lengths.sum(1) == 300).all()
    for row in range(count):
        text, s, n = ids[row].tolist(), starts[row][there[row]].tolist(), lengths[row][there[row]].tolist()
        assert all(a + m <= b for a, m, b in zip(s, n, [*s[1:], words], strict=True))  # in order, and none over another
        hidden = {p for a, m in zip(s, n, strict=True) for p in range(a, a + m)}
        expected = [START]
        for place in range(words):
            expected += [END] * (place == 500) + [MASK] * s.count(place)
            expected += [text[place + 1 + (place >= 500)]] * (place not in hidden)
        assert source.ids[row][source.mask[row]].tolist() == [*expected, *[MASK] * s.count(words), END]
    drawn = lengths[there].float()
    deviation = math.sqrt(3 / len(drawn))
    assert float(drawn.mean()) == pytest.approx(3, abs=4 * deviation + 0.02)  # the last of a text's 100 is cut
    for n in range(7):
        assert float((drawn == n).float().mean()) == pytest.approx(math.exp(-3) * 3**n / math.factorial(n), abs=0.01)
    covered = torch.zeros(count, words + 1)
    covered.scatter_add_(1, starts.clamp(max=words), (lengths > 0).float())
    first, last = covered[:, :100].mean(), covered[:, 800:900].mean()
    assert float(first / last) == pytest.approx(1, abs=0.05)  # anywhere


def test_empty_spans_are_inserted_where_they_stand():
    ours = objective("transformer", shuffle=False)
    ours.spans = lambda count, rows: (torch.tensor([[0, 2, 6]]), torch.tensor([[0, 3, 0]]))
    ids = torch.tensor([[START, 6, 7, 8, 9, 10, 11, END]])
    source = ours.infilled(Tokens(ids, ids != PAD, torch.zeros_like(ids)), rng.BatchRandom(0, 0, 0, 1, 1))
    assert source.ids.tolist() == [[START, MASK, 6, 7, MASK, 11, MASK, END]]


def test_texts_never_grow_and_short_ones_may_stay():
    ours = objective("transformer", encoder("transformer"), shuffle=False)
    inputs = tokens((4, 5, 6, 8, 12, 20) * 50)
    for step in range(5):
        source = ours.corrupted(inputs, rng.BatchRandom(0, step, 0, 300, 300))
        assert (source.mask.sum(1) <= inputs.mask.sum(1)).all()
        for special in (START, END):
            assert ((source.ids == special).sum(1) == (inputs.ids == special).sum(1)).all()
    assert torch.equal(source.ids[::6], inputs.ids[::6])  # one word: a third of it rounds to none
    assert (source.ids == MASK).any(1)[1::6].all()


def test_shuffled_sentences_keep_their_tokens():
    ours = objective("transformer", encoder("transformer"))
    a, b, c, d = [10, 11, STOP], [12, STOP, 50, 13, STOP, STOP], [14, STOP], [15, 16]  # 50 goes on with the word before it
    text = [START, *a, *b, *c, END, *d, END]
    ids = torch.tensor([text + [PAD] * 3] * 600)
    inputs = Tokens(ids, ids != PAD, torch.zeros_like(ids))
    found = [row[:-3] for row in ours.shuffled(inputs, rng.BatchRandom(0, 0, 0, 600, 600)).ids.tolist()]
    orders = [[START, *x, *y, *z, END, *d, END] for x, y, z in ((a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a))]
    counts = [found.count(order) for order in orders]
    assert sum(counts) == 600
    assert min(counts) > 60
    for shuffle, expected in ((True, found), (False, ids[:, :-3].tolist())):  # 3 % of 13 tokens round to no span
        plain = objective("transformer", shuffle=shuffle, infill=0.03)
        assert plain.corrupted(inputs, rng.BatchRandom(0, 0, 0, 600, 600)).ids[:, :-3].tolist() == expected


# --- both


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_add_up(family):
    """16 rows at once or 4 times 4: the same loss and gradients, also when each part is padded to its own longest."""
    ours = objective(family)
    inputs = tokens((48, 12, 30, 7) * 2 + (9, 9, 14, 20) + (48, 33, 5, 26))
    whole, gradient = measured(ours, [batch(inputs)])
    parts = [batch(inputs, i, i + 4) for i in range(0, 16, 4)]
    for cut in (False, True):
        if cut:
            widths = [int(p["inputs"].mask.sum(1).max()) for p in parts]
            parts = [p | {"inputs": p["inputs"].map(lambda x, n=n: x[:, :n])} for p, n in zip(parts, widths, strict=True)]
            assert widths == [48, 48, 20, 48]
        loss, pieces = measured(ours, parts)
        assert loss == pytest.approx(whole, rel=1e-6)
        most = max(float(value.norm()) for value in gradient.values())
        for name, value in gradient.items():  # some are 0 but for rounding: the softmax does not see a bias of the keys
            assert float((pieces[name] - value).norm()) <= 1e-6 * max(float(value.norm()), 1e-3 * most), name


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    ours = objective(family, encoder(family))
    inputs = tokens((40, 31, 40))
    padded = longer(inputs, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder.features(padded), ours.encoder.features(inputs), rtol=1e-5, atol=1e-5)
        hidden = [ours.encoder.hidden(x)[:, :40][inputs.mask] for x in (inputs, padded)]
        torch.testing.assert_close(*hidden, rtol=1e-5, atol=1e-5)
        (loss, shown), (same, also) = ours(batch(inputs)), ours(batch(padded))
    assert float(same.total / same.n) == pytest.approx(float(loss.total / loss.n), abs=1e-5)
    assert (same.n, int(also["accuracy"].total)) == (loss.n, int(shown["accuracy"].total))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_numbers_are_those_of_the_step(family):
    ours = objective(family)
    with torch.no_grad():
        first, again, later = (float(ours(batch(step=s))[0].total) for s in (0, 0, 1))
    assert first == again != later


@pytest.mark.parametrize("family", FAMILIES)
def test_first_loss_is_that_of_equal_probabilities(family):
    torch.manual_seed(0)
    module = FAMILIES[family][0]
    made = module.build(SimpleNamespace(**FIRST | {"size": "tiny"}), TextSpec(vocabulary(), LENGTH), "sdpa")
    ours = objective(family, made)
    with torch.no_grad():
        loss, _ = ours(batch())
    assert ours.initial_loss(batch()) == pytest.approx(math.log(SIZE))
    assert float(loss.total / loss.n) == pytest.approx(math.log(SIZE), rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_to_copy_what_it_can_see(family):
    """Texts of one repeated token: both can know every target."""
    torch.manual_seed(0)
    module = FAMILIES[family][0]
    made = module.build(SimpleNamespace(**FIRST | {"size": "tiny", "dropout": 0.0}), TextSpec(vocabulary(), 24), "sdpa")
    ours = objective(family, made).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    for step in range(60):
        words = torch.randint(6, 16, (32, 1), generator=torch.Generator().manual_seed(step)).expand(-1, 22)
        ids = torch.cat([torch.full((32, 1), START), words, torch.full((32, 1), END)], 1)
        inputs = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
        loss, shown = ours({"inputs": inputs, "rows": rng.BatchRandom(0, step, 0, 32, 32)})
        optimizer.zero_grad()
        (loss.total / loss.n).backward()
        optimizer.step()
    assert float(shown["accuracy"].total) / shown["accuracy"].n > 0.95


class Saved:
    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folders_load_in_transformers(family, tmp_path):
    made, inputs = encoder(family), tokens()
    made.save(tmp_path / "encoder", Saved())
    found = {p.name for p in (tmp_path / "encoder").iterdir()}
    assert found == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    kind = {"xlnet": XLNetLMHeadModel, "transformer": BartForConditionalGeneration}[family]
    theirs, info = kind.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    with torch.no_grad():
        if family == "xlnet":
            expected = made.logits(made.hidden(inputs)[inputs.mask])
            found = theirs.eval()(**library_inputs(inputs)).logits[inputs.mask]
        else:
            expected = made.logits(made.decoded(inputs, inputs)[inputs.mask])
            labels = inputs.ids.masked_fill(~inputs.mask, -100)
            found = theirs.eval()(inputs.ids, attention_mask=inputs.mask.long(), labels=labels).logits[inputs.mask]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    module = FAMILIES[family][0]
    other = module.build(SimpleNamespace(**FIRST | {"size": "tiny"}), TextSpec(vocabulary(), LENGTH), "sdpa").eval()
    other.load(tmp_path / "encoder")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in made.state_dict().items())
    made.save(tmp_path / "encoder", None)
    assert not (tmp_path / "encoder" / "tokenizer.json").exists()
    bigger = module.build(SimpleNamespace(**FIRST | {"size": "mini"}), TextSpec(vocabulary(), LENGTH), "sdpa")
    with pytest.raises(UserError, match="does not fit the model"):
        bigger.load(tmp_path / "encoder")


def test_bart_takes_weights_for_longer_texts(tmp_path):
    long, short = encoder("transformer", length=64), encoder("transformer", length=LENGTH)
    long.save(tmp_path / "encoder", None)
    short.load(tmp_path / "encoder")
    with torch.no_grad():
        torch.testing.assert_close(short.features(tokens()), long.features(tokens()))
    notes = short.adjusted(long.bart.state_dict())[1]
    assert notes == ["positions (encoder): the first 48 of 64", "positions (decoder): the first 48 of 64"]
    with pytest.raises(UserError, match=r"model.length=64: the weights are for 48 tokens; choose at most that"):
        long.adjusted(short.bart.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_trim_leaves_features_as_they_are(family):
    made, inputs = encoder(family), tokens()
    with torch.no_grad():
        before = made.features(inputs)
        size = sum(p.numel() for p in made.parameters())
        made.trim()
        assert torch.equal(made.features(inputs), before)
    left = [name for name, _ in made.named_parameters()]
    assert not any("decoder" in name or "lm_" in name for name in left)
    assert sum(p.numel() for p in made.parameters()) < size
    assert {made.depth_of(name) for name in left} == {0, 1, 2}
    assert made.depth == 2
