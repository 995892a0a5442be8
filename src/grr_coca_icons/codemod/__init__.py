"""Rewrites code that uses icons of one set, so that it uses those of another."""
