"""What a model of text says while it learns, to be read: how it goes on with a text, what it puts in place of hidden tokens."""

from typing import Any

import torch

from ptmrun import rng
from ptmrun.batch import from_mark
from ptmrun.models.modes import eval_mode
from ptmrun.stages.context import Context, batches_of

SHOWN, GIVEN, WRITTEN = 3, 16, 48  # held-out sequences, and their tokens that are given and that are written
TEMPERATURE, TOP_P = 0.8, 0.95


def record(context: Context, objective: Any, step: int) -> None:
    """Adds what the model says at this step to samples.json: {"step", "given", "said"}, a text of each sequence. Sequences and
    random numbers are the same at every step."""
    encoder = objective.encoder
    if context.processor.tokenizer is None or not (encoder.can_generate or objective.fills):
        return
    held = context.data.val_corpus.evenly_spaced(SHOWN)
    loop = context.cfg.pretrain.model_copy(update={"batch_size": len(held), "accumulate": 1})
    batch = next(batches_of(context, objective, held, loop, context.cfg.seed, "samples").iterate(0, 1))[0]
    with eval_mode(objective), torch.no_grad(), context.autocast():
        pairs = continued(context, encoder, batch) if encoder.can_generate else filled(context, objective, batch)
    given, said = zip(*pairs, strict=True)
    before = [x for x in context.run.samples() if x["step"] < step]
    context.run.write_json("samples.json", {"samples": [*before, {"step": step, "given": list(given), "said": list(said)}]})


def continued(context: Context, encoder: Any, batch: dict[str, Any]) -> list[tuple[str, str]]:
    """The beginning of each sequence, and what the model writes after it; where documents are apart, of the last one in there,
    and to its end."""
    tokens, given = batch["inputs"], min(GIVEN, encoder.length // 2)
    ids, count = tokens.ids[:, :given], min(WRITTEN, encoder.length - given)
    generator = rng.generator(context.cfg.seed, "samples/noise")
    noise = torch.rand(len(ids), count, generator=generator).to(ids.device)
    if tokens.documents is not None:  # as many tokens as each sequence has of its last one
        own = from_mark(tokens.documents)[:, :given]
        ids = ids[:, -int((own == own[:, -1:]).sum(1).min()) :]
    generated = encoder.generate(ids, noise, temperature=TEMPERATURE, top_p=TOP_P)
    decode, end, said = context.processor.tokenizer.decode, encoder.vocabulary.end, generated[:, ids.shape[1] :].tolist()
    if tokens.documents is not None:
        said = [row[: row.index(end)] if end in row else row for row in said]
    return [(decode(a), decode(b)) for a, b in zip(ids.tolist(), said, strict=True)]


def filled(context: Context, objective: Any, batch: dict[str, Any]) -> list[tuple[str, str]]:
    """Each sequence with its hidden tokens in brackets: the right ones, and the model's."""
    hidden, guessed = objective.fill(batch)
    true = batch["inputs"].ids
    return [
        (marked(context, true[i].tolist(), hidden[i].tolist()), marked(context, guessed[i].tolist(), hidden[i].tolist()))
        for i in range(len(true))
    ]


def marked(context: Context, ids: list[int], hidden: list[bool]) -> str:
    """The text of a sequence, runs of hidden tokens in brackets."""
    runs: list[tuple[bool, list[int]]] = []
    for token, mark in zip(ids, hidden, strict=True):
        if not runs or runs[-1][0] != mark:
            runs.append((mark, []))
        runs[-1][1].append(token)
    texts = [context.processor.tokenizer.decode(run) for _, run in runs]
    return " ".join(
        f"[{text.strip()}]" if mark else text.strip() for (mark, _), text in zip(runs, texts, strict=True) if mark or text
    )
