"""Adapt a model to one's own pairs in closed form, without PyTorch: kernel ridge regression on a frozen model."""
