"""Faults that tests must notice: each is put into a copy of the repository, where the named tests are run and must all fail.

`make mutants`, or tests/mutants.py WORD for those whose file, text or tests contain the word. It takes about ten seconds a fault.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "outputs", "dist", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


class Mutant(NamedTuple):
    """In `file` of ptmrun/ the text `old`, which must stand there once, becomes `new`; tests: verdict::x is test x (whatever its
    parameters) of tests/test_verdict.py."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # The verdict and its words
    Mutant("reports/significance.py", "float(1.96 *", "float(1.0 *", "verdict::test_one_repeat"),
    Mutant("reports/verdict.py", "if gain > noise:", "if gain > 0:", "verdict::test_one_repeat"),
    Mutant("reports/verdict.py", "elif gain < -noise:", "elif gain < 0:", "verdict::test_one_repeat"),
    Mutant("reports/verdict.py", "Pretraining hurt:", "Pretraining helped:", "verdict::test_each_outcome_has_its_sentence"),
    Mutant(
        "reports/verdict.py",
        'result["gain_over_short"] > result["noise_short"]',
        'result["gain_over_short"] > 1',
        "verdict::test_what_pays_only_where_it_is_there_already",
    ),
    Mutant(
        "reports/verdict.py",
        "in sorted(points.items())]",
        "in sorted(points.items(), reverse=True)]",
        "verdict::test_the_compute_that_from_scratch_needs_is_read_from_its_curve",
    ),
    Mutant(
        "reports/significance.py",
        "math.hypot(*known)",
        "min(known)",
        "verdict::test_both_sources_of_noise_count verdict::test_the_verdict_of_a_run_follows_from_its_saved_predictions",
    ),
    Mutant(
        "reports/significance.py",
        "* (1 / len(a) + 1 / len(b))",
        "/ len(known)",
        "verdict::test_noise_of_a_single_repeat_is_that_of_the_other_side",
    ),
    Mutant(
        "reports/significance.py",
        "paired.std(ddof=1)",
        "math.sqrt(np.mean(a, axis=0).var(ddof=1) + np.mean(b, axis=0).var(ddof=1))",
        "verdict::test_one_repeat verdict::test_noise_of_samples_is_that_of_their_differences",
    ),
    Mutant(
        "reports/significance.py",
        "np.mean(a, axis=0) - np.mean(b, axis=0)",
        "a[0].astype(float) - b[0]",
        "verdict::test_noise_of_samples_takes_the_mean_of_the_repeats_first",
    ),
    Mutant(
        "reports/verdict.py",
        "NOISE_UNKNOWN = 1.0",
        "NOISE_UNKNOWN = 0.1",
        "verdict::test_without_any_noise_known_nothing_is_claimed",
    ),
    Mutant("reports/significance.py", "stats.t.ppf(0.975", "stats.t.ppf(0.95", "verdict::test_noise_of_two_repeats"),
    Mutant(
        "reports/phrases.py",
        '["mean"] >= entry["scores"]["tuned"]["mean"] else',
        '["mean"] > entry["scores"]["tuned"]["mean"] else',
        "verdict::test_a_floor_that_wins_is_named_first",
    ),
    Mutant(
        "reports/phrases.py",
        'for k in FLOORS if k in entry["scores"])',
        'for k in FLOORS if k in entry["scores"] and k != "raw_svm")',
        "verdict::test_a_floor_that_wins_is_named_first",
    ),
    # From scratch: with how much compute, chosen by what
    Mutant(
        "stages/scratch.py",
        "key=lambda point: point.val_score",
        "key=lambda point: problem.score(point.predictions, test)",
        "verdict::test_the_verdict_of_a_run_follows_from_its_saved_predictions",
    ),
    Mutant(
        "stages/scratch.py",
        "pretraining + fit.flops\n",
        "fit.flops\n",
        "scratch::test_the_total_is_what_pretraining_and_fine_tuning_take",
    ),
    Mutant(
        "stages/scratch.py",
        "for share in SHARES), self.tuned.flops]",
        "for share in SHARES)]",
        "scratch::test_points_are_shares_of_the_compute_and_that_of_fine_tuning",
    ),
    Mutant(
        "stages/scratch.py", "begin, steps), trunk)", "begin, steps), None)", "scratch::test_each_point_is_trained_for_its_steps"
    ),
    Mutant("training/loop.py", "else plan.start", "else None", "scratch::test_a_branch_is_what_one_training_gives"),
    Mutant(
        "stages/compute.py",
        'return known["before"] + share',
        "return share",
        "scratch::test_an_unfinished_pretraining_counts_as_far_as_it_came",
    ),
    Mutant(
        "training/flops.py",
        "return 2 * sdpa_flop_count",
        "return sdpa_flop_count",
        "flops::test_attention_counts_the_same_in_every_implementation",
    ),
    Mutant(
        "training/flops.py",
        "    aten.mkldnn_rnn_layer_backward: recurrent_backward,\n",
        "",
        "flops::test_a_recurrent_layer_counts_its_steps",
    ),
    # Baselines: weights, rows, steps
    Mutant(
        "stages/trials.py",
        'networks.starting_encoder() if trial.kind in ("tuned", "frozen") else networks.encoder("scratch", trial.seed)',
        "networks.starting_encoder()",
        "baselines::test_from_scratch_starts_from_the_random_weights_of_its_seed"
        " baselines::test_what_is_trained_from_scratch_never_saw_the_pretrained_weights",
    ),
    Mutant(
        "stages/trials.py",
        'networks.encoder("scratch", trial.seed)',
        'networks.encoder("scratch")',
        "baselines::test_from_scratch_starts_from_the_random_weights_of_its_seed",
    ),
    Mutant(
        "stages/networks.py",
        "        load_weights(encoder, self.run, self.cfg)\n",
        "",
        "baselines::test_fine_tuning_starts_from_the_pretrained_weights",
    ),
    Mutant(
        "stages/trials.py",
        "return train_split.subset(indices)",
        "return train_split",
        "baselines::test_training_sees_exactly_the_rows_of_its_trial baselines::test_a_floor_sees_exactly_the_rows_of_the_trial",
    ),
    Mutant(
        "stages/trials.py",
        "1000 * cfg.seed + i",
        "1000 * cfg.seed",
        "baselines::test_repeats_have_seeds_of_their_own baselines::test_a_floor_sees_exactly_the_rows_of_the_trial",
    ),
    Mutant(
        "stages/baselines.py",
        "chosen = chosen_labels(context, trial)",
        "chosen = context.data.train",
        "baselines::test_a_floor_sees_exactly_the_rows_of_the_trial baselines::test_every_floor_is_given_the_split_of_the_trial",
    ),
    Mutant(
        "stages/baselines.py",
        'encoder = self.context.encoder("scratch")',
        "encoder = self.context.starting_encoder()",
        "baselines::test_the_untrained_encoder_of_a_floor_is_random_and_the_frozen_one_pretrained",
    ),
    Mutant(
        "stages/baselines.py",
        'if kind == "frozen" else',
        'if kind == "tuned" else',
        "baselines::test_the_untrained_encoder_of_a_floor_is_random_and_the_frozen_one_pretrained",
    ),
    Mutant(
        "downstream/classification.py",
        "data.raw(kind, train)  # which keep their scale\n",
        "data.raw(kind, data.train)\n            labels = data.train.labels.numpy()\n",
        "baselines::test_a_floor_sees_exactly_the_rows_of_the_trial",
    ),
    Mutant(
        "downstream/classification.py",
        "classical.classes(features(kind, train), labels,",
        "classical.classes(features(kind, data.train), data.train.labels.numpy(),",
        "baselines::test_a_floor_sees_exactly_the_rows_of_the_trial",
    ),
    Mutant(
        "downstream/multilabel.py",
        "labels = train.labels.bool().numpy()",
        "train = data.train\n    labels = train.labels.bool().numpy()",
        "baselines::test_a_floor_of_several_labels_a_sample_sees_its_subset",
    ),
    Mutant(
        "downstream/token_classification/metrics.py",
        'data.train if kind == "chance" else train',
        "data.train",
        "token_classification::test_floors",
    ),
    Mutant(
        "stages/evaluate.py",
        'predict(context, t) for t in trials(cfg, "tuned", labels)]}',
        'predict(context, t) for t in trials(cfg, "scratch", labels)]}',
        "baselines::test_each_method_of_an_evaluation_predicts_with_its_own_trial",
    ),
    Mutant("downstream/classical.py", "k: int = 10", "k: int = 1", "baselines::test_nearest_neighbours_against_a_loop"),
    Mutant(
        "downstream/classical.py",
        "fit((train - mean) / std, labels)\n    return model.predict((test - mean) / std)",
        "fit(train, labels)\n    return model.predict(test)",
        "baselines::test_nearest_neighbours_against_a_loop",
    ),
    Mutant(
        "downstream/classical.py",
        "if standardise else (0.0, 1.0)",
        "if False else (0.0, 1.0)",
        "baselines::test_logistic_regression_is_on_standardised_columns",
    ),
    Mutant(
        "downstream/classification.py",
        "mean, std = x.mean(0), x.std(0) + 1e-6",
        "mean, std = 0 * x.mean(0), 0 * x.std(0) + 1",
        "baselines::test_the_probe_that_a_head_begins_with_does_not_depend_on_the_scale_of_features",
    ),
    # Fine-tuning left out
    Mutant(
        "stages/trials.py",
        "        training.fit(model, batches, plan)\n",
        "        pass\n",
        "baselines::test_fine_tuning_changes_every_weight_and_raises_the_score baselines::test_optimizer_steps_of_fine_tuning"
        " baselines::test_training_sees_exactly_the_rows_of_its_trial"
        " baselines::test_what_is_trained_from_scratch_never_saw_the_pretrained_weights",
    ),
    Mutant(
        "training/loop.py",
        "            optimizer.step()\n",
        "            pass\n",
        "baselines::test_fine_tuning_changes_every_weight_and_raises_the_score"
        " train::test_weight_average_and_clipping_against_the_formulas",
    ),
    Mutant(
        "stages/trials.py",
        "        linear.fit(context, model, split, steps, trial.seed, tags)\n",
        "",
        "baselines::test_a_linear_fine_tuning_trains_the_head_alone",
    ),
    Mutant(
        "stages/trials.py",
        "    tensor_files.into(model, {**model.state_dict(), **model.encoder.adjusted(tensors)[0]}, path)\n",
        "",
        "baselines::test_what_was_fine_tuned_is_what_is_evaluated",
    ),
    # What is logged
    Mutant(
        "training/loop.py",
        "        wait += time.perf_counter() - begun\n",
        "",
        "logged_values::test_logged_values_against_the_clock",
    ),
    Mutant(
        "training/loop.py",
        "round(seen / elapsed, 1)",
        "round(seen * elapsed, 1)",
        "logged_values::test_logged_values_against_the_clock",
    ),
    Mutant(
        "training/loop.py",
        'samples, signum, due = sum(len(m["ids"]) for m in micros),',
        'samples, signum, due = len(micros[0]["ids"]),',
        "logged_values::test_logged_values_against_the_clock",
    ),
    Mutant(
        "training/loop.py",
        "mark, logged, wait, seen = time.perf_counter(), done, 0.0, 0",
        "logged, wait, seen = done, 0.0, 0",
        "logged_values::test_logged_values_against_the_clock",
    ),
    Mutant(
        "training/loop.py",
        "            mark, wait, seen = time.perf_counter(), 0.0, 0\n",
        "",
        "logged_values::test_a_probe_takes_no_time_from_the_speed",
    ),
    Mutant(
        "training/loop.py",
        "done * plan.batch_size / plan.samples",
        "step * plan.batch_size / plan.samples",
        "logged_values::test_logged_values_against_the_clock logged_values::test_epochs_go_on_after_a_stop",
    ),
    Mutant(
        "runs/folder.py",
        "data = json.dumps(line, allow_nan=False)",
        "data = json.dumps(line)",
        "logged_values::test_a_metric_that_is_not_finite_is_refused",
    ),
    # Images
    Mutant(
        "data/images/views.py",
        "[0.8, 0.8, 0.8, 0.2]",
        "[0.8, 0.8, 0.8, 0.02]",
        "image_values::test_hue_turns_by_at_most_a_fifth_of_a_circle_times_the_strength",
    ),
    Mutant(
        "data/images/views.py",
        "[0.8, 0.8, 0.8, 0.2]",
        "[0.8, 0.8, 0.4, 0.2]",
        "image_values::test_brightness_contrast_and_saturation_change_by_four_fifths_of_the_strength",
    ),
    Mutant(
        "data/images/augment.py",
        "math.log1p(options.scale)",
        "0.0",
        "image_values::test_zoom_is_as_large_as_the_setting_says image_values::test_zoomed_images_show_more_or_less_of_a_ramp",
    ),
    Mutant(
        "data/images/augment.py",
        "math.log1p(options.scale)",
        "options.scale",
        "image_values::test_zoom_is_as_large_as_the_setting_says",
    ),
    Mutant(
        "data/images/augment.py",
        "scale.exp(), shear.tan()",
        "1 + scale, shear.tan()",
        "image_values::test_zoom_is_as_large_as_the_setting_says",
    ),
    Mutant(
        "data/images/augment.py",
        "math.radians(options.rotate)",
        "options.rotate / 90",
        "image_values::test_rotation_shear_and_shift_are_as_large_as_the_settings_say",
    ),
    Mutant(
        "data/images/augment.py",
        'F.grid_sample(images, grid, padding_mode="border"',
        'F.grid_sample(images, grid, mode="nearest", padding_mode="border"',
        "image_values::test_warped_images_are_interpolated_and_edges_repeated",
    ),
    Mutant(
        "data/images/augment.py",
        'padding_mode="border"',
        'padding_mode="zeros"',
        "image_values::test_warped_images_are_interpolated_and_edges_repeated",
    ),
    Mutant(
        "data/images/decode.py",
        "Image.Resampling.BILINEAR",
        "Image.Resampling.NEAREST",
        "image_values::test_smaller_images_are_averages image_values::test_larger_images_are_interpolated",
    ),
    Mutant(
        "data/images/decode.py",
        'key += f"/{json.dumps(decoder.scales, sort_keys=True)}"',
        "pass",
        "levels::test_the_cache_follows_the_scale",
    ),
    Mutant(
        "data/images/load.py",
        "scales = levels.chosen(ranges)",
        "scales = {}",
        "levels::test_the_range_of_a_data_set_is_black_to_white",
    ),
    Mutant(
        "data/sources/tables.py",
        "return bool(found) and all(found)",
        "return any(found)",
        "text_sources::test_quotation_marks_are_those_of_all_splits",
    ),
    Mutant(
        "downstream/translation.py",
        "return BLEU(tokenize=split.bleu_tokenizer)",
        "return BLEU()",
        "translation::test_bleu_follows_the_script_of_the_targets",
    ),
    Mutant(
        "downstream/question_answering/metrics.py",
        'scripts.apart(bare) if scoring == "mlqa" else bare',
        "bare",
        "question_answering::test_scores_of_other_scripts",
    ),
    Mutant(
        "data/images/load.py",
        "(squares / count - mean.square())",
        "(squares / count)",
        "image_values::test_training_images_have_mean_0_and_deviation_1",
    ),
    Mutant(
        "data/images/load.py",
        "    mean = total / count\n",
        "    mean = 0 * total\n",
        "image_values::test_training_images_have_mean_0_and_deviation_1",
    ),
    Mutant(
        "data/images/processor.py",
        "(-mean / std)",
        "(0 * mean)",
        "image_values::test_training_images_have_mean_0_and_deviation_1"
        " image_values::test_given_means_and_deviations_are_applied",
    ),
    Mutant(
        "data/images/processor.py",
        "(1 / (255 * std))",
        "(0 * std + 1 / 255)",
        "image_values::test_training_images_have_mean_0_and_deviation_1"
        " image_values::test_given_means_and_deviations_are_applied",
    ),
    Mutant(
        "data/splits.py",
        "max(round(fraction * sum(sizes))",
        "max(int(0.5 * fraction * sum(sizes))",
        "image_values::test_the_held_out_shares_add_up_to_that_of_all",
    ),
    # The loop
    Mutant(
        "training/loop.py",
        "plan.purpose, step * loop.accumulate + own.start)",
        "plan.purpose, step + own.start)",
        "logged_values::test_every_micro_batch_of_every_step_drops_out_other_units",
    ),
    Mutant(
        "training/loop.py",
        '/dropout", first + index)',
        '/dropout", first)',
        "logged_values::test_every_micro_batch_of_every_step_drops_out_other_units",
    ),
    Mutant(
        "training/loop.py",
        '    rng.seed_everything(seed, f"{purpose}/dropout", first + index)\n',
        "",
        "logged_values::test_both_embeddings_of_a_micro_batch_drop_out_the_same_units",
    ),
    Mutant(
        "training/loop.py",
        "with averaged(parameters, average):",
        "with contextlib.nullcontext():",
        "logged_values::test_a_probe_sees_the_averaged_weights_and_training_goes_on_from_its_own",
    ),
    Mutant(
        "training/loop.py",
        "            parameter.copy_(value)\n",
        "            pass\n",
        "logged_values::test_a_probe_sees_the_averaged_weights_and_training_goes_on_from_its_own",
    ),
    Mutant(
        "training/signals.py",
        "            raise KeyboardInterrupt\n",
        "            pass\n",
        "logged_values::test_the_first_signal_asks_and_a_later_one_stops_at_once"
        " logged_values::test_signals_of_the_process_reach_it_and_the_handlers_before_come_back",
    ),
    Mutant(
        "training/signals.py",
        "self.since > 1:",
        "self.since >= 0:",
        "logged_values::test_the_first_signal_asks_and_a_later_one_stops_at_once",
    ),
    # Weights and checkpoints in parts
    Mutant(
        "training/layout.py",
        "        self.processes.gather(None)\n        if self.processes.main:\n            part_files.commit(",
        "        if self.processes.main:\n            part_files.commit(",
        "shard::test_parts_are_a_checkpoint_when_all_are_written",
    ),
    Mutant(
        "training/layout.py",
        "rank * math.ceil(len(whole) / size), begins[name]",
        "rank * math.ceil(len(whole) / size), 0",
        "shard::test_one_that_dies_ends_the_other_and_going_on_is_bit_exact",
    ),
    Mutant(
        "storage/part_files.py",
        "FOLDER.fullmatch(name) and 1 <= size",
        "1 <= size",
        "shard::test_parts_that_are_spoilt_are_refused",
    ),
    Mutant("storage/part_files.py", "if folder.is_symlink():", "if False:", "shard::test_parts_that_are_spoilt_are_refused"),
    Mutant(
        "objectives/patches.py",
        ".nan_to_num(0.0)",
        "",
        "objectives::test_hog_against_loops",
    ),
    Mutant(
        "objectives/patches.py",
        "    histogram[:, :2] += histogram[:, bins:]  # half a turn is the direction where the bins begin\n",
        "",
        "objectives::test_hog_against_loops",
    ),
    Mutant(
        "stages/prepare.py",
        "        before[cfg.init] |= data.test.part_seen(name, trained_on(cfg.init, name))\n",
        "        pass\n",
        "clip_towers::test_a_run_that_goes_on_knows_what_the_towers_were_trained_on",
    ),
    # Resume, reuse, budget, files
    Mutant(
        "config/schema.py",
        "    batch_size: Count\n",
        "    batch_size: Annotated[Count, Role.HARMLESS]\n",
        "resume_and_reuse::test_the_keys_that_may_change_on_resume"
        " resume_and_reuse::test_what_changes_the_computation_is_refused_on_resume",
    ),
    Mutant(
        "config/schema.py",
        "    accumulate: Count\n",
        "    accumulate: Annotated[Count, Role.LONGER]\n",
        "resume_and_reuse::test_the_keys_that_may_change_on_resume"
        " resume_and_reuse::test_what_changes_the_computation_is_refused_on_resume",
    ),
    Mutant(
        "runs/changes.py", " and after > before:", ":", "resume_and_reuse::test_what_changes_the_computation_is_refused_on_resume"
    ),
    Mutant(
        "stages/reuse.py",
        '("code_sha256", "packages", "hardware")',
        '("code_sha256", "packages")',
        "resume_and_reuse::test_a_stage_is_not_reused_where_something_that_it_depends_on_differs",
    ),
    Mutant(
        "stages/reuse.py",
        'cfg["on_nan"], weights, data,',
        'cfg["on_nan"], data,',
        "resume_and_reuse::test_a_stage_is_not_reused_where_something_that_it_depends_on_differs"
        " resume_and_reuse::test_a_stage_is_reused_where_only_others_differ",
    ),
    Mutant(
        "stages/reuse.py",
        '("model", "dataset", "downstream", "finetune"),\n    "evaluate"',
        '("model", "dataset", "downstream"),\n    "evaluate"',
        "resume_and_reuse::test_a_stage_is_reused_where_only_others_differ",
    ),
    Mutant(
        "stages/budget.py",
        "SHARE = 0.6",
        "SHARE = 0.9",
        "resume_and_reuse::test_a_budget_gives_pretraining_three_fifths_or_what_fine_tuning_leaves",
    ),
    Mutant(
        "stages/budget.py",
        "        left -= wanted\n",
        "",
        "resume_and_reuse::test_a_budget_gives_pretraining_three_fifths_or_what_fine_tuning_leaves",
    ),
    Mutant(
        "storage/tensor_files.py",
        "if sound and not finite(v)",
        "if False",
        "resume_and_reuse::test_weights_that_are_not_finite_are_refused_by_name"
        " resume_and_reuse::test_an_encoder_with_weights_that_are_not_finite_is_refused",
    ),
    # Who may not know what
    *(
        Mutant(
            file,
            old,
            f"{old}{line}\n",
            f"architecture::{test}[{file}]",
        )
        for file, old, line, test in (
            ("models/vit.py", "from ptmrun.errors import UserError\n", "from ..data import splits", "test_imports"),
            (
                "models/cnn.py",
                "import torch\n",
                "from ..data.images import augment",
                "test_a_package_imports_only_from_those_below_it",
            ),
            (
                "training/loop.py",
                "from ptmrun.errors import Interrupted\n",
                "from ptmrun.stages import context",
                "test_a_package_imports_only_from_those_below_it",
            ),
            (
                "downstream/classification.py",
                "from ptmrun.errors import UserError\n",
                "from ..training import loop as training",
                "test_a_package_imports_only_from_those_below_it",
            ),
            (
                "downstream/multilabel.py",
                "from ptmrun.errors import UserError\n",
                "from ptmrun.runs.folder import Run",
                "test_imports",
            ),
        )
    ),
    Mutant(
        "stages/context.py",
        "from ptmrun.stages import probe\n",
        "from ptmrun.stages import probe, run\n",
        "architecture::test_there_is_no_circle",
    ),
]


def pytest(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pytest", "--tb=no", "-rf", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    return subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)


def tests_of(mutant: Mutant) -> list[str]:
    return [f"tests/test_{test.replace('::', '.py::', 1)}" for test in mutant.tests.split()]


def judged(copy: Path, mutant: Mutant) -> str:
    path = copy / "ptmrun" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return "old text not found once"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        lines = pytest(copy, tests_of(mutant)).stdout.splitlines()
    finally:
        path.write_text(text)
    found = [line.removeprefix("FAILED ") + " " for line in lines if line.startswith("FAILED ")]
    missed = [test for test in tests_of(mutant) if not any(line.startswith((f"{test} ", f"{test}[")) for line in found)]
    return f"NOT CAUGHT by {' '.join(missed)}" if missed else "caught"


def main(word: str = "") -> int:
    chosen = [mutant for mutant in MUTANTS if any(word in part for part in mutant)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        before = pytest(copy, sorted({test for mutant in chosen for test in tests_of(mutant)}))
        if before.returncode:
            print(f"Without any fault:\n{before.stdout}{before.stderr}")
            return 1
        missed = 0
        for mutant in chosen:
            verdict = judged(copy, mutant)
            missed += verdict != "caught"
            print(f"{verdict}: {mutant.file}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
