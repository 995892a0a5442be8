"""Checkpoints on their way to the Hugging Face hub."""
