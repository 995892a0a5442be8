"""The CoCa model, with one file per box of its figure, its layers, losses, presets, checkpoints and bundled models."""
