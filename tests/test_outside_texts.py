"""What comes from outside: cells of tables, the terminal, ledgers, tokenizers; long metrics; too little memory."""

import io
import json
import time
import types

import pytest
import tokenizers
from rich.table import Table

from ptmrun import cli
from ptmrun.batch import Framing
from ptmrun.commands import listing
from ptmrun.config import secrets
from ptmrun.data.text import tokenizer
from ptmrun.errors import UserError, out_of_memory
from ptmrun.reports import cells
from ptmrun.runs.console import Screen
from ptmrun.runs.folder import Run
from ptmrun.storage import safe_read
from ptmrun.sweeps import sweep
from ptmrun.sweeps.ledger import Job, Ledger, varying

ESCAPE = "\x1b[2J\x9b1m"


def test_no_text_steers_the_terminal():
    screen = Screen(file=io.StringIO(), force_terminal=False)
    table = Table(f"title {ESCAPE}")
    table.add_row(ESCAPE)
    screen.print(table)
    screen.print(f"a {ESCAPE}\nb", markup=False)
    written = screen.file.getvalue()
    assert "\x1b" not in written
    assert "\x9b" not in written
    assert "\\x1b[2J" in written


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", " =1"])
def test_a_cell_is_no_formula(text):
    assert cells.csv_text([[text, -1.5]]).strip().split(",")[0].startswith("'")
    assert cells.csv_text([[-1.5, 3, None]]) == "-1.5,3,\n"


def test_a_cell_of_markdown_stays_one():
    assert cells.markdown_cell("a|b\n<img>") == "a\\|b\\n&lt;img>"


def test_numbers_without_end_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0x" + "f" * 5000)
    with pytest.raises(UserError, match="more than 1,000 digits"):
        safe_read.plain_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: 1" + ":59" * 400 + ".5")
    with pytest.raises(UserError, match="not a plain YAML file"):
        safe_read.plain_yaml(tmp_path / "config.yaml")


def test_a_ledger_with_other_keys_and_one_that_is_none(tmp_path):
    jobs = [Job(number=0, overrides=["a=1"]), Job(number=1, overrides=["a=2", "b=3"])]
    assert varying(jobs) == {0: {"a": "1"}, 1: {"a": "2", "b": "3"}}
    (tmp_path / "000").mkdir()
    (tmp_path / "000/job.json").write_text('{"number": 0, "overrides": ["nothing"]}')
    with pytest.raises(UserError, match="not a job of a sweep"):
        Ledger(tmp_path).jobs()


def test_a_job_is_read_after_the_wait_for_whoever_works_on_it(tmp_path, monkeypatch):
    """A process of a sweep that was killed may end its job well meanwhile."""
    ledger = Ledger(tmp_path)
    ledger.write(Job(number=0, overrides=["a=1"], status="running"))

    class Done:
        manifest = types.MappingProxyType({"status": "done"})
        folder = tmp_path / "000/x"

        def score(self):
            return 0.5, 0.4, "accuracy"

    runs = iter([Run(tmp_path, {"status": "running"}), Done(), Done()])
    locks = iter([True, False])
    monkeypatch.setattr(Ledger, "run", lambda *_: next(runs))
    monkeypatch.setattr(sweep, "locked", lambda _: next(locks))
    with ledger.held(0) as lock:
        sweep.attempt(ledger, ledger.job(0), False, lock)
    assert ledger.job(0).status == "done"
    assert ledger.job(0).score == 0.5


FRAMING = Framing({"pad_token": "[PAD]", "sep_token": "[SEP]"}, "$A [SEP]", "$A [SEP] $B [SEP]")


@pytest.mark.parametrize(
    ("model", "pattern", "expected"),
    [
        ({"a": 4_000_000_000, "[PAD]": 0, "[SEP]": 1}, " ", "number 4000000000 of a token"),
        ({"a": 2, "[PAD]": 0, "[SEP]": 1}, "(a+)+$", "may search for ever"),
    ],
)
def test_a_hostile_tokenizer_is_one_line(tmp_path, model, pattern, expected):
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": model, "unk_token": "[PAD]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "sep_token": "[SEP]"}))
    for load in (tokenizer.load, tokenizer.of_run):
        with pytest.raises(UserError, match=expected):
            load(tmp_path if load is tokenizer.of_run else str(tmp_path), FRAMING)


def test_patterns_in_use_pass():
    for pattern in (
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ):
        tokenizer.refuse_hostile({"pattern": {"Regex": pattern}})


