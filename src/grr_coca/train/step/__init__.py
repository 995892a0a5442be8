"""One training step: forward passes, exact gradients and optimizers, on one rank or many."""
