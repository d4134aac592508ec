"""The table of results: means, ranges, the best among what compares, and runs that lack what later ones have."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.compare.made_runs import save_experiment, save_run
from visgraft.compare.collect import collect
from visgraft.compare.results_table import Column, best_validation, results, written


def columns(*paths: Path) -> dict[str, Column]:
    return {column.key: column for column in results(collect(paths).variants)}


def test_means_and_ranges_over_seeds_and_the_best_of_each_measure(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=3, num_steps=40)
    found = columns(folder)
    for variant in collect([folder]).variants:
        losses = [best_validation(run, "token") for run in variant.runs]
        cell = found["validation_loss"].cells[variant.name]
        assert (cell.low, cell.high, cell.num_seeds) == (min(losses), max(losses), 2)
        assert cell.mean == pytest.approx(np.mean(losses))
    for key in ("validation_loss", "training_loss", "exact_match"):
        assert [name for name, cell in found[key].cells.items() if cell.is_best] == ["language"], key
    assert not any(cell.is_best for cell in found["trainable"].cells.values())  # fewer is not better
    assert found["trainable"].cells["language"].mean == 788_480 + 305_500_000
    assert "trainable.head" not in found  # no run trains it


def test_a_score_of_zero_is_no_ones_best(tmp_path: Path) -> None:
    for name, loss in (("a", 2.0), ("b", 3.0)):
        folder = save_run(tmp_path / name, name=name, num_steps=20, train={"vision": "full"} if name == "b" else {})
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "scores": {"cider": 0.0, "exact_match": loss / 4}}))
    found = columns(tmp_path)
    assert not any(cell.is_best for cell in found["cider"].cells.values())
    assert [cell.is_best for cell in found["exact_match"].cells.values()] == [False, True]


def test_a_run_without_summary_keeps_what_its_metrics_tell(tmp_path: Path) -> None:
    found = columns(save_run(tmp_path / "older", num_steps=20, with_summary=False))
    assert {"exact_match", "validation_loss", "training_loss", "minutes", "samples_per_second"} == set(found)
    assert found["samples_per_second"].cells["projection"].mean == pytest.approx(64, rel=0.1)


def test_unfinished_seeds_do_not_count_where_others_are_finished(tmp_path: Path) -> None:
    save_run(tmp_path / "a-0", name="a", seed=0, num_steps=20)
    save_run(tmp_path / "a-1", name="a", seed=1, num_steps=4, planned_steps=20)
    assert columns(tmp_path)["training_loss"].cells["a"].num_seeds == 1


def test_losses_on_different_data_have_no_common_best(tmp_path: Path) -> None:
    save_run(tmp_path / "a", name="a", num_steps=20, validation="x", final_loss=1.0)
    save_run(tmp_path / "b", name="b", num_steps=20, validation="x", final_loss=2.0, train={"vision": "full"})
    save_run(tmp_path / "c", name="c", num_steps=20, validation="y", final_loss=0.5)
    column = columns(tmp_path)["validation_loss"]
    assert [cell.is_best for cell in column.cells.values()] == [True, False, False]
    assert (
        column.note == "validation loss per token: measured on different data, so compare only within a group: a, b; c"
    )


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (1234, "count", "1,234"), (2_320_000, "count", "2.32 M"), (6.7e9, "count", "6.70 B"), 
        (0.5, "minutes", "30.0 s"), (2.5, "minutes", "2.5 min"), (2**31, "memory", "2.00 GiB"),
        (2**20, "memory", "1.0 MiB"), (0.806, "share", "80.6%"),
        (1.23456, "loss", "1.2346"), (63.94, "speed", "63.9"), (1.05, "score", "1.05"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_they_are_read(value: float, kind: str, text: str) -> None:
    assert written(value, kind) == text


def test_energy_is_shown_of_runs_that_know_theirs_and_not_compared_across_hardware(tmp_path: Path) -> None:
    def told(name: str, joules: float | None, of: list[str]) -> None:
        path = tmp_path / name / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "joules": joules, "joules_of": of}))

    for name in ("a", "b"):
        save_run(tmp_path / name, name=name, num_steps=20, train={"vision": "full"} if name == "b" else {})
    told("a", 7200.0, ["cpu"])
    told("b", None, [])
    found = columns(tmp_path)["energy"]
    assert [(name, cell.mean) for name, cell in found.cells.items()] == [("a", 7200.0)]
    assert (written(7200.0, "energy"), written(7.2e6, "energy"), found.note) == ("2.00 Wh", "2.00 kWh", "")
    told("b", 3600.0, ["gpu"])
    assert "do not compare it" in columns(tmp_path)["energy"].note
    told("b", None, [])
    told("a", None, [])
    assert "energy" not in columns(tmp_path)
