"""CLIP: its losses, its gradients when a batch is accumulated, what is retrieved, and a whole run."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import draw, latest
from pairs import loaded
from scipy.stats import hypergeom
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.data.pairs.batches import PairBatches
from ptmrun.downstream import retrieval, zero_shot
from ptmrun.downstream.regressed import Regressed
from ptmrun.errors import UserError
from ptmrun.models import clip as model
from ptmrun.objectives import clip
from ptmrun.training.loop import gradients

OPTIONS = SimpleNamespace(
    image="vit",
    text="bert",
    image_options=None,
    text_options=["shape:[32, 1, 2]", "dropout:0.0"],
    tokenizer="auto",
    vocabulary=100,
    lowercase=True,
    length=16,
    projection=16,
)


def encoder(spec, **changes):
    options = SimpleNamespace(**(vars(OPTIONS) | changes))
    rng.seed_everything(0, "test")
    return model.build(SimpleNamespace(**(vars(options) | model.resolve(options, spec)[0])), spec, "sdpa")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return loaded("dataset=shapes", "dataset.drawings=1", "dataset.limit=300")


def objective(loss="clip", scale=2.0, bias=0.0):
    parts = SimpleNamespace(scale=torch.nn.Parameter(torch.tensor(scale)), bias=torch.nn.Parameter(torch.tensor(bias)))
    return clip.Objective(parts, SimpleNamespace(loss=loss))


def embedded(count=6, width=5):
    return torch.randn(count, 2, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("repeated", [False, True])
def test_the_loss_is_that_of_a_reference_in_float64(repeated):
    made, x = objective(), embedded()
    same = [0, 1, 2, 0, 3, 1] if repeated else list(range(6))
    loss, shown = made.compare(x, [{"same": torch.tensor(same[:2])}, {"same": torch.tensor(same[2:])}])
    z = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=-1, keepdims=True)
    logits, expected = np.exp(2.0) * z[:, 0] @ z[:, 1].T, 0.0
    for table in (logits, logits.T):
        for i in range(6):
            fits = [j for j in range(6) if same[j] == same[i]]
            expected += sum(np.log(np.exp(table[i]).sum()) - table[i, j] for j in fits) / len(fits) / 2
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.n == 6
    assert float(shown["scale"].total) == pytest.approx(np.exp(2.0))


def test_the_loss_is_that_of_the_librarys_model_on_the_same_batch():
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    theirs = CLIPModel(config).eval()
    ids = torch.randint(1, 49, (5, 8))
    with torch.no_grad():
        said = theirs(input_ids=ids, pixel_values=torch.randn(5, 3, 16, 16), return_loss=True)
    made = objective(scale=float(theirs.logit_scale.detach()))
    loss, _ = made.compare(torch.stack([said.image_embeds, said.text_embeds], 1), [{"same": torch.arange(5)}])
    assert float(loss.total.detach()) / loss.n == pytest.approx(float(said.loss), rel=1e-5)


def test_siglip_begins_where_it_was_published_and_counts_every_pair():
    made, x = objective("siglip"), embedded()
    assert float(made.encoder.scale.detach()) == pytest.approx(np.log(10))
    assert float(made.encoder.bias.detach()) == -10
    again = clip.Objective(made.encoder, SimpleNamespace(loss="siglip"))
    with torch.no_grad():
        again.encoder.bias.fill_(-3.0)
    assert float(clip.Objective(again.encoder, SimpleNamespace(loss="siglip")).encoder.bias.detach()) == -3
    same = torch.tensor([0, 1, 2, 0, 3, 4])
    loss, _ = made.compare(x, [{"same": same}])
    z = F.normalize(x.double(), dim=-1)
    logits = made.encoder.scale.double().exp() * z[:, 0] @ z[:, 1].T + made.encoder.bias.double()
    expected = sum(-F.logsigmoid(v if same[i] == same[j] else -v) for i, row in enumerate(logits) for j, v in enumerate(row))
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_scale_is_clamped_after_a_step_and_a_bias_that_is_not_used_is_not_trained():
    made = objective(scale=7.0)
    made.after_step(1, 10)
    assert float(made.encoder.scale.detach()) == pytest.approx(np.log(100))
    assert not made.encoder.bias.requires_grad


@pytest.mark.parametrize(("apart", "loss", "alarms"), [(False, "clip", True), (True, "clip", False), (False, "siglip", False)])
def test_a_loss_that_stays_where_it_began_gives_an_alarm(apart, loss, alarms):
    made = objective(loss)
    pairs = torch.eye(6)[:, None].expand(6, 2, 6) if apart else torch.ones(6, 2, 5)
    for step in range(200):
        assert step > 190 or made.alarm() is None
        made.compare(pairs, [{"same": torch.arange(6)}])
        made.after_step(step + 1, 300)
    assert bool(made.alarm()) == alarms


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_batch_of_64_is_the_same_in_four_parts_the_temperature_too(data, loss):
    spec, inputs = data.processor(torch.device("cpu")).spec, data.processor(torch.device("cpu"))

    def gradient(parts):
        made = clip.Objective(encoder(spec), SimpleNamespace(loss=loss)).double()
        [micros] = PairBatches(data.train, inputs, augment(), 0.0, 64, parts, 0, "test").iterate(0, 1)
        for micro in micros:
            micro["inputs"] = micro["inputs"]._replace(images=micro["inputs"].images.double())
        sums = gradients(made, made, micros, lambda _: contextlib.nullcontext())
        return sums["loss"][0] / sums["loss"][1], {k: p.grad for k, p in made.named_parameters() if p.grad is not None}

    (whole, one), (accumulated, four) = gradient(1), gradient(4)
    assert accumulated == pytest.approx(whole, rel=1e-6)
    assert one.keys() == four.keys()
    assert "encoder.scale" in one
    assert ("encoder.bias" in one) == (loss == "siglip")
    for name, value in one.items():
        assert torch.allclose(value, four[name], rtol=1e-4, atol=1e-7), name


def augment():
    from ptmrun.config.schema import Augment

    return Augment(shift=0.0, rotate=0.0, scale=0.0, shear=0.0, flip=False)


def test_any_two_families_are_towers_and_their_options_are_theirs(data):
    spec = data.processor(torch.device("cpu")).spec
    made = encoder(spec, image="cnn", image_options=["width:4", "hidden=8"], text="lstm", text_options=None)
    assert made.width == 8
    assert made.image_projection.in_features == 8
    for name in ("model.image_options: patch:4: expected settings of model=cnn", "model.image_options: width"):
        wrong = [name.split(": ")[1].replace("width", "width:no")]
        with pytest.raises(UserError, match=name):
            encoder(spec, image="cnn", image_options=wrong)
    with pytest.raises(UserError, match="length:5: expected settings of model=bert"):
        encoder(spec, text_options=["length:5"])
    assert model.of(SimpleNamespace(**(vars(OPTIONS) | {"text": "gpt"}))).tokenizer == "bpe"


def test_a_tower_that_learns_colours_learns_them_from_the_images(data, tmp_path):
    processor = data.processor(torch.device("cpu"))
    made = encoder(processor.spec, image="imagegpt", image_options=["side:8", "clusters:8"])
    pair = processor(next(data.train.batches([torch.arange(40)])))
    learned = made.learn_buffers(pair)
    assert made.learns_buffers
    assert learned["image.clusters"].unique(dim=0).shape[0] > 1
    made.load_state_dict(learned, strict=False)
    made.save(tmp_path / "encoder", *processor.preprocessing)
    assert torch.equal(made.saved_buffers(tmp_path / "encoder")["image.clusters"], learned["image.clusters"])
    assert made.image_embeddings(pair.images).shape == (40, 16)


def test_weights_are_read_back_and_a_trimmed_one_keeps_its_images(data, tmp_path):
    processor = data.processor(torch.device("cpu"))
    first, second = encoder(processor.spec), encoder(processor.spec)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1)
    first.save(tmp_path / "encoder", *processor.preprocessing)
    second.load(tmp_path / "encoder")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    pair = processor(next(data.test.all(4)))
    assert len(pair.images) == 4
    assert len(pair.tokens.ids) == 8
    before = first.eval().features(pair)
    first.trim()
    assert torch.equal(first.features(pair), before)
    assert all(name.startswith("image.") for name in first.state_dict())
    depths = {second.depth_of(name) for name in second.state_dict()}
    assert depths == set(range(second.depth + 2))


def test_ranks_count_what_does_not_fit_and_half_of_what_is_as_near():
    queries, others = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.8, 0.0], [0.95, 0.0], [0.1, 0.0]])
    own, theirs = torch.tensor([7]), torch.tensor([1, 7, 2, 7, 7])
    assert retrieval.ranks(queries, own, others, theirs).tolist() == [1.0]  # the nearest fits
    assert retrieval.ranks(queries, own, others, torch.tensor([1, 7, 2, 3, 7])).tolist() == [3.5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "TOGETHER", 1)
        assert retrieval.ranks(queries.repeat(3, 1), own.repeat(3), others, theirs).tolist() == [1.0] * 3


def test_random_embeddings_score_chance_and_perfect_ones_all(data):
    test, found = data.test, retrieval.baseline_predictions("chance", data, data.train, lambda *_: None)
    assert retrieval.valid(found, test, [])
    assert not retrieval.valid({"images": found["images"]}, test, [])
    counts = {int(n): int(c) for n, c in zip(*test.same.unique(return_counts=True), strict=True)}
    each = [1 - hypergeom.cdf(0, len(test), counts[int(n)], retrieval.DEPTH) for n in test.same]
    assert retrieval.score(found, test) == pytest.approx(np.mean(each), abs=0.02)
    axes = torch.eye(int(test.same.unique().numel()))[test.same.unique(return_inverse=True)[1]]
    perfect = {"images": axes, "captions": axes[test.owners]}
    metrics = retrieval.metrics(perfect, test, [], 15)
    assert metrics["text_to_image_recall_at_1"] == metrics["image_to_text_recall_at_1"] == 1
    assert metrics["image_to_text_median_rank"] == 1
    table = retrieval.columns_of_predictions(perfect, test, [])
    assert table["rank"].to_pylist() == [1.0] * len(test)


def test_pixels_that_say_the_caption_are_regressed_to_it():
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 4, 200)
    pixels = (np.eye(4)[kinds] + 0.1 * generator.normal(size=(200, 4))).astype(np.float32)
    names = ["red circle", "blue ring", "green star", "black cross"]
    fitted = Regressed(pixels[:150], [[names[k]] for k in kinds[:150]])
    found = fitted.images(pixels[150:]) @ fitted.texts(names).T
    assert (found.argmax(1) == kinds[150:]).all()


def test_templates_need_a_place_for_the_name():
    assert zero_shot.prompts(["ring"], ["{}", "a {} there"]) == [["ring", "a ring there"]]
    with pytest.raises(UserError, match=r"downstream\.templates: a picture: expected \{\}"):
        zero_shot.prompts(["ring"], ["a picture"])


TINY = [
    "model=clip",
    "model.text_options=['shape:[32,1,2]']",
    "dataset.drawings=1",
    "dataset.limit=60",
    "dataset.test_limit=40",
    "pretrain.steps=3",
    "pretrain.batch_size=16",
    "pretrain.probes=1",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


def test_a_run_is_evaluated_as_it_is_beside_its_floors(ptmrun, tmp_path):
    code, out, err = ptmrun(*TINY)
    assert code == 0, err
    assert "trains nothing" in out
    assert "points against the best floor" in out.replace("\n", " ")
    run = latest()
    results = json.loads((run / "results.json").read_text())
    [entry] = results["by_labels"]
    assert set(entry["scores"]) == {"tuned", "chance", "raw"}
    assert entry["floor"]["name"] in ("chance", "raw")
    assert results["seeds"] == 1
    assert results["parameters"]["trained"] == 0
    assert not (run / "checkpoints" / "finetuned").exists()
    assert {"similarity.png", "retrieved.png", "attention.png"} <= {p.name for p in (run / "figures").iterdir()}
    code, out, err = ptmrun("stage=evaluate", f"init={run}", "downstream=zero_shot")
    assert code == 0, err
    assert json.loads((latest() / "results.json").read_text())["metric"] == "accuracy"
    picture = draw(tmp_path / "a.png")
    code, out, err = ptmrun("predict", latest(), picture)
    assert code == 0, err
    assert str(picture) in out
    assert "green" in out
    code, _, err = ptmrun("stage=finetune", f"init={run}")
    assert code == 2
    assert "stage=finetune: downstream=retrieval trains nothing" in err


def test_the_image_tower_is_fine_tuned_where_there_are_labels(ptmrun):
    few = ["downstream=pair_classification", "finetune.steps=2", "finetune.seeds=1", "evaluate.baselines=[chance]"]
    code, _, err = ptmrun(*TINY, *few, "pretrain.probes=0", "finetune.batch_size=8")
    assert code == 0, err
    results = json.loads((latest() / "results.json").read_text())
    assert results["metric"] == "accuracy"
    assert results["parameters"]["trained"] == results["parameters"]["all"]


def test_what_does_not_go_together_is_said_at_once(ptmrun):
    code, _, err = ptmrun("model=clip", "dataset=mnist5k")
    assert code == 2
    assert (
        "model=clip dataset=mnist5k: the data has no pairs; with model=clip there is: dataset=caption_hub, caption_shards, "
        "captions, shapes" in err
    )
    code, _, err = ptmrun("model=clip", "model.image=bert")
    assert code == 2
    assert "model.image=bert: expected 'alexnet'" in err
