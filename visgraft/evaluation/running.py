"""An evaluation from beginning to end: models, a task, a folder.

In: names of models, a task, settings. Out: a folder with `answers.jsonl`, `controls.jsonl`, `scores.json`, and an
`Evaluation`. A call that was stopped goes on where it was; what the cache knows is not asked again.

    evaluation = evaluate_models(["runs/my-run"], task, settings=Settings(), folder=Path("scored"), say=print)
    evaluation.models[0].scored.intervals["exact_match"].value
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from visgraft.atomic import write_json
from visgraft.errors import ConfigError, DataError
from visgraft.evaluation.answer_log import TAG, AnswerLog, forget_others, write_lines
from visgraft.evaluation.asking import Shown, answered_of, ask_questions, described
from visgraft.evaluation.comparing import Compared, compare_models
from visgraft.evaluation.controls import KEYS, Control, ControlKind, measure_control, sight_as_json, sight_of
from visgraft.evaluation.loading import Lazy, LazyBare
from visgraft.evaluation.measuring import measure_questions, scores_of_log
from visgraft.evaluation.questions import QuestionSet
from visgraft.evaluation.records import Answered
from visgraft.evaluation.scoring import Scored, check_metrics, score_answers, scored_as_json
from visgraft.evaluation.seeds import seed_groups
from visgraft.evaluation.task import Task
from visgraft.folder_lock import LOCK_FILE, FolderLock
from visgraft.inference.identity import tag_of
from visgraft.listing import listing
from visgraft.metrics import Scores
from visgraft.metrics.intervals import DRAWS
from visgraft.model.precision import Precision
from visgraft.parsing import parse_json
from visgraft.reporting.progress import working
from visgraft.runs import library_versions

ANSWERS, CONTROLS, SCORES, REQUEST = "answers.jsonl", "controls.jsonl", "scores.json", "request.json"
MEASURED, REPORT = "measured.jsonl", "report.html"
OURS = {ANSWERS, CONTROLS, MEASURED, SCORES, REQUEST, REPORT, LOCK_FILE}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How models are asked and scored.

    Attributes:
        metrics: names; empty: those of the task.
        language: of the texts; None: that of the task.
        limit: questions at most, about images drawn at random; None: all.
        max_new_tokens: longest answer; None: as the task says.
        batch_size: questions that run at once.
        device: None: the accelerator that is there.
        precision: of the frozen weights.
        control_limit: questions of the controls at most; 0: no controls.
        bare: whether the untouched language model is asked too.
    """

    metrics: Sequence[str] = ()
    language: str | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    device: str | None = None
    precision: Precision = "auto"
    control_limit: int = 500
    bare: bool = False


@dataclass(frozen=True)
class EvaluatedModel:
    """One model's part of an evaluation.

    Attributes:
        name: as it was given.
        checksum: of its folder.
        scored: its answers and scores.
        num_known: answers that were there before this call.
        unusable: questions whose image cannot be used, and why.
        controls: the same model asked in other ways.
    """

    name: str
    checksum: str
    scored: Scored
    num_known: int
    unusable: Mapping[str, str] = field(default_factory=dict)
    controls: Sequence[Control] = ()

    @property
    def not_answered(self) -> dict[str, str]:
        """Why there is no answer, by id of the question: an empty one is counted."""
        return {said.id: said.no_answer for said in self.scored.answered if said.no_answer}

    @property
    def warnings(self) -> list[str]:
        """What a person should know before believing the scores."""
        said = []
        if self.unusable:
            said.append(
                f"questions left out, as their images cannot be used: {len(self.unusable):,}; the first: "
                f"{next(iter(self.unusable.values()))}"
            )
        if self.not_answered:
            said.append(
                f"questions too long for the model: {len(self.not_answered):,} of {len(self.scored.answered):,}, and "
                f"an empty answer is counted for each; the first: {next(iter(self.not_answered.values()))}"
            )
        return said


