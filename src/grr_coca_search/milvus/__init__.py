"""An index as two collections of a Milvus server: one of images, one of notes."""
