"""Verbs of studies."""
