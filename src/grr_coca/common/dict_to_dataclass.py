"""Convert dicts and YAML files to nested frozen dataclasses and back, and check every key.

A silently ignored key can invalidate an expensive experiment. Therefore, an unknown, missing or duplicate key, or a
value of the wrong type, raises an error that names the key, and its section or line.
"""

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from grr_coca.common.errors import UserError, suggest_name

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 2
_abbreviate = _SHORT.repr
"""Return a short form of a value, for messages: with aliases, a few lines of YAML can represent billions of values."""

T = TypeVar("T")


def from_dict(cls: type[T], data: object, where: str = "config") -> T:
    """Build the dataclass `cls` from a mapping, including nested dataclasses.

    Args:
        cls: Dataclass type whose fields are scalars, Literals, tuples, dicts, dataclasses, `X | None`, or `object` for
            any value.
        data: The mapping, as read from YAML or JSON. Lists become tuples, and integers and numeric strings become
            floats where the field is a float. Missing keys get the default of their field.
        where: Name of the mapping in messages, such as its file.

    Raises:
        UserError: If `data` is not a mapping, a key is unknown or has neither a value nor a default, a value has the
            wrong type, or `cls` rejects its values with a `UserError`, for example because one is out of range.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a mapping of keys to values, found {_abbreviate(data)}")
    fields = _fields(cls)  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'; {_suggest_key(str(key), cls)}")
    values = {}
    for name, (hint, is_needed) in fields.items():
        if name in data:
            values[name] = _convert(hint, data[name], f"{where}: {name}")
        elif is_needed:
            raise UserError(f"{where}: key '{name}' is missing; add it")
    try:
        return cls(**values)
    except UserError as error:  # a value is out of range, or values contradict each other
        raise UserError(f"{where}: {error}") from error


def _suggest_key(key: str, cls: type) -> str:
    """Return a hint for an unknown key of a dataclass.

    The hint names the paths of the same key in nested sections. If no nested section has the key, the hint is that of
    `suggest_name` for the keys of the dataclass.
    """
    own = _fields(cls)
    paths = [path for name in own for path in _key_paths(name, own[name][0]) if path.rpartition(".")[2] == key]
    if not paths:
        return suggest_name(key, own)
    return "did you mean " + " or ".join(f"'{path}'" for path in paths) + "?"


def _key_paths(name: str, hint: Any) -> Iterator[str]:
    """Yield the paths of all keys in the section `name` and in its subsections.

    Nothing is yielded if the type of the section, `hint`, contains no dataclass.
    """
    for part in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(part):
            for inner, (inner_hint, _) in _fields(typing.cast(type, part)).items():
                yield f"{name}.{inner}"
                yield from _key_paths(f"{name}.{inner}", inner_hint)


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass, and whether the field is required, by field name.

    The result is cached because resolving type hints is slow.
    """
    hints, missing = typing.get_type_hints(cls), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
    }


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a dataclass to nested dicts that can be written as YAML or JSON. Tuples become lists."""
    return {field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def differences(first: Any, second: Any) -> list[tuple[str, Any, Any]]:
    """Return the differences between two instances of the same dataclass.

    Each difference consists of the path of a key, the first value and the second value. A value is None if its instance
    does not have the key, for example because a nested dataclass is None.
    """
    a, b = map(flatten, (first, second))
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def flatten(config: Any) -> dict[str, Any]:
    """Return the values of a dataclass in one dict, by key paths such as `optimizer.lr`.

    Nested dataclasses and dicts are replaced by their values, so empty dicts are omitted. Tuples become lists.
    """
    return dict(_flatten(to_dict(config), ""))


def read_yaml(path: Path, kind: str) -> object:
    """Return the content of a YAML file. This needs PyYAML, which the extras [train] and [study] install.

    Args:
        path: Path of the file.
        kind: Name of such files in messages, such as "recipe".

    Raises:
        UserError: If the file does not exist (the message lists the YAML files in its folder), is a folder, cannot be
            read, is not YAML, or has a duplicate key.
    """
    import yaml

    try:
        return _parse_yaml(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        beside = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(
            f"{path}: no such {kind}" + (f"; its folder has {', '.join(beside)}" if beside else "")
        ) from error
    except IsADirectoryError as error:
        raise UserError(
            f"{path}: expected a {kind}, which is a YAML file, but found a folder; pass the file"
        ) from error
    except (OSError, yaml.YAMLError, ValueError, KeyError, IndexError, RecursionError) as error:
        # PyYAML raises the last four errors for values that resemble a date (2024-13-45) or another type, and for lists
        # that are nested too deeply.
        raise UserError(f"{path}: not a readable YAML file ({error}); correct it") from error


def _flatten(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = (arg for arg in args if arg is not type(None))
        return _convert(hint, value, where)
    if origin is typing.Literal:
        if value not in args:
            written = value if isinstance(value, str) else _abbreviate(value)
            raise UserError(f"{where}: invalid value {_abbreviate(value)}; {suggest_name(written, map(str, args))}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a mapping of keys to values, found {_abbreviate(value)}")
        return {
            _convert(args[0], key, f"{where}: key {_abbreviate(key)}"): _convert(args[1], item, f"{where}: {key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: expected a list, found {_abbreviate(value)}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise UserError(f"{where}: expected {len(args)} values, found {len(value)}")
    return tuple(_convert(arg, item, where) for arg, item in zip(args, value, strict=True))


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    # In Python, bool is a subclass of int, and YAML reads `1e-3` as a string.
    if hint is object:
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):  # the value is not a number, or is too large
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {hint.__name__}, found {_abbreviate(value)}")


def _parse_yaml(text: str) -> object:
    loader = _strict_loader()(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@functools.cache
def _strict_loader() -> type:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """YAML loader that raises a `UserError` for duplicate keys. PyYAML itself would silently use the last value."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise UserError(f"line {line}: duplicate key '{key.value}'; merge both entries into one")
                seen.add((key.tag, key.value))
            return node

    return StrictLoader
