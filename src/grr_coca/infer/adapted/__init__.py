"""Inference with an adapted model: one vector for each image and text, in closed form on top of a base model."""
