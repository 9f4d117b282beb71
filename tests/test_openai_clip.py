"""transformers' own CLIP: its published sizes, weights from a folder, what others read of ours, and runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import draw, latest
from PIL import Image
from texts import part
from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip import CLIPTokenizer

from ptmrun import rng
from ptmrun.batch import ImageSpec, Pair, PairSpec, TextSpec
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.pairs.processor import PairProcessor
from ptmrun.data.text import tokenizer_training
from ptmrun.data.text.processor import TextProcessor
from ptmrun.errors import UserError
from ptmrun.models import openai_clip, pretrained
from ptmrun.objectives import clip as objective
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run

CAPTIONS = ["a red circle on the left", "two small blue rings", "a large green star at the top", "three black crosses"]
AUTO = {"size": "auto", "shape": None, "patch": "auto", "activation": "auto", "dropout": 0.0, "tokenizer": "auto"}
CPU = torch.device("cpu")


@pytest.fixture
def tokenizer():
    return tokenizer_training.train("bpe", 300, openai_clip.FRAMING, part(CAPTIONS * 3), lowercase=True)


def encoder(spec, seed=0, **changes):
    options = SimpleNamespace(**(AUTO | changes))
    options = SimpleNamespace(**(vars(options) | openai_clip.resolve(options, spec)[0]))
    rng.seed_everything(seed, "test")
    return openai_clip.build(options, spec, "sdpa").eval()


def processor(tokenizer, side=16, length=14):
    images = ImageProcessor(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4]), CPU, side)
    return PairProcessor(images, TextProcessor(tokenizer, length, CPU))


def library(tokenizer, folder, **text):
    """A small CLIPModel of transformers', as a folder."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    about = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 20, "vocab_size": tokenizer.vocabulary.size}
    about |= {"eos_token_id": tokenizer.vocabulary.end, "bos_token_id": tokenizer.vocabulary.start, **text}
    vision = {**sizes, "hidden_size": 24, "intermediate_size": 40, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(text_config=sizes | about, vision_config=vision, projection_dim=12)).eval()
    theirs.save_pretrained(folder)
    tokenizer.save(folder)
    return theirs


@pytest.mark.parametrize(
    ("size", "side", "count"),
    [("base_patch32", 224, 151_277_313), ("base_patch16", 224, 149_620_737), ("large_patch14", 224, 427_616_513)],
)
def test_sizes_are_those_that_were_published(size, side, count, tokenizer):
    vocabulary = SimpleNamespace(size=49408, start=49406, end=49407, pad=49407)
    with torch.device("meta"):
        made = encoder(PairSpec(ImageSpec(side, 3), TextSpec(vocabulary, 77)), size=size)
    assert sum(p.numel() for p in made.net.parameters()) == count
    assert made.kind in openai_clip.PUBLISHED


def test_a_folder_gives_the_embeddings_and_the_loss_of_the_library(tokenizer):
    theirs = library(tokenizer, "folder")
    values = pretrained.described(
        SimpleNamespace(**AUTO), openai_clip.FAMILY, pretrained.library_config(Path("folder/config.json"))
    )
    assert values == {"size": "tiny", "shape": [24, 2, 2, 40, 32, 2, 2, 48, 12], "patch": 4, "activation": "gelu"}
    made = encoder(PairSpec(ImageSpec(16, 3), TextSpec(tokenizer.vocabulary, 14)), seed=1, **values)
    name, tensors, config = pretrained.read("folder")
    notes = pretrained.load(made, tensors, config, name)
    assert "100.0%" in notes[0]
    assert notes[1:] == ["  positions: the first 14 of 20"]
    tokens = processor(tokenizer).text.read(CAPTIONS)
    assert not tokens.mask.all()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        said = theirs(input_ids=tokens.ids, attention_mask=tokens.mask.long(), pixel_values=images, return_loss=True)
        own = objective.Objective(made, SimpleNamespace(loss="clip"))
        embedded = own.embed({"inputs": Pair(images, tokens)})
        loss, _ = own.compare(embedded, [{"same": torch.arange(4)}])
    unit = torch.nn.functional.normalize(embedded, dim=-1)
    torch.testing.assert_close(unit[:, 0], said.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unit[:, 1], said.text_embeds, rtol=1e-5, atol=1e-5)
    assert float(loss.total) / loss.n == pytest.approx(float(said.loss), rel=1e-5)
    pair = Pair(images, tokens)
    torch.testing.assert_close(made.features(pair), theirs.vision_model(images).pooler_output, rtol=1e-5, atol=1e-5)
    assert made.local_features(pair).shape == (4, 16, 24)
    assert made.attention(pair).shape == (4, 4, 4)
    assert {made.depth_of(name) for name in made.state_dict()} == {0, 1, 2, 3}
    before = made.features(pair)
    made.trim()
    assert torch.equal(made.features(pair), before)
    assert all(".vision_model." in f".{name}" for name in made.state_dict())


