"""What the variants answer to the same questions about the same images: at the end, and on the way there.

In: variants, whose runs wrote `samples.jsonl`. Out: `SamplePrompt`: a question, its image, its truth, all answers.

    for question in gather(comparison.variants): question.final("lora")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from visgraft.compare.differences import data_key
from visgraft.compare.variants import RunData, Variant
from visgraft.config import Recipe
from visgraft.data.images.opening import open_image
from visgraft.data.sources import epoch_order, open_sources
from visgraft.errors import BadSampleError, VisgraftError
from visgraft.metrics.text_match import exact_match
from visgraft.metrics.text_quality import TextQuality, text_quality_of
from visgraft.starter import resolve
from visgraft.wording import counted

MAX_LOOKED_AT = 2_000  # samples that are read at most to find the question images again; questions stand at the front


@dataclass(frozen=True)
class Given:
    """One answer: of which run, after which step; whether it stopped by itself (None: not known) and is the truth."""

    variant: str
    seed: int
    step: int
    text: str
    stopped: bool | None
    is_right: bool


@dataclass
class SamplePrompt:
    """One question about one image.

    Attributes:
        prompt: the question; empty for a caption.
        expected: accepted answers; empty of an image of one's own.
        image: the picture, if it was found.
        missing: why there is no picture.
        given: every answer, in the order of variants, seeds and steps.
    """

    prompt: str
    expected: tuple[str, ...]
    image: Image.Image | None = None
    missing: str = ""
    given: list[Given] = field(default_factory=list)

    def final(self, variant: str) -> list[Given]:
        """Give the last answer of each run of a variant."""
        last: dict[int, Given] = {}
        for answer in self.given:
            if answer.variant == variant:
                last[answer.seed] = answer
        return list(last.values())

    def history(self, variant: str) -> list[Given]:
        """Give the answers of a variant's first seed over training, each where it changed."""
        changes: list[Given] = []
        of_variant = [answer for answer in self.given if answer.variant == variant]
        for answer in of_variant:
            if answer.seed == of_variant[0].seed and (not changes or changes[-1].text != answer.text):
                changes.append(answer)
        return changes


def gather(variants: Sequence[Variant], *, note: Callable[[str], None] = lambda text: None) -> list[SamplePrompt]:
    """Gather what the runs answered on the way, question by question, and find the images again.

    Questions are the same where data, sample, prompt and truth are; those that most variants were asked come first.
    """
    questions: dict[str, SamplePrompt] = {}
    wanted: dict[str, tuple[RunData, Mapping[str, Any]]] = {}
    for variant in variants:
        for run in variant.runs:
            for record in run.sample_answers:
                expected = tuple(map(str, record.get("expected") or ()))
                where = data_key(run, "validation") or data_key(run, "training")
                key = json.dumps([where if expected else "", record.get("id"), record["prompt"], expected])
                question = questions.setdefault(key, SamplePrompt(str(record["prompt"]), expected))
                wanted.setdefault(key, (run, record))
                question.given.append(_given(run, record, expected))
    _find_images(questions, wanted, note=note)
    num_asked = {key: len({answer.variant for answer in question.given}) for key, question in questions.items()}
    return [questions[key] for key in sorted(questions, key=lambda key: -num_asked[key])]


def _given(run: RunData, record: Mapping[str, Any], expected: Sequence[str]) -> Given:
    text = str(record.get("answer") or "")
    is_right = bool(expected) and exact_match([text], references=[expected]).value == 1.0
    return Given(run.variant, run.seed, int(record["step"]), text, record.get("stopped"), is_right)


def text_quality(questions: Sequence[SamplePrompt], variants: Sequence[Variant]) -> dict[str, TextQuality]:
    """Measure how each variant's finished models answer, over all these questions and its seeds."""
    found = {}
    for variant in variants:
        answers = [answer for question in questions for answer in question.final(variant.name)]
        if answers:
            texts = [answer.text for answer in answers]
            found[variant.name] = text_quality_of(texts, stopped=[answer.stopped for answer in answers])
    return found


# --- The pictures


def _find_images(
    questions: Mapping[str, SamplePrompt],
    wanted: Mapping[str, tuple[RunData, Mapping[str, Any]]],
    *,
    note: Callable[[str], None],
) -> None:
    """Give the questions their images: those that lie in the run folder, else those of the data that the run read."""
    from_data: dict[str, dict[str, str]] = {}
    runs: dict[str, RunData] = {}
    for key, (run, record) in wanted.items():
        kept = _kept_image(run, record)
        if kept is not None:
            _open(questions[key], kept)
        elif "image" in record and record["image"] is None:
            questions[key].missing = "this question has no image"
        else:
            where = data_key(run, "validation") or data_key(run, "training")
            runs[where] = run
            from_data.setdefault(where, {})[key] = str(record.get("id"))
    for where, ids in from_data.items():
        note(f"looking for {counted(len(ids), 'image')} in the data of {runs[where].variant}")
        try:
            images = _images_of_data(runs[where].recipe, set(ids.values()))
        except (VisgraftError, OSError) as error:
            for key in ids:
                questions[key].missing = f"the data of the run cannot be read any more: {error}"
            continue
        for key, name in ids.items():
            if name in images:
                _open(questions[key], images[name])
            else:
                questions[key].missing = "the data of the run no longer holds this sample"


def _kept_image(run: RunData, record: Mapping[str, Any]) -> Path | None:
    name = record.get("image")
    if not isinstance(name, str):
        return None
    return next((path for path in (run.folder / "sample_prompts" / name, run.folder / name) if path.is_file()), None)


def _open(question: SamplePrompt, image: Any) -> None:
    try:
        question.image = open_image(image)
    except BadSampleError as error:
        question.missing = str(error)


def _images_of_data(recipe: Recipe, ids: set[str]) -> dict[str, Any]:
    """Read the first image of the samples with these ids, looking where training picks its questions."""
    entries = recipe.data.validation or recipe.data.train
    local = [resolve(entry) for entry in entries]
    key = "data.validation" if recipe.data.validation else "data.train"
    sources = open_sources(local, key=key, settings=recipe.data)
    found: dict[str, Any] = {}
    for index in epoch_order(len(sources), seed=0, epoch=0).tolist()[:MAX_LOOKED_AT]:
        if len(found) == len(ids):
            break
        try:
            sample = sources[index]
        except BadSampleError:
            continue  # the run set it aside too
        if sample.id in ids and sample.images:
            found[str(sample.id)] = sample.images[0]
    return found
