"""How results are put into words, wherever they are shown."""

from typing import Any

from ptmrun.config.compared import AS_IT_IS, FLOORS, METHODS, UNPRETRAINED
from ptmrun.reports import verdict

OLDER_SCRATCH = "the same model from random weights, trained as briefly as the fine-tuning"  # of versions that did not count
MOST_NAMES = 5
GROUP_TITLES = ["group", "samples", "accuracy", "macro F1"]


def title(metric: str) -> str:
    """The name of a metric as a heading."""
    words = metric.replace("_", " ")
    return words[:1].upper() + words[1:]


def score(spread: dict[str, Any]) -> str:
    """Mean and standard deviation, of a single value it alone."""
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")


def group_lines(groups: dict[str, Any]) -> list[list[str]]:
    """Texts under GROUP_TITLES, the worst group first."""
    order = sorted(groups.items(), key=lambda item: item[1]["accuracy"])
    return [[name, f"{s['n']:,}", f"{s['accuracy']:.3f}", f"{s['f1_macro']:.3f}"] for name, s in order]


def few_digits(count: int) -> str:
    """A count in four characters at most: 9999, 10k, 2M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit and count >= 10_000:
            return f"{count / unit:.0f}{name}"
    return str(count)


def labels(number: int | None, counted: str = "labels per class") -> str:
    """`counted`: what the problem counts."""
    if number is None:
        return "all labels"
    return f"{number} {counted}" if number > 1 else f"1 {counted.replace('labels', 'label', 1)}"


def methods(results: dict[str, Any]) -> dict[str, str]:
    """What each method of results.json is, those that are the problem's own in its words."""
    own, first = results.get("words", {}), results["by_labels"][0]
    words = {kind: method.phrase for kind, method in METHODS.items()} | {k: own[k] for k in METHODS if k in own}
    if results.get("weights_sha256", "") is None:
        words |= {"tuned": UNPRETRAINED.phrase}
    return words if "curve" in first else words | {"scratch": OLDER_SCRATCH}


def titles(pretrained: bool, trains: bool) -> dict[str, str]:
    """What each method is called in a picture. pretrained: whether what was fine-tuned had been; trains: whether anything was."""
    tuned = UNPRETRAINED if not pretrained else METHODS["tuned"] if trains else AS_IT_IS
    return {kind: method.title for kind, method in METHODS.items()} | {"tuned": tuned.title}


def some(names: list[str]) -> str:
    """The number of names, and the first of them."""
    return f"{len(names):,}: " + ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def warnings(results: dict[str, Any]) -> list[str]:
    """What scores leave out, or that they flatter."""
    seen, count = results.get("test_seen", 0), results["n_test"]
    what = f"{seen:,} of {count:,} test samples have an equal one among those that are trained on; scores flatter by them"
    lines = [f"Warning: {what}"] if seen else []
    if count < verdict.LEAST:
        lines.append(
            f"Warning: the test split has {count} samples, too few to tell anything: one of them is {100 / count:.0f} points"
        )
    if absent := results.get("metrics", {}).get("absent"):
        shown = ", ".join(absent[:MOST_NAMES]) + (", ..." if len(absent) > MOST_NAMES else "")
        lines.append(
            f"No test sample has, or is taken for, {len(absent)} of the classes ({shown}): macro averages leave them out"
        )
    return lines


def signatures(results: dict[str, Any]) -> list[str]:
    """How scores that others count otherwise are counted, where there are such."""
    known = results.get("metrics", {}).get("signatures", {})
    return [f"Counted as: {'; '.join(f'{name} {how}' for name, how in known.items())}"] if known else []


def error_rates(results: dict[str, Any]) -> list[str]:
    """How far what was heard is from what was said, of speech."""
    known = results.get("metrics", {})
    if known.get("wer") is None:
        return []
    rates = f"Word error rate {100 * known['wer']:.1f} %, character error rate {100 * known['cer']:.1f} %"
    return [f"{rates}; {100 * known['exact']:.1f} % of the sounds have no error (first repeat, most labels)"]


def best_floor(entry: dict[str, Any]) -> str | None:
    """The best of what owes nothing to pretraining, where there is any."""
    return max((k for k in FLOORS if k in entry["scores"]), key=lambda k: entry["scores"][k]["mean"], default=None)


def winning_floor(entry: dict[str, Any]) -> str | None:
    """The best floor, where it does as well or better."""
    best = best_floor(entry)
    return best if best and entry["scores"][best]["mean"] >= entry["scores"]["tuned"]["mean"] else None


def floors_that_win(entry: dict[str, Any], words: dict[str, str], counted: str) -> list[str]:
    """That a floor wins, where one does: the best."""
    best, scores = winning_floor(entry), {k: v["mean"] for k, v in entry["scores"].items()}
    if best is None or "floor" in entry:
        return []
    against = f"{scores[best]:.3f} against {scores['tuned']:.3f}"
    return [f"With {labels(entry['labels_per_class'], counted)} a floor wins: {words[best]} has {against} of fine-tuning."]


def learned_nothing(entry: dict[str, Any]) -> bool:
    """Whether training from scratch did not get above chance."""
    scores = entry["scores"]
    return {"scratch", "chance"} <= scores.keys() and scores["scratch"]["mean"] <= scores["chance"]["mean"]


def reservations(entries: list[dict[str, Any]]) -> list[str]:
    """What the verdict over runs is to be read with, where it holds for each of their entries."""
    known = {"a floor wins": winning_floor, "from scratch learned nothing": learned_nothing}
    return [what for what, holds in known.items() if all(map(holds, entries))]


def conclusions(entry: dict[str, Any], words: dict[str, str], counted: str) -> list[str]:
    """The verdict in words, and whether fine-tuning was worth it."""
    lines, scores = [], {k: v["mean"] for k, v in entry["scores"].items()}
    if "verdict" in entry:
        lines.append(f"With {labels(entry['labels_per_class'], counted)}: {verdict.sentence(entry['verdict'])}")
    if learned_nothing(entry):
        lines.append(
            f"But {words['scratch']} has learned nothing: {scores['scratch']:.3f}, where {words['chance']} has "
            f"{scores['chance']:.3f}; with more steps or labels it may be a baseline."
        )
    if floor := entry.get("floor"):
        gain, noise = 100 * floor["gain"], 100 * floor["noise"]
        word = "beyond" if abs(gain) > noise else "within"
        told = f"{words['tuned']} has {scores['tuned']:.3f}, {gain:+.1f} points against the best floor ({words[floor['name']]}: "
        lines.append(f"{told[0].upper()}{told[1:]}{scores[floor['name']]:.3f}), {word} the noise of {noise:.1f}.")
    if scores.get("frozen", -1.0) >= scores["tuned"]:
        lines.append(f"But {words['frozen']} does as well or better: {scores['frozen']:.3f} against {scores['tuned']:.3f}.")
    return lines
