"""The pictures that a run may have, in the order of its report."""

from typing import Literal, NamedTuple


class Caption(NamedTuple):
    text: str
    stage: str = ""  # that draws it, where another run of the same settings can give it too
    place: Literal["task", "data", "errors", "drawn"] = "task"  # in the report; drawn: as a chart of its numbers


CAPTIONS = {
    "compute": Caption(
        "Test score against training compute: from scratch (the band is one standard deviation), and pretrained with the compute "
        "of pretraining and fine-tuning together; hollow, where the pretraining is there already.",
        place="drawn",
    ),
    "scores": Caption("Test score beside the baselines. The lines are one standard deviation over the repeats.", place="drawn"),
    "curves": Caption("Pretraining loss, and how good the frozen features are for a simple classifier.", "pretrain", "drawn"),
    "layers": Caption("Linear probe of each layer's features; the dotted line is the layer that is used.", "pretrain", "drawn"),
    "reconstructions": Caption("What the model was shown and what it filled in (held-out images).", "pretrain"),
    "drawn": Caption(
        "What the model draws of held-out captions, and beside each the training image whose pixels are nearest to it.",
        "pretrain",
    ),
    "views": Caption("The views that the objective compares (held-out images).", "pretrain"),
    "similarity": Caption("How near captions (rows) are to images (columns) of the validation split.", "pretrain"),
    "retrieved": Caption("The nearest images of the validation split to captions of it, the nearest first.", "pretrain"),
    "lengths": Caption("Tokens of the labelled texts; longer ones are cut at the limit (model.length).", place="data"),
    "text_attention": Caption("Which tokens (columns) each token (rows) looks at: mean over the last block's heads.", "pretrain"),
    "text_attribution": Caption(
        "Which tokens speak for (blue) and against (orange) the predicted class: integrated gradients.", place="errors"
    ),
    "augmented": Caption("Training images as they are and as training sees them.", place="data"),
    "attention": Caption("How much each patch flows into the features: attention rollout (held-out images).", "pretrain"),
    "spectrograms": Caption("Spectra of held-out sounds, and what of them the objective hides (pale).", "pretrain"),
    "segmentation": Caption(
        "Test images that are segmented best and worst, with their mean IoU (first repeat, most labels).", place="errors"
    ),
    "alignment": Caption(
        "Where test sounds are heard as which character: the likeliest character of each frame, where it is another one than "
        "before. Above each sound its transcript and what was made of it, from the best sound to the worst (first repeat, most "
        "labels).",
        place="errors",
    ),
    "confusion": Caption("Which classes are taken for which (first repeat, most labels).", place="errors"),
    "boxes": Caption(
        "True boxes (above) and those found (below) at the threshold with the best F1, in the best, then the worst test images "
        "(first repeat, most labels). Gray boxes do not count.",
        place="errors",
    ),
    "precision_recall": Caption("Precision against recall at an overlap of 0.5, by class.", place="errors"),
    "grad_cam": Caption(
        "Which places speak for the predicted class: Grad-CAM of the fine-tuned model (first repeat, most labels).",
        place="errors",
    ),
    "embedding": Caption("Features of test samples in two dimensions, before and after pretraining; the colour is the class."),
}