@dataclass(frozen=True)
class Evaluation:
    """Models on one task.

    Attributes:
        folder: where it is.
        task: what was asked.
        settings: as they hold, defaults filled in.
        models: in their order.
        compared: the others beside the first.
    """

    folder: Path
    task: Task
    settings: Settings
    models: Sequence[EvaluatedModel]
    compared: Sequence[Compared]

    def as_json(self) -> dict[str, Any]:
        """Give everything that `scores.json` holds and `--json` prints."""
        values: dict[str, Any] = {"models": [self._of_model(each) for each in self.models]}
        if len(self.models) > 1:
            values["comparisons"] = [row.as_json() for row in self.compared]
        seeds = seed_groups([each.scored for each in self.models])
        if seeds:
            values["seeds"] = [group.as_json() for group in seeds]
        return values

    def _of_model(self, each: EvaluatedModel) -> dict[str, Any]:
        questions = self.task.questions
        settings = {
            **asdict(self.settings),
            "data": self.task.name,
            "data_fingerprint": questions.fingerprint,
            "prompt": questions.frame,
            "decoding": "greedy",
            "model_checksum": each.checksum,
            "interval": f"95 %, {DRAWS:,} draws of images with all their questions",
            "bad_samples": len(questions.bad),
            "unusable_images": len(each.unusable),
            "prompts_too_long": len(each.not_answered),
            "versions": library_versions(),
            **self.task.facts,
        }
        values = scored_as_json(each.scored)
        if each.controls:
            values["controls"] = {KEYS[control.kind]: control.as_json() for control in each.controls}
            values["sight"] = sight_as_json(sight_of(each.controls))
        return {**values, "settings": settings}


def evaluate_models(models: Sequence[str], task: Task, *, settings: Settings, folder: Path, say: Say) -> Evaluation:
    """Ask, score and write down.

    Args:
        models: run folders, model folders or Hub names, each once.
        task: what is asked.
        settings: how.
        folder: where everything goes; one that an evaluation left is gone on with.
        say: tells the user.

    Raises:
        ConfigError: a model is named twice; an unknown metric; the folder holds something else.
        CheckpointError: there is no such model.
        DataError: no question can be asked, or a metric cannot score such references.
    """
    settings = _settled(settings, task)
    metrics = check_metrics(settings.metrics)
    check_folder(folder)
    if len(set(models)) < len(models):
        twice = next(name for name in models if list(models).count(name) > 1)
        raise ConfigError(f"{twice}: is named twice; name each model once")
    asked = replace(task, questions=task.questions.limited(settings.limit))
    for metric in metrics.values():  # before anything is asked
        metric.check_references([question.references for question in asked.questions.all])
    lazy = [Lazy(name, device=settings.device, precision=settings.precision) for name in models]
    asking = [AskingModel(each, asked.questions, settings) for each in lazy]
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder, say=say, work="evaluating models into it")
        (folder / SCORES).unlink(missing_ok=True)  # it is there once the evaluation is whole
        write_json(folder / REQUEST, request_of(models, asked, settings))
        forget_others(folder / ANSWERS, tags={each.main.tag for each in asking})
        forget_others(folder / MEASURED, tags={each.measured_tag for each in asking})
        forget_others(folder / CONTROLS, tags=set().union(*(each.control_tags for each in asking)))
        evaluated = [each.run(folder, say=say) for each in asking]
        found = Evaluation(folder, asked, settings, evaluated, compare_models([each.scored for each in evaluated]))
        write_answers(found, tags=[each.main.tag for each in asking])
        write_controls(found, asked=[each.controls for each in asking])
        write_json(folder / SCORES, found.as_json())
    return found


def _settled(settings: Settings, task: Task) -> Settings:
    return replace(
        settings,
        metrics=tuple(settings.metrics or task.metrics),
        language=settings.language or task.language,
        max_new_tokens=settings.max_new_tokens or task.max_new_tokens,
    )


