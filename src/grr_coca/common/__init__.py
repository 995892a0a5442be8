"""Helpers for all packages: errors, optional packages, plug-ins, files, locks, threads, ranks and dataclasses."""
