"""Files that captions and vectors are written to."""
