"""The table tells medians over seeds with their spread, marks the best, and survives a run that came apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.experiment.made import write_experiment
from visgraft.experiment import Outcome, load_experiment
from visgraft.experiment.variant_results import as_table, results_of
from visgraft.runs import Run


def finished(outcome: Outcome, *, loss: float | None, score: float | None) -> Outcome:
    run = Run.create(outcome.run.recipe, folder=outcome.folder)
    summary: dict[str, Any] = {
        "trainable_parameters": {"projection": 1000, "language": 234},
        "validation_loss": loss,
        "scores": {"exact_match": score},
        "wall_seconds": 90.0,
    }
    run.summary_path.write_text(json.dumps(summary))
    return outcome


@pytest.mark.parametrize(("last", "expected"), [(0.7, "0.5000 ± 0.2000"), (None, "0.3000")])
def test_medians_stand_beside_their_spread(tmp_path: Path, last: float | None, expected: str) -> None:
    experiment = load_experiment(write_experiment(tmp_path, seeds=2))
    outcomes = [Outcome(run, experiment.folder_of(run)) for run in experiment.runs]
    outcomes[0] = Outcome(outcomes[0].run, outcomes[0].folder, "no memory")
    finished(outcomes[1], loss=0.9, score=0.25)
    finished(outcomes[2], loss=0.3, score=0.5)
    finished(outcomes[3], loss=last, score=None if last is None else 0.75)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(as_table(results_of(outcomes)))
    header, projection, lora = captured.get().splitlines()
    assert header.split() == ["variant", "trainable", "validation", "loss", "exact", "match", "minutes", "runs"]
    assert projection.split() == ["projection", "1,234", "0.9000", "25.0%", "1.5", "1", "of", "2"]
    assert lora.split()[:2] == ["lora", "1,234"]
    assert expected in lora
    assert ("62.5% ± 12.5%" in lora) == (last is not None)
    assert lora.split()[-1] == "2"


def test_the_best_score_is_never_a_zero() -> None:
    from visgraft.experiment.variant_results import VariantResult, _best_score

    def results(*values: float) -> list[VariantResult]:
        return [VariantResult("a", 1, 1, [1.0], {"cider": [value]}, [1.0]) for value in values]

    assert _best_score("cider", results(0.0, 0.0)) is None
    assert _best_score("cider", results(0.0, 0.2)) == 0.2
