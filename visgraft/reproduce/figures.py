"""Every figure of a reproduction, from the files that its runs and evaluations left, and from nothing else.

In: the folder. Out: plain values: experiment -> its runs (curves, losses, scores, cost, sample answers) and evaluations
(scores with intervals, controls). Reckoned once when it is written, and again by whoever checks it.

    figures_of(Path("reproductions/hour"))["language"]["runs"]["opt-seed0"]["validation_loss"]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from visgraft.config import read_yaml
from visgraft.errors import CheckpointError, VisgraftError
from visgraft.evaluation.rescoring import SAME, Rescored, rescore
from visgraft.evaluation.running import SCORES
from visgraft.parsing import parse_json
from visgraft.reproduce.article import ARTICLE
from visgraft.runs import EXPERIMENT_FILE, Run, read_experiment_record

EXPERIMENTS, EVALUATIONS = "experiments", "evaluations"
CURVE_POINTS = 100  # of a run at most; each is the mean of a stretch of steps
NUM_ANSWERS = 4  # of a run, the last that it gave to the first sample prompts
TOTALS = ("samples", "dialogs", "text_tokens", "supervised_tokens")
COST = ("wall_seconds", "peak_memory_bytes", "memory", "device", "num_processes")  # as the run measured them
OF_VALIDATION = ("step", "validation_loss", "validation_loss_per_character")
Wrong = Callable[[str, str], None]  # is told the file and what is wrong with it


def figures_of(folder: Path, *, wrong: Wrong | None = None) -> dict[str, Any]:
    """Reckon every figure.

    Args:
        folder: of the reproduction.
        wrong: is told of what contradicts itself or cannot be read, and the rest is reckoned; None: that is an error.

    Raises:
        VisgraftError: something cannot be read.
    """
    tell = _raise if wrong is None else wrong
    found: dict[str, Any] = {}
    for name in ARTICLE:
        file = folder / EXPERIMENTS / f"{name}.yaml"
        if not file.is_file():
            continue
        values = _tried(partial(read_yaml, file, what="experiment", need="a YAML file"), _named(file, folder), tell)
        record = _tried(partial(read_experiment_record, folder / name), f"{name}/{EXPERIMENT_FILE}", tell)
        names = [str(entry["folder"]) for entry in (record or {"runs": []})["runs"]]
        tasks = [path.name for path in sorted((folder / EVALUATIONS / name).glob("*")) if path.is_dir()]
        found[name] = {
            "variants": list((values or {}).get("variants", {})),
            "runs": {run: _run(folder, f"{name}/{run}", tell) for run in names},
            "evaluations": {task: _evaluation(folder, f"{EVALUATIONS}/{name}/{task}", tell) for task in tasks},
        }
    plain: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))  # as they are read again
    return plain


def _raise(file: str, what: str) -> None:
    raise CheckpointError(f"{file}: {what}")


def _tried(reckon: Callable[[], Any], place: str, tell: Wrong) -> Any:
    try:
        return reckon()
    except (VisgraftError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        tell(place, f"cannot be reckoned: {type(error).__name__ if isinstance(error, KeyError) else ''}{error}".strip())
        return None


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


# --- Runs


def _run(folder: Path, place: str, tell: Wrong) -> Any:
    return _tried(partial(_of_run, folder, place, tell), place, tell)


def _of_run(folder: Path, place: str, tell: Wrong) -> dict[str, Any]:
    run = Run(folder / place)
    reason, summary = run.read_failure(), run.read_summary()
    if reason is not None:  # perhaps before it had a recipe
        return {"failed": reason.split("\n")[0]}
    if summary is None:
        Run.open(run.folder)  # says what it is instead of a run
        return {"failed": "was not finished"}
    steps, validations = run.steps(), run.validations()
    from_log = _from_log(summary, steps, validations)
    for key, value in from_log.items():
        if not is_same(summary.get(key), value):
            tell(f"{place}/summary.json", f"{key}: written {summary.get(key)}, metrics.jsonl gives {value}")
    return {
        **from_log,
        "trained_parameters": sum(summary["trainable_parameters"].values()),
        "hours": summary.get("hours", summary["wall_seconds"] / 3600),
        "joules": summary.get("joules"),
        **{key: summary[key] for key in COST},
        "curve": _curve(steps),
        "validations": [{key: record.get(key) for key in OF_VALIDATION} for record in validations],
        "answers": _answers(run),
    }


def _from_log(
    summary: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Reckon again what a summary says and the log of steps knows."""
    of_model = [record for record in validations if record["step"] == summary["model_step"]]
    kept = of_model[-1] if of_model else {}
    seconds = sum(record["seconds"] for record in steps)
    totals = {key: sum(record[key] for record in steps) for key in TOTALS}
    return {
        "steps": steps[-1]["step"] if steps else 0,
        **totals,
        "step_seconds": seconds,
        "samples_per_second": totals["samples"] / max(seconds, 1e-9),
        "supervised_tokens_per_second": totals["supervised_tokens"] / max(seconds, 1e-9),
        "loss": steps[-1]["loss"] if steps else None,
        "validation_loss": kept.get("validation_loss"),
        "validation_loss_per_character": kept.get("validation_loss_per_character"),
        "scores": {key: kept[key] for key in summary["scores"] if key in kept},
    }