def test_weights_of_other_images_and_what_differs_is_told(tokenizer):
    library(tokenizer, "folder", layer_norm_eps=1e-3)
    spec = PairSpec(ImageSpec(24, 1), TextSpec(tokenizer.vocabulary, 20))
    made = encoder(spec, shape=[24, 2, 2, 40, 32, 2, 2, 48, 12], activation="gelu", patch=6)
    name, tensors, config = pretrained.read("folder")
    notes = pretrained.load(made, tensors, config, name)
    assert "  patch embeddings: from colour to gray, the sum of the channels" in notes
    assert "  patch embeddings: from 4x4 to 6x6 pixels, pseudo-inverse" in notes
    assert "text_config.layer_norm_eps is 0.001 there and 1e-05 here" in notes[-1]
    assert "projection" not in notes[-1]
    with pytest.raises(UserError, match=r"model\.shape=\[1\]: expected 9 numbers"):
        encoder(spec, shape=[1])
    with pytest.raises(UserError, match=r"model\.patch=32: expected a divisor of the image's side 24"):
        encoder(spec, size="base_patch32")
    two = SimpleNamespace(**(vars(tokenizer.vocabulary) | {"end": 2}))
    with pytest.raises(UserError, match="the end of a text is its token 2"):
        encoder(PairSpec(spec.image, TextSpec(two, 20)))
    assert openai_clip.fitting(SimpleNamespace(**AUTO | {"size": "base_patch32"}), 200) == 192


def test_what_is_saved_is_read_by_the_library_with_equal_embeddings(tokenizer, tmp_path):
    pairs = processor(tokenizer)
    made = encoder(pairs.spec)
    with torch.no_grad():
        made.bias.fill_(-3.0)
    made.save(tmp_path / "saved", *pairs.preprocessing)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    model = CLIPModel.from_pretrained(tmp_path / "saved").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "saved")(CAPTIONS, padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "saved")(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        images = model.get_image_features(pixels).pooler_output
        ours = made.text_embeddings(pairs.texts([text.upper() for text in CAPTIONS]))
        seen = made.image_embeddings(pairs.image(pairs.image.read(pairs.image.opened([picture]))))
    torch.testing.assert_close(texts, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images, seen, rtol=1e-4, atol=1e-4)
    again = encoder(pairs.spec, seed=5)
    again.load(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
    assert float(again.bias.detach()) == -3


def test_a_published_tokenizer_gives_the_tokens_of_the_library(tmp_path):
    letters = [*"abcdelr", *(f"{c}</w>" for c in "abcdelr"), "re", "red</w>"]
    names = [*letters, "<|startoftext|>", "<|endoftext|>"]
    theirs = CLIPTokenizer({name: i for i, name in enumerate(names)}, [("r", "e"), ("re", "d</w>")])
    theirs.save_pretrained(tmp_path / "published")
    from ptmrun.data.text import tokenizer as reading

    own = reading.load(str(tmp_path / "published"), openai_clip.FRAMING)
    text = "Red  bell bar"
    assert own.frame(own.encode([text])[0], None, 20)[0].tolist() == theirs(text)["input_ids"]
    assert own.vocabulary.start == names.index("<|startoftext|>")
    assert own.vocabulary.end == own.vocabulary.pad == names.index("<|endoftext|>")


TINY = [
    "model=openai_clip",
    "model.shape=[24,1,2,32,32,1,2,48,16]",
    "dataset.drawings=1",
    "dataset.limit=60",
    "dataset.test_limit=40",
    "pretrain.steps=2",
    "pretrain.batch_size=16",
    "pretrain.probes=1",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


def test_a_run_is_evaluated_fine_tuned_and_exported(ptmrun, tmp_path):
    code, _, err = ptmrun(*TINY, "task.loss=siglip")
    assert code == 0, err
    run = latest()
    assert json.loads((run / "results.json").read_text())["metric"] == "recall_at_10"
    model = CLIPModel.from_pretrained(run / "checkpoints" / "encoder")
    assert model.config.text_config.eos_token_id == AutoTokenizer.from_pretrained(run / "checkpoints" / "encoder").eos_token_id
    code, _, err = ptmrun("stage=evaluate", f"init={run}", "downstream=zero_shot")
    assert code == 0, err
    code, out, err = ptmrun("predict", latest(), draw(tmp_path / "a.png"))
    assert code == 0, err
    assert "green" in out
    few = ["finetune.steps=2", "finetune.seeds=1", "evaluate.baselines=[chance]", "finetune.batch_size=8"]
    code, _, err = ptmrun("stage=finetune", f"init={run}", "downstream=pair_classification", *few)
    assert code == 0, err
    for name, source in {"whole": run, "tuned": latest()}.items():
        code, _, err = ptmrun("export", source, name)
        assert code == 0, err
        assert CLIPModel.from_pretrained(name).config.projection_dim == 16


def test_a_run_from_a_folder_of_the_library(ptmrun, tokenizer):
    library(tokenizer, "folder")
    settings = [x for x in TINY if not x.startswith("model.shape")]
    code, out, err = ptmrun(*settings, "init=folder", "stage=pretrain", "pretrain.probes=0", "pretrain.steps=1")
    assert code == 0, err
    cfg = config_file.load(Run.open(latest()).path("config.yaml"))
    assert cfg.model.tokenizer == "folder"
    assert cfg.model.patch == 4
    assert cfg.model.length <= 20
    assert "100.0% of the encoder's" in out
