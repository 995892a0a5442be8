"""Rewrite code so that it uses the icons of another set."""
