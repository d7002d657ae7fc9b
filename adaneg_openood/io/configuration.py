"""YAML files, read strictly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds: text, numbers, lists and mappings, never an object of a program.

    A key that is given twice is refused, where YAML keeps the last one silently.

    Raises:
        ValueError: not YAML, or a key that is there twice; the message names the file and the line.
        OSError: it cannot be read.
    """
    import yaml

    file = Path(path)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = str(key_node.value)  # a list is a key, too, in YAML
                if key_node.tag != "tag:yaml.org,2002:merge" and key in seen:
                    line = key_node.start_mark.line + 1
                    raise ValueError(f"{file}, line {line}: key {key!r} is there twice; keep one")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(file.read_text("utf-8-sig"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML, {error}") from error
    # what it says of dates that do not exist, of endless numbers and of a thousand brackets
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        text = str(error)
        raise ValueError(text if str(file) in text else f"{file}: not YAML, {text}") from error
