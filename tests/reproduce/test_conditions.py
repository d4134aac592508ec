"""What must be so before anything is downloaded is looked at first, and said with what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.reproduce.conftest import quiet
from visgraft.errors import ConfigError
from visgraft.estimate.advice import Change
from visgraft.estimate.gpus import GIB, Gpu
from visgraft.experiment import load_experiment
from visgraft.reproduce import conditions, running
from visgraft.reproduce.article import ARTICLE, write_experiment_file
from visgraft.reproduce.conditions import check_device, check_memory, revision_of
from visgraft.reproduce.running import reproduce

GPU, COMPUTER = Gpu("a GPU of 24 GB", 24 * GIB), Gpu("this computer", 32 * GIB, is_gpu=False)


def test_without_a_gpu_only_the_rehearsal_begins() -> None:
    check_device("smoke", device=torch.device("cpu"))
    check_device("full", device=torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"--scale hour: got a machine without a GPU .*--scale smoke rehearses"):
        check_device("hour", device=torch.device("cpu"))


def estimated(
    monkeypatch: pytest.MonkeyPatch, *, total: float, loading: float = 1.0, helps: float | None = None
) -> None:
    """Let every estimate be of so many GiB."""
    change = [] if helps is None else [Change("train.language=lora", "", 0, int(helps * GIB))]
    cost = SimpleNamespace(total_bytes=int(total * GIB), loading_bytes=int(loading * GIB))
    found = SimpleNamespace(cost=cost, gpu=GPU, fits=total <= 24, seconds=7200.0, changes=change)
    monkeypatch.setattr(conditions, "estimate", lambda recipe, **_: found)


@pytest.fixture
def runs(tmp_path: Path) -> list[tuple[str, Any]]:
    path = write_experiment_file(ARTICLE["language"], tmp_path, data=tmp_path, scale="hour")
    return [("language", run) for run in load_experiment(path).runs]


def test_what_fits_is_written_down(monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, Any]]) -> None:
    estimated(monkeypatch, total=20)
    found = check_memory(runs, gpu=GPU, computer=COMPUTER)
    assert [each["variant"] for each in found] == ["opt", "llama", "mpt"]
    assert found[0] == {"experiment": "language", "variant": "opt", "total_bytes": 20 * GIB, "seconds": 7200.0}


def test_what_does_not_fit_is_refused_with_what_would_help(
    monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, Any]]
) -> None:
    estimated(monkeypatch, total=30.5, helps=20)
    message = (
        r"a GPU of 24 GB has 24.0 GiB, and that is not enough: language, opt takes 30.5 GiB "
        r"\(--set train.language=lora would do\); language, llama .*"
        r"leave experiments out with --only, or change a setting of all runs with --set"
    )
    with pytest.raises(ConfigError, match=message):
        check_memory(runs, gpu=GPU, computer=COMPUTER)
    estimated(monkeypatch, total=30.5, helps=28)
    with pytest.raises(ConfigError, match=r"opt takes 30.5 GiB; language, llama"):
        check_memory(runs, gpu=GPU, computer=COMPUTER)


def test_what_changes_speed_alone_leaves_a_run_as_written() -> None:
    assert not running._changes_the_result("train.micro_batch_positions=1024")
    assert running._changes_the_result("train.learning_rate=1e-4")
    assert running._changes_the_result("data.train.0.limit=1000")


def test_weights_that_the_computer_cannot_read_are_refused(
    monkeypatch: pytest.MonkeyPatch, runs: list[tuple[str, Any]]
) -> None:
    estimated(monkeypatch, total=20, loading=40)
    with pytest.raises(ConfigError, match=r"reading the weights of language, opt takes 40.0 GiB of the computer's own"):
        check_memory(runs, gpu=GPU, computer=COMPUTER)


def test_the_commit_that_a_folder_was_exported_from_is_read(tmp_path: Path) -> None:
    assert revision_of(tmp_path) is None
    (tmp_path / "revision.txt").write_text("0123abc\n")
    assert revision_of(tmp_path) == "0123abc"


def test_an_unknown_experiment_no_data_and_a_strange_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--only vision: no experiment of the article; there are modules, language, m3it"
    ):
        reproduce(data=None, scale="smoke", folder=tmp_path / "a", only=["vision"], say=quiet)
    with pytest.raises(ConfigError, match=r"--data: missing; --scale hour needs M3IT, exported as docs/data.md says"):
        reproduce(data=None, scale="hour", folder=tmp_path / "a", say=quiet)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ConfigError, match=r"holds holiday.jpg, no part of a reproduction; give a new folder with -o"):
        reproduce(data=None, scale="smoke", folder=tmp_path, say=quiet)
    with pytest.raises(ConfigError, match=r"holiday.jpg is a file; give a folder with -o"):
        reproduce(data=None, scale="smoke", folder=tmp_path / "holiday.jpg", say=quiet)
    assert not (tmp_path / "a").exists()
