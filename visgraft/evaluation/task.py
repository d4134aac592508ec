"""What models are asked: the test data of a recipe, as questions.

In: a recipe (a file, a shipped one's name, a run folder). Out: a `Task`: a `QuestionSet`, and how to answer and score.

    task = open_recipe("recipe.yaml", say=print)
    task.questions.all[0].prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgraft.config import DataSettings, SourceSettings, load_data
from visgraft.data.sources import open_sources
from visgraft.errors import ConfigError
from visgraft.evaluation.questions import QuestionSet, questions_of
from visgraft.evaluation.revisions import pin_revisions
from visgraft.reporting.progress import working
from visgraft.starter import resolve

MAX_NEW_TOKENS = 32  # where neither recipe nor benchmark says


@dataclass(frozen=True)
class Task:
    """Questions, and how they are answered and scored where the caller does not say.

    Attributes:
        name: of the data.
        questions: all of them.
        metrics: to score by.
        max_new_tokens: longest answer.
        language: of the texts, where no spaces divide its words.
        facts: what else is known: which commits of the Hub were loaded, published figures of a benchmark.
    """

    name: str
    questions: QuestionSet
    metrics: Sequence[str]
    max_new_tokens: int = MAX_NEW_TOKENS
    language: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def open_recipe(source: str, *, say: Callable[[str], None]) -> Task:
    """Open the test data of a recipe: `data.test`, or `data.validation` where it has none.

    Raises:
        ConfigError: it names neither.
    """
    data, max_new_tokens, scores = _settings(source)
    part = "test" if data.test else "validation"
    entries = getattr(data, part)
    if not entries:
        raise ConfigError(f"{source}: data.test: missing, and so is data.validation; name what models are scored on")
    if part == "validation":
        say(f"{source} names no data.test: scoring on data.validation, which training may have chosen the model by")
    entries, loaded = pin_revisions(entries, say=say)
    questions = open_entries(entries, key=f"data.{part}", settings=data, name=f"{source}: data.{part}", say=say)
    metrics = scores or default_metrics(questions)
    name = Path(source).stem if Path(source).suffix else Path(source).name
    facts = {"loaded": [vars(each) for each in loaded]} if loaded else {}
    return Task(name, questions, metrics, max_new_tokens, facts=facts)


def _settings(source: str) -> tuple[DataSettings, int, Sequence[str]]:
    """Read what a recipe says of data and answers; one with nothing but `data` will do."""
    data, recipe = load_data(source)
    return data, MAX_NEW_TOKENS if recipe is None else recipe.train.max_new_tokens, ()


def open_entries(
    entries: Sequence[SourceSettings],
    *,
    key: str,
    settings: DataSettings,
    name: str,
    say: Callable[[str], None],
    candidates: Sequence[str] = (),
    frame: str = "{prompt}",
) -> QuestionSet:
    """Open sources and read what they ask."""
    local = [resolve(entry, say=say) for entry in entries]
    sources = open_sources(local, key=key, settings=settings)
    with working("reading the questions", total=len(sources), unit="samples") as advance:
        return questions_of(sources, name=name, candidates=candidates, frame=frame, advance=advance)


def default_metrics(questions: QuestionSet) -> Sequence[str]:
    """Choose metrics by what is asked: those of captions where nothing is, else exact match."""
    asks = sum(bool(question.prompt) for question in questions.all)
    return ("exact_match",) if asks * 2 >= len(questions.all) else ("cider", "bleu", "rouge_l")
