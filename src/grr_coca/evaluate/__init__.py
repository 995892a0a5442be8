"""Evaluation of models on splits: metrics as pure functions, and the code that runs a model on a split."""