def test_a_panic_of_the_library_is_one_line():
    class Backend:
        def encode_batch_fast(self, *_, **__):
            raise type("PanicException", (BaseException,), {})("retry-limit-in-match over")

    own = object.__new__(tokenizer.Tokenizer)
    own.plain = Backend()
    with pytest.raises(UserError, match="gave up on these texts"):
        own.flat(["a"])
    assert tokenizers


def test_long_metrics_are_cut_from_their_end(tmp_path):
    run = Run(tmp_path, {})
    line = {"stage": "pretrain", "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "samples_per_s": 9.5, "data_wait": 0.0, "time": 1.5}
    template = json.dumps({**line, "step": -1})
    whole = "".join(template.replace("-1", str(i)) + "\n" for i in range(1, 100_001))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"stage": "pret')
    begun = time.process_time()
    run.cut_metrics({"stage": "pretrain"}, 99_990)
    assert time.process_time() - begun < 0.5, "seconds of CPU time"
    assert next(run.metric_lines())["step"] == 1
    assert list(run.metric_lines("probe_linear")) == []
    kept = (tmp_path / "metrics.jsonl").read_text()
    assert kept == whole[: len(kept)]
    assert kept.endswith('"step": 99990}\n')
    run.cut_metrics({"stage": "finetune"}, -1)
    assert (tmp_path / "metrics.jsonl").stat().st_size == len(kept)


@pytest.mark.parametrize(("step", "left"), [(-1, 0), (0, 0), (1, 1), (2, 2), (9, 2)])
def test_what_is_cut_of_metrics(tmp_path, step, left):
    run, tags = Run(tmp_path, {}), {"stage": "finetune", "trial": "x"}
    run.cut_metrics(tags, step)  # no file yet
    run.metric({"stage": "pretrain", "step": 5})
    for number in (1, 2):
        run.metric({**tags, "step": number})
    run.cut_metrics(tags, step)
    assert [x["step"] for x in run.metrics()] == [5, 1, 2][: 1 + left]


def test_lines_of_trainings_side_by_side_are_left(tmp_path):
    run, mine, other = Run(tmp_path, {}), {"stage": "finetune", "trial": "x"}, {"stage": "finetune", "trial": "y"}
    run.metric({"stage": "pretrain", "step": 9})
    for step in (1, 2, 3):
        run.metric({**other, "step": step})
        run.metric({**mine, "step": step})
    run.metric({**other, "step": 4})
    run.cut_metrics(mine, 1)
    assert [(x.get("trial"), x["step"]) for x in run.metrics()] == [(None, 9), ("y", 1), ("x", 1), ("y", 2), ("y", 3), ("y", 4)]
    run.cut_metrics(other, 2)
    assert [(x.get("trial"), x["step"]) for x in run.metrics()] == [(None, 9), ("y", 1), ("x", 1), ("y", 2)]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OSError(12, "Cannot allocate memory")],
)
def test_too_little_memory_is_one_line(error, monkeypatch, ptmrun):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    code, _, err = ptmrun("x")
    assert code == 2
    assert err.startswith("ptmrun: out of memory")
    assert len(err.splitlines()) == 1
    assert not out_of_memory(ValueError("out of memory"))


MIXED = "aB3dE5gH7" * 5


@pytest.mark.parametrize(
    "text",
    [
        "HTTPS://Me:hunter22@host.org",
        "https://:hunter22@host.org",
        f"https://{MIXED}@host.org/x",
        "https://host.org/x?api_key=abcd1234",
        "https://host.org/x?a=b&X-Amz-Signature=abcd1234",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP",
        "pypi-AgEIcHlwaS5vcmcCJDU3",
        f"npm_{'a1B2' * 9}",
    ],
)
def test_secrets_of_more_shapes_and_in_errors(text, monkeypatch, ptmrun):
    assert secrets.MASK in secrets.masked(f"see {text} there")
    monkeypatch.setattr(cli, "dispatch", lambda _: (_ for _ in ()).throw(UserError(f"cannot reach {text}")))
    assert text not in ptmrun("x")[2]


@pytest.mark.parametrize("text", ["git+https://git@github.com/a/b", "ssh://git@host/x", "https://host/x?max_token=5&sort_key=a"])
def test_what_is_no_secret(text):
    assert secrets.masked(text) == text


def test_a_renamed_folder_leaves_no_ghost(tmp_path):
    run = Run(tmp_path / "old", {})
    with pytest.raises(UserError, match="renamed or removed"):
        run.write("config.yaml", "a: 1")
    assert not (tmp_path / "old").exists()


def test_the_size_of_a_folder_counts_no_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert listing.size_of(tmp_path) == 5
