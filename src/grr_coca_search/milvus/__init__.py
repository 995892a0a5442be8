"""Index as two collections on a Milvus server: one of images, one of notes."""
