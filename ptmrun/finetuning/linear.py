"""finetune=linear: a linear classifier on features that are computed once; the validation split chooses its learning rate."""

from typing import Any

import torch
from torch import Tensor, nn

from ptmrun import rng
from ptmrun.config.schema import Loop
from ptmrun.training import optim
from ptmrun.training.schedule import lr_at


def fit(context: Any, model: Any, split: Any, steps: int, seed: int, tags: dict[str, Any]) -> None:
    """Trains model.head on the features of a split with every rate of `finetune.rates`, and keeps the best on the validation
    split (of equal ones the lowest rate)."""
    loop, problem, val = context.cfg.finetune, context.problem, context.data.val
    features, judged = (torch.from_numpy(context.features(model.encoder, x)) for x in (split, val))
    mean, std = features.mean(0), features.std(0) + 1e-6
    features, judged = (features - mean) / std, (judged - mean) / std
    context.run.cut_metrics(tags, -1)  # of an attempt that was killed
    best = -1.0
    for rate in sorted(loop.rates):
        head = trained(model, features, split.labels, loop.model_copy(update={"lr": rate}), steps, seed)
        with torch.no_grad():
            score = problem.score({"logits": head(judged)}, val)
        context.run.metric({**tags, "step": steps, "lr": rate, "val_score": score})
        if score > best:
            best = score
            model.set_head(head, mean, std)


def trained(model: Any, features: Tensor, labels: Tensor, loop: Loop, steps: int, seed: int) -> nn.Linear:
    """A linear layer after so many steps on standardised features [N, D]."""
    head = nn.Linear(features.shape[1], model.head.out_features)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": loop.weight_decay}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = optim.build(groups, loop)
    size = min(loop.batch_size, len(features))
    each = len(features) // size  # batches an epoch
    for step in range(steps):
        if step % each == 0:
            order = rng.permutation(seed, f"linear/{step // each}", len(features))
        batch = order[step % each * size :][:size]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, steps, loop)
        loss, weight = model.losses(head(features[batch]), labels[batch], model.label_smoothing)
        (loss.sum() / weight.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return head
