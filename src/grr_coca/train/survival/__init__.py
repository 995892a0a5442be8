"""Stopping and resuming a run: checkpoints, their store, signals."""
