"""Whatever is wrong with a text of JSON or YAML is one kind of error, and every such text is read in one place."""

import ast
from pathlib import Path

import pytest
import yaml

from visgraft.parsing import parse_json, parse_yaml

PACKAGE = Path(__file__).resolve().parent.parent / "visgraft"
#: file -> why it may parse by itself
PAST_IT = {
    "parsing.py": "is it",
    "data/control_tokens.py": "what the tokenizer has just written",
    "reproduce/figures.py": "what it has just written",
    "serving/tokens.py": "what the tokenizer has just written",
    "training/fingerprints.py": "what it has just written",
}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "", b"\xff\xfe\xff", "[1,]", '{"a": ' * 5000])
def test_whatever_is_wrong_with_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "9" * 5000,
        "2026-13-45",
        "!!timestamp no",
        "!!int ''",
        "!!bool x",
        "{",
        "a: b: c",
        b"\xff\xff",
        "\x01",
    ],
)
def test_whatever_is_wrong_with_yaml_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(yaml.YAMLError, match=r"."):
        parse_yaml(text)


def test_nothing_parses_past_it() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in {("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load")}
    }
    assert found == set(PAST_IT)
