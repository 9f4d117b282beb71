"""Which runs a run started from, and the weights that it has from them."""

import functools
from pathlib import Path
from typing import Any

import torch

from ptmrun.config.init_source import origin
from ptmrun.config.schema import Config, Role, roles
from ptmrun.config.watched import bare
from ptmrun.errors import UserError
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.storage import digests, part_files, tensor_files
from ptmrun.storage.safe_read import SPOILT

ENCODER = "checkpoints/encoder"
PROCESSOR = "checkpoints/tokenizer"  # what a kind of data saves to make its processor again; of texts the tokenizer
CHAIN = 20  # runs that start from one another, at most
EXAMPLES = "checkpoints/examples.safetensors"  # a few test samples, on which exported models are compared
FINETUNED = "checkpoints/finetuned"
REFERENCE = "checkpoints/reference.safetensors"  # by which a sample is told to be unlike the training data
UNFINISHED = ("checkpoints", "state", "pretrain.safetensors")  # while it is being pretrained
TRAINED_ON = "checkpoints/trained_on.safetensors"  # numbers of the samples (storage/content.py) that a run trains on
START = "checkpoints/start.safetensors"  # encoder weights from outside, or copied from a run whose pretraining was not complete


def source(run: Run, cfg: Config, name: str) -> Path | None:
    """A file or folder of this run or, when this run has not made it, of the run that `init` names, and so on. Raises UserError
    when it is an encoder, a processor or fine-tuned weights and not what that run's manifest or the folder's own sums say."""
    for _ in range(CHAIN):
        if (path := run.path(name)).exists():
            if name == PROCESSOR:
                digests.check(path)
            elif name == ENCODER:
                same_weights(path, encoder_hash(path), run.manifest.get("weights_sha256"))
            elif path.parent == run.path(FINETUNED):
                same_weights(path, hash_of(path), run.manifest.get("finetuned_sha256", {}).get(path.stem))
            return path
        if origin(cfg.init) != "run":
            return None
        run = Run.open(Path(cfg.init))
        cfg = config_file.load(run.sound("config.yaml"))
    raise UserError(f"init={cfg.init}: the chain of runs that start from one another has no end")


def same_weights(path: Path, digest: str, known: str | None) -> str:
    """The digest. Raises UserError when a manifest knows another: it is compared and never replaced."""
    if known and digest != known:
        raise UserError(f"{path}: holds other weights than the manifest says, {digest[:12]} and not {known[:12]}; {SPOILT}")
    return digest


def load_weights(encoder: Any, run: Run, cfg: Config) -> bool:
    """Gives an encoder what this run has pretrained or began with, or the run that `init` names; whether there is any."""
    if folder := source(run, cfg, ENCODER):
        encoder.load(folder)
    elif file := source(run, cfg, START):
        tensor_files.into(encoder, encoder.adjusted(tensor_files.load(file)[0])[0], file)
    else:
        return False
    return True


def trained_on(init: str, part: str = "ids") -> torch.Tensor:
    """Numbers of the samples that the run which `init` names, and those before it, were trained on, as far as they noted them; of
    a part of their model, of the samples that the weights which it began with were."""
    found = [torch.empty(0, dtype=torch.int64)]
    for _ in range(CHAIN):
        if origin(init) != "run":
            break
        run = Run.open(Path(init))
        if (file := run.path(TRAINED_ON)).exists():
            found.append(tensor_files.load(file)[0].get(part, found[0]).to(torch.int64).flatten())
        init = config_file.load(run.sound("config.yaml")).init
    return torch.cat(found)


def weights_hash(run: Run) -> str | None:
    """Of the encoder that was fine-tuned: this run's, or its parent's."""
    parents = [p["weights_sha256"] for p in run.manifest["parents"]]
    return run.manifest.get("weights_sha256") or next(iter(parents), None)


def parent_of(cfg: Config, start: Path | None = None) -> dict[str, Any]:
    """Name, weight hash and data of the run that `init` names; `start` is where the weights of an unfinished one were copied."""
    parent = Run.open(Path(cfg.init))
    saved = config_file.load(parent.sound("config.yaml"))
    folder = source(parent, saved, ENCODER)
    if folder is not None:
        weights: str | None = encoder_hash(folder)
    elif (file := start if start and start.exists() else source(parent, saved, START)) is not None:
        weights = hash_of(file)
    elif tensors := unfinished(parent):
        weights = tensor_files.sha256(tensors)
    elif cfg.stage == "evaluate":  # what was fine-tuned from random weights can still be evaluated
        weights = None
    else:
        raise UserError(f"init={cfg.init}: that run has no {ENCODER}, nor a checkpoint of its pretraining")
    data = parent.manifest.get("data", {}).get("fingerprint") if reads(saved) == reads(cfg) else None
    return {"run": parent.folder.resolve().name, "weights_sha256": weights, "data": data}


def reads(cfg: Config) -> list[Any]:
    """The settings that decide what the data is."""
    labelled = cfg.downstream.model_dump(exclude={"labels_per_class"})
    same = {name for name, field in type(bare(cfg).dataset).model_fields.items() if Role.SAME_DATA in roles(field)}
    return [cfg.dataset.model_dump(exclude=same), labelled, getattr(cfg.model, "length", None)]


def unfinished(run: Run) -> dict[str, torch.Tensor]:
    """The encoder's weights in the last checkpoint of a run's pretraining; empty where there is none."""
    file = run.path(*UNFINISHED)
    return tensor_files.part(part_files.load(file)[0], "model.encoder.") if file.exists() else {}


def encoder_hash(folder: Path) -> str:
    return hash_of(
        *sorted({folder / "model.safetensors", *folder.glob("*.safetensors")})
    )  # and what the library has no place for


def hash_of(*files: Path) -> str:
    """Of the tensors in some files; read once as long as they do not change."""
    states = [file.stat() if file.exists() else None for file in files]
    return hash_at(files, tuple(s and (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in states))


@functools.cache
def hash_at(files: tuple[Path, ...], _: tuple[Any, ...]) -> str:
    return tensor_files.sha256({k: v for file in files for k, v in tensor_files.load(file)[0].items()})
