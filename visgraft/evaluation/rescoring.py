"""The figures of an evaluation again, from its kept answers alone: no model, no data, no image.

In: the folder of an evaluation. Out: what `scores.json` says of each model's answers and controls, reckoned again, and
the lines of `answers.jsonl` that carry another value than their answer has.

    again = rescore(Path("evaluations/20260102-030405-my-run-easy-vqa"))
    again.models["runs/my-run"]["scores"]["exact_match"]["value"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgraft.atomic import read_records
from visgraft.errors import DataError
from visgraft.evaluation.comparing import compare_models
from visgraft.evaluation.controls import KEYS, Control, measure_control, sight_as_json, sight_of
from visgraft.evaluation.records import Answered, answered_of_record
from visgraft.evaluation.running import ANSWERS, CONTROLS, REQUEST
from visgraft.evaluation.scoring import Scored, check_metrics, score_answers, scored_as_json
from visgraft.parsing import parse_json

SAME = 1e-9  # relative: what another version of a library may change in a sum


@dataclass(frozen=True)
class Rescored:
    """An evaluation, scored again.

    Attributes:
        models: name -> what `scores.json` says of it, but for its settings.
        comparisons: of the others with the first, as there.
        wrong: of each line whose own value is not that of its answer, which, and both values.
    """

    models: Mapping[str, Mapping[str, Any]]
    comparisons: Sequence[Mapping[str, Any]]
    wrong: Sequence[str]


def rescore(folder: Path) -> Rescored:
    """Score the kept answers of an evaluation and its controls again; metrics that need the model are left out.

    Raises:
        DataError: a file is missing, or a line is not what it should be.
        CheckpointError: a line is no JSON.
    """
    request = _read_request(folder / REQUEST)
    metrics = [name for name, metric in check_metrics(request["metrics"]).items() if metric.needs != "model"]
    language = request.get("language")
    answers, controls = _by_model(folder / ANSWERS), _by_model(folder / CONTROLS)
    models: dict[str, dict[str, Any]] = {}
    scored: list[Scored] = []
    wrong: list[str] = []
    for name in request["models"]:
        if name not in answers:
            raise DataError(f"{folder / ANSWERS}: holds no answers of {name}, which {REQUEST} names; bring them back")
        records = answers[name]
        answered = [answered_of_record(record, where=f"{folder / ANSWERS}: {record.get('id')}") for record in records]
        own = score_answers(name, answered, metrics=metrics, language=language)
        wrong += _wrong_lines(own, records)
        asked = _controls(answered, controls.get(name, []), metrics=metrics, language=language)
        models[name] = scored_as_json(own)
        if asked:
            models[name]["controls"] = {KEYS[control.kind]: control.as_json() for control in asked}
            models[name]["sight"] = sight_as_json(sight_of(asked))
        scored.append(own)
    return Rescored(models, [row.as_json() for row in compare_models(scored)], wrong)


def _read_request(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
        _ = values["models"], values["metrics"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: does not say what was evaluated ({error}); bring it back") from error
    request: dict[str, Any] = values
    return request


def _by_model(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the lines of each model that are answers, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _, record in read_records(path):
        if "error" not in record:
            found.setdefault(str(record.get("model", "")), []).append(record)
    return found


def _wrong_lines(scored: Scored, records: Sequence[Mapping[str, Any]]) -> list[str]:
    wrong = []
    for place, record in enumerate(records):
        for name, score in scored.scores.items():
            written, value = (record.get("scores") or {}).get(name), float(score.per_sample[place])
            if not isinstance(written, (int, float)) or not math.isclose(written, value, rel_tol=SAME, abs_tol=SAME):
                wrong.append(f"{scored.model}, {record.get('id')}: {name}: written {written}, its answer has {value}")
    return wrong


def _controls(
    answered: Sequence[Answered], records: Sequence[Mapping[str, Any]], *, metrics: Sequence[str], language: str | None
) -> list[Control]:
    found = []
    for kind in KEYS:
        others = [
            answered_of_record(record, where=f"{CONTROLS}: {record.get('id')}")
            for record in records
            if record.get("control") == kind
        ]
        if others:
            found.append(measure_control(kind, answered, others, metrics=metrics, language=language))
    return found
