"""Rewrite code from the icons of one set to those of another."""
