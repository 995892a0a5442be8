"""open_clip's CoCa: its architecture, its checkpoints, and the published models."""
