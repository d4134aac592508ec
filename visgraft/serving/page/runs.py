"""Runs as they train: a list of them, and of one its curves and its answers to the sample prompts.

In: the folder that `--runs` names, read again as its files grow, only what is new of a log. Out: JSON whose size does
not grow with the length of a run.

    view = RunsView(Path("runs"))
    view.listing()                       # [{"name": "modules/lora-seed0", "state": "training", "step": 40, ...}]
    view.one("modules/lora-seed0")       # {"stamp": "...", "charts": [...], "prompts": [...]}
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter

from visgraft.atomic import read_records
from visgraft.compare.collect import find_runs
from visgraft.compare.curves import Array, Curve, smooth, thin, training_curve, validation_curve
from visgraft.errors import CheckpointError
from visgraft.folder_lock import find_holder
from visgraft.listing import changed_at, content_of, listing
from visgraft.runs import Log, Run, counted_records
from visgraft.serving.failures import Failure
from visgraft.serving.service import Service

NUM_POINTS = 300  # of a curve
NUM_PROMPTS = 24  # sample prompts that are shown
NUM_ANSWERS = 12  # the last ones to each


class RunsView:
    """The runs of a folder; several threads may look."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; runs may come and go."""
        self._folder = folder.expanduser().absolute()
        self._seen: dict[str, _LiveRun] = {}
        self._lock = threading.Lock()

    def listing(self) -> list[dict[str, Any]]:
        """Say of each run where it stands, those that changed last in front."""
        with self._lock:
            told = [{"name": name, **run.standing()} for name, run in self._find().items()]
        return sorted(told, key=lambda each: -each["changed"])

    def one(self, name: str, *, known: str = "") -> dict[str, Any]:
        """Give the curves and answers of a run; nothing but its stamp where that is the `known` one.

        Raises:
            Failure: 404, the folder holds no such run.
        """
        with self._lock:
            run = self._run(name)
            stamp = run.stamp()
            if known == stamp:
                return {"stamp": stamp}
            return {"stamp": stamp, "name": name, **run.standing(), **run.shown()}

    def pictures(self, name: str) -> dict[str, str]:
        """Give the pictures of a run's sample prompts as data: URLs, by the paths that its answers name.

        Raises:
            Failure: 404, the folder holds no such run.
        """
        with self._lock:
            folder = self._run(name).run.folder
        pictures = {}
        for path, _ in listing(folder / "sample_prompts", "*.jpg"):
            content = base64.b64encode(content_of(path) or b"").decode()
            pictures[f"{path.parent.name}/{path.name}"] = f"data:image/jpeg;base64,{content}"
        return pictures

    def _run(self, name: str) -> _LiveRun:
        found = self._find()
        if name not in found:
            raise Failure(404, "name: there is no such run; /page/runs lists those that are there", param="name")
        return found[name]

    def _find(self) -> dict[str, _LiveRun]:
        """List the runs by their names: their places in the folder. Names of clients are looked up, never opened."""
        try:
            folders = [found.folder for found in find_runs([self._folder]) if found.is_begun]
        except CheckpointError:  # none yet
            folders = []
        names = {name_below(self._folder, folder): folder for folder in folders}
        self._seen = {name: self._seen.get(name) or _LiveRun(Run(folder)) for name, folder in names.items()}
        return self._seen


def name_below(root: Path, folder: Path) -> str:
    """Name a folder by its place below another, or by its own name where it is that one."""
    return folder.name if folder == root else folder.relative_to(root).as_posix()


def make_runs_router(service: Service, folder: Path) -> APIRouter:
    """Make the routes."""
    router = APIRouter()
    view = RunsView(folder)

    @router.get("/page/runs")
    async def list_runs() -> list[dict[str, Any]]:
        """List the runs."""
        return await service.in_thread(view.listing)

    @router.get("/page/run")
    async def get_run(name: str, known: str = "") -> dict[str, Any]:
        """Show a run."""
        return await service.in_thread(lambda: view.one(name, known=known))

    @router.get("/page/run/pictures")
    async def get_pictures(name: str) -> dict[str, str]:
        """Show what a run's sample prompts are about."""
        return await service.in_thread(lambda: view.pictures(name))

    return router


