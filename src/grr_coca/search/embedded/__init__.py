"""An index in a folder: `index.sqlite`, which is the truth, and `vectors.f16`, their embeddings."""
