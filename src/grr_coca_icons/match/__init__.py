"""Match images between libraries, and find names that contradict their image.

`matcher.py` matches image sources; `label_check.py` finds wrong names.
"""