class Asking:
    """One model that is asked one set of questions in one way, under one tag."""

    def __init__(self, model: Lazy, questions: QuestionSet, settings: Settings, *, shown: Shown = "image") -> None:
        """Work out what the answers depend on; nothing is loaded."""
        self.model, self.questions, self.settings, self.shown = model, questions, settings, shown
        of: dict[str, Any] = {
            "model": model.checksum,
            "data": questions.fingerprint,
            "prompt": questions.frame,
            "max_new_tokens": settings.max_new_tokens,
            "dtype": model.dtype,
            "shown": shown,
        }
        if shown == "another image":  # which one depends on what else there is
            of["among"] = [question.id for question in questions.all]
        self.tag = tag_of(**of)

    def ask(self, path: Path, *, say: Say) -> tuple[list[Answered], AnswerLog]:
        """Ask what is not known yet; the model is loaded only where something is left to ask."""
        name = self.model.name
        with AnswerLog(path, tag=self.tag) as log:
            left = sum(question.id not in log.known for question in self.questions.all)
            if not left:
                return answered_of(self.questions.all, log.known), log
            if log.num_found:
                say(f"{name}: {len(self.questions.all) - left:,} answers are known, {left:,} are left to ask")
            assert self.settings.max_new_tokens is not None
            loaded = self.model.get()
            way = "its bare language model" if isinstance(self.model, LazyBare) else self.shown
            what = f"asking {name}" + ("" if way == "image" else f", {way}")
            with working(what, total=len(self.questions.all), unit="questions") as advance:
                answered = ask_questions(
                    loaded,
                    self.questions,
                    log=log,
                    max_new_tokens=self.settings.max_new_tokens,
                    batch_size=self.settings.batch_size,
                    shown=self.shown,
                    advance=advance,
                )
            return answered, log


class AskingModel:
    """One model of an evaluation: its own answers, and those of its controls."""

    def __init__(self, model: Lazy, questions: QuestionSet, settings: Settings) -> None:
        """Work out what is asked; nothing is loaded."""
        self.model, self.settings = model, settings
        self.main = Asking(model, questions, settings)
        metrics = check_metrics(settings.metrics)
        self.of_model = [name for name, metric in metrics.items() if metric.needs == "model"]
        expected = [(question.references, question.candidates) for question in questions.all]
        self.measured_tag = tag_of(asked=self.main.tag, measured=self.of_model, expected=expected)
        self.controls: dict[ControlKind, Asking] = {}
        some = questions.limited(settings.control_limit or None)
        if settings.control_limit and any(question.image for question in some.all):
            self.controls = {
                "no image": Asking(model, some, settings, shown="no image"),
                "another image": Asking(model, some, settings, shown="another image"),
            }
        if settings.bare:
            some = some if settings.control_limit else questions
            self.controls["bare language model"] = Asking(LazyBare(model), some, settings, shown="no image")

    def run(self, folder: Path, *, say: Say) -> EvaluatedModel:
        """Ask what is not known yet, and score."""
        name, settings = self.model.name, self.settings
        answered, log = self.main.ask(folder / ANSWERS, say=say)
        unusable = {key: str(record["error"]) for key, record in log.known.items() if "error" in record}
        if not answered:
            raise DataError(f"{name}: no question could be asked: {next(iter(unusable.values()))}; mend the images")
        measured = self._measure(folder / MEASURED, answered) if self.of_model else None
        scored = score_answers(name, answered, metrics=settings.metrics, language=settings.language, measured=measured)
        controls = []
        of_answers = [metric for metric in settings.metrics if metric not in self.of_model]
        for kind, asking in self.controls.items() if of_answers else ():
            others, _ = asking.ask(folder / CONTROLS, say=say)
            if others:
                controls.append(measure_control(kind, answered, others, metrics=of_answers, language=settings.language))
        self.model.forget()
        return EvaluatedModel(name, self.model.checksum, scored, log.num_found, unusable, controls)

    def _measure(self, path: Path, answered: Sequence[Answered]) -> dict[str, Scores]:
        """Measure on the model itself what no answer tells; the model is loaded only where something is left."""
        questions = self.main.questions
        asked = {each.id for each in answered}
        questions = replace(questions, all=[question for question in questions.all if question.id in asked])
        with AnswerLog(path, tag=self.measured_tag) as log:
            if any(question.id not in log.known for question in questions.all):
                loaded = self.model.get()
                with working(f"measuring {self.model.name}", total=len(questions.all), unit="questions") as advance:
                    measure_questions(loaded, questions, log=log, metrics=self.of_model, advance=advance)
            return scores_of_log(questions.all, log.known, metrics=self.of_model)

    @property
    def control_tags(self) -> set[str]:
        """The tags of its controls."""
        return {asking.tag for asking in self.controls.values()}


