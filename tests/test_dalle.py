"""DALL-E: its codes against the papers' formulas in float64, its transformer against transformers, and as a whole run."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, latest
from PIL import Image
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.batch import ImageSpec, Pair, PairSpec, TextSpec, Tokens
from ptmrun.commands import drawing
from ptmrun.errors import UserError
from ptmrun.models import codec as codecs
from ptmrun.models import dalle as models
from ptmrun.objectives import codes, dalle, dvae, vq
from ptmrun.runs.folder import Run
from ptmrun.stages import drawings, predictor
from ptmrun.storage import tensor_files
from ptmrun.training import loop

SIZE, BATCH, WORDS, LENGTH, CODES = 8, 4, 11, 5, 16
VOCABULARY = SimpleNamespace(size=WORDS, end=0, pad=1)
VQ = {"commitment": 0.25, "restart": 5, "restarts": 1.0}


def options(**changes):
    return SimpleNamespace(**{"size": "tiny", "codes": CODES, "dropout": 0.0} | changes)


def encoder(text=True, seed=0, side=SIZE):
    torch.manual_seed(seed)
    image = ImageSpec(side, 1)
    spec = PairSpec(image, TextSpec(VOCABULARY, LENGTH)) if text else image
    models.SIZES["test"] = (8, 32, 2)
    return models.build(options(size="test"), spec, "sdpa")


def images(count=BATCH, side=SIZE):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def captions(count=BATCH):
    """Of three or two words, the second is padded."""
    ids = torch.tensor([[0, 3, 4, 5, 0], [0, 6, 7, 0, 1]]).repeat(count // 2, 1)
    return Tokens(ids, torch.tensor([[True] * 5, [True] * 4 + [False]]).repeat(count // 2, 1), torch.zeros_like(ids))


def batch(inputs=None, start=0, stop=None, step=0):
    whole = Pair(images(), captions()) if inputs is None else inputs
    total = len(whole) if isinstance(whole, torch.Tensor) else len(whole.images)
    stop = total if stop is None else stop
    part = whole[start:stop] if isinstance(whole, torch.Tensor) else whole.map(lambda x: x[start:stop])
    return {"inputs": part, "ids": torch.arange(start, stop), "rows": rng.BatchRandom(0, step, start, stop, total)}


def objective(kind=dalle, model=None, **changes):
    defaults = {"codec_share": 0.25, "text": 0.125, "drop": 0.0, **VQ} | changes
    return kind.Objective(model or encoder(), SimpleNamespace(**defaults))


DVAE = {"first_temperature": 1.0, "temperature": 0.0625, "anneal": 0.8, "kl": 0.5, "kl_warmup": 0.1}


def test_gumbel_softmax_against_the_paper():
    draw = np.random.default_rng(0)
    logits, uniform = draw.normal(size=(3, 5, 7)), draw.uniform(size=(3, 5, 7))
    for temperature in (1.0, 0.0625):
        raw = (logits - np.log(-np.log(uniform))) / temperature
        wanted = np.exp(raw - raw.max(-1, keepdims=True))
        found = codes.gumbel_softmax(torch.from_numpy(logits), torch.from_numpy(uniform), temperature)
        np.testing.assert_allclose(found, wanted / wanted.sum(-1, keepdims=True), rtol=1e-6, atol=1e-9)
    assert codes.gumbel_softmax(torch.zeros(2), torch.tensor([0.0, 1.0]), 1.0).isfinite().all()


def test_gumbel_softmax_draws_by_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniform = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(codes.gumbel_softmax(logits, uniform, 0.1).argmax(-1)) / 20_000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.01, rtol=0)


def test_divergence_from_equal_probabilities():
    logits = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1).numpy()
    np.testing.assert_allclose(codes.kl_to_uniform(logits), (p * np.log(p * 9)).sum(-1), rtol=1e-10)
    assert codes.kl_to_uniform(torch.zeros(9)) == pytest.approx(0, abs=1e-6)
    assert codes.kl_to_uniform(torch.tensor([100.0, 0, 0])) == pytest.approx(math.log(3), rel=1e-6)


def test_quantisation_against_the_paper():
    """Equation 3, with its gradients: codes are drawn to vectors with weight 1, vectors to codes with the commitment."""
    vectors, quantised = (torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    cost = codes.quantisation(vectors, quantised, 0.25)
    distance = (vectors - quantised).detach()
    torch.testing.assert_close(cost.detach(), 1.25 * distance.square().sum(-1))
    cost.sum().backward()
    torch.testing.assert_close(quantised.grad, -2 * distance)
    torch.testing.assert_close(vectors.grad, 0.5 * distance)


def test_gradients_go_straight_through():
    vector, value = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    through = codes.straight_through(value, vector)
    torch.testing.assert_close(through, value)
    (through * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert vector.grad.tolist() == [1.0, 2.0, 3.0]
    assert value.grad is None


def test_perplexity_and_schedule():
    assert codes.perplexity(torch.ones(8)) == pytest.approx(8)
    assert codes.perplexity(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    assert codes.perplexity(torch.tensor([1.0, 3])) == pytest.approx(math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    assert [float(codes.at(p, 1, 1 / 16)) for p in (0, 0.5, 1, 2)] == pytest.approx([1, 17 / 32, 1 / 16, 1 / 16])


@pytest.mark.parametrize("side", [8, 28, 30, 32, 64])
def test_a_code_is_the_nearest_vector(side):
    codec = codecs.Codec(side, 1, 4, CODES)
    shown = images(2, side)
    vectors, tokens = codec.vectors(shown), codec.tokens(shown)
    assert tokens.shape == (2, codec.grid**2)
    assert codec.grid <= 8
    distances = torch.cdist(vectors.double(), codec.book.double().expand(2, -1, -1))
    assert torch.equal(tokens, distances.argmin(2))
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(2, codec.grid**2))
    assert codec.images(tokens).shape == shown.shape


def test_the_divergence_depends_on_no_size():
    """Twice the images, or the codes of four times the places, cost the same."""
    costs = []
    for side, count in ((8, 2), (8, 4), (16, 2)):
        model = encoder(text=False, side=side)
        torch.nn.init.zeros_(model.codec.to_code.weight)  # the same vector at every place
        learner = dvae.Objective(model, SimpleNamespace(**DVAE)).eval()
        loss, metrics = learner(batch(images(1, side).repeat(count, 1, 1, 1)))
        costs.append(float(metrics["kl"].total.detach() / metrics["kl"].n))
        assert loss.n == count
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-5)


def test_loss_of_a_discrete_vae():
    """Squared error, mean over values, and the weighted divergence, mean over places; weight and temperature by progress."""
    learner = dvae.Objective(encoder(text=False), SimpleNamespace(**DVAE))
    learner.after_step(5, 100)
    assert float(learner.weight()) == pytest.approx(0.25)
    assert float(learner.temperature()) == pytest.approx(codes.at(0.0625, 1, 0.0625))
    given = batch(images())
    loss, metrics = learner(given)
    codec, count = learner.encoder.codec, 16  # places
    logits = 10 * codec.cosines(codec.vectors(images()))
    noise = given["rows"].uniform("gumbel", count, CODES)
    rebuilt = codec.decode(codes.gumbel_softmax(logits, noise, learner.temperature()) @ codec.book)
    error = F.mse_loss(rebuilt, images())
    divergence = codes.kl_to_uniform(logits).mean()
    torch.testing.assert_close(loss.total / loss.n, error + 0.25 * divergence)
    torch.testing.assert_close(metrics["loss_pixels"].total / BATCH, error)
    learner.eval()  # the likeliest codes
    torch.testing.assert_close(
        learner(given)[1]["loss_pixels"].total / BATCH, F.mse_loss(codec.images(codec.tokens(images())), images())
    )


@pytest.mark.parametrize("kind", [vq, dalle])
def test_dead_codes_begin_anew_from_the_batch(kind):
    """By seed and step, and the same in micro-batches."""

    def after(parts):
        learner = objective(kind)
        codec = learner.encoder.codec
        with torch.no_grad():
            codec.codes.copy_(codec.codes[:1].expand(CODES, -1))  # the first is taken everywhere
        for start in range(0, BATCH, BATCH // parts):
            learner(batch(None, start, start + BATCH // parts))
        learner.after_step(1, 10)
        return learner

    whole, parts = after(1), after(2)
    torch.testing.assert_close(whole.encoder.codec.codes, parts.encoder.codec.codes)
    codec = whole.encoder.codec
    vectors = codec.vectors(images()).flatten(0, 1)
    assert len(codec.codes.unique(dim=0)) > CODES // 2
    for code in codec.codes[1:]:
        assert float((vectors - code).detach().norm(dim=1).min()) < 1e-5


def test_a_codebook_that_collapses_is_told():
    usage = codes.Usage(16)
    assert usage.alarm() is None  # nothing was counted yet
    assert usage.metrics() == {}
    for _ in range(3):
        usage.count(torch.tensor([[0, 0], [0, 0]]))
        usage.after_step()
    assert usage.alarm() == "perplexity of the codes 1.0, of 16 codes"
    assert usage.metrics()["codes_used"].total == 1
    usage.count(torch.arange(16).repeat(500))
    usage.after_step()
    assert usage.alarm() is None
    assert float(usage.metrics()["code_perplexity"].total) > 15


def test_loss_against_the_library():
    """With equal weights of all tokens it is GPT2LMHeadModel's own."""
    model = encoder()
    model.ready.fill_(1)
    ids = captions().ids[::2]
    pairs = Pair(images(2), Tokens(ids, torch.ones_like(ids, dtype=torch.bool), ids))
    learner = objective(model=model, text=(LENGTH - 1) / (LENGTH - 1 + 16)).eval()
    loss, metrics = learner(batch(pairs))
    sequence = torch.cat([ids, model.codec.tokens(pairs.images) + WORDS], 1)
    theirs = model.gpt(sequence, labels=sequence).loss
    torch.testing.assert_close(loss.total / loss.n, theirs)
    assert all(not p.requires_grad for p in model.codec.parameters())
    assert set(metrics) == {"bits_per_code", "bits_per_text_token", "code_accuracy"}


