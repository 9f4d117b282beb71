"""Small real runs for the tests: 8x8 digits of scikit-learn, a few steps, one thread."""

import gc
import io
import json
import os
import zlib

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the same numbers on every machine, and no fight for cores

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmrun import cli
from ptmrun.models.base import Encoder
from ptmrun.reports import figures
from ptmrun.runs import provenance
from ptmrun.training import device

torch.set_num_threads(1)
measured = cache(device.bf16_speed)
TINY = [
    "dataset=digits",
    "dataset.limit=300",
    "pretrain.steps=12",
    "pretrain.batch_size=32",
    "pretrain.log_every=3",
    "pretrain.probes=1",
    "pretrain.checkpoint_every=0",
    "finetune.steps=4",
    "finetune.checkpoint_every=0",
    "finetune.seeds=2",
    "finetune.keep_probe=false",  # so few steps seldom help, and what training left is to be compared
    "downstream.labels_per_class=5",
    "evaluate.scratch_repeats=1",
    "evaluate.baselines=[chance,raw,scratch]",  # all of them: done_run
    "finetune.lr=3e-4",  # at the default rate so few steps end at chance
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]
CNN = [  # of a run in which it does not matter what learns: the library that takes long to be imported is not
    "model=cnn",
    "model.width=8",
    "model.hidden=16",
    "task.hidden=32",
    "task.projection=16",
]

