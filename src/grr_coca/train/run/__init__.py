"""A run: what it starts with, the one loop, its log and its forecast."""
