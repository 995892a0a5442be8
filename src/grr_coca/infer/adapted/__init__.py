"""Inference with an adapted model: one vector per image and text, computed in closed form from a base model."""
