"""JSON and YAML from texts that others wrote: whatever is wrong with one is one kind of error.

In: a text. Out: plain values. The parsers raise much else beside their own errors: RecursionError where it is nested
too deeply, ValueError for a number of thousands of digits or a date that is none, LookupError for an empty tag.

    values = parse_json(path.read_bytes())      # ValueError
    values = parse_yaml(path.read_bytes())      # yaml.YAMLError
"""

from __future__ import annotations

import json
from typing import Any

import yaml

TOO_DEEP = "nested too deeply"


def parse_json(text: str | bytes) -> Any:
    """Read JSON; bytes are UTF-8. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def parse_yaml(text: str | bytes, *, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Read YAML; bytes are UTF-8 or UTF-16 with a mark. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader=loader)
    except RecursionError as error:
        raise yaml.YAMLError(TOO_DEEP) from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise yaml.YAMLError(str(error) or type(error).__name__) from error
