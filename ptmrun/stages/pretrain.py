"""The pretraining stage: an encoder learns from samples without their labels."""

import math
from typing import Any

import torch

from ptmrun.finetuning import methods
from ptmrun.models.modes import evaluating
from ptmrun.reports import figures
from ptmrun.stages import probe, text_samples
from ptmrun.stages.context import ENCODER, Context, batches_of, encoder_hash, fit, labelled, steps_of
from ptmrun.storage import tensor_files

MOST = 1024  # held-out sequences that an objective is judged by


SHOWN = 24  # tokens of a text in the picture of attention


def pretrain(context: Context) -> None:
    """Trains an encoder on samples without their labels; writes checkpoints/encoder and the objective's heads."""
    folder, data = context.run.path(ENCODER), context.data
    if not folder.exists():
        objective = train_objective(context)
        heads = {k: v for k, v in objective.state_dict().items() if not k.startswith("encoder.")}
        tensor_files.save(context.run.path("checkpoints", "heads.safetensors"), heads)
        context.refresh(objective.encoder, data.corpus)
        draw_pretraining(context, objective)
        objective.encoder.save(folder, *data.preprocessing)
    context.run.update(weights_sha256=encoder_hash(folder))


def train_objective(context: Context) -> Any:
    """Trains the objective of the task, looking at the features now and then."""
    cfg, run, data = context.cfg, context.run, context.data
    objective = context.objective()
    encoder = objective.encoder
    loop, own = cfg.pretrain, methods.parameters(encoder)
    steps, size = steps_of(loop, len(data.corpus)), min(loop.batch_size, len(data.corpus))
    run.say(
        f"Pretraining {cfg.model.name} ({own:,} parameters) with {cfg.task.name} (+ {methods.parameters(objective) - own:,} in "
        f"its heads): {steps} steps of {size} {data.noun}, {steps * size / len(data.corpus):.1f} epochs"
    )
    tags = {"stage": "pretrain"}

    def look(step: int) -> None:
        context.refresh(encoder, data.corpus)
        found = probe.probe(encoder, data.train, data.val, context.inputs, context.autocast)
        said = [f"{probe.describe(found)} (held-out training {data.noun})"]
        if data.held is not None:
            judged = judge(context, objective, data.held)
            text_samples.look(context, objective, step)
            found, said = found | judged, [describe(judged), *said]
        run.metric({**tags, "step": step, **found})
        run.say(f"  step {step}: {'; '.join(said)}")
        before = next(x for x in run.metrics() if "effective_rank" in x)
        if alarm := probe.collapse(found, before, len(data.val)):
            remedies = getattr(objective, "remedies", "a lower pretrain.lr")
            run.say(f"  Warning: the features may be collapsing: {alarm}. To try: {remedies}")
            earlier = [a for a in run.manifest.get("alarms", []) if a["step"] < step]  # a killed process may have been further
            run.update(alarms=[*earlier, {"step": step, "what": alarm}])

    if loop.probes and not run.metrics():
        look(0)
    at = frozenset(round(steps * i / loop.probes) for i in range(1, loop.probes + 1))
    fit(context, objective, data.corpus, loop, steps, cfg.seed, tags, probe=look, probe_at=at)
    if not loop.probes and labelled(context) and hasattr(encoder, "choose"):  # else the last look has chosen the layer
        probe.probe(encoder, data.train, data.val, context.inputs, context.autocast)
    if data.held is not None and data.unseen is not None:
        found = judge(context, objective, data.unseen)
        run.metric({**tags, "step": steps, "split": "test", **found})
        run.say(f"  test split: {describe(found)}")
    return objective


@torch.no_grad()
def judge(context: Context, objective: Any, split: Any) -> dict[str, float]:
    """What the objective says of sequences that it was not trained on (at most MOST, evenly spaced), with the same random numbers
    whenever it is asked: its loss as held_loss, and its metrics. Of texts also perplexity, of the tokens that are predicted, and
    with bits_per_token bits_per_byte where tokens hold every byte, so that it can be compared between tokenizers."""
    split = split.spaced(MOST)
    loop = context.cfg.pretrain.model_copy(update={"accumulate": 1})
    batches = batches_of(context, objective, split, loop, context.cfg.seed, "held")
    sums: dict[str, list[float]] = {}
    with evaluating(objective):
        for (batch,) in batches.iterate(0, len(split) // batches.batch_size):
            with context.autocast():
                loss, others = objective(batch)
            for name, value in {"held_loss": loss, **others}.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += float(value.total)
                total[1] += float(value.n)
    found = {name: total / max(n, 1.0) for name, (total, n) in sums.items()}
    if context.data.noun == "texts":
        found["perplexity"] = math.exp(min(found.get("loss_mlm", found["held_loss"]), 700.0))
        if "bits_per_token" in found and context.data.tokenizer.kind == "bpe":
            found["bits_per_byte"] = found["bits_per_token"] / split.bytes_per_token
    return found


def describe(judged: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in judged.items())


def draw_pretraining(context: Context, objective: Any) -> None:
    """Curves, what the encoder attends to, and of images what the objective makes of a few held-out ones."""
    run = context.run
    figures.curves(run)
    figures.layers(run, probe.LAYER)
    if context.data.noun == "texts":
        draw_attention(context, objective.encoder)
        return
    held, back = context.data.val.spaced(8), context.inputs.back
    loop = context.cfg.pretrain.model_copy(update={"batch_size": len(held), "accumulate": 1})
    batch = next(batches_of(context, objective, held, loop, context.cfg.seed, "figures").iterate(0, 1))[0]
    images = batch["inputs"]
    objective.eval()
    if "views" in batch:
        views = {f"view {i + 1}": back(x) for i, x in enumerate(batch["views"])}
        figures.rows(run, "views", {"original": back(images), **views})
    if hasattr(objective, "pictures"):
        with context.autocast():
            shown = objective.pictures(batch)
        figures.rows(run, "reconstructions", {title: back(x.float()) for title, x in shown.items()})
    if hasattr(objective.encoder, "attention"):
        figures.overlays(run, "attention", back(images), objective.encoder.attention(images), "attention\nrollout")


def draw_attention(context: Context, encoder: Any) -> None:
    """Of the sentences that the config gives, or of the beginnings of two held-out sequences."""
    if not hasattr(encoder, "attention"):
        return
    encoder.eval()
    sentences = context.cfg.pretrain.sentences
    texts = context.data.encoded(sentences) if sentences else next(context.data.held.spaced(2).all())
    tokens = context.inputs(texts).map(lambda x: x[:, :SHOWN])
    lengths = tokens.mask.sum(1).tolist()
    pieces = [context.data.tokenizer.pieces(row[:n]) for row, n in zip(tokens.ids.tolist(), lengths, strict=True)]
    maps = [weights[:n, :n] for weights, n in zip(encoder.attention(tokens), lengths, strict=True)]
    figures.attention_maps(context.run, pieces, maps)
