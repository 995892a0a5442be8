"""The CoCa model with its layers, losses, presets and checkpoints, and the bundled models."""