SLOW = (
    "test_adapt.py::test_a_run_by_the_rule",
    "test_adapt.py::test_linear_takes_the_best_rate_on_features_computed_once",
    "test_adapt.py::test_the_probe_stays_where_training_harms",
    "test_adapt.py::test_training_stays_where_it_helps",
    "test_added_parameters.py::test_a_run_saves_what_it_trained_and_exports_it[adalora]",
    "test_added_parameters.py::test_a_run_saves_what_it_trained_and_exports_it[adapter]",
    "test_added_parameters.py::test_a_run_saves_what_it_trained_and_exports_it[prefix]",
    "test_added_parameters.py::test_an_interrupted_allocation_goes_on_exactly",
    "test_check.py::test_disk_matches_a_real_run",
    "test_cli_runs.py::test_a_budget_ends_on_time",
    "test_cli_runs.py::test_a_signal_saves_and_resume_is_bit_exact[15]",
    "test_cli_runs.py::test_kill_at_any_moment_and_resume_is_bit_exact",
    "test_cli_runs.py::test_workers_do_not_change_results",
    "test_clip_towers.py::test_a_run_with_towers_is_reproduced",
    "test_corpus.py::test_a_corpus_need_not_fit_into_memory",
    "test_dalle.py::test_codes_of_an_earlier_run_stay",
    "test_dalle.py::test_resumed_it_is_the_same",
    "test_detection.py::test_two_stages_in_a_run",
    "test_disk_full.py::test_a_run_that_meets_a_full_disk_at_every_write",
    "test_export_formats.py::test_boxes_by_onnxruntime_alone",
    "test_export_formats.py::test_graphs_of_texts_take_any_number_and_length[ptmrun.exports.onnx-bert-mean-classes]",
    "test_export_formats.py::test_graphs_of_texts_take_any_number_and_length[ptmrun.exports.onnx-gpt-last-classes]",
    "test_export_formats.py::test_graphs_of_texts_take_any_number_and_length[ptmrun.exports.onnx-xlnet-mean-tags]",
    "test_export_formats.py::test_masks_by_onnxruntime_alone",
    "test_held_out.py::test_other_splits_of_the_same_data_are_told",
    "test_hostile.py::test_a_hostile_folder_is_harmless[NaN as score-reproduce]",
    "test_hostile.py::test_a_hostile_folder_is_harmless[escape in the versions-reproduce]",
    "test_hostile.py::test_a_hostile_folder_is_harmless[results of another kind-reproduce]",
    "test_imagegpt.py::test_a_run_that_draws_classes",
    "test_imagegpt.py::test_resume_and_reproduce_are_bit_exact",
    "test_lineage.py::test_evaluating_other_fine_tuned_weights_is_not_skipped",
    "test_lineage.py::test_harmless_changes_are_taken_and_listed",
    "test_lineage.py::test_longer_is_taken_and_said",
    "test_mutations.py::test_a_mutated_config_is_refused_or_runs",
    "test_nan.py::test_a_kill_anywhere_and_resume_change_nothing[1000]",
    "test_nan.py::test_an_absurd_learning_rate_ends_with_a_lower_loss",
    "test_nan.py::test_bf16_goes_on_in_fp32[12]",
    "test_nan.py::test_bf16_goes_on_in_fp32[13]",
    "test_nan.py::test_bf16_goes_on_in_fp32[14]",
    "test_nan.py::test_bf16_goes_on_in_fp32[20]",
    "test_normalisation.py::test_weights_from_outside_keep_theirs[given0-True]",
    "test_openai_clip.py::test_a_run_is_evaluated_fine_tuned_and_exported",
    "test_probe.py::test_a_constant_encoder_raises_the_alarm_and_an_untrained_one_does_not[swin]",
    "test_processes.py::test_fine_tuning_in_two_processes_is_that_in_one[adalora]",
    "test_processes.py::test_kill_9_of_one_ends_all_and_resuming_ends_the_same",
    "test_processes.py::test_two_processes_are_one[clm]",
    "test_processes.py::test_two_processes_are_one[dvae]",
    "test_processes.py::test_two_processes_are_one[mae]",
    "test_processes.py::test_two_processes_are_one[mim]",
    "test_processes.py::test_two_processes_are_one[vq]",
    "test_processes.py::test_what_is_computed_again_is_the_same_in_less_memory[mim]",
    "test_scratch.py::test_compute_of_a_run_and_of_one_that_starts_from_it",
    "test_scratch.py::test_of_a_parent_that_did_not_count_it_is_not_known",
    "test_shard.py::test_a_run_goes_on_without_parts",
    "test_shard.py::test_another_number_goes_on_with_the_same_files",
    "test_shard.py::test_every_optimizer_takes_the_same_steps[lars]",
    "test_shard.py::test_parts_are_the_whole[byol]",
    "test_shard.py::test_parts_are_the_whole[mae]",
    "test_side_by_side.py::test_one_that_fails_ends_the_run_after_the_others_have_saved[killed]",
    "test_sweep.py::test_a_job_that_is_killed_does_not_touch_the_others",
    "test_sweep.py::test_ctrl_c_saves_and_resume_ends_with_the_same_table",
    "test_sweep.py::test_joblib_gives_the_same_scores",
    "test_sweep.py::test_optuna_searches_prunes_and_goes_on",
    "test_sweep.py::test_sigterm_lets_jobs_of_other_processes_save_and_begins_no_more",
    "test_text_runs.py::test_an_interrupted_fine_tuning_is_resumed_bit_for_bit[question_answering]",
    "test_text_runs.py::test_an_interrupted_fine_tuning_is_resumed_bit_for_bit[text_multilabel]",
    "test_text_runs.py::test_an_interrupted_fine_tuning_is_resumed_bit_for_bit[translation]",
    "test_text_runs.py::test_check_finds_nothing_wrong_with_the_defaults[gpt]",
    "test_text_runs.py::test_check_finds_nothing_wrong_with_the_defaults[transformer]",
    "test_text_runs.py::test_check_finds_nothing_wrong_with_the_defaults[xlnet]",
    "test_text_runs.py::test_from_raw_text_to_a_classifier_and_again[bert-mlm]",
    "test_text_runs.py::test_from_raw_text_to_a_classifier_and_again[bert-mlm_nsp]",
    "test_text_runs.py::test_from_raw_text_to_a_classifier_and_again[gpt-clm]",
    "test_text_runs.py::test_from_raw_text_to_a_classifier_and_again[transformer-denoising]",
    "test_text_runs.py::test_from_raw_text_to_a_classifier_and_again[xlnet-plm]",
    "test_text_runs.py::test_micro_batches_and_resuming_change_nothing[bert-mlm]",
    "test_text_runs.py::test_micro_batches_and_resuming_change_nothing[bert-mlm_nsp]",
    "test_text_runs.py::test_micro_batches_and_resuming_change_nothing[gpt-clm]",
    "test_text_runs.py::test_micro_batches_and_resuming_change_nothing[transformer-denoising]",
    "test_text_runs.py::test_micro_batches_and_resuming_change_nothing[xlnet-plm]",
    "test_text_runs.py::test_other_labelled_texts_need_no_other_pretraining",
    "test_text_runs.py::test_packed_documents_read_alone[bert]",
    "test_text_runs.py::test_packed_documents_read_alone[gpt]",
    "test_text_runs.py::test_packed_documents_read_alone[transformer]",
    "test_text_runs.py::test_packed_documents_read_alone[xlnet]",
    "test_tracking.py::test_a_reproduction_tracks_nothing",
    "test_tracking.py::test_a_tracker_that_fails_changes_nothing[close]",
    "test_tracking.py::test_a_tracker_that_fails_changes_nothing[metrics]",
    "test_tracking.py::test_a_tracker_that_fails_changes_nothing[open]",
    "test_tracking.py::test_tensorboard",
    "test_transfer.py::test_a_convolutional_run_on_other_data",
    "test_transfer.py::test_a_run_from_a_file",
    "test_verify.py::test_quick_certificates_hold[mnist5k_mae]",
    "test_verify.py::test_quick_certificates_hold[mnist5k_simmim]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[alexnet]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[bit]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[convnext]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[inception]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[mobilenet]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[swin]",
    "test_vision_runs.py::test_a_folder_of_photos_works_for_every_model[vgg]",
    "test_vision_runs.py::test_every_objective_runs_and_resumes_to_the_same_result[byol]",
)


