"""YAML in which no key is given twice."""

from typing import Any

import yaml

from grr_coca.errors import UserError

MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which YAML would take the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise UserError(f"line {line}: the key '{key.value}' is there twice; keep one, with all that it holds")
            seen.add((key.tag, key.value))
        return node


def parse_yaml(text: str) -> object:
    """What a YAML document holds. Only plain values are made of it.

    Raises:
        UserError: a key is given twice.
        yaml.YAMLError: it is not YAML.
    """
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
