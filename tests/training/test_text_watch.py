"""A run says what a check of its data would say, once, of what it reads anyway."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_windows import write_tars
from tests.training.tiny import tiny_recipe
from visgraft.config import DataSettings, load_recipe
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource
from visgraft.errors import DataError
from visgraft.processor import Processor
from visgraft.runs import Run
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.text_counts import CountedText
from visgraft.training.text_watch import TextWatch


class Listening:
    """A silent display that remembers what is said."""

    def __init__(self) -> None:
        self.display = make_progress(show=False)
        self.lines: list[str] = []
        self.display.say = self.lines.append  # type: ignore[method-assign]

    @property
    def of_data(self) -> list[str]:
        return [line for line in self.lines if line.startswith("data: ")]


def told_by(recipe: Any, **how: Any) -> list[str]:
    listening = Listening()
    train(recipe, progress=listening.display, **how)
    return listening.of_data


def with_texts(folder: Path, texts: list[dict[str, Any]], *, part: str = "train", **train_settings: Any) -> Any:
    recipe = tiny_recipe(folder, **train_settings)
    path = Path(recipe["data"][part][0]["path"]) / "metadata.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
    return recipe


def test_a_run_on_good_data_says_nothing_of_them(tmp_path: Path) -> None:
    assert told_by(tiny_recipe(tmp_path, epochs=2)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_odd_about_texts_is_said_once(tmp_path: Path, num_workers: int) -> None:
    odd = [{"file_name": "0.png", "text": "ok <s>old</s> price"}, {"file_name": "1.png", "text": "Caf\ufffd"}] * 2
    lines = told_by(with_texts(tmp_path, odd, epochs=3, num_workers=num_workers))
    assert [line.split(":")[1].strip() for line in lines] == ["train folder"] * 3
    assert sum("repeat another word for word" in line for line in lines) == 1
    assert sum("Control tokens stand in texts: <s> in 2, </s> in 2" in line for line in lines) == 1
    assert sum("2 of 34 texts hold U+FFFD" in line for line in lines) == 1


def test_texts_alone_on_both_sides_are_said_behind_the_first_validation(tmp_path: Path) -> None:
    text = [{"file_names": [], "question": "What follows 1?", "answer": "2 does."}]
    recipe = with_texts(tmp_path, text)
    with_texts_too = Path(recipe["data"]["validation"][0]["path"]) / "metadata.jsonl"
    with with_texts_too.open("a") as file:
        file.write(json.dumps(text[0]) + "\n")
    [line] = told_by(recipe)
    assert "1 of 11 validation texts, without an image, (9.1%) stand in training too" in line


def test_images_on_both_sides_end_a_run_before_its_first_step_unless_it_is_allowed(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    recipe["data"]["validation"] = [{**recipe["data"]["train"][0], "limit": 3}, *recipe["data"]["validation"]]
    with pytest.raises(
        DataError, match=r"data\.validation: 3 of 7 validation images \(42\.9%\) stand in training too\..*0\.43"
    ):
        train(recipe, progress=quiet)
    assert not (tmp_path / "runs").exists()
    allowed = load_recipe(recipe, overrides=["data.max_overlap_fraction=0.43"])
    assert any("3 of 7 validation images (42.9%) stand in training too" in line for line in told_by(allowed))


def test_a_share_held_out_overlaps_with_nothing(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    rows = [{"image": f"train/{n}.png", "text": f"a cat {n}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"source": "parquet", "path": str(tmp_path / "rows.jsonl"), "split": {"validation": 0.25}}
    recipe["data"] = {"train": [entry]}
    assert told_by(recipe) == []
    for changed in ({"group": "none"}, {"dialogs": "independent"}):
        recipe["data"] = {"train": [{**entry, **changed}]}
        train(recipe, progress=quiet)


def test_what_a_reader_has_to_say_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenSource.__init__

    def with_note(self: OpenSource, *values: Any, **named: Any) -> None:
        opened(self, *values, **{**named, "notes": ["the column `photo` looks like images and is not used"]})

    monkeypatch.setattr(OpenSource, "__init__", with_note)
    lines = told_by(tiny_recipe(tmp_path, max_steps=1))
    assert lines == [f"data: {part} folder: the column `photo` looks like images and is not used"
                     for part in ("train", "validation")]  # fmt: skip


def test_what_is_known_of_counted_texts_is_said_at_the_beginning_of_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("visgraft.training.text_counts.is_worth_keeping", lambda seconds: True)
    recipe = with_texts(tmp_path, [{"file_name": "0.png", "text": "Caf\ufffd"}])
    first = told_by(recipe)
    assert len(first) == 1 and "1 of 31 texts holds U+FFFD" in first[0]
    listening = Listening()
    train(recipe, progress=listening.display, stop=lambda step: False)
    said = listening.lines
    assert listening.of_data == first
    assert said.index(first[0]) < min(n for n, line in enumerate(said) if "run: " in line)


@pytest.mark.parametrize("kind", [bytes, str, dict])
def test_the_same_words_about_other_images_of_the_same_id_are_no_repetition(
    processor: Processor, kind: type, tmp_path: Path
) -> None:
    watch = TextWatch(processor, settings=DataSettings())
    for number in (0, 1, 0):
        content = b"x" * 5000 + bytes([number]) + b"y" * 2000
        image = {bytes: content, str: str(tmp_path / f"{number}.png"), dict: {"bytes": content, "path": None}}[kind]
        sample = Sample([image], [[Turn("Is it red?", "yes")]], id="000", source="webdataset")
        text = CountedText(processor.encode_each(sample), sample=sample)
        watch.see(text, part="train")
        lines = watch.new_lines()
        assert ["1 of 3 texts repeats another word for word" in line for line in lines] == [True] * (
            watch.num_texts > 2
        )


def test_a_stream_that_is_read_again_repeats_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=60, epochs=3.0, text_tokens_per_step=30)
    tars = {"source": "webdataset", "path": write_tars(tmp_path / "tars", per_tar=12), "streaming": True}
    held = {"source": "webdataset", "path": write_tars(tmp_path / "held", name="b", num_tars=1), "streaming": True}
    recipe["data"] = {"train": [tars], "validation": [held], "stream_window": 5}
    recipe["train"]["validate_every_steps"] = 3
    assert not any("repeat" in line for line in told_by(recipe))
    assert Run.open(next((tmp_path / "runs").iterdir())).status() == "finished"
