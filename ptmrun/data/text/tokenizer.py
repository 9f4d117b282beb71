"""Tokenizers: trained on the texts, or taken from a folder or the hub; with the special tokens of a model family."""

import copy
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, processors

from ptmrun.batch import Framing, Vocabulary
from ptmrun.data.text.sentences import stops
from ptmrun.errors import UserError
from ptmrun.storage import safe_read

KINDS = ("wordpiece", "bpe", "unigram")
SHOWN = 16  # characters of a token in a picture
MOST_TOKENS = 2**24
ENDLESS = re.compile(r"\((?:[^()\\]|\\.)*(?<!\\)[+*}](?:[^()\\]|\\.)*\)(?:[+*]|\{\d+,\})")  # such as (a+)+
TOGETHER = 4096  # texts that the library gets at a time: it takes 40 times their memory


def slices(texts: list[str]) -> Iterator[list[str]]:
    return (texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER))


class Template:
    """How a model family frames one text or two: the parts of "[CLS] $A [SEP]" as (token number or "A" or "B", type)."""

    def __init__(self, text: str, number: Callable[[str], int]):
        self.parts: list[tuple[int | str, int]] = []
        for word in text.split():
            name, _, kind = word.rpartition(":") if re.search(r":\d+$", word) else (word, "", "0")
            self.parts.append((name[1] if name in ("$A", "$B") else number(name), int(kind)))
        self.extra = sum(isinstance(token, int) for token, _ in self.parts)  # special tokens


class Tokenizer:
    """A fast tokenizer of transformers, with what models must know of it."""

    def __init__(self, backend: tokenizers.Tokenizer, framing: Framing):
        """`backend` is changed: special tokens that it lacks are added, and it frames as the family does."""
        from transformers import PreTrainedTokenizerFast

        backend.no_padding()
        backend.no_truncation()
        backend.add_special_tokens(list(dict.fromkeys(framing.special.values())))

        def number(name: str) -> int:
            token = backend.token_to_id(name)
            assert token is not None, name
            return token

        self.single, self.pair = Template(framing.single, number), Template(framing.pair, number)
        names = [w for w in framing.pair.split() + framing.single.split() if not w.startswith("$")]
        names = list(dict.fromkeys(re.sub(r":\d+$", "", w) for w in names))
        backend.post_processor = processors.TemplateProcessing(
            single=framing.single, pair=framing.pair, special_tokens=[(n, number(n)) for n in names]
        )
        typed = any(kind for _, kind in self.pair.parts)
        self.fast = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
            **framing.special,
        )
        self.plain = copy.deepcopy(backend)  # takes "[SEP]" in a text for what it is there: text
        self.plain.encode_special_tokens = True
        self.kind = kind_of(backend)
        self.vocabulary = vocabulary(self.fast, framing, self.kind)
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token numbers of each text, int32 [n], without special tokens; the names of special tokens are text like any other."""
        ids, lengths = self.flat(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """What `encode` gives, one after the other, and how many tokens each text has: int32 [n] and int64 [texts]."""
        parts, lengths = [np.zeros(0, np.int32)], list[int]()
        for some in slices(texts):
            try:
                encoded = [e.ids for e in self.plain.encode_batch_fast(some, add_special_tokens=False)]
            except BaseException as error:  # what ends a search that takes too long is no Exception
                if type(error).__name__ != "PanicException":
                    raise
                reason = (str(error).splitlines() or ["it panicked"])[0][:100]
                raise UserError(f"model.tokenizer: the tokenizers library gave up on these texts: {reason}") from None
            lengths += map(len, encoded)
            parts.append(np.fromiter(chain.from_iterable(encoded), dtype=np.int32))
        return np.concatenate(parts), np.array(lengths, dtype=np.int64)

    def decode(self, ids: Any) -> str:
        """The text of token numbers, without special tokens. Of byte-level BPE, exactly the text that was encoded."""
        return self.fast.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def pieces(self, ids: list[int]) -> list[str]:
        """Each token as text of its own for a picture, [n]; a long one, such as a ruled line, is cut."""
        texts = [self.fast.decode([i]).strip() or "␣" for i in ids]
        return [text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…" for text in texts]

    def frame(self, ids: np.ndarray, pair_ids: np.ndarray | None, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, types), int64 [n], of one text or two with special tokens, n <= length: the longest is truncated first."""
        template = self.single if pair_ids is None else self.pair
        kept = shares(len(ids), 0 if pair_ids is None else len(pair_ids), room(template, length))
        texts = {"A": ids[: kept[0]], "B": ids[:0] if pair_ids is None else pair_ids[: kept[1]]}
        parts = [(texts[token] if isinstance(token, str) else np.array([token]), kind) for token, kind in template.parts]
        return (
            np.concatenate([part.astype(np.int64) for part, _ in parts]),
            np.concatenate([np.full(len(part), kind, dtype=np.int64) for part, kind in parts]),
        )

    def limit(self, length: int) -> None:
        """Saved from here on as one for a model of `length` tokens, to which transformers truncates where it is asked to."""
        self.fast.model_max_length = length

    def save(self, folder: Path) -> None:
        """tokenizer.json and its settings, as transformers' AutoTokenizer reads them."""
        self.fast.save_pretrained(folder)


def room(template: Template, length: int) -> int:
    """Tokens of text in a frame of `length`."""
    if length <= template.extra:
        raise UserError(f"model.length={length}: the special tokens alone are {template.extra}; expected more")
    return length - template.extra


