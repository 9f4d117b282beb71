"""report.html: what it tells, that it is whole without scripts and asks for nothing, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import drop_digests

from ptmrun.reports import charts, curves, figures, page, phrases, predictions, report, scores_table
from ptmrun.reports.charts import Bar, Mark, Series
from ptmrun.runs.folder import Run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OUTSIDE = '<script>alert(1)</script>"onload=x \x1b[2J'


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.headings: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "h2" and data.strip():
            self.headings.append(data.strip())
            self.elements.append(("", {}))

    def of(self, *tags: str) -> list[dict]:
        return [attrs for tag, attrs in self.elements if tag in tags]


@pytest.fixture
def copied(done_run, tmp_path):
    """A run folder that may be changed."""
    shutil.copytree(done_run, tmp_path / "run")
    return Run.open(tmp_path / "run")


def changed(run: Run, name: str, **entries) -> None:
    content = json.loads((run.folder / name).read_text())
    (run.folder / name).write_text(json.dumps(content | entries))
    drop_digests(run.folder)


def test_the_order_of_the_story_and_what_it_rests_on(done_run):
    source = (done_run / "report.html").read_text()
    shown, results = Page(source), json.loads((done_run / "results.json").read_text())
    assert [re.sub(r" on 359.*", "", h) for h in shown.headings] == [
        "Accuracy",
        "What was asked",
        "The data as the network sees it",
        "Training",
        "Pictures of the task",
        "What it gets wrong",
        "Compute, lineage, environment",
    ]
    answer = f"Accuracy {results['score']:.3f} ± {results['score_sd']:.3f} with 5 labels per class, on 359 test samples"
    assert f"<h1>{answer}</h1>" in source
    assert source.index("points") < source.index("What was asked"), "the verdict comes first"
    assert "<dt><code>finetune.keep_probe</code></dt><dd>false</dd>" in source
    assert "<dt>samples</dt><dd>270 train, 30 val, 359 test</dd>" in source
    assert "<dt>as read</dt><dd>8x8 gray, 10 classes</dd>" in source
    assert "<pre>stage: all" in source
    assert f"ptmrun reproduce outputs/{done_run.name}" in source
    assert len(source) < 3_000_000


def test_every_picture_has_words_and_no_element_asks_for_anything(done_run):
    shown = Page((done_run / "report.html").read_text())
    [policy] = [m["content"] for m in shown.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;")
    assert all(len(image["alt"]) > 20 for image in shown.of("img"))
    assert all(
        len(art["aria-label"]) > 20 and art["role"] == "img" for art in shown.of("svg") if art.get("aria-hidden") != "true"
    )
    assert not shown.of("link", "iframe", "object", "embed", "base", "form")
    assert all(attrs.get("href", "#").startswith("#") for _, attrs in shown.elements)
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in shown.of("img"))


def test_the_curves_are_those_of_the_metrics(done_run):
    run = Run.open(done_run)
    lines = curves.read(run, run.results())
    losses = [(x["step"], x["loss"]) for x in run.metrics() if x["stage"] == "pretrain" and "loss" in x]
    assert lines.points("loss") == losses
    assert len(lines.points("probe_linear")) == 2
    assert sorted(lines.tuned) == ["5-tuned-0", "5-tuned-1"]
    titles = [chart.title for chart in curves.drawn(run, lines, run.results())]
    assert titles == ["Pretraining", "How good the frozen features are", "Fine-tuning, 5 labels per class"]


def test_what_happened_on_the_way_is_marked_in_place(copied):
    times = {x["step"]: x["time"] for x in copied.metrics() if x["stage"] == "pretrain" and "loss" in x}
    stamp = "1970-01-01T00:00:00Z"  # before all: nothing to be marked
    at = np.datetime64(int(1000 * times[6]) + 1, "ms").astype(str) + "+00:00"
    event = {"purpose": "pretrain", "why": "loss not finite", "to": 3, "lr_scale": 0.5}
    changed(copied, "manifest.json", resumed=[stamp, at], recoveries=[event], alarms=[{"step": 9, "what": "rank 1"}])
    run = Run.open(copied.folder)
    loss, *_ = curves.drawn(run, curves.read(run, None), None)
    place = charts.Scale(3, 12, charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert [x for x, *_ in loss.marks] == [place(3), place(9), place(6)]
    source = report.write(run).read_text()
    assert "went back to step 3 and on with the learning rate times 0.5" in source
    assert f"resumed at {at.replace('+', '&#43;')}" in source or f"resumed at {at}" in source
    assert "<strong>Step 9: the features may be collapsing.</strong> rank 1" in source


def plain(source: str) -> None:
    """Nothing of OUTSIDE has become more than text."""
    shown = Page(source)
    assert "\x1b" not in source
    assert len(shown.of("script")) == 1
    assert not [attrs for _, attrs in shown.elements if any(name.startswith("on") for name in attrs)]


def test_texts_from_outside_stay_texts(copied):
    data = copied.manifest["data"]
    names = [OUTSIDE, *data["classes"][1:]]
    changed(copied, "manifest.json", data=data | {"classes": names, "described": OUTSIDE}, command=OUTSIDE)
    source = report.write(Run.open(copied.folder)).read_text()
    plain(source)
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;&#34;onload=x \x1b[2J" in source
    rows = [scores_table.Row({"model": name}, [copied]) for name in (OUTSIDE, "b")]
    plain(scores_table.page(rows, OUTSIDE, failures=[[OUTSIDE, "failed", OUTSIDE]]))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"status": "failed", "error": "out of memory"}, "<strong>Status: failed.</strong> out of memory"),
        ({"status": "interrupted"}, "Go on with: <code>ptmrun resume"),
    ],
)
def test_a_run_that_ended_early_says_how_to_go_on(copied, entries, expected):
    (copied.folder / "results.json").unlink()
    changed(copied, "manifest.json", **entries)
    source = report.write(Run.open(copied.folder)).read_text()
    assert expected in source
    assert "<h1>Linear probe of the features: 0." in source
    assert "What it gets wrong" not in source


def test_a_page_that_would_be_too_large_names_its_pictures(copied, monkeypatch):
    monkeypatch.setattr(report, "LARGEST", 10)
    source = report.write(copied).read_text()
    assert "<img" not in source
    assert "It is in the run folder: figures/reconstructions.png" in source


def broken(**columns) -> bytes:
    """predictions.parquet with these columns in the place of its own."""
    good = {"labels_per_class": [5], "repeat": [0], "label": ["a"], "prediction": ["b"], "confidence": [0.5], "score": [0.0]}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(good | columns), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"nothing", "no predictions of ptmrun"),
        (broken(labels_per_class=["x"]), "no predictions of ptmrun"),
        (broken(score=["x"]), "no predictions of ptmrun"),
        (broken(label=pa.array([b"\xff"], pa.binary()).view(pa.string())), "codec can"),
        (broken(confidence=[1e300]), ""),
        (broken(confidence=["x"], label=[[1]]), ""),
        (broken(prediction=["a"], score=[1.0]), ""),
    ],
)
def test_predictions_that_are_none_are_left_out_and_it_is_said(copied, content, why):
    (copied.folder / "predictions.parquet").write_bytes(content)
    drop_digests(copied.folder)
    source = report.write(Run.open(copied.folder)).read_text()
    assert bool(re.search(rf"Single samples are not shown: .*{why}", source)) == bool(why)
    assert "Taken for one another most often" in source


def test_the_worst_mistakes_and_the_calibration_by_hand():
    table = pa.table(
        {
            "labels_per_class": pa.array([5, 5, 5, 5, 5, None], pa.int32()),
            "repeat": pa.array([0, 0, 0, 0, 1, 0], pa.int32()),
            "sample": ["a.png", "b.png", "c.png", "d.png", "e.png", "f.png"],
            "label": ["x", "x", "y", "y", "y", "y"],
            "prediction": ["x", "y", "x", "y", "x", "x"],
            "confidence": pa.array([0.94, 0.55, 0.95, 0.92, 1.0, 1.0], pa.float32()),
            "score": pa.array([1, 0, 0, 1, 0, 0], pa.float32()),
        }
    )
    mine = predictions.first_repeat(table, 5)
    assert mine["sample"].to_pylist() == ["a.png", "b.png", "c.png", "d.png"]
    assert predictions.first_repeat(table, None)["sample"].to_pylist() == ["f.png"]
    titles, rows = predictions.mistakes(mine)
    assert titles == ["sample", "label", "prediction", "confidence"]
    assert rows == [["c.png", "y", "x", "0.950"], ["b.png", "x", "y", "0.550"]]
    assert predictions.calibration(mine) == [
        (pytest.approx(0.55), 0.0, 1),
        (pytest.approx((0.94 + 0.95 + 0.92) / 3), pytest.approx(2 / 3), 3),
    ]
    graded = {"reference": ["ab", "cd"], "prediction": ["a", "c"], "score": pa.array([0.5, 0.25], pa.float32())}
    assert predictions.mistakes(pa.table(graded))[1] == [["cd", "c", "0.250"], ["ab", "a", "0.500"]]
    assert predictions.confused([[5, 2, 0], [1, 5, 4], [0, 0, 9]], ["p", "q", "r"])[:2] == [
        ["q", "r", "4", "40%"],
        ["p", "q", "2", "29%"],
    ]


def test_places_in_a_chart_by_hand():
    chart = charts.lines("t", [Series("s", [(0, 1.0), (10, 3.0)])], "step", "y", marks=[Mark(5, "m"), Mark(99, "far")])
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    up = charts.Scale(1 - 0.12, 3 + 0.12, charts.HEIGHT - charts.BOTTOM, charts.TOP)
    assert chart.lines[0].path == f"{left}.0,{up(1.0)} {right}.0,{up(3.0)}"
    assert [x for x, *_ in chart.marks] == [(left + right) / 2, right]
    assert chart.alt == "t. s: from 1 to 3"
    assert charts.lines("t", [Series("s", [])], "step", "y") is None
    assert charts.lines("t", [Series("s", [(3, 2.0)])], "step", "y").lines[0].dots[0].text == "s, step 3: 2"
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.613, 0.917) == pytest.approx([0.7, 0.8, 0.9])
    assert charts.ticks(2, 2) == [2]
    assert charts.log_ticks(9e10, 4e12) == pytest.approx([1e11, 3e11, 1e12, 3e12])
    rows = charts.bars("b", [Bar("one", 0.5), Bar("two", 1.0, 0.1, True)]).rows
    assert rows[1]["width"] == pytest.approx(rows[0]["width"] * 2, abs=0.2)
    assert [r["text"] for r in rows] == ["0.500", "1.000 ± 0.100"]
    assert [charts.number(v) for v in (1, True, "1", float("nan"), 10**400, 1e300)] == [1.0, None, None, None, None, None]


def test_thinned_lines_keep_their_peaks():
    points = [(i, float(i % 7)) for i in range(10_000)]
    points[4321] = (4321, 99.0)
    left = charts.thinned(points)
    assert len(left) <= charts.MOST + 2
    assert (4321, 99.0) in left
    assert (left[0], left[-1]) == (points[0], points[-1])
    assert charts.thinned(points[:50]) == points[:50]


def test_the_effect_of_each_setting(done_run):
    run = Run.open(done_run)
    rows = [scores_table.Row({"model": m, "task": t}, [run]) for m in ("a", "b") for t in ("x", "y", "z")]
    rows[4].runs = []
    model, task = scores_table.effects(rows)
    assert [r["name"] for r in model.rows] == ["a (3)", "b (2)"]
    assert [r["name"] for r in task.rows] == ["x (2)", "y (1)", "z (2)"]
    assert {r["mean"] for r in model.rows + task.rows} == {f"{run.results()['score']:.3f}"}
    many = [scores_table.Row({"lr": str(2.0**-i), "model": "a"}, [run]) for i in range(13)]
    [lr] = scores_table.effects(many)
    assert [len(line.dots) for line in lr.lines] == [13]
    assert scores_table.effects([scores_table.Row({"model": m}, [run]) for m in "ab"]) == []


def test_templates_are_in_the_package():
    assert {p.name for p in page.TEMPLATES.iterdir()} >= {"base.html", "run.html", "sweep.html", "style.css", "script.js"}
    assert "__" not in page.render("base.html", name="n")


PROBE = """
<script>
const out = [], shot = () => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color];
addEventListener("error", e => out.push("error " + e.message));
addEventListener("securitypolicyviolation", e => out.push("violation " + e.blockedURI));
addEventListener("load", () => {
  const result = {auto: shot()};
  for (const name of ["dark", "light"]) { document.getElementById("theme-" + name).click(); result[name] = shot(); }
  const svg = document.querySelector("svg[data-series]"), box = svg.getBoundingClientRect();
  const key = name => svg.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const rounded = e => e.getAttribute("points").split(" ").map(p => Math.round(parseFloat(p))).join();
  const drawn = () => [...svg.querySelectorAll("[points]")].map(rounded);
  result.whole = drawn();
  key("+");
  result.part = drawn();
  result.hidden = [...svg.querySelectorAll("[data-x]")].filter(e => e.style.visibility === "hidden").length;
  key("-");
  result.again = drawn();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right, clientY: box.top, bubbles: true}));
  result.hover = svg.parentElement.querySelector("output").textContent;
  svg.dispatchEvent(new KeyboardEvent("keydown", {key: "Home", bubbles: true}));
  result.home = svg.parentElement.querySelector("output").textContent;
  result.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  result.wide = [document.documentElement.scrollWidth, innerWidth];
  result.focusable = document.querySelectorAll("svg[tabindex]").length;
  result.errors = out;
  document.title = "done";
  document.body.dataset.result = JSON.stringify(result);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_in_a_browser(done_run, tmp_path):
    """No error, no request, nothing wider than the screen; the themes and the values of charts work."""
    source = (done_run / "report.html").read_text()
    (tmp_path / "page.html").write_text(source.replace("</head>", f"{PROBE}</head>"))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    argv = [BROWSER, *quiet, "--window-size=400,900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    [found] = [a["data-result"] for a in Page(done.stdout).of("body")]
    result = json.loads(found)
    assert result["errors"] == result["requests"] == []
    assert "CONSOLE" not in done.stderr
    assert result["dark"] == ["rgb(18, 22, 29)", "rgb(228, 232, 238)"]
    assert result["light"] == ["rgb(255, 255, 255)", "rgb(27, 35, 48)"]
    assert result["auto"] in (result["dark"], result["light"])
    assert re.match(r"training compute .*FLOP · ", result["hover"])
    assert re.match(r"training compute .*FLOP · ", result["home"])
    assert result["hover"] != result["home"]
    assert result["whole"] == result["again"] != result["part"]
    assert result["hidden"] >= 1
    assert result["focusable"] >= 4
    assert result["wide"][0] <= max(result["wide"][1], 500), "Chromium's windows are 500 wide at least"


def test_large_counts_fit_into_their_cells():
    assert [phrases.few_digits(n) for n in (0, 9999, 10_000, 238_831, 2_400_000, 31 * 10**9)] == [
        "0",
        "9999",
        "10k",
        "239k",
        "2M",
        "31G",
    ]
    grid = charts.confusion([[238_831, 9], [1, 12]], ["sea", "land"])
    assert [cell["text"] for cell in grid.cells] == ["239k", "9", "1", "12"]
    assert grid.cells[0]["title"] == "sea taken for sea: 238,831 of 238,840 (100%)"


def test_worst_images_with_boxes_are_judged_by_their_f1():
    table = pa.table({"sample": ["a", "b"], "score": [-0.2, 1.4], "f1": [0.8, 0.1], "true_boxes": [3, 7]})
    assert predictions.mistakes(table) == (["sample", "true_boxes", "f1"], [["b", "7", "0.100"], ["a", "3", "0.800"]])


def test_words_of_boxes_at_one_corner_are_those_of_the_surest():
    assert figures.free([30, 40, 60, 70], [[70, 40, 90, 90], [30, 52, 60, 70]], 128)
    assert not figures.free([30, 40, 60, 70], [[34, 43, 90, 90]], 128)