def pytest_collection_finish():
    """What was imported stays: the collector of garbage need not look through it again and again."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/") in SLOW:
            item.add_marker("slow")


class HandMade(Encoder):
    """An encoder of a test, which is not saved; of its methods it has what the test needs."""

    depth = 0

    def features(self, inputs):
        raise AssertionError("the test gives no features")

    def depth_of(self, name):
        return 0

    def save(self, folder, *preprocessing):
        raise AssertionError("not saved")

    def load(self, folder):
        raise AssertionError("not saved")


# Tests whose runs draw their pictures to the end; a quarter of the time of a small run is matplotlib's.
DRAWN = (
    "test_audio", "test_clip", "test_dalle", "test_detection", "test_figures", "test_fuzz", "test_hostile", "test_imagegpt",
    "test_report", "test_segmentation",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(request, tmp_path, monkeypatch):
    """Every test works in a folder of its own, cache included, and on one core; bf16, which takes a second a product where it is
    emulated, is measured once for all; figures are blank but in DRAWN."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "cores", lambda: 1)
    monkeypatch.setattr(device, "bf16_speed", measured)
    if request.module.__name__ not in DRAWN:
        monkeypatch.setattr(figures, "png", lambda figure: blank())
        monkeypatch.setattr(figures, "arrange", lambda figure: None)


@cache
def blank():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def ptmrun(capsys):
    """ptmrun("stage=pretrain") -> (exit code, standard output, standard error)"""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(a) for a in argv])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture(scope="session")
def done_run(tmp_path_factory):
    """One finished tiny run, with all baselines, that tests read and do not change."""
    folder = tmp_path_factory.mktemp("done")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.run([word for word in TINY if not word.startswith("evaluate.baselines=")]) == 0
    finally:
        os.chdir(before)
    return (folder / "outputs" / "latest").resolve()


def drop_digests(run: Path) -> None:
    """As someone would who changes more than a byte: the manifest knows none, like those of older versions."""
    manifest = json.loads((run / "manifest.json").read_text())
    kept = {k: v for k, v in manifest.items() if k not in ("sha256", "weights_sha256", "finetuned_sha256")}
    (run / "manifest.json").write_text(json.dumps(kept))


def latest() -> Path:
    return Path("outputs/latest").resolve()


def draw(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 36), shade: int = 0) -> Path:
    """A picture with a gradient and a bright bar whose place depends on `shade`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.float32)
    own = zlib.crc32(f"{path.parent.name}/{path.name}".encode()) / 2**32  # no two are alike
    values *= (120 - 60 * own) / max(1.0, float(values.max()))
    values[:, shade % size[0] :: 7] = 250
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "I;16":
        Image.fromarray((values * 257).astype(np.uint16)).save(path)
    else:
        image.convert(mode).save(path)
    return path
