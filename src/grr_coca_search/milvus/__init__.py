"""Index on a Milvus server, stored as two collections: one of images, and one of notes."""
