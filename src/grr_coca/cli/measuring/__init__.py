"""Verbs that measure: evaluate and compare checkpoints, tell what a model costs."""
