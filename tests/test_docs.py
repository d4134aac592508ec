"""What the documentation shows must be so: snippets run or are read, links lead somewhere, the reference is whole."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

import visgraft
from tests.training.tiny import save_parts
from visgraft.cli import program
from visgraft.config import SourceSettings, Strict, load_recipe
from visgraft.evaluation.benchmarks import read_benchmark
from visgraft.experiment.experiment_file import read_experiment

ROOT = Path(__file__).parents[1]
ABOVE = ("README.md", "README.ja.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = sorted([*(ROOT / name for name in ABOVE), *(ROOT / "docs").rglob("*.md")])
# a mark in front of a snippet that no test runs: <!-- not run: why -->
MARK = re.compile(r"<!-- not run: (.+?) -->\n\Z")
NUM_MARKED = 0
RUN_ELSEWHERE = ["serve.md"]  # against a server, by tests/serving/test_clients.py
RECIPE_KEYS = {"model", "train", "data", "output", "name", "version"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            marked = MARK.search(text[: found.start()])
            line = text.count("\n", 0, found.start()) + 1
            yield Snippet(page, line, found[1], found[2], marked[1] if marked else None)


SNIPPETS = list(snippets())


def of(*languages: str) -> list[Any]:
    """The snippets of some languages that are not marked, and not run elsewhere."""
    found = [each for each in SNIPPETS if each.language in languages and not each.why_not]
    return [pytest.param(each, id=str(each)) for each in found if each.page.name not in RUN_ELSEWHERE]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_reference"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says(reference: ModuleType) -> None:
    for name, write in reference.PAGES.items():
        kept = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert kept == write(), f"docs/reference/{name} is old: `make map` writes it again"


def test_every_setting_has_a_meaning_and_an_example_that_a_recipe_may_hold(reference: ModuleType) -> None:
    settings = [each for _, _, found in reference.groups_of_settings() for each in found]
    assert len(settings) > 90
    assert [each.key for each in settings if not each.meaning] == []
    for each in settings:
        part = reference.as_recipe(each)
        assert load_recipe(with_parts(part)) != load_recipe(with_parts({})), f"{each.key}: its example is its default"


def test_every_public_name_is_in_the_reference(reference: ModuleType) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: (\S+)", page, flags=re.MULTILINE))
    assert {f"visgraft.{name}" for name in visgraft.__all__} <= named
    assert "visgraft.inference.Engine" in named


def test_marks_of_what_is_not_run_are_few_and_counted() -> None:
    marked = [each for each in SNIPPETS if each.why_not]
    assert len(marked) == NUM_MARKED, "\n".join(f"{each}: {each.why_not}" for each in marked)


def test_a_snippet_says_what_it_is() -> None:
    assert {each.language for each in SNIPPETS} <= {
        "",
        "text",
        "sh",
        "bash",
        "yaml",
        "json",
        "python",
        "{toctree}",
        "{eval-rst}",
    }


@pytest.mark.parametrize("snippet", of("yaml"))
def test_yaml_is_read_as_what_it_shows(snippet: Snippet, tmp_path: Path) -> None:
    value = yaml.safe_load(snippet.text)
    if isinstance(value, list):
        for entry in value:
            Strict(SourceSettings).convert(entry, SourceSettings, "data.train.0")
    elif "variants" in value:
        recipe = {"model": {"vision": "a", "language": "b"}, "data": {"train": [{"source": "folder", "path": "c"}]}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (tmp_path / "experiment.yaml").write_text(snippet.text)
        assert read_experiment(tmp_path / "experiment.yaml")[0].variants
    elif "metrics" in value:
        (tmp_path / "benchmark.yaml").write_text(snippet.text)
        assert read_benchmark(tmp_path / "benchmark.yaml").metrics
    else:
        assert value.keys() <= RECIPE_KEYS, "what is it?"
        load_recipe(with_parts(value))


def with_parts(recipe: dict[str, Any]) -> dict[str, Any]:
    """Name what a piece of a recipe leaves to the rest: two models, data to validate on."""
    model = dict(recipe.get("model", {}))
    if "start_from" not in model:
        language = model.get("language", "some/language-model")
        language = {"name": "some/language-model", **language} if isinstance(language, dict) else language
        model = {"vision": "some/encoder", **model, "language": language}
    data = {"validation": [{"source": "folder", "path": "held-out"}], **recipe.get("data", {})}
    return {**recipe, "model": model, "data": data}


@pytest.mark.parametrize("snippet", of("json"))
def test_json_is_json(snippet: Snippet) -> None:
    try:
        json.loads(snippet.text)
    except ValueError:
        assert [json.loads(line) for line in snippet.text.splitlines()]


@pytest.mark.parametrize("snippet", of("sh", "bash"))
def test_commands_are_those_that_there_are(snippet: Snippet) -> None:
    root = program.command()
    for words in commands_in(snippet.text):
        check_command(root, words)


def commands_in(text: str) -> Iterator[list[str]]:
    """Each command of a shell snippet, as its words."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check_command(root: Any, words: list[str]) -> None:
    while words and re.fullmatch(r"[A-Za-z_]+=\S*", words[0]):
        words = words[1:]
    if "visgraft" in words[1:] and words[0] in ("accelerate", "torchrun", "python", "srun"):
        words = words[words.index("visgraft") :]
    if not words:
        return
    name, *rest = words
    name = name.rpartition("/")[2] if "bin/" in name else name
    if name == "visgraft":
        command = root
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        assert command is not root or rest[:1] in (["--install-completion"], ["--version"], ["--help"]), words
        command.make_context(words[1], [word for word in rest if word not in ("--quiet", "--log-json", "--debug")])
    elif name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert {word for word in rest if "=" not in word and not word.startswith(".venv")} <= set(targets), words
    elif name == "python" and rest[0].endswith(".py"):
        script = ROOT / rest[0]
        assert script.is_file(), words
        known = script.read_text(encoding="utf-8")
        assert [word for word in rest if word.startswith("--") and f'"{word}"' not in known] == [], words
    else:
        assert name in ("pip", "export", "trap", "wait", "curl", "python", "git", "cd", "sbatch"), f"what is {name}?"


