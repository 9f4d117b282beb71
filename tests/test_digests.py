"""A changed byte of a run's files is noticed when they are read again; what older versions wrote is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from ptmrun.errors import UserError
from ptmrun.models import library_format
from ptmrun.reports import scores_table
from ptmrun.runs import lineage
from ptmrun.runs.folder import Run
from ptmrun.storage import digests, tensor_files


def flip(path: Path, place: int = -5) -> None:
    """Another bit in the middle of a float."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def small(tmp_path) -> Path:
    tensor_files.save(tmp_path / "a.safetensors", {"x": torch.arange(6.0), "y": torch.zeros(2, dtype=torch.bool)}, {"step": 3})
    return tmp_path / "a.safetensors"


def test_every_byte_of_a_tensor_file_counts(small):
    whole = small.read_bytes()
    assert tensor_files.load(small)[1] == {"step": 3}
    for place in range(len(whole)):
        if whole[place : place + 1] != b" ":  # which fill the header up
            flip(small, place)
            with pytest.raises(UserError, match=r"a\.safetensors"):
                tensor_files.load(small)
            small.write_bytes(whole)


def test_tensor_files_of_older_versions_and_other_makers_are_read(small):
    save_file({"x": torch.ones(2)}, small, metadata={"format": "pt", "state": '{"step": 1}'})
    assert tensor_files.load(small)[1] == {"step": 1}
    save_file({"x": torch.ones(2)}, small, metadata={"maker": "another"})
    assert tensor_files.load(small)[0]["x"].tolist() == [1, 1]


def test_a_folder_is_sealed(tmp_path):
    (tmp_path / "one.json").write_text("{}")
    digests.check(tmp_path)  # not sealed: of an older version
    digests.seal(tmp_path)
    digests.check(tmp_path)
    (tmp_path / "one.json").write_text("[]")
    with pytest.raises(UserError, match=r"one\.json: has changed since"):
        digests.check(tmp_path)
    (tmp_path / "one.json").write_text("{}")
    (tmp_path / digests.SUMS).write_text(f"{'0' * 64}  ../elsewhere\n")
    with pytest.raises(UserError, match="SHA256SUMS"):
        digests.check(tmp_path)


def test_what_is_written_by_a_run_is_checked_and_a_crash_before_it_is_written_is_none(tmp_path, monkeypatch):
    run = Run(tmp_path, {"status": "running"})
    run.write_json("samples.json", {"samples": []})
    monkeypatch.setattr(
        "ptmrun.runs.folder.write_atomic", lambda path, data: path.name == "manifest.json" and path.write_bytes(data)
    )
    run.write_json("samples.json", {"samples": [{"step": 1, "given": [], "said": []}]})  # killed after the manifest
    assert run.samples() == []
    flip(tmp_path / "samples.json")
    with pytest.raises(UserError, match=r"samples\.json: has changed"):
        run.samples()


def test_weights_are_held_against_the_manifest_that_knows_them(tmp_path, monkeypatch):
    """Also where the file itself carries no digest."""
    folder = tmp_path / lineage.ENCODER
    folder.mkdir(parents=True)
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    run = Run(tmp_path, {"status": "done", "weights_sha256": lineage.encoder_hash(folder)})
    assert lineage.source(run, None, lineage.ENCODER) == folder
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="holds other weights than the manifest says"):
        lineage.source(run, None, lineage.ENCODER)


TUNED, LOGITS = "checkpoints/finetuned/5-tuned-0.safetensors", "checkpoints/logits/5-tuned-0.safetensors"
ENCODER = f"{lineage.ENCODER}/model.safetensors"


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        (ENCODER, "init"),
        (ENCODER, "export"),
        (TUNED, "evaluate"),
        (TUNED, "export"),
        (LOGITS, "resume"),
        ("checkpoints/heads.safetensors", "resume"),
        (ENCODER, "resume"),
        (TUNED, "resume"),
        ("config.yaml", "resume"),
        ("results.json", "report"),
        ("metrics.jsonl", "reproduce"),
    ],
)
def test_a_changed_byte_is_refused_in_one_line(done_run, tmp_path, ptmrun, name, verb):
    run = tmp_path / "run"
    shutil.copytree(done_run, run)
    if verb == "resume":
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
        (run / "figures/curves.png").unlink()  # the last of the pretraining stage
    before = json.loads((run / "manifest.json").read_text())
    flip(run / name)
    words = {
        "init": [*TINY, "stage=finetune", f"init={run}"],
        "evaluate": [*TINY, "stage=evaluate", f"init={run}"],
        "export": ["export", run, "exported"],
        "reproduce": ["reproduce", run],
    }
    code, _, err = ptmrun(*words.get(verb, [verb, run]))
    assert code == 2
    assert Path(name).name in err or lineage.ENCODER in err
    assert "since ptmrun wrote it" in err
    assert len(err.splitlines()) == 1 + ("the run so far is in" in err)
    after = json.loads((run / "manifest.json").read_text())
    for key in ("weights_sha256", "finetuned_sha256"):
        assert after[key] == before[key]


def test_a_changed_byte_of_predictions_is_refused(done_run, tmp_path):
    shutil.copytree(done_run, tmp_path / "run")
    flip(tmp_path / "run/predictions.parquet", 200)
    with pytest.raises(UserError, match=r"predictions\.parquet: has changed"):
        scores_table.correctness(Run.open(tmp_path / "run"), "5 labels per class")


def test_an_encoder_of_transformers_carries_a_digest(tmp_path):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "image_size": 8}
    library_format.save(ViTModel(ViTConfig(**sizes, patch_size=4)), tmp_path / "encoder", {}, None)
    assert ViTModel.from_pretrained(tmp_path / "encoder")
    flip(tmp_path / "encoder/model.safetensors")
    with pytest.raises(UserError, match="has changed since"):
        library_format.tensors_of(tmp_path / "encoder")