def test_loss_of_text_and_codes():
    """An eighth for a caption's own tokens, the mean over them, the rest for codes; nothing for padding and what is left out."""
    model = encoder()
    pairs = Pair(images(), captions())
    loss, metrics = objective(model=model).eval()(batch(pairs))
    sequence = torch.cat([pairs.tokens.ids, model.codec.tokens(pairs.images) + WORDS], 1)
    logs = model.gpt(sequence[:, :-1]).logits.log_softmax(-1)
    nats = -logs.gather(2, sequence[:, 1:, None])[..., 0].double()
    words = torch.stack([row[:n].mean() for row, n in zip(nats, (4, 3, 4, 3), strict=True)])
    wanted = (words / 8 + nats[:, 4:].mean(1) * 7 / 8).mean()
    vectors = model.codec.vectors(pairs.images)
    quantised = model.codec.book[model.codec.tokens(pairs.images)]
    wanted = (
        wanted + 1.25 * (vectors - quantised).square().sum(-1).mean() + F.mse_loss(model.codec.decode(quantised), pairs.images)
    )
    assert float((loss.total / loss.n).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(metrics["bits_per_text_token"].n) == 14
    learner = objective(model=model, drop=1.0)
    learner.begin_at(0.3)
    assert float(learner(batch(pairs))[1]["bits_per_text_token"].n) == 0


def test_codes_come_first_and_the_transformer_later():
    learner = objective()

    def trained():
        learner.zero_grad()
        loss, _ = learner(batch())
        loss.total.backward()
        return {
            name.split(".")[1 if ".gpt." in name else 2]
            for name, p in learner.named_parameters()
            if p.grad is not None and p.grad.any()
        }

    assert trained() == {"encoder", "to_code", "codes", "from_code", "decoder"}
    assert learner.later == ("encoder.gpt.",)
    for done in (1, 2, 3):
        learner.after_step(done, 10)
    assert trained() == {"gpt", "from_code", "decoder"}
    learner.after_step(10, 10)
    assert int(learner.encoder.ready) == 2


def test_what_is_drawn():
    """By the caption; guidance of 1 is none; with a cache as without."""
    model = encoder().eval()
    model.ready.fill_(1)
    with pytest.raises(UserError, match="has learned codes of images, and not to draw"):
        model.draw(torch.rand(1, 16))
    model.ready.fill_(2)
    for parameter in model.gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    noise, text = torch.rand(BATCH, 16, generator=torch.Generator().manual_seed(0)), captions()
    taken = []
    model.codec.images = lambda tokens: taken.append(tokens) or tokens
    for guidance in (1.0, 1 + 1e-9, 3.0):
        model.draw(noise, text, guidance=guidance)
    plain, same, guided = taken
    assert torch.equal(plain, same)
    assert not torch.equal(plain, guided)
    with torch.no_grad():
        logits = model.logits(text.ids, plain)[0][:, LENGTH - 1 :, WORDS:]
        none = model.logits(model.no_caption(BATCH, noise.device)[0], guided)[0][:, LENGTH - 1 :, WORDS:]
        mixed = none + 3 * (model.logits(text.ids, guided)[0][:, LENGTH - 1 :, WORDS:] - none)
    for found, scores in ((plain, logits), (guided, mixed)):
        for b in range(BATCH):
            for place in range(16):
                chances, order = scores[b, place].softmax(-1).sort(descending=True)
                assert found[b, place] == order[np.searchsorted(chances.cumsum(0), noise[b, place])]


def test_saved_and_loaded(tmp_path):
    model, again = encoder(seed=1), encoder(seed=2)
    model.ready.fill_(1)
    model.save(tmp_path / "model", [0.5], [0.2])
    again.load(tmp_path / "model")
    assert tensor_files.sha256(model.state_dict()) == tensor_files.sha256(again.state_dict())
    model.trim()
    torch.testing.assert_close(model.features(images()), again.features(Pair(images(), captions())))


RUN = [
    *[x for x in TINY if not x.startswith(("dataset", "pretrain.steps", "pretrain.batch_size"))],
    "model=dalle",
    "stage=pretrain",
    "model.codes=16",
    "dataset.drawings=1",
    "dataset.limit=120",
    "dataset.test_limit=20",
    "pretrain.steps=6",
    "pretrain.batch_size=8",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run that the tests read."""
    from ptmrun import cli

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("dalle"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawings, "STEPS", 5)
            patch.setattr(drawings, "KNOWN", 0.4)
            assert cli.run(RUN) == 0
        return latest()
    finally:
        os.chdir(before)


def lines_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder):
    files = sorted((folder / "checkpoints" / "encoder").glob("*.safetensors"))
    return [tensor_files.sha256(tensor_files.load(file)[0]) for file in files]


def test_drawings_for_captions_with_the_same_words_are_no_others(monkeypatch):
    """Also where samples are sorted by class. The classifier of the test reads the words from the pixels."""
    classes = torch.tensor([0, 0, 0, 1, 1, 1])
    images = F.one_hot(classes, 2).float()[:, None, None] - 0.5
    data = SimpleNamespace(val=SimpleNamespace(all=lambda: [images], labels=classes), classes=["cup", "pot"])
    context = SimpleNamespace(data=data, processor=lambda samples: samples)
    encoder = SimpleNamespace(classes=2, images_of=lambda samples: samples)
    monkeypatch.setattr(drawings, "trained", lambda *_: lambda pictures: pictures[:, 0, 0])
    monkeypatch.setattr(drawings, "at_side", lambda pictures, side: pictures)
    words = [{data.classes[i]} for i in classes.tolist()]
    scores = drawings.agreement(context, encoder, words, words, images, images)
    assert scores["words_known"] == 2
    assert scores["words_right"] == scores["all_right_real"] == 1
    assert scores["words_right_other_captions"] == scores["all_right_other_captions"] == 0
    one = drawings.agreement(context, encoder, words, words[:3], images[:3], images[:3])
    assert "words_right_other_captions" not in one, "there are none"


def test_a_whole_run(run):
    looks = [x for x in lines_of(run) if "held_loss" in x]
    assert [(x["step"], x.get("split")) for x in looks] == [(0, None), (6, None), (6, "test")]
    assert {"bits_per_code", "bits_per_text_token", "loss_pixels"} <= set(looks[0])
    assert looks[0]["held_loss"] > looks[1]["held_loss"]
    assert {"code_perplexity", "codes_used"} <= set(looks[1])
    [drawn] = [x for x in lines_of(run) if x.get("split") == "drawn"]
    for name in ("words_right", "all_right"):
        assert all(0 <= drawn[f"{name}{what}"] <= 1 for what in ("", "_real", "_other_captions"))
    assert drawn["nearest"] > 0
    assert Run.open(run).drawn() == {k: v for k, v in drawn.items() if k not in ("stage", "step", "split", "time")}
    assert "Drawings of held-out captions" in (run / "report.html").read_text()
    assert {p.stem for p in (run / "figures").glob("*.png")} >= {"reconstructions", "drawn", "curves"}
    assert json.loads((run / "manifest.json").read_text())["status"] == "done"


def test_resumed_it_is_the_same(run, ptmrun, monkeypatch):
    real, calls = loop.backward, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(drawings, "STEPS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", stopping)
        assert ptmrun(*RUN)[0] == 130
    folder = latest()
    assert ptmrun("resume", folder)[0] == 0
    assert weights_of(folder) == weights_of(run)


def test_a_prompt_is_drawn(run, ptmrun, tmp_path):
    def drawn(*settings):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        code, shown, err = ptmrun("generate", run, f"out={out}", *settings)
        assert (code, shown, err) == (0, f"{out}\n", "")
        return {file.name: file.read_bytes() for file in out.iterdir()}

    asked = "prompt=one large red star in the centre"
    two = drawn(asked, "samples=2")
    assert set(two) == {"000.png", "001.png", "grid.png"}
    assert np.asarray(Image.open(tmp_path / "0" / "000.png")).shape == (32, 32, 3)
    assert drawn(asked, "samples=2") == two
    assert drawn(asked, "samples=1")["000.png"] == two["000.png"]
    assert drawn(asked, "samples=2", "seed=1") != two
    assert ptmrun("generate", run, asked, "samples=1")[1] == f"{run / 'drawn' / 'one_large_red_star_in_the_centre_seed0'}\n"


def test_pictures_that_fit_best_come_first(run, ptmrun, monkeypatch):
    """By the cosine of both embeddings: here of the mean colour with red."""
    networks = predictor.networks_of(Run.open(run))
    seen = []
    clip = SimpleNamespace(
        image_embeddings=lambda images: networks.processor.image.back(seen.append(images) or images).mean((2, 3)),
        text_embeddings=lambda tokens: torch.tensor([[1.0, 0.0, 0.0]]).expand(len(tokens.ids), -1),
    )
    real = drawing.pretrained
    monkeypatch.setattr(drawing, "pretrained", lambda run, *more: (networks, clip))
    pictures = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.2, 0.2], [0.2, 0.9, 0.2]])[:, :, None, None].expand(-1, -1, 32, 32)
    found = drawing.fits(pictures, "one red star", Run.open(run))
    wanted = F.normalize(pictures[:, :, 0, 0], dim=1)[:, 0]
    torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)
    monkeypatch.setattr(drawing, "pretrained", real)
    for settings, expected in (
        ([f"rerank={run}"], "rerank: says how well pictures fit a prompt; give prompt= too"),
        (
            ["prompt=a star", "samples=1", f"rerank={run}"],
            "model=dalle does not compare pictures with texts; there is: model=clip",
        ),
    ):
        code, _, err = ptmrun("generate", run, *settings)
        assert code == 2
        assert expected in err


def test_codes_of_an_earlier_run_stay(ptmrun, monkeypatch):
    monkeypatch.setattr(drawings, "STEPS", 1)
    assert ptmrun(*RUN, "task=vq", "pretrain.steps=3", "pretrain.probes=0")[0] == 0
    first = latest()
    code, _, err = ptmrun("generate", first, "samples=1")
    assert code == 2
    assert "has learned codes of images, and not to draw; go on with: task=dalle init=RUN" in err
    assert ptmrun(*RUN, "task=dalle", "pretrain.steps=2", "pretrain.probes=0", f"init={first}")[0] == 0
    before, after = (tensor_files.load(x / "checkpoints/encoder/fitted.safetensors")[0] for x in (first, latest()))
    assert int(before["ready"]) == 1
    assert int(after["ready"]) == 2
    assert tensor_files.sha256({**before, "ready": after["ready"]}) == tensor_files.sha256(after)
    assert weights_of(first) != weights_of(latest())
