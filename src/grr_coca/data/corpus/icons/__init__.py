"""The corpus `icons`: several hundred thousand icons of open design sets, drawn and captioned from pinned packages.

`build.py` is the way through: packages, sets, drawing, families, captions, splits, shards.
"""
