"""`ptmrun generate`: a pretrained language model goes on with a text."""

from collections.abc import Iterator

import torch

from ptmrun import rng
from ptmrun.config import schema as config
from ptmrun.data.text import tokenizer
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages.context import ENCODER, TOKENIZER, load_weights, part_of, source
from ptmrun.training import device

NEEDED = {"text", "causal_tokens"}  # of a model, to write from left to right


def generate(run: Run, settings: config.Sampling) -> Iterator[str]:
    """The prompt and what follows it, once a sample; a sample ends early where the model ends its text. Number i depends on the
    seed and on i alone. An empty prompt is the mark that stands between texts, so that a new one begins.

    Writes nothing into the run. Raises UserError for a model that does not write, one without weights, and too long a text.
    """
    cfg = config.load(run.path("config.yaml"))
    writers = [m for m in config.choices("model") if config.spec("model", m).provides >= NEEDED]
    if cfg.model.name not in writers:
        raise UserError(f"{run.folder}: model={cfg.model.name} does not go on with texts; there is: model={', '.join(writers)}")
    ready = cfg.stage not in ("all", "pretrain") or run.path(ENCODER).exists()
    if cfg.model.length == "auto" or not ready:
        raise UserError(f"{run.folder}: has not pretrained its model yet; go on with: ptmrun resume {run.folder}")
    cfg, where, _ = device.resolve(cfg)
    family = part_of(cfg, "model")
    words = tokenizer.of_run(source(run, cfg, TOKENIZER) or run.path(TOKENIZER), family.FRAMING)
    sizes = family.resolve(cfg.model, words.vocabulary, cfg.model.length)[0]
    options, attention = cfg.model.model_copy(update=sizes), device.attention(where, cfg.device.precision)
    encoder = family.build(options, words.vocabulary, cfg.model.length, attention)
    if not load_weights(encoder, run, cfg):
        raise UserError(f"{run.folder}: its model was never pretrained; start from one that was: init=RUN")
    encoder.to(where).eval()
    end = words.vocabulary.end
    given = words.encode([settings.prompt])[0].tolist() or [end]
    for number in range(settings.samples):
        noise = torch.rand(1, settings.tokens, generator=rng.generator(settings.seed, "generate", number)).to(where)
        with device.autocast(where, cfg.device.precision):
            found = encoder.generate(
                torch.tensor([given], device=where), noise, settings.temperature, settings.top_k, settings.top_p
            )
        written = found[0, len(given) :].tolist()
        yield words.decode(given + (written[: written.index(end)] if end in written else written))
