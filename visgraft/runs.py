"""A run on disk: one folder that holds everything a training did, and what state it is in.

In: a recipe, then records, checkpoints and a model as they come. Out: a folder whose files are whole at every moment,
readable without torch and without visgraft.

    runs/20260102-030405-name/
      recipe.yaml          the recipe as it runs, which the next resume takes: `load_recipe(run.folder)`
      first_recipe.yaml    the recipe as it began
      fingerprints.json    what the run depends on: data, models, versions, and what of it has changed since it began
      environment.json     versions, machine, commit, date
      metrics.jsonl        one object a line, append-only: step, loss, ...
      samples.jsonl        answers to the sample prompts
      sample_prompts/      their images, small
      quarantine.jsonl     bad inputs: source, index, reason
      checkpoints/step-N/  what `--resume` needs; whole or not there, with a sum of every file
      model/               what `visgraft ask` takes; whole or not there
      lock.json            the process that trains it; there as long as it does
      summary.json         what the run cost and how good its model is; there once the run is finished
      failure.txt          why it failed, of a run of an experiment; gone as soon as it is run again

The folder of an experiment holds such folders, and `experiment.yaml`: which run is which variant. docs/runs.md says
what is in each file.

Usage: `run = Run.create(recipe); run.append("metrics", {"step": 1, "loss": 2.3}); run.status()`
"""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Protocol

import yaml

from visgraft.atomic import (
    append_record,
    current_folder,
    read_records,
    remove_folder,
    restore_folder,
    sync_records,
    write_json,
    write_whole,
)
from visgraft.errors import CheckpointError, DiskError
from visgraft.folder_lock import LOCK_FILE
from visgraft.listing import changed_at, content_of, listing
from visgraft.notebook import curves_html, facts_html
from visgraft.parsing import parse_json, parse_yaml
from visgraft.sealed import check_files, read_sealed

Log = Literal["metrics", "samples", "quarantine"]
Status = Literal["new", "unfinished", "failed", "finished"]  # unfinished: it trains now, or was interrupted
EXPERIMENT_FILE = "experiment.yaml"
STATE_FILE = "state.json"  # of a checkpoint: the one written last, which proves the others
LOGS: tuple[Log, ...] = ("metrics", "samples", "quarantine")
REWOUND: tuple[Log, ...] = ("metrics", "samples")  # those that a resumed run goes back in; quarantine knows its own
FIRST_RECIPE, FINGERPRINTS = "first_recipe.yaml", "fingerprints.json"
# what may be there although no recipe is: recipe.yaml is written last
OF_NO_RUN_YET = {"environment.json", FINGERPRINTS, FIRST_RECIPE, LOCK_FILE, f".{LOCK_FILE}.takeover"}
LIBRARIES = (
    "visgraft",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
)


class RunRecipe(Protocol):
    """What a run folder needs to know of a recipe; `visgraft.config.Recipe` is one."""

    @property
    def output(self) -> str:
        """Folder in which the run folder is made."""

    @property
    def title(self) -> str:
        """Last part of the run folder's name."""

    def to_yaml(self) -> str:
        """Write the recipe as YAML."""


