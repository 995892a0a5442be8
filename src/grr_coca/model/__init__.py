"""CoCa, one file for each box of its figure, with layers, losses, presets, checkpoints, and the bundled models."""
