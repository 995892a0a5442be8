"""A run: its start, its loop, its log, and the forecast of its time and memory."""
