"""Models of text: against transformers' own, published sizes, padding, generation, and what is kept on disk."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from texts import part, story
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertForPreTraining, GPT2LMHeadModel

from ptmrun.batch import TextSpec, Tokens, Vocabulary
from ptmrun.config import specs
from ptmrun.data.text import tokenizer_training
from ptmrun.data.text.split import padded
from ptmrun.downstream.classification import Classifier
from ptmrun.errors import UserError
from ptmrun.models import bert, gpt, library_format, local_attention_init, lstm, pretrained, sampling
from ptmrun.reports import attribution
from ptmrun.storage import tensor_files

SIZE, LENGTH = 60, 16
FAMILIES = {"bert": bert, "gpt": gpt, "lstm": lstm}
KINDS = ["bert", "gpt", "lstm", "elmo"]


def vocabulary(size=SIZE):
    """Tokens 0 to 4 are special, the last third go on with a word, 5 ends a sentence."""
    place = torch.arange(size)
    return Vocabulary(size, 0, 1, 4, 2, 3, place < 5, place >= size * 2 // 3, place == 5)


def options(**changes):
    return SimpleNamespace(
        **{"size": "tiny", "pool": "mean", "dropout": 0.0, "bidirectional": False, "initial": "library", "shape": None} | changes
    )


def encoder(kind, seed=0, size=SIZE, length=LENGTH, attention="sdpa", initial=False, **changes):
    torch.manual_seed(seed)
    changes |= {"bidirectional": True} if kind == "elmo" else {}
    made = FAMILIES.get(kind, lstm).build(options(**changes), TextSpec(vocabulary(size), length), attention)
    for name, parameter in made.named_parameters():  # larger than at the start, so that mistakes show
        if not initial and (parameter.ndim > 1 or name.endswith(".bias")):
            nn.init.normal_(parameter, std=0.2)
    return made.eval()


def texts(lengths=(LENGTH, 9, 5), width=LENGTH, seed=1):
    """Random texts, [CLS] first and [SEP] last, the second half of each of type 1; padding holds any tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (len(lengths), LENGTH), generator=generator)
    ids = torch.cat([ids, torch.randint(0, SIZE, (len(lengths), width - LENGTH), generator=generator)], 1)
    place, count = torch.arange(width), torch.tensor(lengths)[:, None]
    ids[:, 0] = 2
    ids = torch.where(place == count - 1, 3, ids)
    return Tokens(ids, place < count, ((place >= count // 2) & (place < count)).long())


def published(family, size, length, words):
    with torch.device("meta"):
        return family.build(options(size=size), TextSpec(vocabulary(words), length), "sdpa")


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    """BERT-base 109.48 M and BERT-tiny 4.39 M with 30,522 tokens; GPT-2 124.44 M and 354.82 M with 50,257."""
    assert count(published(bert, "base", 512, 30_522).net.bert) == 109_482_240
    assert count(published(bert, "tiny", 512, 30_522).net.bert) == 4_385_920
    assert count(published(gpt, "small", 1024, 50_257).net) == count(published(gpt, "base", 1024, 50_257).net) == 124_439_808
    assert count(published(gpt, "medium", 1024, 50_257).net) == 354_823_168
    made = published(bert, "mini", 512, 100)
    assert (made.width, made.depth, made.net.config.num_attention_heads, made.kind) == (256, 4, 4, "bert-mini")
    zaremba = published(lstm, "base", 35, 10_000)  # 19.8 M with a softmax of its own
    assert count(zaremba) == 10_000 * 650 + 10_000 + 2 * (4 * 2 * 650**2 + 8 * 650)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    model = encoder(kind)
    short, long = texts(), texts(width=LENGTH + 7)
    long = Tokens(torch.where(long.mask, torch.nn.functional.pad(short.ids, (0, 7)), long.ids), long.mask, long.types)
    if kind in ("bert", "gpt"):  # positions end there
        model = encoder(kind, length=LENGTH + 7)
    for attention in ("sdpa", "eager"):
        if kind in ("bert", "gpt"):
            model.net.set_attn_implementation(attention)
        with torch.no_grad():
            expected, found = model.hidden(short), model.hidden(long)[:, :LENGTH]
            assert expected.shape == (3, LENGTH, model.width)
            torch.testing.assert_close(found[short.mask], expected[short.mask], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model.features(long), model.features(short), rtol=1e-5, atol=1e-5)
            alone = short.map(lambda x: x[1:2, :9])
            torch.testing.assert_close(model.hidden(alone)[0], expected[1, :9], rtol=1e-5, atol=1e-5)
            if kind != "bert":
                for a, b in zip(model.next_tokens(long), model.next_tokens(short), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert expected[short.mask].std() > 0.05


def test_bert_is_transformers():
    model, tokens = encoder("bert"), texts()
    with torch.no_grad():
        theirs = model.net(tokens.ids, tokens.mask.long(), tokens.types)
        hidden = model.hidden(tokens)
        torch.testing.assert_close(model.logits(hidden[tokens.mask]), theirs.prediction_logits[tokens.mask], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.next_sentence(hidden), theirs.seq_relationship_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "width", "heads"), [("tiny", 128, 2), ("mini", 256, 4)])
def test_heads_look_at_their_neighbours_at_first(size, width, heads):
    """Whatever the words are, most of the attention of each head is at its offset, and logits are as large as in width 128."""
    torch.manual_seed(0)
    made = bert.build(options(size=size, initial="neighbours"), TextSpec(vocabulary(3000), 128), "eager").eval()
    ids = torch.randint(5, 3000, (4, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = made.net.bert(ids, output_attentions=True)
        logits = made.logits(found.last_hidden_state.flatten(0, 1))
    for i, block in enumerate(found.attentions):
        for head in range(heads):
            offset = local_attention_init.OFFSETS[(i * heads + head) % 8]
            there = {o: float(block[:, head].diagonal(o, 1, 2).mean()) for o in range(-6, 7)}
            assert max(there, key=there.get) == offset
            assert there[offset] > 0.45
    assert logits.std() == pytest.approx(1.6, abs=0.1)


def test_features_are_pooled_without_padding():
    tokens = texts()
    with torch.no_grad():
        for kind in KINDS:
            model = encoder(kind)
            hidden = model.hidden(tokens)
            torch.testing.assert_close(model.features(tokens)[1], hidden[1, :9].mean(0), rtol=1e-5, atol=1e-5)
            model.pool = "cls" if kind == "bert" else "last"
            expected = {"bert": hidden[1, 0], "elmo": torch.cat([hidden[1, 8, :128], hidden[1, 0, 128:]])}
            found = expected.get(kind, hidden[1, 8])
            if kind == "bert":
                found = torch.tanh(model.net.bert.pooler.dense(found))
            torch.testing.assert_close(model.features(tokens)[1], found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_token_is_seen_before_it_is_predicted(kind):
    """One token is changed: only predictions of later tokens move, and with a second stack only those of earlier ones."""
    model, tokens = encoder(kind), texts((LENGTH,))
    with torch.no_grad():
        before, wanted = model.next_tokens(tokens)
        assert torch.equal(wanted[: LENGTH - 1], tokens.ids[0, 1:])
        assert torch.equal(wanted[LENGTH - 1 :], tokens.ids[0, :-1] if kind == "elmo" else wanted[:0])
        for t in (1, 6, LENGTH - 2):
            ids = tokens.ids.clone()
            ids[0, t] = 5 + (ids[0, t] - 4) % (SIZE - 5)
            after, _ = model.next_tokens(tokens._replace(ids=ids))
            moved = (after - before).abs().amax(1) > 1e-7
            predicted = torch.arange(1, LENGTH)
            assert torch.equal(moved[: LENGTH - 1], predicted > t)
            if kind == "elmo":
                predicted = torch.arange(LENGTH - 1)
                assert torch.equal(moved[LENGTH - 1 :], predicted < t)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_generation_follows_the_model(kind):
    """With a cache as without: each new token is where the cumulative probability, likeliest tokens first, passes the noise."""
    model = encoder(kind)
    given = texts().ids[:, :4]
    noise = torch.rand(3, LENGTH - 4, generator=torch.Generator().manual_seed(3))
    found = model.generate(given, noise, temperature=0.8)
    assert found.shape == (3, LENGTH)
    assert torch.equal(found[:, :4], given)
    assert torch.equal(model.generate(given, noise, temperature=0.8), found)
    assert not torch.equal(model.generate(given, 1 - noise, temperature=0.8), found)
    whole = Tokens(found, torch.ones_like(found, dtype=torch.bool), torch.zeros_like(found))
    with torch.no_grad():
        logits = model.next_tokens(whole)[0][: 3 * (LENGTH - 1)].unflatten(0, (3, LENGTH - 1))
    for b in range(3):
        for t in range(4, LENGTH):
            chances, order = (logits[b, t - 1].double() / 0.8).softmax(-1).sort(descending=True)
            assert found[b, t] == order[(chances.cumsum(0) <= noise[b, t - 4]).sum()]
    greedy = model.generate(given, noise, top_k=1)
    assert torch.equal(greedy, model.generate(given, 1 - noise, top_p=1e-6))
    if kind == "gpt":
        with pytest.raises(UserError, match=r"model.length=16: 17 tokens were asked for"):
            model.generate(given, torch.rand(3, LENGTH - 3))


def test_greedy_generation_is_transformers():
    model, given = encoder("gpt"), texts().ids[:, :4]
    theirs = model.net.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(model.generate(given, torch.zeros(3, 8)), theirs)


def test_samples_have_the_frequencies_of_the_model():
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.0, -1.0]]).expand(20_000, -1)
    noise = torch.rand(20_000, generator=torch.Generator().manual_seed(0))

    def shares(*settings):
        return sampling.sample(logits, noise, *settings).bincount(minlength=5) / 20_000

    chances = logits[0].softmax(-1)
    torch.testing.assert_close(shares(1.0, None, 1.0), chances, rtol=0, atol=0.01)
    torch.testing.assert_close(shares(2.0, None, 1.0), (logits[0] / 2).softmax(-1), rtol=0, atol=0.01)
    two = torch.tensor([0, chances[1], 0, chances[3], 0]) / (chances[1] + chances[3])
    torch.testing.assert_close(shares(1.0, 2, 1.0), two, rtol=0, atol=0.01)
    torch.testing.assert_close(shares(1.0, None, 0.7), two, rtol=0, atol=0.01)  # 0.64 alone is too little
    most = torch.tensor(1 - 2**-24).expand(1000)  # the largest noise that there is leads to no token that was left out
    some = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    found = some.gather(1, sampling.sample(some, most, 1.0, None, 0.5)[:, None])
    assert ((some >= found).sum(1) < 8).all()


@pytest.mark.parametrize(
    "settings", [(0, None, 1.0), (0.0, 3, 0.5), (1e-50, None, 1.0), (1.0, 1, 1.0), (1.0, None, 0.0), (1.0, None, 1e-6)]
)
def test_at_the_limit_the_likeliest_is_taken(settings):
    """Whatever the noise; of equals the first, and logits may be negative."""
    logits = torch.tensor([[-5.0, -2.0, -3.0, -2.0], [-1.0, -1.0, -1.0, -1.0], [-9.0, 0.0, 1e4, 2.0]])
    for noise in (0.0, 0.5, 1 - 2**-24):
        assert sampling.sample(logits, torch.full((3,), noise), *settings).tolist() == [1, 0, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_are_exact(tmp_path, kind):
    first, second = encoder(kind), encoder(kind, seed=1)
    written = []

    class Tokenizer:
        def save(self, folder):
            written.append(folder)
            (folder / "tokenizer.json").write_text("{}")

    first.save(tmp_path / "encoder", Tokenizer())
    assert (tmp_path / "encoder" / "tokenizer.json").exists()
    assert not written[0].exists()  # it became the folder
    first.save(tmp_path / "encoder", None)
    assert {p.name for p in (tmp_path / "encoder").iterdir()} <= {"config.json", "generation_config.json", "model.safetensors"}
    second.load(tmp_path / "encoder")
    assert tensor_files.sha256(second.state_dict()) == tensor_files.sha256(first.state_dict())
    if kind in ("bert", "gpt"):  # still the same weights in two places
        names = [name for name, _ in second.named_parameters()]
        head = second.net.get_output_embeddings().weight
        assert head is second.net.get_input_embeddings().weight
        assert not any("lm_head" in name or "decoder" in name for name in names)
    with pytest.raises(UserError, match="does not fit the model"):
        encoder(kind, size=SIZE + 1).load(tmp_path / "encoder")
    with pytest.raises(UserError, match="does not fit the model"):
        encoder("gpt" if kind == "bert" else "bert").load(tmp_path / "encoder")


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_checkpoints_hold_shared_weights(tmp_path, kind):
    """A training's state names the embeddings twice, and comes back as it was."""
    first, second = encoder(kind), encoder(kind, seed=1)
    tensor_files.save(tmp_path / "state.safetensors", first.state_dict())
    tensor_files.into(second, tensor_files.load(tmp_path / "state.safetensors")[0], tmp_path)
    assert tensor_files.sha256(second.state_dict()) == tensor_files.sha256(first.state_dict())
    assert second.net.get_output_embeddings().weight is second.net.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_loads_in_transformers(tmp_path, kind):
    model, tokens = encoder(kind), texts()
    model.save(tmp_path / "encoder", None)
    about = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert about["pad_token_id"] == 0
    with torch.no_grad():
        hidden = model.hidden(tokens)
        body = AutoModel.from_pretrained(tmp_path / "encoder").eval()
        seen = {"attention_mask": tokens.mask.long()} | ({"token_type_ids": tokens.types} if kind == "bert" else {})
        found = body(tokens.ids, **seen).last_hidden_state
        torch.testing.assert_close(found[tokens.mask], hidden[tokens.mask], rtol=1e-5, atol=1e-5)
        for whole in (BertForPreTraining, BertForMaskedLM) if kind == "bert" else (GPT2LMHeadModel,):
            theirs, info = whole.from_pretrained(tmp_path / "encoder", output_loading_info=True)
            assert not info["missing_keys"]
            assert whole is BertForMaskedLM or not any(info.values())
            output = theirs.eval()(tokens.ids, **seen)
            logits = output.prediction_logits if whole is BertForPreTraining else output.logits
            torch.testing.assert_close(logits[tokens.mask], model.logits(hidden[tokens.mask]), rtol=1e-5, atol=1e-5)
            if whole is BertForPreTraining:
                torch.testing.assert_close(output.seq_relationship_logits, model.next_sentence(hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_what_the_saved_tokenizer_gives_is_what_the_saved_model_takes(tmp_path, kind):
    """model(**tokenizer(texts)), as users of transformers write it."""
    family, stories = FAMILIES[kind], story(20, 4)
    own = tokenizer_training.train(family.FAMILY.tokenizer, "auto", family.FRAMING, part(stories))
    torch.manual_seed(0)
    model = family.build(options(), TextSpec(own.vocabulary, 64), "sdpa").eval()
    nn.init.normal_(model.embeddings.weight)
    model.save(tmp_path / "encoder", own)
    read, body = AutoTokenizer.from_pretrained(tmp_path / "encoder"), AutoModel.from_pretrained(tmp_path / "encoder").eval()
    firsts, seconds = [stories[0][:60], stories[1][:40]], [stories[2][:30], stories[3][:50]]
    for given, pairs in (([firsts], [None, None]), ([firsts, seconds], own.encode(seconds))):
        framed = [own.frame(a, b, 64) for a, b in zip(own.encode(firsts), pairs, strict=True)]
        tokens = padded(*map(list, zip(*framed, strict=True)), own.vocabulary.pad)
        with torch.no_grad():
            found = body(**read(*given, padding=True, return_tensors="pt")).last_hidden_state
            torch.testing.assert_close(found[tokens.mask], model.hidden(tokens)[tokens.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_weights_for_longer_texts(tmp_path, kind):
    """The first positions are kept, so that short texts give the same; weights for shorter ones are refused."""
    long, short, tokens = encoder(kind, length=2 * LENGTH), encoder(kind, seed=1), texts()
    long.save(tmp_path / "encoder", None)
    short.load(tmp_path / "encoder")
    assert short.adjusted(long.state_dict())[1] == ["positions: the first 16 of 32"]
    with torch.no_grad():
        torch.testing.assert_close(short.features(tokens), long.features(tokens))
    short.save(tmp_path / "encoder", None)
    with pytest.raises(UserError, match="does not fit the model"):
        long.load(tmp_path / "encoder")


@pytest.mark.parametrize(
    ("kind", "pool"), [("bert", "mean"), ("bert", "cls"), ("gpt", "last"), ("lstm", "mean"), ("elmo", "last")]
)
def test_trimming_keeps_the_features(kind, pool):
    model, tokens = encoder(kind, pool=pool), texts()
    before, everything = model.features(tokens), count(model)
    names = len(model.state_dict())
    model.trim()
    assert torch.equal(model.features(tokens), before)
    assert len(model.state_dict()) < names
    head = {"bert": 128**2 + 3 * 128 + SIZE + 2 * 129, "gpt": 0}.get(kind, SIZE)
    assert everything - count(model) == head + (129 * 128 if pool == "mean" and kind == "bert" else 0)
    model.features(tokens).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_depths():
    def depths(kind):
        model = encoder(kind)
        return {name: model.depth_of(f"encoder.{name}") for name, _ in model.named_parameters()}

    names = depths("bert")
    assert {names[f"net.bert.embeddings.{x}.weight"] for x in ("word_embeddings", "position_embeddings", "LayerNorm")} == {0}
    assert names["net.bert.encoder.layer.0.attention.self.query.weight"] == 1
    assert names["net.bert.encoder.layer.1.output.dense.bias"] == 2
    assert {d for name, d in names.items() if ".cls." in name or ".pooler." in name} == {3}
    names = depths("gpt")
    assert (names["net.transformer.wte.weight"], names["net.transformer.wpe.weight"]) == (0, 0)
    assert (names["net.transformer.h.1.attn.c_attn.weight"], names["net.transformer.ln_f.weight"]) == (2, 3)
    names = depths("elmo")
    assert (names["embedding.weight"], names["right.weight_ih_l0"], names["left.bias_hh_l1"], names["bias"]) == (0, 1, 2, 3)


def test_initial_weights_of_the_lstm():
    torch.manual_seed(0)
    model = lstm.build(options(bidirectional=True), TextSpec(vocabulary(), LENGTH), "sdpa")
    assert model.width == 256
    assert model.embedding.weight.std().item() == pytest.approx(0.5, rel=0.05)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name != "embedding.weight":
            assert parameter.abs().max() <= 1 / math.sqrt(128)
            assert parameter.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.05)
    gates = (model.left.bias_ih_l1 + model.left.bias_hh_l1).unflatten(0, (4, 128))
    assert torch.equal(gates[1], torch.ones(128))
    assert gates[[0, 2, 3]].abs().max() < 0.2


def test_lstm_against_its_equations():
    """Both stacks and the tied softmax, one token at a time."""
    model, tokens = encoder("elmo"), texts()

    def run(stack, x):
        for layer in range(2):
            h, c, found = torch.zeros(128), torch.zeros(128), []
            weights = [getattr(stack, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            for step in x:
                i, f, g, o = (weights[0] @ step + weights[1] @ h + weights[2] + weights[3]).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                found.append(h)
            x = torch.stack(found)
        return x

    with torch.no_grad():
        x = model.embedding.weight[tokens.ids[1, :9]]
        expected = torch.cat([run(model.right, x), run(model.left, x.flip(0)).flip(0)], 1)
        torch.testing.assert_close(model.hidden(tokens)[1, :9], expected, rtol=1e-4, atol=1e-5)
        logits, _ = model.next_tokens(tokens.map(lambda x: x[1:2, :9]))
        hidden = torch.cat([expected[:-1, :128], expected[1:, 128:]])
        torch.testing.assert_close(logits, hidden @ model.embedding.weight.T + model.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_add_up(kind):
    """To the difference of the logits from those of an empty text (completeness, Sundararajan et al. 2017)."""
    pytest.importorskip("captum")
    classifier, tokens, classes = Classifier(encoder(kind), 3, 0.0).eval(), texts(), torch.tensor([0, 2, 1])
    nn.init.normal_(classifier.head.weight)
    found = attribution.integrated_gradients(classifier, tokens, classes)
    empty = Tokens(torch.where(tokens.ids < 5, tokens.ids, 0), tokens.mask, tokens.types)
    with torch.no_grad():
        [full, blank] = [classifier.logits(t).gather(1, classes[:, None])[:, 0] for t in (tokens, empty)]
    torch.testing.assert_close(found.sum(1), full - blank, rtol=0.02, atol=0.02)


def test_sized_for_minutes():
    for name, family in FAMILIES.items():
        changes, [note, *_] = family.resolve(options(size="auto"), TextSpec(vocabulary(), LENGTH))
        assert changes == {"size": "tiny"}
        assert note.startswith("model.size=tiny: width 128, 2 layers")
        assert family.resolve(options(size="base"), TextSpec(vocabulary(), LENGTH)) == ({}, [])
        types = specs.spec("model", name).types
        assert types["size"].split("|") == ["auto", *family.SIZES]
        assert specs.spec("model", name).needs == {"text"}
        assert all(token in family.FRAMING.special.values() for token in family.FRAMING.single.split() if token != "$A")


def test_first_weights_of_bert_by_size():
    for size, wanted in (("auto", "neighbours"), ("mini", "neighbours"), ("small", "library"), ("base", "library")):
        changes, _ = bert.resolve(options(size=size, initial="auto"), TextSpec(vocabulary(), LENGTH))
        assert changes["initial"] == wanted
    assert bert.resolve(options(size="tiny", initial="library"), TextSpec(vocabulary(), LENGTH)) == ({}, [])


def test_image_encoders_keep_their_files(tmp_path):
    """Without a tokenizer and with preprocessing, as before."""
    library_format.save(nn.Linear(2, 2), tmp_path / "x", {"a": 1}, {"b": 2})
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("rows", [SIZE - 1, SIZE + 4])  # a token that the family adds, and rows of no token
@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_nearly_the_same_tokens_are_taken(rows, whole):
    theirs = encoder("gpt", size=rows).net
    mine = encoder("gpt")
    notes = pretrained.load(mine, (theirs if whole else theirs.transformer).state_dict(), {}, "x")
    assert "100.0% of the encoder's" in notes[0]
    assert any(f"({rows}, 128) to ({SIZE}, 128), as the tokenizer has {SIZE} tokens" in line for line in notes)
    words, before = mine.net.transformer.wte.weight, theirs.transformer.wte.weight
    known = min(rows, SIZE)
    assert torch.equal(words[:known], before[:known])
    if rows < SIZE:
        torch.testing.assert_close(words[-1], before.mean(0))
    notes = pretrained.load(mine, encoder("gpt", size=SIZE // 2).net.state_dict(), {}, "x")
    assert "  of another shape: transformer.wte.weight" in notes
