"""Images with captions, for tests."""

from types import SimpleNamespace

from ptmrun.config import specs
from ptmrun.config.grammar import compose_raw
from ptmrun.data.modality import LoadRequest
from ptmrun.data.pairs.load import Pairs, of_run
from ptmrun.models import bert
from ptmrun.stages.networks import module_of


def loaded(*overrides: str) -> Pairs:
    """The pairs that these settings of a data set give, tokenized as BERT's are."""
    raw = compose_raw(list(overrides))["dataset"]
    cfg = SimpleNamespace(
        init="random",
        dataset=specs.section("dataset", raw["name"], "pairs").model_validate(raw),
        model=SimpleNamespace(tokenizer="auto", vocabulary="auto", lowercase=False, length="auto"),
        downstream=SimpleNamespace(name="pair_classification"),
        device=SimpleNamespace(workers=0),
    )
    read = module_of(cfg, "dataset").read
    return of_run(LoadRequest(read=read, cfg=cfg, family=bert.FAMILY, problem=None, folder=None, progress=lambda *_: None))
