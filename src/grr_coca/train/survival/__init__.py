"""What lets a run be stopped and go on: checkpoints, their store, signals."""
