"""The parts of a transformer, each in one file, none of which knows of a model."""
