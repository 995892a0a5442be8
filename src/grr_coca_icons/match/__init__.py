"""Matching of images between libraries, and detection of names that contradict their image.

`matcher.py` matches image sources; `label_check.py` finds wrong names.
"""
