"""The output of verbs: progress, lines, and files of captions and vectors."""
