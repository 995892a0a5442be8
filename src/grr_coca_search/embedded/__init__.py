"""Index in a folder: `index.sqlite` with the entries, and `vectors.f16` with the embeddings."""
