"""report.html: one self-contained page about a run, readable offline."""

import base64
from pathlib import Path
from typing import Any

from ptmrun.config import secrets
from ptmrun.errors import UserError
from ptmrun.reports import charts, compute_table, curves, page, phrases, predictions
from ptmrun.reports.captions import CAPTIONS
from ptmrun.reports.charts import Bar, Series
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.storage.safe_read import read, text
from ptmrun.training import recovery

LARGEST = 1_900_000  # bytes of pictures in a page, which are a third longer as text
MOST_CELLS = 30  # classes of a confusion matrix that is drawn cell by cell; that of more is a picture
SIDES = {"better": "better", "worse": "worse", "already_paid": "warn", "equal": ""}


def write(run: Run) -> Path:
    """Makes the report of what the run holds."""
    config_file.load(run.sound("config.yaml"))  # what is shown below is refused where it is no plain config
    album = Album(run)
    made = secrets.masked(page.render("run.html", **parts(run, album)))
    for mark, content in album.encoded.items():  # afterwards: there are no secrets in them, and much to look through
        made = made.replace(mark, content)
    return run.write("report.html", made.encode())


def parts(run: Run, album: "Album") -> dict[str, Any]:
    """What templates/run.html shows."""
    manifest, results, name = run.manifest, run.results(), run.folder.resolve().name
    lines = curves.read(run, results)
    overrides = config_file.load_plain(run.sound("overrides.yaml")) if run.path("overrides.yaml").exists() else []
    errors = wrong(run, results, album) if results else None
    return {
        "name": name,
        "status": manifest["status"],
        "error": manifest.get("error", ""),
        "resume": f"ptmrun resume {run.typed}",
        "answer": answer(manifest, results, lines),
        "warnings": warnings(results) if results else [],
        "recoveries": [recovery.describe(event) for event in manifest.get("recoveries", [])],
        "alarms": manifest.get("alarms", []),
        "conclusions": conclusions(results) if results else [],
        "scores": scores(results) if results else None,
        "score_charts": score_charts(results) if results else [],
        "compute_charts": [c for entry in results["by_labels"] if (c := compute_chart(entry, results))] if results else [],
        "captions": {key: caption.text for key, caption in CAPTIONS.items()},
        "overrides": overrides,
        "asked": [override.partition("=")[::2] for override in map(str, overrides)],
        "changed": manifest.get("changed", []),
        "config": text(run.path("config.yaml")),
        "data": data(manifest.get("data", {}), results, album),
        "curves": curves.drawn(run, lines, results),
        "pretraining": [[k, f"{v:.4g}"] for k, v in ((results or {}).get("pretrain") or {}).items()],
        "ranks": [[layer, str(rank)] for layer, rank in ((results or {}).get("ranks") or {}).items()],
        "samples": samples(run.samples()),
        "drawings": [[name.replace("_", " "), f"{value:.4g}"] for name, value in run.drawn().items()],
        "errors": errors,
        "shown": album.of("task"),
        "compute": compute(results),
        "facts": facts(manifest),
        "command": manifest.get("command", ""),
        "reproduce": f"ptmrun reproduce {run.typed}",
        "manifest": "\n".join(f"{k}: {v}" for k, v in manifest.items() if k not in ("status", "command")),
    }


class Album:
    """The pictures of a run, as long as the page is not too large. encoded: what is to stand for the mark of each, base64."""

    def __init__(self, run: Run):
        self.run, self.left = run, LARGEST
        self.encoded: dict[str, str] = {}

    def of(self, place: str, but: tuple[str, ...] = ()) -> list[dict[str, str]]:
        """Those that stand at a place of the report: name, caption and mark, which is empty where there is no room left."""
        shown = []
        for name, caption in CAPTIONS.items():
            path = self.run.path("figures", f"{name}.png")
            if caption.place == place and name not in but and path.exists():
                content, mark = read(path), ""
                if len(content) <= self.left:
                    self.left -= len(content)
                    mark = f"[picture of {name}]"
                    self.encoded[mark] = base64.b64encode(content).decode()
                shown.append({"name": name, "caption": caption.text, "mark": mark})
        return shown


def answer(manifest: dict[str, Any], results: dict[str, Any] | None, lines: curves.Lines) -> str:
    """The result in a sentence."""
    if results:
        entry = results["by_labels"][-1]
        labels = phrases.labels(entry["labels_per_class"], results.get("counted", "labels per class"))
        what, value = phrases.title(results["metric"]), phrases.score(entry["scores"]["tuned"])
        return f"{what} {value} with {labels}, on {results['n_test']:,} test samples"
    if len(linear := lines.points("probe_linear")) > 1:
        return f"Linear probe of the features: {linear[0][1]:.3f} untrained, {linear[-1][1]:.3f} after {linear[-1][0]:,.0f} steps"
    if losses := lines.points("loss"):
        return f"Pretraining loss {losses[-1][1]:.4g} after {losses[-1][0]:,.0f} steps, at the beginning {losses[0][1]:.4g}"
    return f"Nothing was trained yet ({manifest['status']})"


