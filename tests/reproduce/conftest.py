"""A rehearsal of one experiment of the article, which tests copy before they damage it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from visgraft.experiment import running as experiment_running
from visgraft.reproduce import running
from visgraft.reproduce.running import Reproduction, reproduce


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reproduction, list[list[str]]]]:
    """The three 7B families, stopped behind the first run and gone on with; which runs each call trained."""
    folder = tmp_path_factory.mktemp("reproduce") / "smoke"
    trained: list[list[str]] = [[], []]
    real = running.train_here
    call = 0

    def train_here(run: Any, *args: Any) -> Any:
        if call == 0 and trained[0]:
            raise KeyboardInterrupt
        trained[call].append(run.variant)
        return real(run, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VISGRAFT_CACHE", str(folder.parent / "cache"))
        patched.setattr(experiment_running, "POLL_S", 0.01)
        patched.setattr(running, "train_here", train_here)
        with pytest.raises(KeyboardInterrupt):
            reproduce(data=None, scale="smoke", folder=folder, only=["language"], say=quiet)
        assert not (folder / "reproduction.json").exists()
        call = 1
        found = reproduce(data=None, scale="smoke", folder=folder, only=["language"], say=quiet)
    yield found, trained


@pytest.fixture
def handed_in(rehearsed: tuple[Reproduction, list[list[str]]], tmp_path: Path) -> Path:
    """A copy without weights, as it is handed in."""
    left_out = shutil.ignore_patterns("model", "checkpoints", "look_alikes")
    return shutil.copytree(rehearsed[0].folder, tmp_path / "handed in", ignore=left_out)
