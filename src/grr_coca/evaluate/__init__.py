"""Evaluation: metrics as pure functions, and code that runs a model over a split."""