@dataclass(frozen=True)
class Run:
    """A run folder; make one with `create`, or `open` one that exists."""

    folder: Path

    @classmethod
    def create(
        cls,
        recipe: RunRecipe,
        *,
        folder: str | Path | None = None,
        fingerprints: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a new run folder and write what is known before the first step.

        `folder` is a folder of its own, new or empty (what a call that was killed before its recipe was written left
        there is no hindrance); without it, one named by date and name is made in `recipe.output`. `fingerprints` are
        of what the run depends on. Raises CheckpointError.
        """
        if folder is None:
            path = _new_folder(Path(recipe.output).expanduser(), name=recipe.title)
        else:
            path = cls.check_free(folder)
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run._remove_leftovers()
        try:
            write_json(path / "environment.json", environment())
            if fingerprints is not None:
                run.write_fingerprints({**fingerprints, "changes": []})
            write_whole(path / FIRST_RECIPE, recipe.to_yaml())
            write_whole(run.recipe_path, recipe.to_yaml())  # last: by it a folder is known as a run's
        except DiskError:
            for name in ("environment.json", FINGERPRINTS, FIRST_RECIPE):
                (path / name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: it is locked
                path.rmdir()
            raise
        return run

    @classmethod
    def check_free(cls, folder: str | Path) -> Path:
        """Refuse a folder in which no run can be made, as something is there; return its path.

        What a call left there that was killed before it wrote a recipe is no hindrance. Raises CheckpointError.
        """
        path = Path(folder).expanduser().absolute()
        is_free = path.is_dir() and all(_is_of_no_run_yet(inside.path.name) for inside in listing(path))
        if path.exists() and not is_free:
            raise CheckpointError(
                f"{path}: already there and not an empty folder; name another or remove it; a run that is there is "
                "gone on with by --resume, or by --resume-or-start"
            )
        return path

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a run folder that exists. Raises CheckpointError with what is missing."""
        folder = Path(path).expanduser().absolute()
        if not folder.is_dir():
            raise CheckpointError(f"{path}: no such run folder; need the folder that `visgraft train` made")
        if not (folder / "recipe.yaml").is_file():
            what = "a model folder" if (folder / "config.json").is_file() else "not a run folder"
            raise CheckpointError(
                f"{path}: {what}: it holds no recipe.yaml; need the folder that `visgraft train` made"
            )
        return cls(folder)

    @property
    def recipe_path(self) -> Path:
        """Where the recipe is that the next resume takes."""
        return self.folder / "recipe.yaml"

    @property
    def first_recipe_path(self) -> Path:
        """Where the recipe is that the run began with; of a run of an older version, the only one."""
        first = self.folder / FIRST_RECIPE
        return first if first.is_file() else self.recipe_path

    @property
    def model_path(self) -> Path:
        """Where the finished model is, or will be."""
        return self.folder / "model"

    @property
    def summary_path(self) -> Path:
        """Where the summary of a finished run is, or will be."""
        return self.folder / "summary.json"

    @property
    def failure_path(self) -> Path:
        """Where the reason stands why a run of an experiment failed."""
        return self.folder / "failure.txt"

    def _repr_html_(self) -> str:
        """Show the run in a notebook: its state, its losses."""
        steps, found = self.steps(), self.validations()
        facts: dict[str, object] = {"status": self.status(), "steps": f"{len(steps):,}"}
        if steps:
            facts["training loss"] = f"{steps[-1]['loss']:.4f}" if steps[-1]["loss"] is not None else "not finite"
        for name, value in found[-1].items() if found else ():
            if name != "step" and isinstance(value, (int, float)):
                facts[name.replace("_", " ")] = f"{value:.4f}"
        curves = {"training loss": [record["loss"] for record in steps]}
        curves["validation loss"] = [record["validation_loss"] for record in found]
        return facts_html(str(self.folder), facts) + curves_html(curves)

    def status(self) -> Status:
        """Say what state the run is in; its folder need not be there yet. The summary is the last that a run writes."""
        if self.summary_path.is_file():
            return "finished"
        if self.failure_path.is_file():
            return "failed"
        return "unfinished" if (self.folder / "recipe.yaml").is_file() else "new"

    def last_changes(self) -> tuple[float, ...]:
        """Give the times at which what tells its state last changed, in seconds; 0 of what is not there."""
        told_by = (self.log_path("metrics"), self.summary_path, self.failure_path)
        return tuple(changed_at(path) for path in told_by)

    def read_failure(self) -> str | None:
        """Read why the run failed; None of one that did not."""
        content = content_of(self.failure_path)
        return None if content is None else content.decode(errors="replace").strip()

    def read_summary(self) -> dict[str, Any] | None:
        """Read what the run cost and how good its model is; None of a run that is not finished. See docs/runs.md."""
        content = content_of(self.summary_path)
        if content is None:
            return None
        try:
            summary: dict[str, Any] = parse_json(content)
        except ValueError as error:
            raise CheckpointError(
                f"{self.summary_path}: is not JSON: {error}; remove it and resume the run, which writes it again"
            ) from error
        return summary

    def read_fingerprints(self) -> dict[str, Any] | None:
        """Read what the run depends on; None of a run of an older version. Raises CheckpointError."""
        path = self.folder / FINGERPRINTS
        if not path.is_file():
            return None
        try:
            values = parse_json(path.read_bytes())
            _ = values["recipe"].items(), [(each["step"], each["changed"]) for each in values["changes"]]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}), so nothing shows what the run began with; bring it back, or remove "
                "it to go on without"
            ) from error
        fingerprints: dict[str, Any] = values
        return fingerprints

    def write_fingerprints(self, fingerprints: Mapping[str, Any]) -> None:
        """Write what the run depends on, and under `changes` what of it has changed."""
        write_json(self.folder / FINGERPRINTS, fingerprints)

    def append(self, log: Log, record: Mapping[str, Any]) -> None:
        """Add one record as a line of `metrics.jsonl`, `samples.jsonl` or `quarantine.jsonl`.

        Numbers that are not finite are written as null, so that any JSON reader takes the file.
        """
        append_record(self.log_path(log), record)

    def read(self, log: Log) -> list[dict[str, Any]]:
        """Read the records of a log, without those that a resumed run made again; a torn last line is left out."""
        return counted_records(read_records(self.log_path(log)))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl` as `read` does."""
        return self.read("metrics")

    def steps(self) -> list[dict[str, Any]]:
        """Read the records of the optimizer steps: step, loss, ..."""
        return [record for record in self.read_metrics() if "loss" in record]

    def validations(self) -> list[dict[str, Any]]:
        """Read the records of the validations: step, validation_loss, ...; a loss that was not finite is None."""
        return [record for record in self.read_metrics() if "validation_loss" in record]

    def sync_logs(self) -> dict[str, int]:
        """Bring the logs to the disk; say how many bytes of each there are, which is for `resume_from`."""
        lengths = {log: sync_records(self.log_path(log)) for log in LOGS}
        return {log: lengths[log] for log in REWOUND}

    def missing_of_logs(self, logs: Mapping[str, int]) -> dict[str, int]:
        """Say how many bytes each log lacks of those that it had with a checkpoint (see `sync_logs`)."""
        sizes = {log: path.stat().st_size if (path := self.log_path(log)).is_file() else 0 for log in REWOUND}
        return {log: logs[log] - size for log, size in sizes.items() if logs.get(log, 0) > size}

    def resume_from(self, step: int, *, logs: Mapping[str, int] | None = None) -> None:
        """Prepare the folder for going on after a checkpoint.

        What was logged after it no longer counts, what a killed write left goes away, and checkpoints of later steps,
        which are damaged or they would have been taken, no longer count as such.

        Args:
            step: of the checkpoint.
            logs: how long each log was then; a log that is not named counts up to the step.
        """
        for log in REWOUND:
            if self.log_path(log).exists():
                end = {} if logs is None or log not in logs else {"bytes": logs[log]}
                self.append(log, {"resumed_from": step, **end})
        self.summary_path.unlink(missing_ok=True)
        for kept in self.checkpoints():
            restore_folder(self.checkpoint_path(kept))
        self._remove_leftovers()
        for later, folder in self.checkpoints().items():
            if later > step:
                aside = folder.with_name(f"{folder.name}.damaged")
                remove_folder(aside)
                folder.rename(aside)

    def _remove_leftovers(self) -> None:
        """Remove what a killed write, or a killed removal, left behind anywhere in the folder."""
        for leftover in (*listing(self.folder, "**/.*.new"), *listing(self.folder, "**/.*.gone")):
            if leftover.is_folder:
                remove_folder(leftover.path)
            else:
                leftover.path.unlink(missing_ok=True)  # one inside of a folder went with it

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self._checkpoints_path / f"step-{step}"

    def checkpoints(self) -> dict[int, Path]:
        """List the checkpoints: step -> folder, oldest first. Whether one is whole, `check_checkpoint` finds out."""
        names = (found.path.name for found in listing(self._checkpoints_path))
        named = (re.fullmatch(r"step-(\d+)|\.step-(\d+)\.old", name) for name in names)
        steps = sorted({int(match[1] or match[2]) for match in named if match})
        found = {step: current_folder(self.checkpoint_path(step)) for step in steps}
        return {step: folder for step, folder in found.items() if folder is not None}

    def latest_checkpoint(self, *, say: Callable[[str], None] | None = None) -> tuple[int, Path]:
        """Return step and folder of the newest whole checkpoint; every file of it is read.

        Args:
            say: told of each newer one that is damaged, and why.

        Raises:
            CheckpointError: there is none, or none is whole.
        """
        damages = []
        for step, folder in sorted(self.checkpoints().items(), reverse=True):
            try:
                check_checkpoint(folder)
            except CheckpointError as error:
                damages.append(str(error))
                continue
            if say is not None:
                for damage in damages:
                    say(f"{damage}: going on from step {step}, the newest whole checkpoint")
            return step, folder
        if damages:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole; {'; '.join(damages)}; bring one back, or remove "
                f"{self._checkpoints_path} to begin the run again"
            )
        raise CheckpointError(f"{self.folder}: holds no checkpoint to resume from; start the recipe again")

    def prune_checkpoints(self, *, keep: int, protect: Collection[int] = ()) -> None:
        """Remove all checkpoints but the newest `keep` and those of the protected steps, and what was set aside."""
        found = self.checkpoints()
        for step in sorted(found)[: max(0, len(found) - keep)]:
            if step not in protect:
                remove_folder(found[step])
        for aside in listing(self._checkpoints_path, "step-*.damaged"):
            remove_folder(aside.path)

    @property
    def _checkpoints_path(self) -> Path:
        return self.folder / "checkpoints"

    def log_path(self, log: Log) -> Path:
        """Where a log is, or will be."""
        return self.folder / f"{log}.jsonl"


def counted_records(found: Iterable[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Leave out of a log's records, each with the byte that it starts at, those that a resumed run made again."""
    records: list[tuple[int, dict[str, Any]]] = []
    for start, record in found:
        if "resumed_from" in record:
            step, end = record["resumed_from"], record.get("bytes", start)
            records = [(at, kept) for at, kept in records if at < end and kept.get("step", 0) <= step]
        else:
            records.append((start, record))
    return [record for _, record in records]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read `state.json` of a checkpoint. Raises CheckpointError where it is missing or damaged."""
    values = read_sealed(checkpoint / STATE_FILE)
    if "files" not in values:
        raise CheckpointError(f"{checkpoint / STATE_FILE}: holds no sums of the other files")
    return values


def check_checkpoint(checkpoint: Path, *, names: Collection[str] | None = None) -> dict[str, Any]:
    """Read a checkpoint's files, or those named, and compare them with their sums; return what `state.json` holds.

    Raises:
        CheckpointError: with the first file that is missing or damaged, and why.
    """
    values = read_state(checkpoint)
    wanted = values["files"] if names is None else {name: values["files"][name] for name in names}
    check_files(checkpoint, wanted)
    return values


def find_model(path: str | Path) -> str:
    """Turn what a user calls a model into what can be loaded: a run folder gives its model, the rest stays as it is.

    Raises CheckpointError for a run that has no model yet.
    """
    folder = Path(path).expanduser()
    if not (folder / "recipe.yaml").is_file():
        return str(folder) if folder.exists() else str(path)
    run = Run.open(folder)
    if not run.model_path.is_dir():
        finish = f"visgraft train --resume {quote(str(path))}"
        raise CheckpointError(f"{path}: this run has no model yet; finish it with `{finish}`")
    return str(run.model_path)


def read_experiment_record(folder: Path) -> dict[str, Any] | None:
    """Read `experiment.yaml`: `name`, and `runs`, each with `folder` and `variant`; None where there is none.

    Raises CheckpointError for a file that is something else.
    """
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = parse_yaml(path.read_bytes())
        _ = [(entry["folder"], entry["variant"]) for entry in record["runs"]]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as the record of an experiment: need `runs`, each with folder and variant; "
            "remove it and run the experiment again, or name the run folders themselves"
        ) from error
    return record


def environment() -> dict[str, Any]:
    """Describe where this process runs: Python, platform, versions, commit of the working directory, cores, date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "versions": library_versions(),
        "git_commit": _git_commit(),
    }


def _is_of_no_run_yet(name: str) -> bool:
    return name in OF_NO_RUN_YET or bool(re.fullmatch(r"\.(first_recipe\.yaml|recipe\.yaml|.+\.json)\..+\.new", name))


def library_versions() -> dict[str, str | None]:
    """Give the versions of the libraries that results depend on; None of one that is not installed."""
    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return versions


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _new_folder(parent: Path, *, name: str) -> Path:
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.') or 'run'}"
    parent = parent.absolute()
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise CheckpointError(f"{parent}: 999 runs named {stem} are there already; name another output folder")
