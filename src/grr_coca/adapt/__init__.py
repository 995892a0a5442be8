"""Adapt a model to a user's own pairs in closed form, without PyTorch: kernel ridge regression on a frozen model."""
