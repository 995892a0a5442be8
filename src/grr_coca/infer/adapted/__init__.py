"""Inference with an adapted model: one vector per image and text, computed in closed form on top of a base model."""
