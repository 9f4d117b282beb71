"""What fine-tuning methods add to a frozen encoder: LoRA, DoRA, AdaLoRA, IA3, bottleneck adapters and prefixes."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, latest
from peft import PeftModel
from torch import nn
from transformers import ViTModel

from ptmrun.batch import AudioSpec, ImageSpec, TextSpec, Tokens, Vocabulary, Waves
from ptmrun.compose import compose
from ptmrun.config import choices, compatibility, specs
from ptmrun.downstream.classification import Classifier
from ptmrun.errors import Misfit, UserError
from ptmrun.finetuning import adapters, lora, methods, prefix
from ptmrun.runs.folder import Run
from ptmrun.stages.networks import family_of
from ptmrun.storage import tensor_files

STEPS = 100


def options(method, *changes):
    return compose([f"finetune={method}", *changes]).finetune


def made(model):
    """(a classifier of three classes on a small encoder with dropout off, a batch)"""
    cfg = compose([f"model={model}"])
    family = family_of(cfg)
    torch.manual_seed(0)
    if "text" in specs.spec("model", model).needs:
        none = torch.zeros(100, dtype=torch.bool)
        spec: tuple = TextSpec(Vocabulary(100, 0, 3, 3, 1, 2, torch.arange(100) < 4, none, none), 32)
        ids = torch.randint(4, 100, (6, 20))
        inputs = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
    elif "audio" in specs.spec("model", model).needs:
        spec, values = AudioSpec(8000, 4000), torch.randn(6, 4000)
        inputs = Waves(values, torch.ones_like(values, dtype=torch.bool))
    else:
        spec, inputs = ImageSpec(32, 3), torch.randn(6, 3, 32, 32)
    settings = SimpleNamespace(**cfg.model.model_dump() | family.resolve(cfg.model, spec)[0])
    encoder = family.build(settings, spec, "eager")
    encoder.trim()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return Classifier(encoder, 3, 0.0).eval(), {"inputs": inputs, "labels": torch.arange(6) % 3}


def trained(classifier, batch, steps, lr=0.05, each=lambda done: None):
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=lr)
    classifier.train()
    for done in range(1, steps + 1):
        loss, _ = classifier(batch)
        (loss.total / loss.n).backward()
        optimizer.step()
        if hasattr(classifier, "after_step"):
            classifier.after_step(done, steps)
        optimizer.zero_grad()
        each(done)
    return classifier.eval()


FITTING = [
    (m, f)
    for f in methods.ADDED
    for m in choices.names("model")
    if compatibility.fine_tunes(f, m) and m not in ("vgg", "inception")
]


@pytest.mark.parametrize(("model", "method"), FITTING)
def test_nothing_changes_at_first_and_frozen_weights_never(model, method):
    classifier, batch = made(model)
    with torch.no_grad():
        first = classifier.logits(batch["inputs"])
    norms = [m for m in classifier.encoder.net.modules() if method == "adapter" and isinstance(m, adapters.NORMS)]
    free = {id(p) for m in norms for p in m.parameters()}
    frozen = {k: v.clone() for k, v in classifier.encoder.net.named_parameters() if id(v) not in free}
    trainable, every = methods.adapt(classifier, options(method), STEPS)
    assert 0 < trainable < every
    with torch.no_grad():
        assert torch.equal(classifier.eval().logits(batch["inputs"]), first) == (method != "prefix")
    adapted = {k: v.clone() for k, v in classifier.encoder.net.named_parameters() if v.requires_grad}
    trained(classifier, batch, 3)
    after = {k.replace(".base_layer.", "."): v for k, v in classifier.encoder.net.named_parameters()}
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    assert any(not torch.equal(classifier.encoder.net.get_parameter(k), v) for k, v in adapted.items())
    with torch.no_grad():
        now = classifier.logits(batch["inputs"])
        assert not torch.equal(now, first)
        if methods.ADDED[method] == "lowrank":
            lora.merge(classifier.encoder.net)
            assert set(dict(classifier.encoder.net.named_parameters())) == set(frozen)
            torch.testing.assert_close(classifier.logits(batch["inputs"]), now, rtol=1e-5, atol=1e-5)


def test_parameters_are_as_many_as_the_formulas_say():
    """ViT micro: width 96, 3 blocks, 4 + 2 layers and 2 norms in each, and one more norm; BERT tiny: width 128, 2 blocks."""
    for model, width, blocks in (("vit", 96, 3), ("bert", 128, 2)):
        layers = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        wanted = {
            "lora": sum(8 * (a + b) for a, b in layers),
            "dora": sum(8 * (a + b) + b for a, b in layers),
            "adalora": sum(12 * (a + b) + 12 for a, b in layers),
            "ia3": 2 * width + 4 * width,
            "adapter": 2 * width * 16 + width + 16 + 4 * width,
            "prefix": 2 * width * 16,
        }
        for method, each in wanted.items():
            classifier, _ = made(model)
            before = methods.parameters(classifier)
            head, counters = 3 * width + 3, 6 * blocks if method == "adalora" else 0  # peft's ranknum, one a layer
            found = methods.adapt(classifier, options(method), STEPS)
            norms = 4 * width * blocks if method == "adapter" else 0  # which were there before
            last = 2 * width if norms else 0
            assert found == (blocks * each + last + head, before + blocks * each - norms + counters), (model, method)
        classifier, _ = made(model)
        both = methods.adapt(classifier, options("adapter", "finetune.placement=houlsby", "finetune.norms=false"), STEPS)[0]
        assert both == 2 * blocks * (2 * width * 16 + width + 16) + head


def test_bitfit_trains_biases_alone():
    classifier, batch = made("bert")
    before = {k: v.clone() for k, v in classifier.encoder.named_parameters()}
    methods.adapt(classifier, options("bitfit"), STEPS)
    trained(classifier, batch, 2)
    moved = {k for k, v in classifier.encoder.named_parameters() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.endswith("bias") for k in moved)


def test_adalora_gives_its_budget_where_it_matters():
    """The total rank follows the cubic schedule at every allocation and stays at the target from there on; layers differ."""
    classifier, batch = made("bert")
    methods.adapt(classifier, options("adalora"), STEPS)
    modules, start, end = 12, 10, 70
    seen = []

    def look(done):
        values = lora.ranks(dict(classifier.encoder.net.named_parameters()))
        seen.append(classifier.allocation.rank)
        if done >= end or (done > start and done % 10 == 0):
            assert sum(values.values()) == seen[-1], "what is not kept is zero"

    trained(classifier, batch, STEPS, each=look)
    for done, rank in enumerate(seen, 1):
        last = done // 10 * 10  # the allocation before, every ten steps
        left = 1 - (min(last, end) - start) / (end - start)
        assert rank == (int(4 * modules * left**3 + 8 * modules) if last > start else 12 * modules)
    assert seen[-1] == 8 * modules
    ranks = lora.ranks(dict(classifier.encoder.net.named_parameters()))
    assert len(ranks) == modules
    assert len(set(ranks.values())) > 1


def test_adaloras_loss_keeps_directions_orthogonal():
    classifier, batch = made("vit")
    classifier.train()
    plain = classifier(batch)[0].total.item()
    methods.adapt(classifier, options("adalora"), STEPS)
    loss, shown = classifier(batch)
    found = {k: p.detach().double() for k, p in classifier.encoder.net.named_parameters()}
    bases = [p for k, p in found.items() if ".lora_A." in k] + [p.T for k, p in found.items() if ".lora_B." in k]
    apart = sum((b @ b.T - torch.eye(12)).square().sum().sqrt().item() for b in bases) / len(bases)
    assert (loss.total.item() - plain) / loss.n == pytest.approx(0.5 * apart, rel=1e-5)
    assert int(shown["rank"].total) == 12 * 18


def test_a_prefix_is_seen_by_every_query():
    """Against torch's own attention over the keys and values put together."""
    torch.manual_seed(0)
    module = SimpleNamespace(prefix=prefix.Prefix(3, 8), training=True)
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    hidden = torch.zeros(2, 1, 5, 5).masked_fill(torch.rand(2, 1, 5, 5) < 0.4, -1e9)
    found, weights = prefix.attend(module, query, key, value, hidden, scaling=0.5)
    before = [p.view(3, 2, 4).transpose(0, 1).expand(2, 2, 3, 4) for p in (module.prefix.key, module.prefix.value)]
    wholes = (torch.cat([p, x], 2) for p, x in zip(before, (key, value), strict=True))
    expected = nn.functional.scaled_dot_product_attention(query, *wholes, torch.cat([torch.zeros(2, 1, 5, 3), hidden], 3))
    torch.testing.assert_close(found, expected.transpose(1, 2))
    assert weights.shape == (2, 2, 5, 8)


