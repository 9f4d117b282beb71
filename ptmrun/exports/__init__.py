"""Ways to take a trained model out of ptmrun. Each file has `write(networks, model, folder, inputs) -> Written`."""
