"""Mathematics of patches that masked-image objectives share."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, S, S] -> [B, N, patch * patch * C], patches row by row, within a patch pixels row by row (the order of MAE)."""
    b, c, s, _ = images.shape
    g = s // patch
    return images.reshape(b, c, g, patch, g, patch).permute(0, 2, 4, 3, 5, 1).reshape(b, g * g, patch * patch * c)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify`."""
    b, n, _ = patches.shape
    g = math.isqrt(n)
    return patches.reshape(b, g, g, patch, patch, channels).permute(0, 5, 1, 3, 2, 4).reshape(b, channels, g * patch, g * patch)


def pick(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Each row's own choice of tokens: [B, N, D] and indices [B, n] -> [B, n, D]."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))


def hidden_count(patches: int, ratio: float) -> int:
    """How many of the patches a mask ratio hides: at least one, and at least one stays visible."""
    return min(patches - 1, max(1, patches - int(patches * (1 - ratio))))


def normalised(patches: Tensor) -> Tensor:
    """Each patch with mean 0 and (unbiased) variance 1, as MAE's target: [..., P] -> [..., P]."""
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def hog(images: Tensor, grid: int, bins: int = 9) -> Tensor:
    """Histograms of oriented gradients of each patch, MaskFeat's target (Wei et al. 2022): [B, C, S, S] -> [B, N, 4 * bins * C].

    Unsigned gradient directions in `bins` bins (shared linearly by neighbours), weighted by magnitude, averaged over 2x2 cells a
    patch, then scaled to mean square 1 within the patch; flat patches stay near 0.
    """
    b, c, s, _ = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    gx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    gy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    magnitude = (gx.square() + gy.square()).sqrt()
    place = torch.atan2(gy.abs(), gx * gy.sign()) * (bins / math.pi)  # 0 ... bins
    lower = place.floor().nan_to_num(0.0)  # its magnitude is not finite either
    share = magnitude * (place - lower)
    strip, mean = pooling(s, 2 * grid)
    n = mean.shape[1]
    index = (lower * n**2 + (strip[:, None] * n + strip).to(lower)).long().view(b * c, -1)
    histogram = images.new_zeros(b * c, (bins + 2) * n**2)
    histogram.scatter_add_(1, index, (magnitude - share).view(b * c, -1))
    histogram.scatter_add_(1, index + n**2, share.view(b * c, -1))
    histogram = histogram.view(b * c, bins + 2, n, n)
    histogram[:, :2] += histogram[:, bins:]  # half a turn is the direction where the bins begin
    mean = mean.to(images)
    cells = mean @ histogram[:, :bins] @ mean.T
    flat = cells.reshape(b, c * bins, grid, 2, grid, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, grid * grid, 4 * bins * c)
    return flat / (flat.norm(dim=-1, keepdim=True) + 1e-2) * math.sqrt(flat.shape[-1])


@functools.cache
def pooling(side: int, cells: int) -> tuple[Tensor, Tensor]:
    """As adaptive_avg_pool2d pools a side, by windows that may overlap: in which of the strips between their ends a place is,
    [side], and the weights of the strips' sums in each mean, [cells, strips]."""
    first = torch.arange(cells) * side // cells
    last = -(-(torch.arange(cells) + 1) * side // cells)
    ends = torch.cat([first, last]).unique()
    inside = (ends[:-1] >= first[:, None]) & (ends[1:] <= last[:, None])
    return torch.bucketize(torch.arange(side), ends, right=True) - 1, inside.double() / (last - first)[:, None]