def request_of(models: Sequence[str], task: Task, settings: Settings) -> dict[str, Any]:
    """Say what an evaluation is of, so that one that was stopped is known again."""
    values = {"models": list(models), "data": task.name, "data_fingerprint": task.questions.fingerprint}
    return {**values, **asdict(settings), "metrics": list(settings.metrics)}


def write_answers(evaluation: Evaluation, *, tags: Sequence[str]) -> None:
    """Write `answers.jsonl` whole, with each score's value for each answer."""
    questions = {question.id: question for question in evaluation.task.questions.all}
    records: list[dict[str, Any]] = []
    for each, tag in zip(evaluation.models, tags, strict=True):
        for place, said in enumerate(each.scored.answered):
            values = {name: score.per_sample[place] for name, score in each.scored.scores.items()}
            record = {**described(questions[said.id]), "answer": said.answer, "scores": values}
            record |= {"no_answer": said.no_answer} if said.no_answer else {}
            record |= {"tokens": said.tokens, "stopped": said.stopped, "model": each.name, TAG: tag}
            records.append(record)
    write_lines(evaluation.folder / ANSWERS, records)


def write_controls(evaluation: Evaluation, *, asked: Sequence[Mapping[ControlKind, Asking]]) -> None:
    """Write `controls.jsonl` whole, the answers that the cache knew too; `control` names the way of asking."""
    questions = {question.id: question for question in evaluation.task.questions.all}
    records = [
        {
            **{**described(questions[said.id]), "answer": said.answer, "tokens": said.tokens, "stopped": said.stopped},
            **({"no_answer": said.no_answer} if said.no_answer else {}),
            **{"model": each.name, "control": control.kind, "shown": of_model[control.kind].shown},
            TAG: of_model[control.kind].tag,
        }
        for each, of_model in zip(evaluation.models, asked, strict=True)
        for control in each.controls
        for said in control.scored.answered
    ]
    if records:
        write_lines(evaluation.folder / CONTROLS, records)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an evaluation.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; give a folder with -o")
    held = {found.path.name for found in listing(folder)}
    strange = sorted(name for name in held - OURS if not name.startswith("."))
    if strange:
        raise ConfigError(f"{folder}: holds {strange[0]}, which is no part of an evaluation; give a new folder with -o")


def folder_of(models: Sequence[str], task: Task, settings: Settings) -> Path:
    """Name the folder of an evaluation: `evaluations/DATE-NAME`, or that of the same one, which was stopped."""
    settings = _settled(settings, task)
    asked = replace(task, questions=task.questions.limited(settings.limit))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(models[0]).name}-{task.name}").strip("-.")
    return choose_folder(request_of(models, asked, settings), parent=Path("evaluations"), name=name)


def choose_folder(request: Mapping[str, Any], *, parent: Path, name: str) -> Path:
    """Find the folder of the same evaluation that was stopped; else name a new one by date."""
    for path, _ in reversed(listing(parent, f"*-{name}*")):
        if (path / SCORES).exists():
            continue
        try:
            before = parse_json((path / REQUEST).read_bytes())
        except (OSError, ValueError):  # none, or one that is being written or removed
            continue
        if before == parse_json(json.dumps(request)):
            return path
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    paths = (parent / (stem if number == 1 else f"{stem}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())
