"""Verbs that work on files of pairs."""
