"""Filters: a small language of fields, comparisons, and, or, not. Nothing of it is ever passed on as it was written."""
