"""Helpers for all packages, such as errors, files, optional packages, threads, ranks, and dataclasses from dicts."""
