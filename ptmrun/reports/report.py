"""report.html: one self-contained page about a run, readable offline."""

import base64
import html
from pathlib import Path
from typing import Any

from ptmrun.errors import printable
from ptmrun.reports import compute_table, phrases
from ptmrun.reports.captions import CAPTIONS
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.storage.safe_read import read, text
from ptmrun.training import recovery

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } .verdict { font-size: 1.05rem }
table { border-collapse: collapse } td, th { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #dde1e7 }
td:first-child, th:first-child { text-align: left } tr.tuned { font-weight: 600; background: #eef4fb }
table.texts td { text-align: left; vertical-align: top; font-size: 13px }
img { max-width: 100% } figure { margin: 1.2rem 0 } figcaption { color: #5a6270 }
pre { background: #f5f6f8; padding: .8rem; overflow: auto; font-size: 12px }
"""


def write(run: Run) -> Path:
    """Makes the report of what the run holds."""
    parts = [
        f"<h1>{esc(run.folder.resolve().name)}</h1>",
        f"<p>Status: {esc(run.manifest['status'])}. <code>{esc(run.manifest.get('command', ''))}</code></p>",
    ]
    config_file.load(run.sound("config.yaml"))  # what is shown below is refused where it is no plain config
    parts += recoveries(run.manifest.get("recoveries", []))
    parts += [
        f"<p><strong>Step {esc(x['step'])}: the features may be collapsing.</strong> {esc(x['what'])}</p>"
        for x in run.manifest.get("alarms", [])
    ]
    if results := run.results():
        parts += scores(results)
    for name, caption in CAPTIONS.items():
        path = run.path("figures", f"{name}.png")
        if path.exists():
            data = base64.b64encode(read(path)).decode()
            image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{esc(caption.text)}</figcaption></figure>")
    parts += samples(run.samples())
    if drawn := run.drawn():
        rows = [([name.replace("_", " "), f"{value:.4g}"], False) for name, value in drawn.items()]
        parts.append("<h2>Drawings</h2>" + html_table(["", ""], rows))
    parts += ["<h2>Config</h2>", f"<pre>{esc(text(run.path('config.yaml')))}</pre>"]
    manifest = {k: v for k, v in run.manifest.items() if k not in ("status", "command")}
    lines = "\n".join(f"{k}: {v}" for k, v in manifest.items())
    parts += ["<h2>Provenance</h2>", f"<pre>{esc(lines)}</pre>"]
    head = f'<meta charset="utf-8"><title>{esc(run.folder.resolve().name)}</title><style>{STYLE}</style>'
    page = f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'
    return run.write("report.html", page)


def esc(value: Any) -> str:
    return html.escape("\n".join(map(printable, str(value).split("\n"))))


def html_table(titles: list[str], body: list[tuple[list[str], bool]]) -> str:
    """A table; rows are texts and whether the row stands out."""
    head = "".join(f"<th>{esc(t)}</th>" for t in titles)
    lines = "".join(f'<tr class="{"tuned" * best}">{"".join(f"<td>{esc(t)}</td>" for t in texts)}</tr>' for texts, best in body)
    return f"<table><tr>{head}</tr>{lines}</table>"


def recoveries(events: list[dict[str, Any]]) -> list[str]:
    """That training diverged and how it went on, where it did."""
    if not events:
        return []
    times = "once" if len(events) == 1 else f"{len(events)} times"
    how = ". ".join(map(recovery.describe, events))
    return [
        f"<p><strong>Training diverged {times} and went on more gently.</strong> {esc(how)}. "
        "Settings that do not diverge may give better features than these.</p>"
    ]


def samples(written: list[dict[str, Any]]) -> list[str]:
    """What a model of text said before and after pretraining."""
    if not written:
        return []
    first, last = written[0], written[-1]
    body = [
        ([given, before, after], False) for given, before, after in zip(last["given"], first["said"], last["said"], strict=False)
    ]
    titles = ["given", f"said at step {first['step']}", f"at step {last['step']}"]
    return ["<h2>Samples (held-out texts)</h2>", html_table(titles, body).replace("<table>", '<table class="texts">')]


def scores(results: dict[str, Any]) -> list[str]:
    """The verdict and the table of scores."""
    sets, methods, counted = results["by_labels"], phrases.methods(results), results.get("counted", "labels per class")
    said = phrases.warnings(results)
    said += [line for entry in sets for line in phrases.floors_that_win(entry, methods, counted)]
    said += [line for entry in sets for line in phrases.conclusions(entry, methods, counted)]
    parts = [f'<p class="verdict">{esc(line)}</p>' for line in said]
    titles = ["", *(phrases.labels(entry["labels_per_class"], counted) for entry in sets)]
    body = []
    for kind in [k for k in methods if k in sets[0]["scores"]]:
        spreads = [entry["scores"][kind] for entry in sets]
        cells = [phrases.score(score) for score in spreads]
        body.append(([methods[kind], *cells], kind == "tuned"))
    seeds = f"mean ± standard deviation over {results['seeds']} repeats" if results["seeds"] > 1 else "one repeat"
    heading = f"{phrases.title(results['metric'])} on {results['n_test']:,} test samples ({seeds})"
    parts.append(f"<h2>{esc(heading)}</h2>{html_table(titles, body)}")
    parts += [f"<p>{esc(line)}</p>" for line in phrases.signatures(results)]
    parts += [f"<p>{esc(line)}</p>" for line in phrases.error_rates(results)]
    if rows := compute_table.lines(results):
        parts.append(html_table(compute_table.TITLES, [(row, False) for row in rows]))
    if groups := results.get("metrics", {}).get("groups"):
        body = [(line, False) for line in phrases.group_lines(groups)]
        parts.append("<h2>By group (first repeat, most labels)</h2>" + html_table(phrases.GROUP_TITLES, body))
    if worst := results.get("metrics", {}).get("worst"):
        body = [([x["sound"], x["reference"], x["prediction"], f"{x['score']:.3f}"], False) for x in worst]
        page = html_table(["sound", "said", "heard", "score"], body).replace("<table>", '<table class="texts">')
        parts += ["<h2>Worst sounds (first repeat, most labels)</h2>", page]
    if ranks := results.get("ranks"):
        body = [([name, str(rank)], False) for name, rank in ranks.items()]
        heading = f"Ranks that AdaLoRA left ({sum(ranks.values())} in all; first repeat, most labels)"
        parts.append(f"<h2>{heading}</h2>" + html_table(["layer", "rank"], body))
    if pretrained := results.get("pretrain"):
        parts.append("<h2>Pretraining</h2>" + html_table(["", ""], [([k, f"{v:.4g}"], False) for k, v in pretrained.items()]))
    return parts