def shares(first: Any, second: Any, total: int) -> tuple[Any, Any]:
    """How much is kept of two lengths, numbers or int arrays, so that they fit `total`: the longer gives first."""
    kept = np.minimum(first, np.maximum(total - second, (total + 1) // 2))
    return kept, np.minimum(second, total - kept)


def kind_of(backend: tokenizers.Tokenizer) -> str:
    """How words are marked: "##" (wordpiece), a leading space as Ġ (bpe, byte-level) or as ▁ (unigram)."""
    about = json.loads(backend.to_str())
    if about["model"]["type"] == "WordPiece":
        return "wordpiece"
    return "bpe" if '"ByteLevel"' in json.dumps([about["pre_tokenizer"], about["decoder"]]) else "unigram"


def vocabulary(fast: Any, framing: Framing, kind: str) -> Vocabulary:
    size = len(fast)
    tokens = fast.convert_ids_to_tokens(list(range(size)))
    named = {role: fast.convert_tokens_to_ids(token) for role, token in framing.special.items()}
    special = torch.zeros(size, dtype=torch.bool)
    special[[i for i, token in fast.added_tokens_decoder.items() if token.special]] = True
    marks = [(False, "") if special[i] else word_of(token, kind) for i, token in enumerate(tokens)]
    first = framing.single.split()[0]
    return Vocabulary(
        size=size,
        pad=named["pad_token"],
        unknown=named.get("unk_token"),
        mask=named.get("mask_token"),
        start=None if first == "$A" else fast.convert_tokens_to_ids(first),
        end=named["eos_token"] if "eos_token" in named else named["sep_token"],
        special=special,
        continues=torch.tensor([goes_on for goes_on, _ in marks]) & ~special,
        stops=torch.tensor([stops(text) for _, text in marks]) & ~special,
    )


def word_of(token: str, kind: str) -> tuple[bool, str]:
    """(goes on with the word of the token before it, its text without marks). Punctuation is no part of a word."""
    if kind == "wordpiece":
        return token.startswith("##"), token.removeprefix("##")
    if kind == "bpe":
        token = decoders.ByteLevel().decode([token])
    starts = not token or token[0] in " ▁\n\t\r"
    text = token.strip(" ▁\n\t\r")
    inside = bool(text) and (text[0] == "\ufffd" or unicodedata.category(text[0])[0] in "LMN")
    return not starts and inside, text


def refuse_hostile(content: Any) -> None:
    """Raises ValueError for what would end the process in the tokenizers library, which is not asked before: numbers of tokens
    that are none, or that it would make a table of gigabytes for, and patterns whose search never ends on some texts."""
    numbers, parts = list[Any](), [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            vocabulary = part.get("vocab")
            numbers += vocabulary.values() if isinstance(vocabulary, dict) else ()
            numbers += [part["id"]] if "content" in part and "id" in part else ()
            pattern = part.get("Regex")
            if isinstance(pattern, str) and ENDLESS.search(pattern):
                raise ValueError(f"the pattern {pattern[:60]!r} repeats what itself repeats, and may search for ever")
            parts += part.values()
        elif isinstance(part, list):
            parts += [p for p in part if isinstance(p, dict | list)]
    if wrong := [n for n in numbers if type(n) is not int or not 0 <= n < MOST_TOKENS]:
        raise ValueError(f"the number {str(wrong[0])[:30]} of a token; expected 0 to {MOST_TOKENS - 1:,}")


def load(source: str, framing: Framing) -> Tokenizer:
    """A fast tokenizer from a transformers folder or the hub. Special tokens that it has stand in for those of the family."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    try:
        for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
            if file := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
                content = safe_read.plain_json(Path(file).resolve())
                refuse_hostile(content if name == "tokenizer.json" else {"vocab": content})
        fast = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no narrower one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model.tokenizer={source}: expected auto, {', '.join(KINDS)}, a transformers folder or a hub id; "
            f"it cannot be read: {reason}"
        ) from None
    if not getattr(fast, "is_fast", False):
        raise UserError(f"model.tokenizer={source}: has no tokenizer.json, which is needed")
    return Tokenizer(fast.backend_tokenizer, with_own(framing, {role: getattr(fast, role, None) for role in framing.special}))


def of_run(folder: Path, framing: Framing) -> Tokenizer:
    """The tokenizer that a run saved, read as data: a stranger may have made it. Raises UserError for what is none."""
    file = folder / "tokenizer.json"
    settings, content = safe_read.plain_json(folder / "tokenizer_config.json"), safe_read.text(file)
    own = {role: settings.get(role) for role in framing.special} if isinstance(settings, dict) else {}
    try:
        refuse_hostile(json.loads(content))
        backend = tokenizers.Tokenizer.from_str(content)
        if not all(isinstance(token, str) and backend.token_to_id(token) is not None for token in own.values()) or not own:
            raise ValueError("its special tokens are not among its tokens")
        return Tokenizer(backend, with_own(framing, own))
    except Exception as error:  # the tokenizers library raises no narrower one
        raise UserError(f"{file}: not a tokenizer that ptmrun wrote: {str(error)[:100]}; refused") from None


def with_own(framing: Framing, own: dict[str, str | None]) -> Framing:
    """A family's framing with the special tokens that a tokenizer has for the same roles."""
    special = {role: own[role] or token for role, token in framing.special.items()}
    renamed = {token: special[role] for role, token in framing.special.items()}

    def translated(template: str) -> str:
        return " ".join(re.sub(r"^(.*?)(:\d+)?$", lambda m: renamed.get(m[1], m[1]) + (m[2] or ""), w) for w in template.split())

    return Framing(special, translated(framing.single), translated(framing.pair))
