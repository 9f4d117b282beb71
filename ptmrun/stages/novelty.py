"""How unlike the training data a sample is: the distance of its features to those of training samples, among the distances of
held-out samples (nearest neighbours of normalised features: Sun et al. 2022, arXiv:2204.06507)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.errors import UserError
from ptmrun.runs.lineage import REFERENCE
from ptmrun.stages.context import Context
from ptmrun.stages.trials import Trial, load_finetuned
from ptmrun.storage import tensor_files

MOST = 1000  # samples that are compared with, and held-out ones
NEIGHBOUR = 5  # which of the nearest it is whose distance counts


@dataclass(frozen=True)
class Reference:
    """train: features of training samples, scaled to length 1, [n, D]; held_out: distances of held-out samples, sorted, [m]."""

    train: Tensor
    held_out: Tensor

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Raises UserError for what ptmrun does not write there."""
        tensors = tensor_files.load(path)[0]
        train, held_out = (tensors.get(name, torch.empty(0)) for name in ("train", "held_out"))
        fits = train.ndim == 2 and held_out.ndim == 1 and len(train) and len(held_out)
        if not fits or train.dtype != torch.float32 or held_out.dtype != torch.float32 or not finite(train, held_out):
            raise UserError(f"{path}: not the features that ptmrun writes there; refused")
        return cls(train, held_out)

    def percentiles(self, features: Tensor) -> Tensor:
        """How many of a hundred held-out samples are nearer to the training samples, from 0 to 100: [N, D] -> [N]."""
        return 100 * torch.searchsorted(self.held_out, distances(features, self.train)) / len(self.held_out)


def finite(*tensors: Tensor) -> bool:
    return all(map(tensor_files.finite, tensors))


def distances(features: Tensor, train: Tensor) -> Tensor:
    """To the NEIGHBOURth nearest training sample: [N, D], [n, D] of length 1 -> [N]."""
    apart = torch.cdist(F.normalize(features.float().cpu()), train)
    return apart.kthvalue(min(NEIGHBOUR, len(train)), 1).values


def save(context: Context, trial: Trial) -> None:
    """Writes the reference of a fine-tuned classifier, where it is one of whole samples and there is none yet."""
    path = context.run.path(REFERENCE)
    if path.exists():
        return
    model = load_finetuned(context, trial)
    if not model.linear_probe:
        return
    train, held_out = (
        torch.from_numpy(context.features(model.encoder, split.evenly_spaced(MOST)))
        for split in (context.data.train, context.data.val)
    )
    train = F.normalize(train)
    if finite(train, held_out):
        tensor_files.save(path, {"train": train, "held_out": distances(held_out, train).sort().values})
