"""The decorator with which tests check the shapes and types that functions declare. An int may stand for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
