"""Filters: a small language of fields, comparisons, `and`, `or`, `not`. No database gets what a user wrote as text."""
