"""Weights from outside: published ones, or a library's file or folder, for an encoder of the same architecture."""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptmrun.batch import Vocabulary
from ptmrun.config.init_source import origin
from ptmrun.errors import UserError
from ptmrun.models import library_format, text_base
from ptmrun.models.base import Encoder, Family
from ptmrun.storage import tensor_files
from ptmrun.storage.safe_read import plain_json

HEADS = ("fc.", "classifier.", "AuxLogits.fc.", "pooler.", "head.")  # of classifiers; an encoder of the same name keeps its own
FILES = ("model.safetensors", "pytorch_model.bin")  # of weights, in a folder of transformers' or timm's
PATTERNS = ("*.json", "*.txt", "*.model")  # of what comes with them from the hub
POSITIONS = ("max_position_embeddings", "n_positions")  # of texts, in a folder's config.json
LEAST = 0.9  # of an encoder's parameters: with fewer it is not the same architecture
IGNORED = {  # entries of a transformers config that do not change what the network computes, or show in its shapes
    "architectures", "attention_probs_dropout_prob", "drop_path_rate", "dtype", "encoder_stride", "hidden_dropout_prob",
    "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id", "id2label", "image_size", "initializer_range", "label2id",
    "layer_scale_init_value", "max_position_embeddings", "model_type", "n_positions", "num_channels", "num_labels",
    "out_features", "out_indices", "pad_token_id", "pooler_act", "pooler_output_size", "projection_dim",
    "resid_pdrop", "stage_names",
    "torch_dtype", "transformers_version", "vocab_size",
}  # fmt: skip


