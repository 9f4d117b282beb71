"""Which places of an image the answer of a classifier rests on."""

from typing import Any

from torch import Tensor


def grad_cam(classifier: Any, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) by captum: images [B, C, S, S], classes [B] -> [B, h, w], at least 0.

    The classifier's encoder has a `cam_layer`, a module whose output is [B, D, h, w]. Raises ImportError without captum.
    """
    from captum.attr import LayerGradCam

    classifier.eval()
    method = LayerGradCam(classifier.logits, classifier.encoder.cam_layer)
    return method.attribute(images, target=classes, relu_attributions=True)[:, 0].detach().float()
