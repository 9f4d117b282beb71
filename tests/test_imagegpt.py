"""Image GPT and causal modelling: against the paper in float64 numpy, against transformers, and as a whole run."""

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
from transformers import AutoImageProcessor, ImageGPTForCausalImageModeling

from ptmrun import compose, rng
from ptmrun.batch import ImageSpec
from ptmrun.config import compatibility
from ptmrun.errors import UserError
from ptmrun.models import imagegpt, library_format, sampling
from ptmrun.objectives import clm
from ptmrun.storage import tensor_files
from ptmrun.training import loop

SIZE, SIDE, BATCH, COLOURS = 8, 4, 3, 5
TOKENS = SIDE * SIDE
IMAGEGPT = ["model=imagegpt", *TINY, "finetune.seeds=1", "dataset.test_limit=100"]


def options(**changes):
    return SimpleNamespace(
        **{"size": "micro", "side": SIDE, "clusters": COLOURS, "layer": "auto", "classes": None, "dropout": 0.0} | changes
    )


def images(channels=1, count=BATCH, dtype=torch.float32):
    return torch.randn(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def encoder(channels=1, seed=0, **changes):
    torch.manual_seed(seed)
    made = imagegpt.build(options(**changes), ImageSpec(SIZE, channels), "sdpa")
    made.load_state_dict(made.learn_buffers(images(channels, 20)), strict=False)
    for name, parameter in made.named_parameters():  # larger than at the start, so that mistakes show
        if name.endswith("weight") and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def in_numpy(model, tokens):
    """Logits of one image from the paper's equations (section 2.2 and its code: norm without mean or bias), in float64."""
    w = {k.removeprefix("gpt.").removeprefix("transformer."): v.double().numpy() for k, v in model.state_dict().items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][[COLOURS, *tokens[:-1]]] + w["wpe.weight"]
    heads = imagegpt.SIZES["micro"][2]
    for layer in range(model.depth):
        query, key, value = np.split(linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn"), 3, -1)
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * model.width // heads, (head + 1) * model.width // heads)
            for t in range(TOKENS):
                scores = key[: t + 1, part] @ query[t, part] / math.sqrt(model.width / heads)
                weights = np.exp(scores - scores.max())
                mixed[t, part] = weights @ value[: t + 1, part] / weights.sum()
        x = x + linear(mixed, f"h.{layer}.attn.c_proj")
        inner = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        x = x + linear(inner / (1 + np.exp(-1.702 * inner)), f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def test_loss_against_the_paper():
    """Mean negative log-likelihood of each pixel given those before it; in bits, divided by ln 2."""
    model = encoder()
    data = {"inputs": images()}
    loss, shown = clm.Objective(model, None)(data)
    expected = []
    for row in model.tokens(data["inputs"]).numpy():
        logits = in_numpy(model, row)
        expected += [np.log(np.exp(z).sum()) - z[token] for z, token in zip(logits, row, strict=True)]
    assert len(expected) == loss.n == BATCH * TOKENS
    assert float(loss.total.detach() / loss.n) == pytest.approx(np.mean(expected), rel=1e-5)
    bits = shown["bits_per_pixel"]
    assert float(bits.total / bits.n) == pytest.approx(np.mean(expected) / math.log(2), rel=1e-5)


def test_loss_against_transformers():
    """Theirs shifts its labels by one, so with the start token in front its loss is over all pixels but the last."""
    model = encoder()
    data = {"inputs": images()}
    tokens = model.tokens(data["inputs"])
    with torch.no_grad():
        loss, _ = clm.Objective(model, None)(data)
        logits = model.gpt(model.started(tokens)[:, :-1]).logits
        theirs = model.gpt(model.started(tokens)[:, :-1], labels=model.started(tokens)[:, :-1]).loss
        ours = torch.nn.functional.cross_entropy(model.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, :-1].flatten())
    torch.testing.assert_close(model.logits(tokens), logits, rtol=1e-5, atol=1e-5)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert float(loss.total / loss.n) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_tokens_are_the_nearest_colours(channels):
    model = encoder(channels, side=SIZE)
    shown = images(channels)
    tokens = model.tokens(shown)
    clusters = model.clusters.numpy()
    for b in range(BATCH):
        for place in range(SIZE * SIZE):
            pixel = shown[b, :, place // SIZE, place % SIZE].numpy()
            assert tokens[b, place] == ((clusters - pixel) ** 2).sum(1).argmin()
    assert tokens.unique().tolist() == list(range(COLOURS))
    torch.testing.assert_close(model.images(tokens)[1, :, 2, 3], model.clusters[tokens[1, 2 * SIZE + 3]])


def test_colours_are_a_minimum_of_k_means_and_deterministic():
    model = encoder(3, side=SIZE)
    pixels = model.pixels(images(3, 20)).flatten(0, 1)
    nearest = torch.cdist(pixels, model.clusters).argmin(1)
    for i, colour in enumerate(model.clusters):
        torch.testing.assert_close(pixels[nearest == i].mean(0), colour, rtol=1e-3, atol=1e-3)
    assert (model.clusters.sum(1).diff() > 0).all()
    assert torch.equal(model.learn_buffers(images(3, 20))["clusters"], model.clusters)
    with pytest.raises(UserError, match=r"model.clusters=5: the training images have 2 colours; choose at most that"):
        model.learn_buffers(images(3, 20).sign()[:, :1].expand(-1, 3, -1, -1))


def test_no_pixel_is_seen_before_it_is_predicted():
    model = encoder()
    tokens = model.tokens(images())
    before = model.logits(tokens)
    for t in (0, 5, TOKENS - 2):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % COLOURS
        after = model.logits(changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_samples_follow_the_model():
    """With a cache as without: each new token is where the cumulative probability, likely ones first, passes the noise."""
    model = encoder()
    tokens = model.tokens(images())[:, :10]
    noise = torch.rand(BATCH, TOKENS - 10, generator=torch.Generator().manual_seed(3))
    found = model.complete(tokens, noise)
    assert torch.equal(found[:, :10], tokens)
    probabilities = model.logits(found).softmax(-1).detach().numpy()
    for b in range(BATCH):
        for t in range(10, TOKENS):
            order = np.argsort(-probabilities[b, t])
            below = probabilities[b, t][order].cumsum()
            assert found[b, t] == order[np.searchsorted(below, noise[b, t - 10].item())]
    likeliest = model.complete(tokens, noise, 0.0)
    assert torch.equal(likeliest, model.complete(tokens, 1 - noise, 1.0, 1))
    assert torch.equal(
        model.draw(torch.zeros(2, TOKENS)), model.images(model.complete(tokens[:0].new_zeros(2, 0), torch.zeros(2, TOKENS)))
    )


def test_pictures():
    objective = clm.Objective(encoder(), None)
    shown = objective.pictures({"inputs": images(), "rows": rng.BatchRandom(0, 0, 0, BATCH, BATCH)})
    assert list(shown) == ["original", "given", "completed 1", "completed 2", "drawn"]
    for title in ("given", "completed 1", "completed 2"):
        assert torch.equal(shown[title][:, :, : SIDE // 2], shown["original"][:, :, : SIDE // 2])
    assert not shown["given"][:, :, SIDE // 2 :].any()
    assert not torch.equal(shown["completed 1"], shown["completed 2"])


def test_published_parameter_count():
    """iGPT-S has 76 M parameters (Chen et al. 2020, section 3.1: 512 wide, 24 layers), at 32x32 and 512 colours."""
    with torch.device("meta"):
        model = imagegpt.build(options(size="small", side=32, clusters=512), ImageSpec(32, 3), "sdpa")
    blocks = 24 * ((4 + 8) * 512**2 + (3 + 1 + 4 + 1) * 512 + 2 * 512)  # weights, biases, norms without bias
    count = sum(p.numel() for p in model.parameters())
    assert count == blocks + (513 + 1024 + 512) * 512 + 512 == 76_682_240
    assert (model.width, model.depth) == (512, 24)


def test_initial_weights_say_nothing():
    torch.manual_seed(0)
    objective = clm.Objective(imagegpt.build(options(), ImageSpec(SIZE, 1), "sdpa"), None)
    with torch.no_grad():
        loss, _ = objective({"inputs": images()})
    assert objective.initial_loss({}) == math.log(COLOURS)
    assert float(loss.total / loss.n) == pytest.approx(math.log(COLOURS), rel=0.1)


def test_images_of_a_class_begin_with_its_own_token():
    model = encoder(classes=3)
    tokens, classes = model.tokens(images()), torch.tensor([2, -1, 0])
    assert model.started(tokens, classes)[:, 0].tolist() == [COLOURS + 3, COLOURS, COLOURS + 1]
    logits, plain = model.logits(tokens, classes), model.logits(tokens)
    assert logits.shape == (BATCH, TOKENS, COLOURS)
    assert [torch.equal(a, b) for a, b in zip(logits, plain, strict=True)] == [False, True, False]
    labels = torch.zeros(1000, dtype=torch.int64)
    rows = rng.BatchRandom(0, 0, 0, 1000, 1000)
    objective = clm.Objective(model, None)
    [given] = objective.train().given({"labels": labels, "rows": rows})
    assert 0.07 < float((given == -1).float().mean()) < 0.13
    assert torch.equal(objective.eval().given({"labels": labels, "rows": rows})[0], labels)


def test_pictures_of_a_class_are_drawn_as_the_logits_say_with_and_without_guidance():
    model, classes = encoder(classes=3), torch.tensor([1, 2, 0])
    noise = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(2))
    for guidance in (1.0, 3.0):
        drawn = model.complete(torch.zeros(BATCH, 0, dtype=torch.int64), noise, guidance=guidance, classes=classes)
        with torch.no_grad():
            both = torch.cat([model.logits(drawn, classes), model.logits(drawn)])
        logits = sampling.guided(both, guidance)
        wanted = [sampling.sample(logits[:, i], noise[:, i], 1.0, None, 1.0) for i in range(TOKENS)]
        assert torch.equal(drawn, torch.stack(wanted, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_loads_in_transformers(tmp_path, channels):
    model = encoder(channels)
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.25][:channels]
    model.save(tmp_path / "encoder", mean, std)
    theirs, info = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info.values())
    shown = torch.randint(0, 256, (BATCH, channels, SIZE, SIZE), dtype=torch.uint8)
    scale = torch.tensor([mean, std]).view(2, -1, 1, 1)
    tokens = model.tokens((shown / 255 - scale[0]) / scale[1])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "encoder")
    pictures = [x.permute(1, 2, 0).squeeze(-1).numpy() for x in shown]
    if channels == 1:
        pictures = [np.repeat(x[..., None], 3, -1) for x in pictures]
    found = processor(pictures, return_tensors="pt")["input_ids"]
    assert (found == tokens).float().mean() > 0.95  # theirs rounds to 8 bits after making them smaller
    with torch.no_grad():
        logits = theirs.eval()(model.started(tokens)[:, :-1]).logits
        torch.testing.assert_close(model.logits(tokens), logits, rtol=1e-5, atol=1e-5)


def test_save_and_load_are_exact(tmp_path):
    first, second = encoder(), encoder(seed=1)
    first.choose([0.1, 0.2, 0.4])
    assert first.layer == 3
    first.save(tmp_path / "encoder", [0.5], [0.25])
    second.clusters.zero_()
    second.load(tmp_path / "encoder")
    assert tensor_files.sha256(second.state_dict()) == tensor_files.sha256(first.state_dict())
    fixed = encoder(layer=1)
    fixed.load(tmp_path / "encoder")
    assert fixed.layer == 1
    with pytest.raises(UserError, match="does not fit the model, which has 7 colours of 1 channels"):
        encoder(clusters=7).load(tmp_path / "encoder")
    tensor_files.save(tmp_path / "encoder" / library_format.FITTED, {"clusters": first.clusters, "chosen": torch.tensor(9)})
    with pytest.raises(UserError, match="refused"):
        second.load(tmp_path / "encoder")


def test_features_are_the_normed_mean_of_a_layer():
    """As transformers' hidden states give them, and the same after what they do not need has been left out."""
    model = encoder()
    tokens = model.tokens(images())
    with torch.no_grad():
        states = model.gpt(model.started(tokens)[:, :-1], output_hidden_states=True).hidden_states
        body = model.gpt.transformer
        expected = [body.h[i].ln_1(states[i]).mean(1) for i in (1, 2)] + [states[3].mean(1)]
        torch.testing.assert_close(model.layer_features(images()), torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
        for scores in ([1, 0, 0], [0, 0, 1]):
            trimmed = encoder()
            trimmed.choose(scores)
            layer = trimmed.layer
            before = trimmed.features(images())
            torch.testing.assert_close(before, expected[layer - 1], rtol=1e-4, atol=1e-5)
            trimmed.trim()
            assert torch.equal(trimmed.features(images()), before)
            assert trimmed.depth == len(trimmed.gpt.transformer.h) == layer
    trimmed.features(images()).square().sum().backward()
    assert all(p.grad is not None for p in trimmed.parameters())


def test_depths():
    names = {name: encoder().depth_of(name) for name, _ in encoder().named_parameters()}
    assert names["gpt.transformer.wte.weight"] == names["gpt.transformer.wpe.weight"] == 0
    assert names["gpt.transformer.h.0.ln_1.weight"] == 1
    assert names["gpt.transformer.h.2.mlp.c_fc.weight"] == 3
    assert names["gpt.transformer.ln_f.weight"] == names["gpt.lm_head.weight"] == 4


def test_sized_for_the_data():
    auto = options(size="auto", side="auto", clusters="auto")
    assert imagegpt.resolve(auto, ImageSpec(28, 1))[0] == {"size": "micro", "side": 10, "clusters": 8}
    assert imagegpt.resolve(auto, ImageSpec(8, 1))[0] == {"size": "micro", "side": 8, "clusters": 8}
    assert imagegpt.resolve(auto, ImageSpec(64, 3))[0] == {"size": "mini", "side": 16, "clusters": 64}
    published = options(size="small", side="auto", clusters="auto")
    assert imagegpt.resolve(published, ImageSpec(32, 3))[0] == {"size": "small", "side": 32, "clusters": 512}
    assert "model.side=10: images are read as 100 tokens" in " ".join(imagegpt.resolve(auto, ImageSpec(28, 1))[1])
    for wrong, text in ({"side": 9}, "side=9: expected 2 to 8"), ({"clusters": 1}, "clusters=1"), ({"layer": 4}, "3 blocks"):
        with pytest.raises(UserError, match=text):
            imagegpt.resolve(options(**wrong), ImageSpec(8, 1))


def test_the_model_brings_its_task():
    assert compose.compose(["model=imagegpt"]).task.name == "clm"
    assert compose.compose([]).task.name == "mim"
    for wrong in (["model=imagegpt", "task=mim"], ["task=mim", "model=imagegpt"]):
        with pytest.raises(UserError, match=r"the task needs .* with model=imagegpt there is: task=clm$"):
            compose.compose(wrong)
    [line] = compatibility.incompatible({"model": "vit", "task": "clm"})
    assert line.startswith("model=vit task=clm: the task needs causal_tokens")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run that the tests read."""
    from ptmrun import cli

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("imagegpt"))
    try:
        assert cli.run(IMAGEGPT) == 0
        return latest()
    finally:
        os.chdir(before)


def lines_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run(run):
    looks = [x for x in lines_of(run) if "layer" in x]
    assert [x["step"] for x in looks] == [0, 12]
    scores = [looks[-1][f"probe_linear_layer_{i}"] for i in range(1, 4)]
    assert looks[-1]["layer"] == 1 + int(np.argmax(scores))
    assert looks[-1]["probe_linear"] == max(scores)
    stored = tensor_files.load(run / "checkpoints" / "encoder" / library_format.FITTED)[0]
    assert int(stored["chosen"]) == looks[-1]["layer"]
    losses = [x for x in lines_of(run) if x["stage"] == "pretrain" and "loss" in x]
    assert losses[-1]["bits_per_pixel"] == pytest.approx(losses[-1]["loss"] / math.log(2), rel=1e-5)
    assert losses[-1]["loss"] < losses[0]["loss"] < math.log(8) * 1.1
    results = json.loads((run / "results.json").read_text())
    assert results["pretrain"]["layer"] == looks[-1]["layer"]
    assert results["pretrain"]["probe_linear_layer_2"] == scores[1]
    assert {p.stem for p in (run / "figures").glob("*.png")} >= {"reconstructions", "layers", "curves", "scores"}


def test_held_out_images_are_judged(run):
    looks = [x for x in lines_of(run) if "held_loss" in x]
    assert [(x["step"], x.get("split")) for x in looks] == [(0, None), (12, None), (12, "test")]
    for look in looks:  # gray images: a pixel is a dimension
        assert look["bits_per_dimension"] == look["bits_per_pixel"] == pytest.approx(look["held_loss"] / math.log(2), rel=1e-5)
    assert looks[1]["held_loss"] < looks[0]["held_loss"]


def test_pictures_are_drawn(run, ptmrun, tmp_path):
    """Picture i by the seed and i alone; the upper half of a completed test image is its own."""
    code, out, err = ptmrun("generate", run, "samples=3", f"out={tmp_path / 'three'}")
    assert (code, err) == (0, "")
    assert Path(out.strip()) == tmp_path / "three"
    three = {p.name: np.asarray(Image.open(p)) for p in (tmp_path / "three").iterdir()}
    assert set(three) == {"000.png", "001.png", "002.png", "grid.png", "completed.png"}
    assert three["000.png"].shape == (8, 8)
    assert not np.array_equal(three["000.png"], three["001.png"])
    folder = Path(ptmrun("generate", run, "samples=1")[1].strip())
    assert folder == run / "drawn" / "drawn_seed0"
    assert np.array_equal(np.asarray(Image.open(folder / "000.png")), three["000.png"])
    original, given, first, second = np.split(three["completed.png"], 4)
    half = len(given) // 2
    assert np.array_equal(original[:half], first[:half])
    assert not np.array_equal(first[half:], second[half:])
    for setting, expected in (
        (f"out={tmp_path / 'three'}", "is there already; choose a folder that is not"),
        ("tokens=3", "tokens: is no setting of model=imagegpt, which draws; leave it out"),
        ("prompt=a dog", "prompt: the model of this run was trained without texts or classes; leave it out"),
    ):
        code, _, err = ptmrun("generate", run, setting)
        assert code == 2
        assert expected in err


def test_a_run_that_draws_classes(ptmrun, tmp_path):
    code, out, err = ptmrun(*IMAGEGPT, "stage=pretrain", "model.classes=auto", "pretrain.steps=2")
    assert code == 0, err
    assert "drawn: " in out
    assert "classes: 10" in (latest() / "config.yaml").read_text()
    code, out, err = ptmrun("generate", latest(), "prompt=7", "guidance=2", "samples=2", f"out={tmp_path / 'sevens'}")
    assert (code, err) == (0, "")
    code, out, err = ptmrun("generate", latest(), "prompt=dog")
    assert code == 2
    assert "prompt=dog: expected one of the classes, 0, 1, 2" in err
    code, out, err = ptmrun(*IMAGEGPT, "stage=pretrain", "model.classes=4")
    assert code == 2
    assert "model.classes=4: the data has 10; expected auto, or as many" in err
    for i in range(30):
        write_picture(tmp_path / "plain" / f"{i}.png", i)
    place = ["dataset=imagefolder", f"dataset.root={tmp_path / 'plain'}", "dataset.image_size=8"]
    code, out, err = ptmrun(*IMAGEGPT, *place, "stage=pretrain", "model.classes=auto")
    assert code == 2
    assert "model.classes=auto: the images have no classes to learn; leave it out" in err


def write_picture(path, seed):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def test_fine_tuning_another_run_uses_its_colours_and_layer(run, ptmrun):
    assert ptmrun(*TINY, "stage=finetune", f"init={run}", "finetune=linear", "seed=5")[0] == 0
    parent = tensor_files.load(run / "checkpoints" / "encoder" / library_format.FITTED)[0]
    file = next((latest() / "checkpoints" / "finetuned").glob("*.safetensors"))
    tuned = tensor_files.load(file)[0]
    assert torch.equal(tuned["encoder.clusters"], parent["clusters"])
    assert torch.equal(tuned["encoder.chosen"], parent["chosen"])


def test_a_tuned_norm_is_exported_where_it_came_from(ptmrun):
    """Features of the first of three blocks pass the first norm of the second, which fine-tuning changes."""
    own = ["model.layer=1", "finetune.lr=1e-2", "evaluate.baselines=[chance]", "pretrain.steps=2"]
    assert ptmrun(*IMAGEGPT, *own)[0] == 0
    for folder, more in (("made", []), ("graph", ["format=pt2"])):
        code, out, err = ptmrun("export", latest(), folder, *more)
        assert code == 0, err
        assert "largest difference 0.0e+00 on 8 test samples" in out


def test_resume_and_reproduce_are_bit_exact(run, ptmrun, monkeypatch):
    real, calls = loop.backward, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", stopping)
        assert ptmrun(*IMAGEGPT, "stage=pretrain")[0] == 130
    folder = latest()
    assert ptmrun("resume", folder)[0] == 0
    for kind in ("model.safetensors", library_format.FITTED):
        same = [tensor_files.sha256(tensor_files.load(x / "checkpoints" / "encoder" / kind)[0]) for x in (run, folder)]
        assert same[0] == same[1]
    code, out, _ = ptmrun("reproduce", folder)
    assert code == 0
    assert "bit-exact" in out
