"""Verbs that measure: evaluate and compare checkpoints, and show what a model costs."""