def _curve(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the training loss in stretches of equally many steps: last step, samples so far, mean per token."""
    size = max(1, math.ceil(len(steps) / CURVE_POINTS))
    points, samples = [], 0
    for start in range(0, len(steps), size):
        stretch = steps[start : start + size]
        samples += sum(record["samples"] for record in stretch)
        known = [record for record in stretch if record["loss"] is not None]
        tokens = sum(record["supervised_tokens"] for record in known)
        loss = sum(record["loss"] * record["supervised_tokens"] for record in known) / tokens if tokens else None
        points.append({"step": stretch[-1]["step"], "samples": samples, "loss": loss})
    return points


def _answers(run: Run) -> list[dict[str, Any]]:
    last: dict[tuple[Any, Any], dict[str, Any]] = {}
    for record in run.read("samples"):
        last[record.get("id"), record["prompt"]] = record
    keys = ("step", "prompt", "answer", "expected")
    return [{key: record.get(key) for key in keys} for record in list(last.values())[:NUM_ANSWERS]]


# --- Evaluations


def _evaluation(folder: Path, place: str, tell: Wrong) -> Any:
    return _tried(partial(_of_evaluation, folder, place, tell), place, tell)


def _of_evaluation(folder: Path, place: str, tell: Wrong) -> dict[str, Any]:
    again = rescore(folder / place)
    for line in again.wrong:
        tell(f"{place}/answers.jsonl", line)
    _check_scores(folder / place / SCORES, again, place=place, tell=tell)
    return {Path(name).name: values for name, values in again.models.items()}


def _check_scores(file: Path, again: Rescored, *, place: str, tell: Wrong) -> None:
    """Compare `scores.json` with what its answers give."""
    try:
        values = parse_json(file.read_bytes())
        written = {each["model"]: each for each in values["models"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        tell(f"{place}/{SCORES}", f"cannot be read ({error})")
        return
    for name, of in again.models.items():
        kept = {key: value for key, value in written.get(name, {}).items() if key != "settings"}
        for difference in differences(kept, of, Path(name).name):
            tell(f"{place}/{SCORES}", difference)
    for difference in differences(values.get("comparisons", []), list(again.comparisons), "comparisons"):
        tell(f"{place}/{SCORES}", difference)


# --- Compared


def is_same(written: Any, found: Any) -> bool:
    """Say whether two plain values are the same, numbers but for what another version of a library may change."""
    return not differences(written, found, "")


def differences(written: Any, found: Any, path: str) -> list[str]:
    """List where plain values differ: the place, what is written, what was found."""
    if isinstance(written, Mapping) and isinstance(found, Mapping):
        keys = [*written, *(key for key in found if key not in written)]
        inside = [(written.get(key, "nothing"), found.get(key, "nothing"), f"{path}.{key}".lstrip(".")) for key in keys]
        return [line for each in inside for line in differences(*each)]
    if isinstance(written, list) and isinstance(found, list) and len(written) == len(found):
        pairs = zip(written, found, strict=True)
        return [line for number, pair in enumerate(pairs) for line in differences(*pair, f"{path}.{number}")]
    if _is_number(written) and _is_number(found):
        is_equal = math.isclose(written, found, rel_tol=SAME, abs_tol=SAME)
    else:
        is_equal = type(written) is type(found) and written == found
    return [] if is_equal else [f"{path}: written {_short(written)}, its files give {_short(found)}"]


def count_figures(value: Any) -> int:
    """Count the numbers and texts in plain values."""
    if isinstance(value, Mapping):
        return sum(map(count_figures, value.values()))
    if isinstance(value, list):
        return sum(map(count_figures, value))
    return int(value is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, (Mapping, list)) else f"{len(value)} values"
    return text if len(text) <= 80 else f"{text[:77]}..."
