"""An index as two collections of a Milvus server: the pictures, and notes of what else an index holds."""
