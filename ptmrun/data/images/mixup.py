"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899): images mixed in pairs."""

import torch
from scipy.special import betaincinv
from torch import Tensor

from ptmrun.rng import BatchRandom


def mix(images: Tensor, others: Tensor, alphas: tuple[float, float], rows: BatchRandom) -> tuple[Tensor, Tensor]:
    """float [B, C, H, W] and their partners -> (mixed images, share of the first [B]).

    `alphas` are the parameters of the Beta distributions of MixUp and CutMix; 0: none; with both, each image gets one of them.
    """
    mixup, cutmix = alphas
    drawn = rows.uniform("mix", 4)
    cut = drawn[:, 0] < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = torch.where(cut, cutmix, mixup).double().numpy()
    share = torch.from_numpy(betaincinv(alpha, alpha, drawn[:, 1].double().numpy())).float()
    first = share[:, None, None].expand(-1, *images.shape[2:]).clone()
    side = (1 - share).sqrt() / 2
    inside = []
    for centre, size in ((drawn[:, 2], images.shape[2]), (drawn[:, 3], images.shape[3])):
        low, high = ((centre + sign * side).clamp(0, 1).mul(size).round()[:, None] for sign in (-1, 1))
        place = torch.arange(size)
        inside.append((place >= low) & (place < high))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    first[cut] = (~box[cut]).float()
    share[cut] = first[cut].mean((1, 2))
    first = first[:, None].to(images.device)
    return first * images + (1 - first) * others, share.to(images.device)
