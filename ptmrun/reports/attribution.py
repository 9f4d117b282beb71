"""Which places of an image, or tokens of a text, the answer of a classifier rests on."""

from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.batch import Tokens

STEPS = 32  # of the integral
LEAST = 3  # places a side that a map has at least, where there is one, to tell them apart


def grad_cam(classifier: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) by captum: images [B, C, S, S], classes [B] -> [B, h, w], at least 0.

    The classifier's encoder has `cam_layers`, modules whose outputs are [B, D, h, w]; the last whose map is fine enough to show
    a place is taken: those of small images end in a single place. Raises ImportError without captum.
    """
    from captum.attr import LayerGradCam

    classifier.eval()
    method = LayerGradCam(classifier.logits, fine(classifier, images))
    return method.attribute(images, target=classes, relu_attributions=True)[:, 0].detach().float()


@torch.no_grad()
def fine(classifier: Any, images: Tensor) -> nn.Module:
    """The last of the encoder's `cam_layers` whose map has at least LEAST places a side; the finest where none has."""
    layers, sides = classifier.encoder.cam_layers, {}

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        sides[layer] = output.shape[-1]

    hooks = [layer.register_forward_hook(note) for layer in layers]
    classifier.logits(images[:1])
    for hook in hooks:
        hook.remove()
    return next((layer for layer in reversed(layers) if sides[layer] >= LEAST), layers[0])


def integrated_gradients(classifier: Any, tokens: Tokens, classes: Tensor) -> Tensor:
    """How much each token speaks for the class (Sundararajan et al. 2017, arXiv:1703.01365) by captum: classes [B] -> [B, T].

    From a text whose tokens, but for the special ones, are padding; the classifier's encoder has word `embeddings`, a module.
    Raises ImportError without captum.
    """
    from captum.attr import LayerIntegratedGradients

    classifier.eval()
    vocabulary = classifier.encoder.vocabulary
    blank = torch.where(vocabulary.special.to(tokens.ids.device)[tokens.ids], tokens.ids, vocabulary.pad)

    def logits(ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return classifier.logits(Tokens(ids, mask, types))

    method = LayerIntegratedGradients(logits, classifier.encoder.embeddings)
    extra = {"additional_forward_args": (tokens.mask, tokens.types), "n_steps": STEPS, "internal_batch_size": 64}
    attributions = method.attribute(tokens.ids, blank, target=classes, **extra)
    return attributions.sum(-1).detach().float()
