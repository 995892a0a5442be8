"""open_clip's CoCa checkpoints, read into our model and written back. `docs/open-clip.md` says what differs."""
