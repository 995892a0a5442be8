"""Reading a YAML file. This module can be imported without yaml."""

from pathlib import Path

from grr_coca.errors import UserError


def read_yaml(path: Path, kind: str) -> object:
    """The content of a YAML file.

    Args:
        path: of the file.
        kind: what messages call the file, such as "recipe".

    Raises:
        UserError: there is no such file (the message lists those beside it), it is not YAML, or has a key twice.
    """
    import yaml  # late, with the module that needs it: it comes with the extras [train] and [study]

    from grr_coca.yaml_files.strict import parse_yaml

    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        beside = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such {kind}" + (f"; there are {', '.join(beside)}" if beside else "")) from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; give a {kind}, which is a YAML file") from error
    except (OSError, yaml.YAMLError, ValueError, KeyError, IndexError, RecursionError) as error:
        # The last four come from YAML's reader too: a value that only looks like a date, such as 2024-13-45, or like
        # another type, and lists within lists without end.
        raise UserError(f"{path}: not a YAML file that can be read ({error})") from error
