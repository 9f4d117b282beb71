"""`ptmrun generate`: a pretrained language model goes on with a text; one of pictures draws."""

import re
import sys
from collections.abc import Iterator

import torch

from ptmrun import rng
from ptmrun.commands import drawing
from ptmrun.commands.table import Call
from ptmrun.config import schema
from ptmrun.errors import UserError
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.stages.predictor import models, pretrained

DEFAULT = 100  # tokens
STEERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NEEDED = {"text", "causal_tokens"}  # of a model, to write from left to right
DRAWS = {"drawings"}
TEMPERATURE, TOP_P = 0.8, 0.95  # of texts, where none are given


def generate(run: Run, settings: schema.Sampling) -> Iterator[str]:
    """The prompt and what follows it, once a sample; a sample ends early where the model ends its text. Number i depends on the
    seed and on i alone. An empty prompt is the mark that stands between texts, so that a new one begins.

    Writes nothing into the run. Raises UserError for a model that does not write, one without weights, and too long a text.
    """
    networks, encoder = pretrained(run, NEEDED, "does not go on with texts")
    words = networks.processor.tokenizer
    end = words.vocabulary.end
    given = words.encode([settings.prompt])[0].tolist() or [end]
    count = fitting(encoder.longest, len(given)) if settings.tokens == "auto" else settings.tokens
    temperature = TEMPERATURE if settings.temperature is None else settings.temperature
    for number in range(settings.samples or 1):
        noise = torch.rand(1, count, generator=rng.generator(settings.seed, "generate", number)).to(networks.device)
        with networks.autocast():
            generated = encoder.generate(
                torch.tensor([given], device=networks.device), noise, temperature, settings.top_k, settings.top_p or TOP_P
            )
        written = generated[0, len(given) :].tolist()
        yield words.decode(given + (written[: written.index(end)] if end in written else written))


def fitting(longest: int | None, given: int) -> int:
    """How many tokens are written unless that is asked for: DEFAULT, or as many as there is room for, which is said. Raises
    UserError where there is none."""
    if longest is None or longest - given >= DEFAULT:
        return DEFAULT
    if longest <= given:
        raise UserError(f"prompt: is {given} tokens long, and model.length={longest} has room for no more; shorten it")
    print(f"ptmrun: tokens={longest - given}: as many as model.length={longest} has room for", file=sys.stderr)
    return longest - given


def command(call: Call) -> int:
    run, options = call.runs[0], call.options
    name = config_file.load(run.sound("config.yaml")).model.name
    draws = name in models(DRAWS)
    others = schema.OF_TEXTS if draws else schema.OF_PICTURES
    if strange := sorted(others & options.model_fields_set):
        raise UserError(f"{strange[0]}: is no setting of model={name}, which {'draws' if draws else 'writes'}; leave it out")
    if draws:
        print(drawing.draw(run, *pretrained(run, DRAWS, "does not draw"), options))
        return 0
    for number, text in enumerate(generate(run, options)):
        shown = harmless(text) if sys.stdout.isatty() else text
        print(*(["---"] if number else []), shown, sep="\n", flush=True)
    return 0


def harmless(text: str) -> str:
    """What could steer a terminal as escapes: control characters but ends of lines and tabs, and marks that turn the direction of
    what follows. White space and joiners of any script stay."""
    return "".join(repr(c)[1:-1] if c not in "\n\t" and STEERS.match(c) else c for c in text)
