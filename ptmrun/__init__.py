"""ptmrun: pretrain, fine-tune and evaluate pre-trained models from YAML."""

__version__ = "0.1.0"