def published(net: Any, kind: str, names: Mapping[str, str]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(source, tensors, the library's config) of the weights that `names` lists for a `kind`: torchvision's, whose hash is
    checked, or those of a model on the Hugging Face hub, from safetensors alone. Raises UserError when there are none or no way
    to get them."""
    if kind not in names:
        there = f"; published are: {', '.join(names)}" if names else ""
        raise UserError(
            f"init=pretrained: there are no published weights of {kind}{there}; give a file, a folder or a hub id (owner/name)"
        )
    name = names[kind]
    try:
        if not hasattr(net, "from_pretrained"):
            import torchvision

            weights = torchvision.models.get_weight(name)
            return f"torchvision {name}", dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True)), {}
        with library_format.quiet():
            theirs = type(net).from_pretrained(name, use_safetensors=True)
        return f"hub {name}", theirs.state_dict(), theirs.config.to_dict()
    except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"init=pretrained: {name} cannot be fetched ({reason}); a local file or folder can be given as init=PATH"
        ) from None


def place(init: str) -> Path:
    """The file or folder that `init` names, which is fetched where it is a hub id."""
    return fetched(init) if origin(init) == "hub" else Path(init).resolve()


@functools.cache
def fetched(init: str) -> Path:
    """Weights, configs and tokenizers of a model on the hub, no code; a pickle where there are no safetensors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    safe, pickled = FILES
    try:
        folder = Path(snapshot_download(init, allow_patterns=[*PATTERNS, safe]))
        return folder if (folder / safe).is_file() else Path(snapshot_download(init, allow_patterns=[*PATTERNS, pickled]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"init={init}: no such run or file here, and it cannot be fetched from the hub ({reason})") from None


def read(init: str) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(source, tensors, the library's config) of a file of weights (a state dict, or a checkpoint that holds one) or of a folder
    with config.json and one of FILES."""
    path = place(init)
    if not path.exists():
        raise UserError(f"init={init}: no such file")
    if not path.is_dir():
        return init, tensors_in(path, init), {}
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"init={init}: that folder holds no {' nor '.join(FILES)}")
    return init, tensors_in(file, init), library_config(path / "config.json")


def tensors_in(path: Path, init: str) -> dict[str, Tensor]:
    """Of a file; those in mappings inside of others have the names of these and a dot before their own. Nothing in it is run: a
    pickle may hold tensors and plain containers only."""
    if not path.is_file() or path.stat().st_size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"init={init}: not a regular file, or larger than this machine's memory; refused")
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix.lower() == ".safetensors" or head[8:] == b"{":  # behind the length of what it says of itself
        return tensor_files.load(path.resolve())[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
        more = isinstance(error, UnpicklingError)
        reason = "it holds more than tensors" if more else type(error).__name__
        raise UserError(
            f"init={init}: not a plain state dict ({reason}); refused, and nothing in it was run"
            f"{'; save its tensors alone: torch.save(model.state_dict(), FILE)' if more else ''}"
        ) from None
    tensors = flat_tensors(content) if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(
            f"init={init}: not a plain state dict (expected names and tensors, as torch.save(model.state_dict(), ...))"
        )
    return tensors


def flat_tensors(content: dict[Any, Any], prefix: str = "", depth: int = 4) -> dict[str, Tensor]:
    """The tensors of a mapping and of those inside it that have names; a checkpoint also holds what training needs."""
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(name, str) and isinstance(value, dict) and depth:
            tensors |= flat_tensors(value, f"{prefix}{name}.", depth - 1)
    return tensors


def normalisation(init: str, family: Family) -> list[float]:
    """Means of the channels and their standard deviations that weights from outside were trained with: what an image processor or
    timm's config says that lies beside them, else what the family's published ones have."""
    if init != "pretrained" and (folder := place(init)).is_dir():
        files = [
            library_config(folder / name) for name in ("preprocessor_config.json", "config.json") if (folder / name).is_file()
        ]
        for config in [*files, *(x["pretrained_cfg"] for x in files if isinstance(x.get("pretrained_cfg"), dict))]:
            for keys in (("image_mean", "image_std"), ("mean", "std")):
                numbers = [x for key in keys if isinstance(config.get(key), list) for x in config[key]]
                if len(numbers) in (2, 6) and all(isinstance(x, float) for x in numbers):
                    return numbers
    return list(family.normalised)


def library_config(file: Path) -> dict[str, Any]:
    content = plain_json(file.resolve())
    return content if isinstance(content, dict) else {}


def positions(folder: Path) -> int | None:
    """Tokens that the weights in a folder know places of, by its config.json; None: any number."""
    about = library_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    text = about.get("text_config")
    parts = [about, text if isinstance(text, dict) else {}]
    return next((n for part in parts for key in POSITIONS if isinstance(n := part.get(key), int)), None)


def described(options: Any, family: Family, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a family's options those that are auto, by the config.json of weights: the shape, or the size of that shape where the
    family has named ones alone, and the patch."""
    if family.described:
        return family.described(options, theirs)
    shape = [theirs.get(k) for k in family.shape]
    settings: dict[str, Any] = {}
    if hasattr(options, "shape"):
        if options.size == "auto" and options.shape is None and all(isinstance(n, int) for n in shape):
            settings["shape"] = shape
    elif options.size == "auto":
        sizes = {str(plain(known[: len(shape)])): name for name, known in family.sizes.items()}
        settings = {"size": sizes[str(shape)]} if str(shape) in sizes else {}
    if getattr(options, "patch", None) == "auto" and isinstance(theirs.get("patch_size"), int):
        settings["patch"] = theirs["patch_size"]
    return settings


class Fit(NamedTuple):
    """What of some tensors an encoder takes, and how many of its parameters that are; names of the rest, and notes."""

    fitting: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    notes: list[str]
    parameters: int

    @classmethod
    def of(cls, encoder: Encoder, tensors: Mapping[str, Tensor]) -> "Fit":
        net = encoder.net
        own, notes = encoder.adjusted(renamed(dict(tensors), encoder))
        if isinstance(vocabulary := getattr(encoder, "vocabulary", None), Vocabulary):
            own, words = text_base.match_vocabulary(net, vocabulary.size, own)
            notes = [*notes, *words]
        fitting, missing, unexpected, mismatched = compared(net, own)
        parameters = sum(p.numel() for name, p in net.named_parameters() if name in fitting)
        return cls(fitting, missing, unexpected, mismatched, notes, parameters)


def load(encoder: Encoder, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> list[str]:
    """Loads what fits by name, the heads of classifiers left out; returns notes on what did and what did not. Where little fits,
    the names are looked for behind what they have in common. Raises UserError when that is less than LEAST of the encoder's
    parameters, or not finite."""
    net, below = encoder.net, ""
    total, fit = sum(p.numel() for p in net.parameters()), Fit.of(encoder, tensors)
    if fit.parameters < LEAST * total:
        for prefix in common_beginnings(tensors, len(net.state_dict()) // 2):
            inside = Fit.of(encoder, tensor_files.part(tensors, prefix))
            below, fit = (prefix, inside) if inside.parameters > fit.parameters else (below, fit)
    heads = [k for k in fit.unexpected if k.startswith(HEADS)]
    if bad := [k for k, v in fit.fitting.items() if not tensor_files.finite(v)]:
        raise UserError(f"init={source}: {bad[0]} holds NaN or Infinity; refused")
    share = f"{fit.parameters / total:.1%} of the encoder's {total:,} parameters"
    lines = [f"init={source}: {len(fit.fitting)} tensors loaded, {share}"]
    much = fit.parameters >= LEAST * total
    problems = [
        f"{what}: {listed(names, 12 if much else 3)}"
        for what, names in (
            ("missing", fit.missing),
            ("unexpected", [k for k in fit.unexpected if k not in heads]),
            ("of another shape", fit.mismatched),
        )
        if names
    ]
    if not much:
        wanted = f"expected at least {LEAST:.0%}: is it the same model and size?"
        raise UserError(f"{lines[0]}, {wanted} ({'; '.join(problems)})")
    net.load_state_dict({**net.state_dict(), **fit.fitting})
    if below:
        elsewhere = sum(not name.startswith(below) for name in tensors)
        lines.append(f"  taken are the tensors below {below}{f'; {elsewhere} others are left out' if elsewhere else ''}")
    lines += [f"  left out, as the classifier's: {listed(heads, 12)}"] if heads else []
    return [*lines, *(f"  {line}" for line in [*problems, *fit.notes]), *unlike(net, config)]


def common_beginnings(names: Iterable[str], least: int) -> list[str]:
    """Those with a dot at their end that at least so many names have, the shortest first."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    return sorted((prefix for prefix, count in counts.items() if count >= least), key=lambda prefix: prefix.count("."))


def renamed(tensors: dict[str, Tensor], encoder: Any) -> dict[str, Tensor]:
    """Weights that timm or an older torchvision wrote, under the library's names; as they are where these fit better. What timm
    computes at once, queries, keys and values, becomes three tensors."""
    names = {re.compile(pattern): new for pattern, new in encoder.names.items()}
    translated: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = next((match.expand(new) for pattern, new in names.items() if (match := pattern.fullmatch(name))), name)
        parts = zip("qkv", value.chunk(3), strict=True) if ".qkv." in new else [("", value)]
        translated |= {new.replace(".qkv.", f".{letter}_proj."): part for letter, part in parts}
    known = encoder.net.state_dict().keys()
    return translated if len(known & translated.keys()) > len(known & tensors.keys()) else tensors


def compared(net: Any, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str], list[str]]:
    """(what fits, and the names of what is missing, unexpected and of another shape)"""
    wanted = net.state_dict()
    if hasattr(net, "from_pretrained"):  # whose names may be older ones, or below those of a classifier
        tied = getattr(net, "_tied_weights_keys", None) or {}  # a head that shares what the embeddings have: once is enough
        tensors = {k: v for k, v in tensors.items() if tied.get(k) not in tensors}
        odd = [k for k, v in tensors.items() if not v.is_floating_point() and k not in wanted]
        state, info = library_format.translated(net, {k: v for k, v in tensors.items() if k not in odd})
        lacking, wrong = (
            {str(k[0] if isinstance(k, tuple) else k) for k in info[x]} for x in ("missing_keys", "mismatched_keys")
        )
        fitting = {k: v for k, v in state.items() if k not in lacking | wrong}
        return fitting, sorted((lacking - wrong) & wanted.keys()), sorted([*info["unexpected_keys"], *odd]), sorted(wrong)
    wrong = {k for k, v in tensors.items() if k in wanted and v.shape != wanted[k].shape}
    wrong |= {k for k, v in tensors.items() if k in wanted and v.is_floating_point() != wanted[k].is_floating_point()}
    fitting = {k: v for k, v in tensors.items() if k in wanted and k not in wrong}
    return fitting, [k for k in wanted if k not in tensors], [k for k in tensors if k not in wanted], sorted(wrong)


def unlike(net: Any, config: Mapping[str, Any]) -> list[str]:
    """One line for what the file's own config says otherwise and shapes do not show (an epsilon, a kind of padding)."""
    if not hasattr(net, "from_pretrained"):
        return []
    ours, config = flat(net.config.to_dict()), flat(config)
    last = {k: k.rpartition(".")[2] for k in ours}
    both = [k for k in ours if k in config and last[k] not in IGNORED and not last[k].startswith("_")]
    names = [k for k in both if plain(ours[k]) != plain(config[k])]
    told = ", ".join(f"{k} is {config[k]} there and {ours[k]} here" for k in names)
    return [f"  Warning: its config differs, so features may too: {told}"] if names else []


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the entries of the configs of parts (text_config) in place of these, under dotted names."""
    parts = {key: value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)}
    inner = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}
    return {key: value for key, value in config.items() if key not in parts} | inner


def plain(value: Any) -> Any:
    """As JSON has it: tuples are lists; and one name for what is the same function."""
    return json.loads(json.dumps("gelu_new" if value == "gelu_pytorch_tanh" else value, default=str))


def listed(names: Iterable[str], most: int) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
