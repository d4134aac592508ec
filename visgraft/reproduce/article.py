"""The article's three experiments as GIT-LLM's author wrote them, and how much of each a scale runs.

In: a scale and the folder of M3IT. Out: an experiment file for each, written into the folder of the reproduction: the
shipped one with the variants that the author ran, the place of the data, and what the scale sets. Here is also what the
trained models are asked.

    path = write_experiment_file(ARTICLE["modules"], folder, data=Path("~/m3it"), scale="hour")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from visgraft.atomic import write_whole
from visgraft.config import read_yaml, set_key
from visgraft.config.shipped import shipped_recipe
from visgraft.data.readers.m3it_tasks import NAMED_SETS

Scale = Literal["smoke", "hour", "full"]

VISION = "openai/clip-vit-base-patch16"
SMALL_LANGUAGE = "facebook/opt-350m"
LARGE_LANGUAGES = ("facebook/opt-6.7b", "meta-llama/Llama-2-7b-chat-hf", "mosaicml/mpt-7b")
MODELS = (VISION, SMALL_LANGUAGE, *LARGE_LANGUAGES)


@dataclass(frozen=True)
class Asked:
    """What the models of an experiment are asked once they are trained: rows by which no model was chosen.

    Attributes:
        task: of M3IT; names the evaluation.
        split: of it.
        metrics: by which answers are scored.
    """

    task: str
    split: str
    metrics: tuple[str, ...]


# COCO's captions have a test split. The questions have none: training validates on the first 500 images of the
# validation split, so its second half is asked.
CAPTIONS = Asked("coco", "test", ("cider", "bleu", "rouge_l"))
QUESTIONS = tuple(Asked(task, "validation[50%:]", ("exact_match",)) for task in ("vqa-v2", "okvqa"))


@dataclass(frozen=True)
class ArticleExperiment:
    """One experiment of the article.

    Attributes:
        name: of the shipped experiment that it is.
        what: it asks, in words.
        variants: of that file, those that the author ran.
        asked: what its models are asked.
    """

    name: str
    what: str
    variants: tuple[str, ...]
    asked: tuple[Asked, ...]


_MODULES = ("projection", "lora", "language", "vision", "head", "lora+vision", "lora+head", "language+vision", "all")
ARTICLE = {
    each.name: each
    for each in (
        ArticleExperiment("modules", "what to train, on M3IT's coco", _MODULES, (CAPTIONS,)),
        ArticleExperiment("language", "which of three 7B models, on M3IT's coco", ("opt", "llama", "mpt"), (CAPTIONS,)),
        ArticleExperiment("m3it", "the 26 tasks of the set `article`", ("article",), (CAPTIONS, *QUESTIONS)),
    )
}
# task -> the splits of it that something reads
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NAMED_SETS["article"], ("train",)),
    "coco": ("train", "validation", "test"),
    **{asked.task: ("train", "validation") for asked in QUESTIONS},
}


@dataclass(frozen=True)
class Amount:
    """How much a scale runs.

    Attributes:
        settings: dotted settings of every run; none: as the author wrote it.
        of_experiment: those of one experiment, over them.
        questions: of each evaluation at most.
        control_questions: of them, those asked without the image and with another one.
        max_new_tokens: longest answer.
    """

    questions: int
    control_questions: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    of_experiment: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_new_tokens: int = 32


def _steps(number: int, *, every: int) -> dict[str, Any]:
    """Take so many steps, and look how far it is every so many."""
    return {"train.max_steps": number, "train.validate_every_steps": every, "train.sample_every_steps": every}


_TINY = {
    "train.text_tokens_per_step": 200,
    "train.exact_match_samples": 2,
    "train.max_new_tokens": 2,
    "train.precision": "fp32",
    "train.num_workers": 0,
    "data.validation.0.limit": 4,
}
SCALES: dict[Scale, Amount] = {
    "smoke": Amount(
        questions=4,
        control_questions=4,
        settings={**_steps(2, every=2), **_TINY},
        of_experiment={"m3it": {"data.validation.1.limit": 2, "data.validation.2.limit": 2}},
        max_new_tokens=2,
    ),
    "hour": Amount(
        questions=200,
        control_questions=100,
        settings={"train.exact_match_samples": 50, "data.validation.0.limit": 100},
        of_experiment={
            "modules": _steps(600, every=150),
            "language": _steps(240, every=80),
            "m3it": {**_steps(240, every=80), "data.validation.1.limit": 50, "data.validation.2.limit": 50},
        },
    ),
    "full": Amount(questions=1000, control_questions=500),
}


def write_experiment_file(
    experiment: ArticleExperiment,
    folder: Path,
    *,
    data: Path,
    scale: Scale,
    in_place_of: Mapping[str, str] | None = None,
) -> Path:
    """Write the file of an experiment as it is run, and give its path.

    Args:
        experiment: of the article.
        folder: of the reproduction.
        data: of M3IT, a folder per task.
        scale: how much of it.
        in_place_of: name of a model -> the folder of what stands in its place.
    """
    shipped = shipped_recipe(f"experiments/{experiment.name}")
    assert shipped is not None
    values = read_yaml(shipped, what="experiment", need="a YAML file")
    values["variants"] = {name: values["variants"][name] for name in experiment.variants}
    recipe, amount = values["recipe"], SCALES[scale]
    for part in ("train", "validation"):
        for entry in recipe["data"][part]:
            entry["path"] = str(data)
    for key, value in {**amount.settings, **amount.of_experiment.get(experiment.name, {})}.items():
        set_key(recipe, key, value)
    values = _replaced(values, in_place_of or {})
    path = folder / "experiments" / f"{experiment.name}.yaml"
    head = f"# The article's experiment `{experiment.name}` ({experiment.what}) at the scale `{scale}`, as it is run.\n"
    write_whole(path, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    return path


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(inside, names) for key, inside in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_replaced(inside, names) for inside in value]
    return names.get(value, value) if isinstance(value, str) else value
