"""What verbs write: progress, lines, tables, files of captions and vectors."""
