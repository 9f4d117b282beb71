"""Training a tokenizer on the texts."""

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from ptmrun.batch import Framing
from ptmrun.data.sources import TextPart
from ptmrun.data.text import tokenizer
from ptmrun.data.text.sentences import CUT, pieces
from ptmrun.data.text.tokenizer import KINDS, Tokenizer, load, slices
from ptmrun.errors import UserError
from ptmrun.storage.files import cache_folder, new_entry

ENOUGH = 2**28  # bytes to train on; of more text, evenly spaced documents
LEAST, MOST = 2000, 32_000  # tokens, where vocabulary=auto
SAMPLE = 500  # documents by which a tokenizer is judged
MOST_UNKNOWN = 0.02  # of their characters


def choose(
    options: Any,
    kind: str,
    framing: Framing,
    part: TextPart,
    notes: list[str],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Tokenizer:
    """What options.tokenizer says: auto (the family's `kind`, or where that does not know MOST_UNKNOWN of the texts, as of
    scripts without spaces, unigram), a kind, to be trained on `part` with options.vocabulary and .lowercase, or a folder or hub
    id."""
    choice = options.tokenizer
    if choice != "auto" and choice not in KINDS:
        return load(choice, framing)
    first = kind if choice == "auto" else choice
    trained = train(first, options.vocabulary, framing, part, options.lowercase, progress)
    if choice == "auto" and first != "unigram":
        share = unknown_share(trained, islice(part.documents(), SAMPLE))
        if share > MOST_UNKNOWN:
            notes.append(f"model.tokenizer=unigram: {first} would not know {share:.0%} of the characters of the texts")
            return train("unigram", options.vocabulary, framing, part, options.lowercase, progress)
    return trained


def unknown_share(known: Tokenizer, texts: Iterable[str]) -> float:
    """The share of the characters in texts, white space left out, that stand in unknown tokens."""
    unknown, lost, total = known.vocabulary.unknown, 0, 0
    for text in texts:
        total += len("".join(text.split()))
        if unknown is not None:
            encoded = known.plain.encode(text, add_special_tokens=False)
            pairs = zip(encoded.ids, encoded.offsets, strict=True)
            lost += sum(len("".join(text[a:b].split())) for i, (a, b) in pairs if i == unknown)
    return lost / max(total, 1)


def train(
    kind: str,
    size: int | str,
    framing: Framing,
    part: TextPart,
    lowercase: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Tokenizer:
    """A tokenizer of this kind for these texts, the same in every process; kept in the cache folder.

    wordpiece: BERT's normaliser and words (Devlin et al., 2019), cased unless `lowercase`: what case says is lost to all that
    comes after, names above all. bpe: byte-level as GPT-2's (Radford et al., 2019), which encodes any text. unigram: as
    SentencePiece's (Kudo, 2018), NFKC. `size` in tokens, special ones included; auto is 3 sqrt(bytes of text), as the number of
    different words grows (Heaps' law), at least twice the number of different characters, within LEAST and MOST. The texts
    may give fewer.
    """
    lower: Any = [lowercase, "accents stay"] if lowercase else lowercase
    settings = [CUT, part.fingerprint, kind, size, lower, framing.special, tokenizers.__version__]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    file = cache_folder() / f"{key}.tokenizer.json"
    with contextlib.suppress(Exception):  # none yet, or cut short; the tokenizers library raises no narrower one
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)), framing)
    special = list(dict.fromkeys(framing.special.values()))
    backend = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}[kind](
        size, special, framing.special.get("unk_token"), part, lowercase, progress
    )
    with contextlib.suppress(OSError):  # where it cannot be kept, it is trained again the next time
        new = new_entry(file)
        try:
            new.write_text(backend.to_str(), encoding="utf-8")
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    return Tokenizer(backend, framing)


def bpe(size: Any, special: list[str], unknown: Any, part: TextPart, lowercase: bool, progress: Any) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    total = tokens_in_all(size, part, 0, 256 + len(special), "bytes")
    trainer = trainers.BpeTrainer(
        vocab_size=total,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts_of(part, progress), trainer)
    return backend


