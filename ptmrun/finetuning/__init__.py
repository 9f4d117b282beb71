"""One file a way of fine-tuning: which weights are trained, and what is added to them."""
