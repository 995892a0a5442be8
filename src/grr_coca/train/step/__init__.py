"""One training step: forward passes, exact gradients, optimizers, on one rank or many."""
