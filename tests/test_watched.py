"""Which settings a run reads: noted once for each key, for each run of its own."""

import copy

from ptmrun.compose import compose
from ptmrun.config import parsing
from ptmrun.config.watched import Watched, bare, watch


def test_the_first_read_is_noted_and_later_ones_are_plain_attributes():
    read: set[str] = set()
    cfg = watch(compose(["dataset=digits"]), read)
    assert cfg.pretrain.lr == 4e-3
    assert read == {"pretrain", "pretrain.lr"}
    read.clear()
    assert cfg.pretrain.lr == 4e-3
    assert not read
    assert vars(cfg.pretrain)["lr"] == 4e-3
    assert cfg.dataset.augment.shift == 0.1
    assert read == {"dataset", "dataset.augment", "dataset.augment.shift"}


def test_two_runs_in_one_process_have_reads_of_their_own():
    first, second = set(), set()
    one, other = watch(compose(["dataset=digits"]), first), watch(compose(["dataset=digits"]), second)
    assert (one.seed, other.finetune.seeds) == (0, 3)
    assert (first, second) == ({"seed"}, {"finetune", "finetune.seeds"})


def test_changed_settings_are_watched_too():
    read: set[str] = set()
    cfg = parsing.replace(watch(compose(["dataset=digits"]), read), pretrain__steps=5)
    assert isinstance(cfg, Watched)
    assert not read
    assert cfg.pretrain.model_copy(update={"lr": 1.0}).lr == 1.0
    assert "pretrain.lr" in read
    assert parsing.plain(cfg) == parsing.plain(bare(cfg))
    assert copy.deepcopy(cfg) is cfg
