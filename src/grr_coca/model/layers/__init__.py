"""The parts of a transformer, one in each file. None of them knows a model."""
