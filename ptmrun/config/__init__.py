"""Settings: typed, parsed strictly, composed by Hydra. Nothing here imports torch."""