def wordpiece(
    size: Any, special: list[str], unknown: Any, part: TextPart, lowercase: bool, progress: Any
) -> tokenizers.Tokenizer:
    """The rarest characters are left out where all of them would take more than half of the vocabulary."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    counts = characters(backend, part)
    total = tokens_in_all(size, part, len(counts), len(special) + 4, "characters")
    kept, inner, budget = [], [], total // 2
    for c in sorted(counts, key=lambda c: (-counts[c], c)):
        joins = len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str("a" + c))) == 1
        budget -= 1 + joins
        if budget < 0:
            break
        kept.append(c)
        inner += [f"##{c}"] * joins
    trainer = trainers.WordPieceTrainer(
        vocab_size=total,
        min_frequency=2,
        special_tokens=special + sorted(inner),  # else the trainer numbers these in the order of a hash table
        initial_alphabet=sorted(kept),
        limit_alphabet=len(kept),
        show_progress=False,
    )
    backend.train_from_iterator(texts_of(part, progress), trainer)
    learned = tokenizers.Tokenizer(models.WordPiece(backend.get_vocab(), unk_token=unknown))  # where ##e is not special
    learned.normalizer, learned.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    learned.decoder = backend.decoder
    return learned


def unigram(size: Any, special: list[str], unknown: Any, part: TextPart, lowercase: bool, progress: Any) -> tokenizers.Tokenizer:
    """The other special tokens come after the pieces: a piece called "<sep>" would be found in texts."""
    backend = tokenizers.Tokenizer(models.Unigram())
    steps = [normalizers.Nmt(), normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    counts = characters(backend, part)
    least = len(special) + len(counts) + 2  # with the mark of a space, and something to learn
    total = tokens_in_all(size, part, len(counts), least, "characters") - len(special) + 1
    trainer = trainers.UnigramTrainer(vocab_size=total, special_tokens=[unknown], unk_token=unknown, show_progress=False)
    backend.train_from_iterator(texts_of(part, progress), trainer)
    scores = dict(json.loads(backend.to_str())["model"]["vocab"])
    del scores[unknown]
    backend.model = models.Unigram([(unknown, 0.0), *settled(scores)], unk_id=0)
    return backend


def settled(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Pieces with scores that do not depend on the order of a hash table, which the trainer's do: by rounding, as it sums
    in that order, and for the characters that only just got in, which it scores 1e-4 apart in that order."""
    lowest = min(scores.values())
    bottom = lowest + 1e-4 * sum(len(piece) == 1 for piece in scores)
    level = {p: round(lowest if len(p) == 1 and s <= bottom else s, 4) for p, s in scores.items()}
    return sorted(level.items(), key=lambda item: (-item[1], item[0]))


def tokens_in_all(size: Any, part: TextPart, different: int, least: int, what: str) -> int:
    """The size of the vocabulary; see `train`."""
    if size == "auto":
        return min(max(LEAST, round(3 * math.sqrt(part.size)), 2 * different), max(MOST, least))
    if size < least:
        raise UserError(f"model.vocabulary={size}: expected at least {least}, for the {what} of the texts and the special tokens")
    return size


def characters(backend: tokenizers.Tokenizer, part: TextPart) -> Counter[str]:
    """How often each character is in the normalised texts, spaces left out."""
    counts: Counter[str] = Counter()
    for batch in texts_of(part):
        counts.update(backend.normalizer.normalize_str("\n".join(batch)))
    return Counter({c: n for c, n in counts.items() if not c.isspace()})


def texts_of(part: TextPart, progress: Callable[[str, int, int], None] = lambda *_: None) -> Iterator[list[str]]:
    """What there is to train on, in batches of pieces."""
    step, batch = math.ceil(part.size / ENOUGH), list[str]()
    for number, document in enumerate(islice(part.documents(), 0, None, step)):
        batch += pieces(document)
        if len(batch) > tokenizer.TOGETHER:
            for some in slices(batch):  # of one long document there may be many
                yield some
                progress("training the tokenizer", number * step, part.count)
            batch = []
    yield batch
    progress("training the tokenizer", part.count, part.count)
