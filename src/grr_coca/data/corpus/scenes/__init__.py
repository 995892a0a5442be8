"""The corpus `scenes`: drawings of two shapes whose captions say where one stands from the other.

`build.py` is the way through: scenes, drawings, shards, cards. Nothing is fetched.
"""
