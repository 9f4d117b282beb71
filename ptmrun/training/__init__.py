"""The loop, its plan, its state on disk, recovery, optimizers, devices."""
