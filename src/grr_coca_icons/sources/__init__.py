"""Readers of icon sets, sprites and icon fonts."""
