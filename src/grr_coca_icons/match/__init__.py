"""Matching pictures of one library with those of another, and names that contradict their picture.

`matcher.py` goes from sources to matches; `label_check.py` finds names that are wrong.
"""