def warnings(results: dict[str, Any]) -> list[str]:
    """What a reader has to know before the scores, above all that a floor wins."""
    methods, counted = phrases.methods(results), results.get("counted", "labels per class")
    floors = [line for entry in results["by_labels"] for line in phrases.floors_that_win(entry, methods, counted)]
    return phrases.warnings(results) + floors


def conclusions(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The verdict for each number of labels: its class in the style, and its words."""
    methods, counted = phrases.methods(results), results.get("counted", "labels per class")
    return [
        (SIDES.get(entry.get("verdict", {}).get("outcome", ""), ""), line)
        for entry in results["by_labels"]
        for line in phrases.conclusions(entry, methods, counted)
    ]


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """The table of scores: a row for each method, a column for each number of labels."""
    sets, methods, counted = results["by_labels"], phrases.methods(results), results.get("counted", "labels per class")
    kinds = [k for k in methods if k in sets[0]["scores"]]
    seeds = f"mean ± standard deviation over {results['seeds']} repeats" if results["seeds"] > 1 else "one repeat"
    return {
        "heading": f"{phrases.title(results['metric'])} on {results['n_test']:,} test samples ({seeds})",
        "titles": ["", *(phrases.labels(entry["labels_per_class"], counted) for entry in sets)],
        "rows": [[methods[kind], *(phrases.score(entry["scores"][kind]) for entry in sets)] for kind in kinds],
        "chosen": [kinds.index("tuned")],
        "signatures": [*phrases.signatures(results), *phrases.error_rates(results)],
    }


def titles_of(results: dict[str, Any]) -> dict[str, str]:
    trains = results["by_labels"][0].get("compute") != {}
    return phrases.titles(results.get("weights_sha256", "") is not None, trains)


def score_charts(results: dict[str, Any]) -> list[charts.Bars]:
    """Every method's score, a chart for each number of labels."""
    titles, counted = titles_of(results), results.get("counted", "labels per class")
    made: list[charts.Bars] = []
    for entry in results["by_labels"]:
        each = [(k, s["mean"], s["sd"]) for k in titles if (s := entry["scores"].get(k))]
        rows = [Bar(titles[k], mean, sd, k == "tuned") for k, mean, sd in each if charts.number(mean + (sd or 0.0)) is not None]
        title = f"{phrases.title(results['metric'])}, {phrases.labels(entry['labels_per_class'], counted)}"
        made += [charts.bars(title, rows)] if rows else []
    return made


def compute_chart(entry: dict[str, Any], results: dict[str, Any]) -> charts.Chart | None:
    """Score against training compute for one number of labels, see captions; None where nothing was compared."""
    if not entry.get("curve") or "compute" not in entry.get("verdict", {}):
        return None
    titles, known, tuned = titles_of(results), entry["verdict"]["compute"], entry["scores"]["tuned"]
    points = entry["curve"]
    at = [(p["flops"], p["score"]["mean"]) for p in points]
    texts = [
        f"{titles['scratch']}, {p['steps']:,} steps, {compute_table.operations(p['flops'])}: {phrases.score(p['score'])}"
        for p in points
    ]
    band = [p["score"]["sd"] or 0.0 for p in points]
    series = [Series(titles["scratch"], at, "var(--gray)", dots=True, spread=band, texts=texts)]
    places = [("pretrained, tuned", known["total"], False)] if known["known"] else []
    for name, flops, hollow in (*places, ("the same, pretraining there already", known["tuned"], True)):
        words = f"{name}, {compute_table.operations(flops)}: {phrases.score(tuned)}"
        spread = [] if hollow else [tuned["sd"] or 0.0]
        series.append(Series(name, [(flops, tuned["mean"])], hollow=hollow, spread=spread, texts=[words]))
    floor = phrases.best_floor(entry)
    level = [(entry["scores"][floor]["mean"], f"best floor: {titles[floor]}")] if floor else []
    labels = phrases.labels(entry["labels_per_class"], results.get("counted", "labels per class"))
    return charts.lines(
        f"Score against compute, {labels}",
        series,
        "training compute",
        phrases.title(results["metric"]),
        levels=level,
        log_x=True,
        x_text=compute_table.operations,
    )


def data(about: dict[str, Any], results: dict[str, Any] | None, album: Album) -> dict[str, Any]:
    """What the manifest says of the data."""
    sizes, counts, classes = about.get("sizes", {}), about.get("counts", {}), about.get("classes") or []
    lines = [("samples", ", ".join(f"{n:,} {split}" for split, n in sizes.items()))] if sizes else []
    lines += [("as read", about["described"])] if about.get("described") else []
    lines += [("classes", phrases.some(classes))] if classes else []
    seen = (results or {}).get("test_seen")
    lines += [("test samples that training has too", f"{seen:,}")] if seen is not None else []
    lines += [("fingerprint", about["fingerprint"][:16])] if about.get("fingerprint") else []
    columns = counts.values() if all(len(column) == len(classes) for column in counts.values()) else ()
    rows = [[name, *(f"{n:,}" for n in row)] for name, *row in zip(classes, *columns, strict=True)] if columns else []
    notes = about.get("notes", [])
    return {"facts": lines, "notes": notes, "splits": list(counts), "counts": rows, "pictures": album.of("data")}


def samples(written: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What a model of text said before and after pretraining."""
    if not written:
        return None
    first, last = written[0], written[-1]
    return {
        "titles": ["given", f"said at step {first['step']}", f"at step {last['step']}"],
        "rows": list(zip(last["given"], first["said"], last["said"], strict=False)),
    }


def wrong(run: Run, results: dict[str, Any], album: Album) -> dict[str, Any]:
    """What the model gets wrong: confusion, calibration, groups, single samples."""
    metrics, known = results.get("metrics", {}), run.manifest.get("data", {}).get("classes") or []
    matrix, entry = metrics.get("confusion", []), results["by_labels"][-1]
    classes = [predictions.cell(c) for c in (known if len(known) == len(matrix) else range(len(matrix)))]
    drawn = bool(matrix) and len(matrix) <= MOST_CELLS
    groups = metrics.get("groups")
    shown: dict[str, Any] = {
        "refused": "",
        "matrix": charts.confusion(matrix, classes) if drawn else None,
        "confused": predictions.confused(matrix, classes) if len(matrix) > 2 else [],
        "counted": "samples" if sum(map(sum, matrix)) == results.get("n_test") else "times",  # pixels and tokens are no samples
        "calibration": None,
        "ece": f"Expected calibration error {metrics['ece']:.3f}." if metrics.get("ece") is not None else "",
        "groups": {"titles": phrases.GROUP_TITLES, "rows": phrases.group_lines(groups)} if groups else None,
        "classes": of_classes(metrics.get("per_class", {})),
        "mistakes": None,
        "pictures": album.of("errors", but=("confusion",) if drawn else ()),
    }
    try:
        if judged := predictions.judged(run, entry["labels_per_class"]):
            titles, rows = judged["mistakes"]
            shown["mistakes"] = {"titles": titles, "rows": rows} if rows else None
            shown["calibration"] = calibration(judged["calibration"]) if shown["ece"] else None
    except UserError as error:
        shown["refused"] = f"Single samples are not shown: {error}"
    if worst := metrics.get("worst"):  # of speech, with what was said
        rows = [[x["sound"], x["reference"], x["prediction"], f"{x['score']:.3f}"] for x in worst]
        shown["mistakes"] = {"titles": ["sound", "said", "heard", "score"], "rows": rows}
    return shown if any(v for k, v in shown.items() if k != "ece") else {}


def calibration(points: list[tuple[float, float, int]]) -> charts.Chart | None:
    at = [(sure, right) for sure, right, _ in points]
    texts = [f"{n:,} samples, of which the model is {sure:.0%} sure: {right:.0%} are right" for sure, right, n in points]
    low = min((sure for sure, _ in at), default=0.0)
    series = [Series("perfect", [(low, low), (1.0, 1.0)], "var(--gray)"), Series("this model", at, dots=True, texts=texts)]
    return charts.lines("How right it is where it is how sure", series, "confidence", "share that is right") if at else None


def of_classes(per_class: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The table of what is known of every class."""
    if not per_class:
        return None
    keys = list(dict.fromkeys(key for entry in per_class.values() for key in entry))
    rows = [
        [name, *("" if (v := charts.number(entry.get(key))) is None else charts.short(round(v, 3)) for key in keys)]
        for name, entry in per_class.items()
    ]
    return {"titles": ["class", *map(phrases.title, keys)], "rows": rows}


def compute(results: dict[str, Any] | None) -> dict[str, Any] | None:
    rows = compute_table.lines(results) if results else []
    return {"titles": compute_table.TITLES, "rows": rows} if rows else None


def facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Lineage, time and environment."""
    lines = []
    for parent in manifest.get("parents", []):
        digest = f", weights {parent['weights_sha256'][:16]}" if parent["weights_sha256"] else ""
        lines.append(("starts from", f"{parent['run']}{digest}"))
    lines += [("taken from another run", f"{stage}: {twin}") for stage, twin in manifest.get("reused", {}).items()]
    lines += [("weights", manifest["weights_sha256"][:16])] if manifest.get("weights_sha256") else []
    lines += [("began", manifest["started"])] if manifest.get("started") else []
    lines += [("resumed", when) for when in manifest.get("resumed", [])]
    lines += [("ended", manifest["ended"])] if manifest.get("ended") else []
    walls = ", ".join(f"{stage} {phrases.duration(seconds)}" for stage, seconds in manifest.get("wall_s", {}).items())
    lines += [("time", walls)] if walls else []
    hardware = ", ".join(f"{key} {value}" for key, value in manifest.get("hardware", {}).items() if value is not None)
    lines += [("hardware", hardware)] if hardware else []
    own = [(name, manifest[key]) for name, key in (("ptmrun", "ptmrun"), ("Python", "python")) if key in manifest]
    versions = ", ".join(f"{name} {version}" for name, version in (*own, *manifest.get("packages", {}).items()))
    lines += [("software", versions)] if versions else []
    if isinstance(git := manifest.get("git"), dict):
        lines.append(("commit", f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}"))
    return lines
