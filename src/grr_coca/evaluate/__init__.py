"""Evaluation: metrics as pure functions, and their run over a split."""
