"""Random mutations of good overrides: refused in clear lines within a second, with nothing made, or composed and really run."""

import json
import os
import statistics
import time
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from ptmrun.compose import compose
from ptmrun.config import choices, parsing, schema
from ptmrun.errors import UserError

EXAMPLES = int(os.environ.get("PTMRUN_MUTATIONS", "20"))
CHOICES = [f"{group}={name}" for group in choices.GROUPS for name in choices.names(group)]
LEAVES = {
    f"{a}.{b}" if b else a: value
    for a, part in parsing.plain(compose(["dataset=digits"])).items()
    for b, value in (part.items() if isinstance(part, dict) else {"": part}.items())
    if b != "name" and a != "outputs"
}
ODD = [
    "",
    "null",
    "true",
    "-1",
    "0",
    "1",
    "1e-3",
    "1e999",
    "nan",
    "99999999999999999999999",
    "[]",
    "[1,2]",
    "{}",
    "{a: 1}",
    "{1: 2}",
]
ODD += [
    "'",
    '"',
    "[",
    "}",
    "a b",
    "é",
    "漢字",
    "\u202eabc",
    "a\nb",
    "\x1b[2J",
    "\udcff",
    "x" * 5000,
    "..",
    "/",
    "~",
    "${seed}",
    "${nowhere}",
]
ODD += [
    "${oc.env:HOME}",
    "${now:%Y}",
    "a,b",
    "1,2",
    "a=b",
    "=",
    "\\",
    "'quoted'",
    '"quoted"',
    "!!python/name:os.system",
    "&a",
    "*a",
    "0x1F",
]
ODD += [
    "1_000",
    "auto",
    "cpu",
    "bf16",
    "none",
    "0.5",
    "3.0",
    "on",
    "off",
    "yes",
    "1:30",
    "2001-01-01",
    "glob(*)",
    "range(1,5)",
    "choice(1,2)",
]
MOST = 64  # of any number of a model or a task; above it the choice's own
LIMITS = {  # of what a run may cost here: (key, how to tell that it is too much, what to take instead)
    "pretrain.steps": (lambda c: c.pretrain.steps is None or c.pretrain.steps > 2, "2"),
    "pretrain.batch_size": (lambda c: c.pretrain.batch_size > 16, "16"),
    "pretrain.accumulate": (lambda c: c.pretrain.accumulate > 4, "2"),
    "pretrain.probes": (lambda c: c.pretrain.probes > 0, "0"),
    "pretrain.checkpoint_every": (lambda c: c.pretrain.checkpoint_every < 30, "30"),
    "dataset.limit": (lambda c: c.dataset.limit is None or c.dataset.limit > 64, "64"),
    "dataset.image_size": (lambda c: c.dataset.image_size != "auto" and c.dataset.image_size > 32, "16"),
    "task.decoder_depth": (lambda c: getattr(c.task, "decoder_depth", 1) > 2, "1"),
    "task.decoder_width": (lambda c: getattr(c.task, "decoder_width", 1) > 2, "0.5"),
    "device.threads": (lambda c: c.device.threads != 1, "1"),
    "device.workers": (lambda c: c.device.workers != 0, "0"),
    "device.compile": (lambda c: c.device.compile, "false"),
    "device.precision": (lambda c: c.device.precision == "auto", "fp32"),
    "budget": (lambda c: c.budget is not None, "null"),
}


@st.composite
def typo(draw: st.DrawFn, text: str) -> str:
    """One letter left out, doubled, replaced or swapped with the next."""
    if not text:
        return draw(st.sampled_from("ax=."))
    i = draw(st.integers(0, len(text) - 1))
    kind = draw(st.sampled_from(["drop", "double", "swap", "other"]))
    letter = draw(st.sampled_from("aeiz_.-=09 é'[$"))
    middle = {"drop": "", "double": text[i] * 2, "swap": text[i : i + 2][::-1], "other": letter}[kind]
    return text[:i] + middle + text[i + (2 if kind == "swap" else 1) :]


def typed(value: object) -> str:
    """A value as one would type it."""
    return json.dumps(value).replace(" ", "").replace('"', "") if not isinstance(value, dict) else "{}"


@st.composite
def override(draw: st.DrawFn) -> str:
    """A good override, or one with a mistake of some kind."""
    key = draw(st.sampled_from(sorted(LEAVES)))
    good = draw(st.sampled_from([draw(st.sampled_from(CHOICES)), f"{key}={typed(LEAVES[key])}"]))
    name, _, value = good.partition("=")
    kind = draw(st.sampled_from(["good", "key", "value", "odd", "odd", "odd", "prefix", "number", "quote", "other key"]))
    if kind == "key":
        return f"{draw(typo(name))}={value}"
    if kind == "value":
        return f"{name}={draw(typo(value))}"
    if kind == "odd":
        return f"{name}={draw(st.sampled_from(ODD))}"
    if kind == "prefix":
        return draw(st.sampled_from(["+", "++", "~", "-", "~~", "+ ", "@", "/"])) + good
    if kind == "number":
        return f"{name}={draw(st.integers(-(10**12), 10**12) | st.floats())}"
    if kind == "quote":
        return draw(
            st.sampled_from([f"'{good}'", f'{name}="{value}"', f"{name}='{value}", f"[{good}]", f"{name} = {value}", good + " "])
        )
    if kind == "other key":
        return f"{name}.{draw(st.sampled_from(['name', 'steps', 'x', '', '_target_', 'spec']))}={value}"
    return good


mutated = st.lists(override(), min_size=1, max_size=4)


def refused(argv: list[str], code: int, out: str, err: str) -> None:
    """One clear line for every mistake, and nothing was made."""
    lines = err.splitlines()
    assert code == 2, (argv, out, err)
    assert out == ""
    assert lines
    assert all(line.startswith("ptmrun: ") and line.isprintable() and 12 < len(line) < 700 for line in lines), (argv, lines)
    assert len(lines) <= 2 * len(argv) + 2, (argv, lines)
    assert not Path("outputs").exists(), argv


def limited(argv: list[str], parsed: schema.Config) -> list[str]:
    """The overrides, and after them what keeps the run small."""
    more = ["stage=pretrain", "init=random", "outputs=outputs", "dataset=digits", "device=cpu"]
    more += [f"{key}={value}" for key, (much, value) in LIMITS.items() if much(parsed)]
    usual = schema.flat(parsing.plain(compose([f"model={parsed.model.name}", f"task={parsed.task.name}"])))
    for key, value in schema.flat(parsing.plain(parsed)).items():
        if key.startswith(("model.", "task.")) and value != usual.get(key, value):
            large = isinstance(value, int | float) and not isinstance(value, bool) and value > MOST
            more += [f"{key}={typed(usual[key])}"] if large or key == "model.size" else []
    return [*argv, *more]


def test_a_mutated_config_is_refused_or_runs(ptmrun, tmp_path_factory):
    seconds = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(argv=mutated)
    def answered(argv):
        os.chdir(tmp_path_factory.mktemp("mutation"))
        start = time.thread_time()
        try:
            parsed = compose(argv)
        except UserError:
            parsed = None
        seconds.append(time.thread_time() - start)
        if parsed is None:
            return refused(argv, *ptmrun(*argv))
        small = limited(argv, parsed)
        code, out, err = ptmrun(*small)
        assert code in (0, 2), (small, err)
        assert "Traceback" not in out + err, small
        if code == 2:
            assert all(line.startswith("ptmrun: ") and line.isprintable() for line in err.splitlines()), (small, err)

    answered()
    assert statistics.median(seconds) < 1, "of processor time; a single answer may meet a garbage collection"
