"""Benchmarks by name: small YAML files that say what is asked, how it is answered, and how it is scored.

In: the name of a file of `visgraft/benchmarks/`, or a file of the same form. Out: a `Task`.

    what: MMStar, 1,500 multiple-choice questions ...                   one line for `visgraft evaluate --list`
    data: [{source: hf, path: Lin-Chen/MMStar, revision: main, split: val, columns: {id: index, kind: category}}]
    columns_from: the card of Lin-Chen/MMStar
    prompt: "{prompt}\\nAnswer with the option's letter from the given choices directly."
    max_new_tokens: 8
    metrics: [choice]
    published: [{model: LLaVA-1.5-7B, score: choice, value: 0.303, source: arXiv:2403.20330}]
    tested: on a look-alike of the dataset's columns

`data` is a list of sources, as in a recipe's `data.test`; `columns` are {what it is to us: its name there}, of which
`kind` is what scores are divided by. docs/evaluate.md has the form.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visgraft.config import DataSettings, SourceSettings, Strict, read_yaml
from visgraft.config.shipped import find_recipe
from visgraft.errors import ConfigError
from visgraft.evaluation.revisions import pin_revisions
from visgraft.evaluation.scoring import check_metrics
from visgraft.evaluation.task import Task, open_entries, open_recipe

FOLDER = Path(__file__).parents[1] / "benchmarks"
FORM = "a benchmark's file, with what, data and metrics"


@dataclass(frozen=True)
class Published:
    """A figure that someone published.

    Attributes:
        model: of whom.
        score: name of the score.
        value: 0 to 1, or what the score's own range is.
        source: where it is printed, and what is different there.
    """

    model: str
    score: str
    value: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's file says.

    Attributes:
        what: one line for users.
        data: sources, as in a recipe's `data.test`.
        metrics: names.
        files: what has to be downloaded, where no name on the Hub says it.
        columns_from: where the names of the columns come from.
        prompt: what stands around each question, with {prompt} where it stands.
        max_new_tokens: longest answer.
        language: of the texts, where no spaces divide its words.
        candidates: what `choice_likelihood` chooses among.
        published: figures to stand beside ours.
        tested: on what this file was tested.
    """

    what: str
    data: tuple[SourceSettings, ...]
    metrics: tuple[str, ...]
    files: str = ""
    columns_from: str = ""
    prompt: str = "{prompt}"
    max_new_tokens: int = 16
    language: str | None = None
    candidates: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    tested: str = ""


def shipped_benchmarks() -> dict[str, Path]:
    """List the benchmarks that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_benchmark(path: Path) -> Benchmark:
    """Read and check a benchmark's file.

    Raises:
        ConfigError: it is none: a key is unknown or missing, a metric does not exist, the prompt leaves no place.
    """
    values = read_yaml(path, what="benchmark", need=FORM)
    folder = None if path.parent == FOLDER else path.absolute().parent
    try:
        benchmark: Benchmark = Strict(Benchmark, folder=folder).convert(values, Benchmark, "")
        check_metrics(benchmark.metrics)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    if benchmark.prompt.count("{prompt}") != 1:
        raise ConfigError(
            f"{path.name}: prompt: got {benchmark.prompt!r}, need {{prompt}} once, where the question stands"
        )
    return benchmark


def open_task(source: str, *, say: Callable[[str], None], files: Path | None = None) -> Task:
    """Open what a user calls data: a benchmark by its name or file, else a recipe.

    Args:
        source: name or file.
        say: tells the user.
        files: where a benchmark's data lie, instead of where its file says.

    Raises:
        ConfigError: there is no such thing.
    """
    path = shipped_benchmarks().get(source)
    if path is None:
        found = find_recipe(source)
        if not found.exists():
            near = difflib.get_close_matches(source, shipped_benchmarks(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"benchmarks are {', '.join(shipped_benchmarks())}"
            raise ConfigError(f"--data {source}: neither a benchmark nor the file of a recipe; {hint}")
        if not _is_benchmark(found):
            if files is not None:
                raise ConfigError(f"--files {files}: goes with a benchmark; a recipe says itself where its data lie")
            return open_recipe(source, say=say)
        path = found
    return _open(path, say=say, files=files)


def _is_benchmark(path: Path) -> bool:
    if not path.is_file():
        return False
    return isinstance(read_yaml(path, what="recipe", need="a YAML file").get("data"), list)


def _open(path: Path, *, say: Callable[[str], None], files: Path | None) -> Task:
    benchmark = read_benchmark(path)
    entries = benchmark.data
    if files is not None:
        if not files.expanduser().exists():
            raise ConfigError(f"--files {files}: does not exist; need {benchmark.files or 'the folder of the data'}")
        entries = tuple(_moved(entry, files.expanduser()) for entry in entries)
    elif benchmark.files and not all(Path(entry.path or "").exists() for entry in entries):
        raise ConfigError(f"{path.stem}: needs {benchmark.files}; name the folder with --files DIR")
    entries, loaded = pin_revisions(entries, say=say)
    questions = open_entries(
        entries, key="data.test", settings=DataSettings(), name=path.stem, say=say,
        candidates=benchmark.candidates, frame=benchmark.prompt,
    )  # fmt: skip
    facts: dict[str, Any] = {"benchmark": benchmark.what, "tested": benchmark.tested}
    if benchmark.published:
        facts["published"] = [vars(each) for each in benchmark.published]
    if loaded:
        facts["loaded"] = [vars(each) for each in loaded]
    return Task(path.stem, questions, benchmark.metrics, benchmark.max_new_tokens, benchmark.language, facts)


def _moved(entry: SourceSettings, files: Path) -> SourceSettings:
    """Read a source from a folder instead; what only the Hub knows (configuration, revision) goes."""
    options = {key: value for key, value in entry.options.items() if key not in ("name", "revision")}
    return replace(entry, path=str(files), options=options)
