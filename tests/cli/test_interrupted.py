"""Ctrl-C and closed pipes in real processes: the right status, what was done is kept, and no traceback."""

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest
import yaml
from PIL import Image

from tests.training.tiny import tiny_recipe
from tests.warm_python import warm_python
from visgraft.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder, num_images=4, max_new_tokens=2, epochs=9999)))
    return path


def start(*args: object, setting: str = "") -> subprocess.Popen[str]:
    """Run the program; Ctrl-C reaches it even where the tests themselves run in the background."""
    begun = "import signal, sys, visgraft.cli; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{begun}\n{setting}\nsys.exit(visgraft.cli.main(sys.argv[1:]))"
    command = [*warm_python(), "-u", "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(stream: IO[str] | None, words: Sequence[str]) -> str:
    """Read lines until one holds one of the words."""
    assert stream is not None
    seen = ""
    for line in stream:
        seen += line
        if any(word in line for word in words):
            return seen
    raise AssertionError(f"{words} never came: {seen}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_training_saves_and_says_how_to_go_on(recipe: Path, number: int, status: int) -> None:
    name = f"stopped-{status}"
    process = start("train", recipe, "--set", f"name={name}", "--set", "train.validate_every_steps=99999")
    wait_for(process.stderr, ["  loss "])
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert (out, "Traceback" in err) == ("", False)
    [folder] = (recipe.parent / "runs").glob(f"*{name}")
    assert f"stopped and saved; go on with `visgraft train --resume {folder}`" in err
    steps = Run.open(folder).latest_checkpoint()[0]
    assert steps >= 1
    resumed = start("train", "--resume", folder, "--set", f"train.max_steps={steps + 1}")
    out, err = resumed.communicate(timeout=300)
    assert (resumed.returncode, out) == (0, f"{folder}\n"), err


def many(folder: Path, *, number: int) -> Path:
    """Make a folder of one image under many names."""
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "0.png")
    for index in range(1, number):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    return folder


def test_ctrl_c_while_captioning_keeps_what_was_printed(folder: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "many", number=5_000)
    process = start("caption", folder / "run", photos, "--max-new-tokens", 1)
    first = wait_for(process.stdout, [".png"])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert all(line.startswith(f"{photos}/") for line in (first + out).splitlines())
    assert 0 < len((first + out).splitlines()) < 5_000


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_while_data_are_checked_ends_it(recipe: Path, tmp_path: Path, workers: int) -> None:
    lines = [json.dumps({"file_name": f"{number}.png", "text": "a cat"}) for number in range(20_000)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for number in range(20_000):
        (tmp_path / f"{number}.png").symlink_to(recipe.parent / "train" / "0.png")
    source = f"data.train=[{{source: folder, path: {tmp_path}}}]"
    often = "import visgraft.reporting.progress; visgraft.reporting.progress.LINE_EVERY_S = 0.0"
    process = start("data", "check", recipe, "--workers", workers, "--set", source, setting=often)
    told = wait_for(process.stderr, ["reading train"])
    assert re.search(r"reading train: [\d,]+ of 20,000", told)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err


def test_a_reader_that_stops_early_is_no_error(folder: Path, tmp_path: Path) -> None:
    photos = many(tmp_path / "many", number=2_000)
    process = start("caption", folder / "run", photos, "--max-new-tokens", 1)
    wait_for(process.stdout, [".png"])
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
