"""CoCa model: one file per box of its figure, and its layers, losses, presets, checkpoints and bundled models."""
