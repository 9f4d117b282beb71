"""The pictures of a run, as PNG in figures/."""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from torch.nn import functional as F

from ptmrun.config.compared import METHODS
from ptmrun.reports import compute_table, phrases
from ptmrun.runs.folder import Run

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 130,
        "savefig.bbox": "tight",
        "text.parse_math": False,
    }
)


TOP = 18  # characters above a picture
BESIDE = 5  # pictures with boxes in a row
CROWDED = 12  # boxes of a picture, of which more have no words
MOST_NAMED = 20  # classes of a legend
BLUE, ORANGE, GREEN, GRAY = "#2f6db5", "#d9822b", "#3a8f5c", "#8a8f98"


def save(run: Run, name: str, figure: Figure) -> None:
    run.write(f"figures/{name}.png", png(figure))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with quiet():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def arrange(figure: Figure) -> None:
    with quiet():
        figure.tight_layout()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of characters that no font has, which are drawn as boxes, and of labels that leave little room."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Tight layout not applied", category=UserWarning)
        yield


def as_array(image: Tensor) -> np.ndarray:
    """[C, H, W] in [0, 1] -> what imshow takes."""
    x = image.cpu().permute(1, 2, 0).numpy()
    return x[:, :, 0] if x.shape[2] == 1 else x


def rows(run: Run, name: str, images: dict[str, Tensor], tops: list[str] | None = None) -> None:
    """One row of images for each title; images [B, C, S, S] in [0, 1]. `tops` stand above the first row."""
    count = max(len(x) for x in images.values())
    figure = Figure(figsize=(1.0 * count + 1.1, 1.05 * len(images)))
    axis = figure.subplots()
    axis.set_axis_off()
    axis.imshow(tiled(list(images.values()), count), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for line, title in enumerate(images):
        axis.text(-0.01, 1 - (line + 0.5) / len(images), title, transform=axis.transAxes, ha="right", va="center")
    for column, top in enumerate(tops or []):
        text = "\n".join(textwrap.wrap(top, TOP))
        axis.text((column + 0.5) / count, 1.01, text, transform=axis.transAxes, ha="center", va="bottom", fontsize=6)
    save(run, name, figure)


def tiled(batches: list[Tensor], count: int) -> np.ndarray:
    """Batches [B, C, S, S] as rows of at most `count` images with white between them: one picture, as imshow takes it."""
    side = batches[0].shape[-1]
    gap = -(-side // 30)
    whole = [F.pad(x.cpu(), (gap, gap, gap, gap, 0, 0, 0, count - len(x)), value=1.0) for x in batches]
    return as_array(torch.stack(whole).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))


def lengths(run: Run, counts: dict[str, np.ndarray], most: int) -> None:
    """How many tokens texts have, a histogram for each title of `counts`; those above `most` are cut there."""
    figure = Figure(figsize=(5.2, 2.7))
    axis = figure.subplots()
    edges = np.linspace(0, max(most, 1), 41)
    for (title, values), color in zip(counts.items(), (BLUE, ORANGE, GREEN), strict=False):
        shares = np.histogram(values.clip(max=most), edges)[0] / len(values)
        label = f"{title}: median {np.median(values):.0f}, {(values >= most).mean():.0%} at the limit of {most}"
        axis.stairs(shares, edges, color=color, label=label)
    axis.set(xlabel="tokens", ylabel="share of the texts")
    axis.legend(frameon=False, fontsize=7)
    arrange(figure)
    save(run, "lengths", figure)


def layers(run: Run, name: str) -> None:
    """The linear probe of each layer before and after pretraining, where there are any. `name`: its key but the number."""
    looks = list(run.metric_lines(f"{name}1"))
    if not looks:
        return
    figure = Figure(figsize=(4, 2.7))
    axis = figure.subplots()
    for look, label, color in ((looks[0], "untrained", GRAY), (looks[-1], "pretrained", ORANGE)):
        scores = [look[key] for key in sorted((k for k in look if k.startswith(name)), key=lambda k: int(k.removeprefix(name)))]
        axis.plot(range(1, len(scores) + 1), scores, "o-", color=color, label=label, markersize=3)
    axis.axvline(looks[-1]["layer"], color=GRAY, lw=0.8, ls=":")
    axis.set(xlabel="layer", ylabel="linear probe", xticks=range(1, len(scores) + 1))
    axis.legend(frameon=False)
    save(run, "layers", figure)


def overlays(run: Run, name: str, images: Tensor, maps: Tensor, title: str, tops: list[str] | None = None) -> None:
    """Images [B, C, S, S], and below each its map [B, h, w] over it, from its lowest value to its highest; `tops` stand above."""
    count, side = len(images), images.shape[-1]
    figure = Figure(figsize=(1.0 * count + 1.1, 2.1))
    axes = figure.subplots(2, count, squeeze=False)
    for i in range(count):
        for axis in axes[:, i]:
            axis.set_axis_off()
            axis.imshow(as_array(images[i]), cmap="gray", vmin=0, vmax=1)
        axes[1, i].imshow(
            maps[i].cpu(),
            cmap="inferno",
            alpha=0.65,
            extent=(-0.5, side - 0.5, side - 0.5, -0.5),
            interpolation="bilinear",
        )
        if tops:
            lines = [line if len(line) <= 15 else f"{line[:14]}…" for line in tops[i].split("\n")]
            axes[0, i].set_title("\n".join(lines), fontsize=7)
    for axis, text in zip(axes[:, 0], ("image", title), strict=True):
        axis.text(-0.15, 0.5, text, transform=axis.transAxes, ha="right", va="center")
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    save(run, name, figure)


def masks(
    run: Run,
    name: str,
    images: Tensor,
    truth: Tensor,
    guess: Tensor,
    classes: list[str],
    palette: list[list[int]],
    tops: list[str],
) -> None:
    """Images [B, C, S, S], and below each its true mask and the predicted one, classes [B, S, S]; what is no class is white.
    `tops` stand above."""
    colors = torch.full((256, 3), 1.0)
    colors[: len(palette)] = torch.tensor(palette).float() / 255
    painted = [colors[x.long()].movedim(3, 1) for x in (truth, guess)]
    images = images.cpu().expand(-1, 3, -1, -1)
    different = (truth.cpu() != guess.cpu()) & (truth.cpu() < len(classes))
    wrong = torch.where(
        different[:, None], torch.tensor([0.85, 0.1, 0.1]).view(3, 1, 1), 0.35 + 0.5 * images.mean(1, keepdim=True)
    )
    figure = Figure(figsize=(1.15 * len(images) + 1.1, 4.9))
    axis = figure.subplots()
    axis.set_axis_off()
    axis.imshow(tiled([images, *painted, wrong], len(images)), interpolation="nearest")
    for line, title in enumerate(("image", "true", "predicted", "wrong")):
        axis.text(-0.01, 1 - (line + 0.5) / 4, title, transform=axis.transAxes, ha="right", va="center")
    for column, top in enumerate(tops):
        axis.text((column + 0.5) / len(images), 1.01, top, transform=axis.transAxes, ha="center", va="bottom", fontsize=8)
    shown = torch.cat([truth.flatten(), guess.flatten().long()]).unique().tolist()
    patches = [
        mpl.patches.Patch(facecolor=colors[c].tolist(), edgecolor=GRAY, label=classes[c]) for c in shown if c < len(classes)
    ]
    axis.legend(handles=patches[:MOST_NAMED], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(run, name, figure)


def attention_maps(run: Run, pieces: list[list[str]], weights: list[Tensor]) -> None:
    """A panel for each text: its tokens, and how much each (rows) looks at each (columns), [T, T]."""
    figure = Figure(figsize=(4.6 * len(pieces), 4.4))
    axes = figure.subplots(1, len(pieces), squeeze=False)[0]
    for axis, names, map_ in zip(axes, pieces, weights, strict=True):
        axis.imshow(map_.cpu(), cmap="Blues", vmin=0)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        axis.tick_params(length=0)
    arrange(figure)
    save(run, "text_attention", figure)


def marked_texts(run: Run, titles: list[str], pieces: list[list[str]], scores: list[Tensor]) -> None:
    """Texts with each token's background by its score [T]: blue above 0, orange below; a title stands over each."""
    boxes: list[tuple[float, float, str, Any, float, str]] = []  # x and y in hundredths of an inch, text, background, size, ink
    y = 0.0
    for title, names, values in zip(titles, pieces, scores, strict=True):
        boxes.append((0.0, y, title, "white", 7.5, GRAY))
        y, x, most = y + 20, 0.0, max(float(values.abs().max()), 1e-9)
        for name, value in zip(names, values.tolist(), strict=True):
            width = 6.2 * len(name) + 6
            if x + width > 800:
                x, y = 0.0, y + 18
            share = abs(value) / most
            color = mpl.colormaps["Blues" if value > 0 else "Oranges"](0.55 * share)
            boxes.append((x, y, name, color, 8, "black"))
            x += width
        y += 26
    figure = Figure(figsize=(8, y / 100 + 0.2))
    for x, top, text, color, size, ink in boxes:
        place = (x / 800, 1 - (top + 10) / (y + 20))
        box = {"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"}
        figure.text(*place, text, fontsize=size, color=ink, family="monospace", va="center", bbox=box)
    save(run, "text_attribution", figure)


def embedding(run: Run, maps: dict[str, tuple[np.ndarray, list[str]]], labels: np.ndarray, classes: list[str]) -> None:
    """A panel for each title: points [N, 2] with the titles of their axes, coloured by class (labels [N])."""
    palette = mpl.colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"]
    colors = [palette(c if len(classes) <= 20 else c / len(classes)) for c in range(len(classes))]
    figure = Figure(figsize=(3.4 * len(maps) + 1.2, 3.3))
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (title, (points, names)) in zip(axes, maps.items(), strict=True):
        axis.scatter(*points.T, c=[colors[c] for c in labels], s=6, alpha=0.7, linewidths=0)
        axis.set(title=title, xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    if len(classes) <= 20:
        dots = [mpl.lines.Line2D([], [], color=color, marker="o", linestyle="", markersize=4) for color in colors]
        figure.legend(dots, classes, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    arrange(figure)
    save(run, "embedding", figure)


def curves(run: Run) -> None:
    """Pretraining loss and the probes over the steps."""
    losses, probes, held = [], [], []
    for line in run.metric_lines():
        if line["stage"] == "pretrain":
            losses += [(line["step"], line["loss"])] if "loss" in line else []
            probes += [line] if "probe_knn" in line else []
            held += [(line["step"], line["held_loss"])] if "held_loss" in line and "split" not in line else []
    figure = Figure(figsize=(7.6 if probes else 4, 2.7))
    axes = figure.subplots(1, 2 if probes else 1, squeeze=False)[0]
    axes[0].plot([step for step, _ in losses], [loss for _, loss in losses], color=BLUE, label="training")
    if held:
        axes[0].plot([step for step, _ in held], [loss for _, loss in held], "o-", color=ORANGE, label="held out", markersize=3)
        axes[0].legend(frameon=False)
    axes[0].set(xlabel="step", ylabel="pretraining loss")
    if probes:
        for name, label, color in (("probe_linear", "linear probe", ORANGE), ("probe_knn", "k-NN", GREEN)):
            axes[1].plot([x["step"] for x in probes], [x[name] for x in probes], "o-", color=color, label=label, markersize=3)
        axes[1].set(xlabel="step", ylabel="accuracy of frozen features")
        axes[1].legend(frameon=False)
    arrange(figure)
    save(run, "curves", figure)


def confusion(run: Run, matrix: list[list[int]], classes: list[str]) -> None:
    """Rows: true classes, as shares of the row."""
    counts = np.array(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(0.38 * len(classes) + 1.2, 3, 12))
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 30:
        ticks = range(len(classes))
        axis.set_xticks(ticks, classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        axis.set_yticks(ticks, classes)
    if len(classes) <= 15:
        for (i, j), n in np.ndenumerate(counts):
            if n:
                axis.text(
                    j,
                    i,
                    phrases.few_digits(int(n)),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="white" if shares[i, j] > 0.5 else "black",
                )
    axis.set(xlabel="predicted", ylabel="true")
    for spine in axis.spines.values():
        spine.set_visible(False)
    save(run, "confusion", figure)


def scores(run: Run, panels: dict[str, dict[str, Any]], metric: str, titles: dict[str, str]) -> None:
    """Every method's score, by its title, a panel for each number of labels, by its words; bars are means, lines standard
    deviations."""
    figure = Figure(figsize=(3.7 * len(panels) + 0.6, 2.6))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (labels, spreads) in zip(axes, panels.items(), strict=True):
        kinds = [k for k in METHODS if k in spreads][::-1]
        means = [spreads[k]["mean"] for k in kinds]
        errors = [spreads[k]["sd"] or 0 for k in kinds]
        colors = [BLUE if k == "tuned" else GRAY for k in kinds]
        axis.barh(
            [titles[k] for k in kinds],
            means,
            xerr=errors,
            color=colors,
            height=0.7,
            ecolor="black",
            error_kw={"lw": 0.8},
        )
        for place, mean in enumerate(means):
            axis.text(mean + errors[place] + 0.02, place, f"{mean:.3f}", va="center", fontsize=8)
        axis.set(xlim=(0, 1.15), xlabel=f"test {metric.replace('_', ' ')}", title=labels)
    arrange(figure)
    save(run, "scores", figure)


def compute(run: Run, sets: list[dict[str, Any]], metric: str, counted: str) -> None:
    """Score against training compute, a panel for each number of labels: from scratch as a curve, what was pretrained at the
    compute of both stages (where it is known) and, hollow, at that of fine-tuning alone."""
    figure = Figure(figsize=(3.7 * len(sets) + 0.6, 3.1))
    axes = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axis, entry in zip(axes, sets, strict=True):
        flops = [point["flops"] for point in entry["curve"]]
        means = np.array([point["score"]["mean"] for point in entry["curve"]])
        noise = np.array([point["score"]["sd"] or 0.0 for point in entry["curve"]])
        axis.plot(flops, means, "o-", color=GRAY, markersize=3, label=METHODS["scratch"].title)
        axis.fill_between(flops, means - noise, means + noise, color=GRAY, alpha=0.25, lw=0)
        tuned, known = entry["scores"]["tuned"], entry["verdict"]["compute"]
        style = {"yerr": tuned["sd"] or 0.0, "color": BLUE, "fmt": "o", "lw": 0.8}
        if known["known"]:
            axis.errorbar(known["total"], tuned["mean"], **style, label="pretrained, tuned")
        axis.errorbar(known["tuned"], tuned["mean"], **style, mfc="white", label="the same, pretraining there already")
        if floor := phrases.best_floor(entry):
            axis.axhline(entry["scores"][floor]["mean"], color=ORANGE, lw=0.8, ls=":", label="best floor")
        title = phrases.labels(entry["labels_per_class"], counted)
        axis.set(xscale="log", xlabel="training compute", title=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(lambda flops, _: compute_table.operations(flops))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlim(0.7 * min(flops), 1.4 * max(flops))
    axes[0].set_ylabel(f"test {metric.replace('_', ' ')}")
    arrange(figure)
    figure.legend(
        *axes[0].get_legend_handles_labels(), frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0)
    )
    save(run, "compute", figure)


def spectrograms(
    run: Run,
    name: str,
    spectra: list[Tensor],
    hidden: list[Tensor] | None,
    titles: list[str],
    step: float,
    marks: list[list[tuple[float, str]]] | None = None,
) -> None:
    """A panel for each title: a spectrum [bands, t] with `step` seconds between its columns, pale what of it is hidden, bool [n]
    over the whole of it, and near its upper edge the text of each mark (share of the whole before it, text)."""
    figure = Figure(figsize=(8, 1.5 * len(spectra)))
    axes = figure.subplots(len(spectra), 1, squeeze=False)[:, 0]
    for i, (axis, spectrum, title) in enumerate(zip(axes, spectra, titles, strict=True)):
        bands, seconds = spectrum.shape[0], spectrum.shape[1] * step
        extent = (0.0, seconds, 0.0, bands)
        axis.imshow(spectrum.numpy(), cmap="magma", origin="lower", aspect="auto", extent=extent)
        if hidden is not None:
            cover = np.ma.masked_equal(hidden[i].numpy()[None].astype(float), 0)
            axis.imshow(cover, cmap="gray", vmin=0, vmax=1, alpha=0.6, aspect="auto", extent=extent, interpolation="nearest")
        for share, text in marks[i] if marks else []:
            axis.axvline(share * seconds, ymax=0.8, color="white", linewidth=0.4, alpha=0.6)
            axis.text(share * seconds, 0.82 * bands, text, color="white", fontsize=7, ha="center", parse_math=False)
        axis.set_title(title, fontsize=7, parse_math=False)
        axis.set_ylabel("mel band")
    axes[-1].set_xlabel("seconds")
    arrange(figure)
    save(run, name, figure)


def similarity(run: Run, images: Tensor, captions: list[str], values: Tensor) -> None:
    """How near each caption (rows) is to each image (columns), values [n, n]; images [n, C, S, S] in [0, 1] stand above."""
    count = len(images)
    figure = Figure(figsize=(0.55 * count + 2.6, 0.55 * count + 0.6))
    above, axis = figure.subplots(2, 1, height_ratios=[1, count], sharex=True)
    for i, image in enumerate(images):
        above.imshow(as_array(image), cmap="gray", vmin=0, vmax=1, aspect="auto", extent=(i - 0.45, i + 0.45, -0.45, 0.45))
    above.set(xlim=(-0.5, count - 0.5), ylim=(-0.5, 0.5))
    above.set_axis_off()
    shown = axis.imshow(values.cpu(), cmap="viridis", aspect="auto")
    axis.set_yticks(range(count), captions, fontsize=7)
    axis.set_xticks([])
    figure.colorbar(shown, ax=[above, axis], label="cosine", shrink=0.6)
    save(run, "similarity", figure)


def boxes(run: Run, name: str, images: Tensor, shown: list[tuple[list, list, str]]) -> None:
    """Images [B, C, S, S], BESIDE in a row, above with their true boxes (green; gray where it does not count), below with those
    that are found, the surest in front. shown: of each ((box, class, whether it is ignored) ..., (box, words) ..., the surest
    first, title)."""
    across = min(BESIDE, len(images))
    blocks = -(-len(images) // across)
    figure = Figure(figsize=(1.9 * across, 4.2 * blocks))
    axes = figure.subplots(2 * blocks, across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (true, found, title) in enumerate(shown):
        block, column = divmod(i, across)
        above, below = axes[2 * block : 2 * block + 2, column]
        for axis in (above, below):
            axis.imshow(as_array(images[i]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for box, words, ignored in true:
            framed(above, box, words if len(true) <= CROWDED else "", GRAY if ignored else GREEN)
        side = images.shape[-1]
        for place, (box, words) in reversed(list(enumerate(found))):
            surer = [other for other, _ in found[:place]]
            framed(below, box, words if len(found) <= CROWDED and free(box, surer, side) else "", ORANGE)
        below.set_title(title, fontsize=7)
    for axis, text in zip(axes[:, 0], ("true", "found") * blocks, strict=True):
        axis.text(-0.05, 0.5, text, transform=axis.transAxes, ha="right", va="center")
    figure.subplots_adjust(wspace=0.04, hspace=0.12)
    save(run, name, figure)


def free(box: Any, others: list[Any], side: int) -> bool:
    """Whether words at the upper left corner of a box do not lie on those of others."""
    return not any(abs(box[0] - x[0]) < 0.3 * side and abs(box[1] - x[1]) < 0.06 * side for x in others)


def framed(axis: Any, box: Any, words: str, color: str) -> None:
    left, top, right, bottom = (float(x) for x in box)
    place, sides = (left - 0.5, top - 0.5), (right - left, bottom - top)
    axis.add_patch(mpl.patches.Rectangle(place, *sides, fill=False, edgecolor=color, lw=1.1))
    if words:
        back = {"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        above = "bottom" if top > 10 else "top"  # of the box, where there is room
        axis.text(left, top, words, fontsize=4.5, color="white", va=above, bbox=back, clip_on=True)


def precision_recall(run: Run, name: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A curve of (recall, precision) for each title; a point at 0 where nothing was found."""
    figure = Figure(figsize=(4.6, 3.2))
    axis = figure.subplots()
    for i, (title, (recall, precision)) in enumerate(curves.items()):
        first = precision[0] if len(precision) else 0.0
        axis.plot([0, *recall], [first, *precision], color=mpl.colormaps["tab10"](i % 10), lw=1.2, label=title)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    if curves:
        axis.legend(frameon=False, fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))
    save(run, name, figure)


DRAWERS: dict[str, Callable[..., None]] = {
    "rows": rows,
    "lengths": lengths,
    "overlays": overlays,
    "masks": masks,
    "attention_maps": attention_maps,
    "spectrograms": spectrograms,
    "similarity": similarity,
    "boxes": boxes,
    "precision_recall": precision_recall,
}  # by data/modality.Picture