@pytest.mark.parametrize("snippet", of("python"))
def test_python_runs(
    snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vision, language = save_parts(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = snippet.text.replace("starter:vision", vision).replace("starter:language", language)
    recipe = {
        "model": {"vision": vision, "language": language},
        "data": {"train": [{"source": "folder", "path": "photos"}]},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("photos").mkdir()
    image = Image.new("RGB", (32, 32), "red")
    image.save("photos/a.png")
    Path("photos/metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n')
    sample = visgraft.Sample(images=[image], dialogs=[[visgraft.Turn("What?", "")]])
    names: dict[str, Any] = {"sample": sample, "samples": [sample]}
    if re.search(r"\bmodel\b", text) and "from_parts" not in text:
        names["model"] = visgraft.VisionLanguageModel.from_parts(vision, language)
        names["processor"] = visgraft.Processor.from_parts(vision, language)
    exec(compile(text, str(snippet), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#|mailto:", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line for block in re.findall(r"```{toctree}\n(.*?)```", index, flags=re.DOTALL) for line in block.split()}
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index"} <= listed


def without_comments(text: str) -> list[str]:
    return [line.partition("  #")[0].rstrip() for line in text.splitlines()]


def test_the_japanese_readme_has_the_same_commands_links_and_pictures() -> None:
    def code(name: str) -> list[tuple[str, list[str]]]:
        found = [each for each in SNIPPETS if each.page.name == name]
        return [(each.language, without_comments(each.text)) for each in found if each.language != "text"]

    def named(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        spoken = {word for word in re.findall(r"`([^`\n]+)`", text) if not re.search(r"[^\x00-\x7f]", word)}
        return spoken | set(re.findall(r"\]\(([^)\s]+)\)", text)) - {"README.md", "README.ja.md"}

    assert code("README.ja.md") == code("README.md")
    assert named("README.ja.md") == named("README.md")


def test_version_and_date_are_the_same_wherever_they_are_told() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [(version, day), *_] = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", log, flags=re.MULTILINE)
    assert (cited["version"], str(cited["date-released"])) == (version, day)
    assert version == visgraft.__version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_issue_templates_have_what_the_forge_asks_of_them() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) == 3
    for path in templates:
        head = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
        assert {"name", "about", "labels"} <= head.keys()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_the_command_or_the_lines_that_do_it(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines, start=1) if line.startswith("```"))
    assert first <= 14, f"{page.name}: the first lines to run stand at line {first}"
