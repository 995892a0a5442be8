"""Output files for captions and vectors."""