class _LiveRun:
    """A run whose logs are followed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._logs: dict[Log, _Followed] = {log: _Followed(run.log_path(log)) for log in ("metrics", "samples")}
        self._drawn: tuple[list[dict[str, Any]], Curve, Curve, dict[str, list[float | None]]] | None = None

    def stamp(self) -> str:
        """Give a word that changes with anything that is shown."""
        samples = self.run.log_path("samples")
        times = (*self.run.last_changes(), changed_at(samples))
        return f"{self._state()}-{'-'.join(f'{each:.6f}' for each in times)}"

    def standing(self) -> dict[str, Any]:
        """Say where the run stands."""
        told: dict[str, Any] = {"state": self._state(), "changed": max(self.run.last_changes())}
        if told["changed"] == 0:  # nothing was logged yet
            told["changed"] = changed_at(self.run.recipe_path)
        told["silent_s"] = max(0.0, time.time() - told["changed"])
        try:
            training, validation, _ = self._curves()
        except CheckpointError as error:
            return {**told, "state": "unreadable", "problem": str(error)}
        if told["state"] == "failed":
            told["problem"] = self.run.read_failure()
        if len(training):
            minutes = float(training.minutes[-1])
            told |= {"step": int(training.steps[-1]), "loss": _number(smooth(training.token)[-1]), "minutes": minutes}
            told["samples_per_s"] = float(training.samples[-1]) / (minutes * 60) if minutes else None
        if len(validation):
            told["validation_loss"] = _number(validation.token[-1])
        return told

    def shown(self) -> dict[str, Any]:
        """Give what is drawn and listed: `charts`, each with its lines, and `prompts`, each with its answers."""
        try:
            training, validation, scores = self._curves()
            samples = self._logs["samples"].read()
        except CheckpointError:
            return {"charts": [], "prompts": []}
        raw = thin(training, unit="token", number=NUM_POINTS)
        loss = [
            {"name": "each step", "kind": "raw", "points": _points(training.steps[raw], training.token[raw])},
            {"name": "training", "kind": "main", "points": _even(training.steps, smooth(training.token))},
        ]
        if len(validation):
            loss.append({"name": "validation", "kind": "other", "points": _even(validation.steps, validation.token)})
        charts = [{"name": "loss", "is_loss": True, "lines": loss}] if len(training) else []
        for name, values in scores.items():
            points = _even(validation.steps, np.array(values, dtype=np.float64))
            line = {"name": name.replace("_", " "), "kind": "main", "points": points}
            charts.append({"name": line["name"], "is_loss": False, "lines": [line]})
        return {"charts": charts, "prompts": _prompts(samples)}

    def _state(self) -> str:
        """Say whether the run trains, in one word for the user."""
        status = self.run.status()
        if status != "unfinished":
            return status
        return "training" if find_holder(self.run.folder) else "stopped"

    def _curves(self) -> tuple[Curve, Curve, dict[str, list[float | None]]]:
        records = self._logs["metrics"].read()
        if self._drawn is None or self._drawn[0] is not records:
            training = training_curve([record for record in records if "loss" in record])
            found = [record for record in records if "validation_loss" in record]
            self._drawn = (records, training, *validation_curve(found, training))
        return self._drawn[1:]


class _Followed:
    """A log, of which only what is new is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[tuple[int, dict[str, Any]]] = []
        self._counted: list[dict[str, Any]] = []
        self._stamp = (0, 0)

    def read(self) -> list[dict[str, Any]]:
        """Give the records that count; the same list as before where nothing is new.

        Raises:
            CheckpointError: a line is no record.
        """
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return self._counted
        stamp = (state.st_size, state.st_mtime_ns)
        if stamp != self._stamp:
            if state.st_size < self._stamp[0]:  # written anew
                self._found = []
            start = self._found.pop()[0] if self._found else 0  # the last record again: it says where the next starts
            self._found += read_records(self._path, start=start)
            self._counted = counted_records(self._found)
            self._stamp = stamp
        return self._counted


def _prompts(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the answers to each prompt together, the last ones in front."""
    prompts: dict[tuple[Any, Any], dict[str, Any]] = {}
    for record in samples:
        key = (record.get("id"), record.get("prompt"))
        about = {name: record.get(name) for name in ("id", "prompt", "expected", "image")}
        answers = prompts.setdefault(key, {**about, "answers": []})["answers"]
        answers.insert(0, {name: record.get(name) for name in ("step", "answer", "stopped")})
        del answers[NUM_ANSWERS:]
    return list(prompts.values())[:NUM_PROMPTS]


def _even(x: Array, y: Array) -> list[tuple[float, float]]:
    """Give the points of a line, evenly chosen where they are many, the last one always among them."""
    kept = np.flatnonzero(~np.isnan(y))
    if len(kept) > NUM_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, NUM_POINTS).round().astype(int)]
    return _points(x[kept], y[kept])


def _points(x: Array, y: Array) -> list[tuple[float, float]]:
    return [(float(at), float(f"{value:.6g}")) for at, value in zip(x, y, strict=True) if np.isfinite(value)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
