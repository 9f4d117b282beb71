"""One file a pretraining objective: `Objective(encoder, options)`, a module that owns its heads.

    objective(batch) -> (Loss, {name: Loss})     the loss, and what else is averaged and logged
    objective.pictures(batch) -> {title: images}      what it makes of a few images, for the figures

It takes its random numbers from `batch["rows"]` and knows no data set, loop or run folder.
"""
