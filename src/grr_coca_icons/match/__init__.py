"""Matching of images between libraries, and detection of names that contradict their image.

`matcher.py` goes from sources to matches; `label_check.py` finds wrong names.
"""
