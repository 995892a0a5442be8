"""Tar shards: their index by byte offset, and random access to their pairs."""
