"""An index in a folder: `index.sqlite`, which says what is in it, and `vectors.f16`, the embeddings."""
