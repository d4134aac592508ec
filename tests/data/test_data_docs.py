"""What docs/data.md shows must be so."""

import inspect
import json
import re
from pathlib import Path
from pkgutil import resolve_name

import yaml

from visgraft.config import SourceSettings, Strict
from visgraft.data.grouping import Grouped
from visgraft.data.sample import Turn
from visgraft.data.sources import READERS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def entries():
    """Every recipe entry of the page."""
    inline = re.findall(r"\{source: [^{}]*(?:\{[^{}]*\}[^{}]*)*\}", TEXT)
    return [yaml.safe_load(text.replace("DIR", "folder")) for text in inline]


def test_every_entry_names_a_reader_and_options_that_exist():
    assert {entry["source"] for entry in entries()} >= set(READERS) - {"easy_vqa"}
    for entry in entries():
        settings = Strict(SourceSettings).convert(entry, SourceSettings, "")
        options = inspect.signature(resolve_name(READERS[settings.source])).parameters
        assert set(settings.options) <= set(options), entry


def test_every_reader_has_a_section():
    sections = set(re.findall(r"^## (\w+)$", TEXT, flags=re.MULTILINE))
    assert set(READERS) - {"easy_vqa"} <= sections
    links = re.findall(r"\]\(#(\w+)\)", TEXT)
    assert set(links) <= sections


def test_every_setting_of_a_source_is_explained():
    block = yaml.safe_load(re.search(r"## Settings of every source\n\n```yaml\n(.*?)```", TEXT, re.DOTALL)[1])
    assert set(block[0]) == set(SourceSettings.__dataclass_fields__) - {"options"}


def test_the_json_lines_of_the_folder_format_are_read(tmp_path):
    from visgraft.data.readers import folder

    block = re.search(r"## folder\n\n```\n(.*?)```", TEXT, re.DOTALL)[1]
    (tmp_path / "metadata.jsonl").write_text(block)
    source = folder.read(tmp_path, split="train")
    assert source.num_dialogs.tolist() == [2, 1, 1] and all(json.loads(line) for line in block.splitlines())


def test_the_ten_lines_of_a_format_work(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    module: dict = {}
    exec(code, module)
    (tmp_path / "train.tsv").write_text("file\tcaption\na.jpg\ta cat\na.jpg\ttwo cats\n")
    source = Grouped(module["read"](tmp_path, split="train"), by_content=False)
    assert source[0].dialogs == ((Turn("", "a cat"),), (Turn("", "two cats"),))
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
