"""Helpers for all packages: errors, files, dataclasses from dicts, extras, threads, ranks, shapes of arrays."""