def test_mistakes_are_named():
    for method, changes, message in (
        ("lora", ["finetune.targets=[*.qury]"], r"finetune.targets=\*.qury: matches no name; the nearest are: .*query"),
        ("adalora", ["finetune.rank=12"], "must be below finetune.first_rank=12"),
    ):
        with pytest.raises(UserError, match=message):
            methods.adapt(made("bert")[0], options(method, *changes), STEPS)
    with pytest.raises(UserError, match="15 steps are too few to choose ranks; at least 18"):
        methods.adapt(made("bert")[0], options("adalora"), 15)
    with pytest.raises(UserError, match="choose placement=pfeiffer"):
        methods.adapt(made("xlnet")[0], options("adapter", "finetune.placement=houlsby"), STEPS)
    with pytest.raises(Misfit, match="plain linear or convolutional layers in its blocks, which the model does not have"):
        compose(["model=lstm", "finetune=lora"])
    classifier, _ = made("bert")
    methods.adapt(classifier, options("lora", "finetune.targets=[*.query,*.value]", "finetune.rank=4"), STEPS)
    added = {k for k, p in classifier.encoder.net.named_parameters() if p.requires_grad}
    assert len(added) == 8
    assert all(".query." in k or ".value." in k for k in added)


@pytest.mark.parametrize("method", ["lora", "adalora", "adapter", "prefix"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_run_saves_what_it_trained_and_exports_it(ptmrun, done_run, method):
    words = [*TINY[7:], "stage=finetune+evaluate", f"init={done_run}", f"finetune={method}", "finetune.seeds=1"]
    words += ["evaluate.baselines=[chance]", "finetune.unfreeze=[*layernorm*]", *["finetune.steps=20"] * (method == "adalora")]
    code, out, err = ptmrun(*words)
    assert code == 0, err
    assert " MB of optimizer state" in out
    first = latest()
    [file] = (first / "checkpoints/finetuned").glob("*.safetensors")
    tensors, state = tensor_files.load(file)
    assert state["relative_to"] == Run.open(done_run).manifest["weights_sha256"]
    parts = {"lora": ".lora_", "adalora": ".lora_", "adapter": ".adapter.", "prefix": ".prefix."}
    assert not [k for k in tensors if not (parts[method] in k or "layernorm" in k or k.startswith("head."))]
    results = json.loads((first / "results.json").read_text())
    assert sum(results["ranks"].values()) == (8 * len(results["ranks"]) if method == "adalora" else 0)
    assert ("Ranks that AdaLoRA left" in (first / "report.html").read_text()) == (method == "adalora")

    code, out, err = ptmrun("reproduce", first)
    assert code == 0, out + err
    code, out, err = ptmrun("export", first, "made")
    assert code == 0, err
    assert float(out.split("largest difference ")[1].split()[0]) < 1e-5
    code, out, err = ptmrun("export", first, "merged", "merge=true")
    if method in ("adapter", "prefix"):
        assert code == 2
        assert "has added nothing that becomes part of the weights" in err
        return
    assert code == 0, err
    merging, again = out.split("largest difference ")[1:]
    assert float(merging.split()[0]) < 1e-5 * float(merging.split("answers up to ")[1].split()[0])
    assert float(again.split()[0]) < 1e-5
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(ViTModel.from_pretrained("made", add_pooling_layer=False), "made/adapter").eval()
        merged = ViTModel.from_pretrained("merged", add_pooling_layer=False).eval()
        torch.testing.assert_close(theirs(images)[0], merged(images)[0], rtol=1e-4, atol=1e-5)

    tensor_files.save(file, tensors, {"relative_to": "0" * 64})
    code, _, err = ptmrun("stage=evaluate", f"init={first}")
    assert code == 2
    assert "trained beside other frozen weights than this run's" in err


def test_an_interrupted_allocation_goes_on_exactly(ptmrun, done_run, monkeypatch):
    words = [*TINY[7:], "stage=finetune", f"init={done_run}", "finetune=adalora", "finetune.steps=30", "finetune.seeds=1"]
    assert ptmrun(*words)[0] == 0
    whole = Run.open(latest()).manifest["finetuned_sha256"]
    after_step, seen = lora.Allocation.after_step, []

    def stop_once(self, net, done):
        after_step(self, net, done)
        if done == 17 and not seen:
            seen.append(done)
            raise KeyboardInterrupt

    monkeypatch.setattr(lora.Allocation, "after_step", stop_once)
    assert ptmrun(*words, "finetune.checkpoint_every=0")[0] != 0
    assert seen
    code, _, err = ptmrun("resume", latest())
    assert code == 0, err
    assert Run.open(latest()).manifest["finetuned_sha256"] == whole


def test_methods_of_the_table_have_modules():
    for name, module in methods.ADDED.items():
        assert callable(getattr(importlib.import_module(f"ptmrun.finetuning.{module}"), name))
    assert set(methods.ADDED) | set(methods.METHODS) == set(choices.names("finetune"))
