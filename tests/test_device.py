"""Precision by measuring: what is chosen, and what is said of a choice that is slower here."""

import json

import pytest
from threadpoolctl import threadpool_info

from ptmrun.compose import compose
from ptmrun.training import device


@pytest.mark.parametrize(
    ("asked", "speed", "chosen", "said"),
    [
        ("auto", 2.1, "bf16", "device.precision=bf16: bf16 matrix products measured 2.10 times as fast as fp32 here"),
        ("auto", 1.1, "fp32", "device.precision=fp32: bf16 matrix products measured 1.10 times as fast as fp32 here"),
        ("bf16", 0.02, "bf16", "Warning: device.precision=bf16: bf16 matrix products measured 0.02 times as fast as fp32"),
        ("bf16", 2.1, "bf16", None),
        ("fp32", 2.1, "fp32", None),
    ],
)
def test_precision(monkeypatch, asked, speed, chosen, said):
    monkeypatch.setattr(device, "bf16_speed", lambda _: speed)
    cfg, where, notes = device.resolve(compose(["device=cpu", f"device.precision={asked}", "device.threads=1"]))
    assert (cfg.device.precision, where.type) == (chosen, "cpu")
    assert [note for note in notes if said and note.startswith(said)] == notes


def test_the_measurement_is_made_once_for_a_machine(monkeypatch):
    speeds = iter([1.234, 9.0])
    monkeypatch.setattr(device, "bf16_speed", lambda _: next(speeds))
    found = [device.known_bf16_speed(device.find("cpu"), threads=1) for _ in range(2)]
    assert found == [1.23, 1.23]


@pytest.mark.parametrize("content", ["", '{"cpu', "[]", '{"$": null}'])
def test_a_measurement_that_was_cut_short_is_made_again(tmp_path, monkeypatch, content):
    speeds = iter([1.23, 4.56])
    monkeypatch.setattr(device, "bf16_speed", lambda _: next(speeds))
    device.known_bf16_speed(device.find("cpu"), threads=1)
    file = tmp_path / "cache" / "bf16_speed.json"
    file.write_text(content.replace("$", next(iter(json.loads(file.read_text())))))
    assert device.known_bf16_speed(device.find("cpu"), threads=1) == 4.56


def test_emulated_bfloat16_is_not_measured_for_long(monkeypatch):
    clock = iter([0, 1, 101] * 3)  # three pairs, then no more
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    assert device.bf16_speed(device.find("cpu"), size=2) == 0.01


def test_all_libraries_compute_on_as_many_threads():
    for threads in (2, 1):
        device.setup(threads)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {threads}
