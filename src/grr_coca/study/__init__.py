"""Comparisons of models: what each part costs, and what it is worth."""
