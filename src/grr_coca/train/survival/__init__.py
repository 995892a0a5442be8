"""Stopping and resuming a run: checkpoints, their store, and signals."""
