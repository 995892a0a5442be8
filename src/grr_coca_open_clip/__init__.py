"""open_clip's CoCa: its architecture, its checkpoints, and the models that it published."""
