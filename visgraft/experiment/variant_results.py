"""What came out of an experiment, variant by variant: medians over seeds, with their spread.

In: the outcomes of its runs. Out: a row for each variant, and the same as a table.

    rows = results_of(outcomes)
    Console().print(as_table(rows))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from visgraft.experiment.running import Outcome
from visgraft.metrics.score_names import better_of, form_of_score
from visgraft.runs import Run


@dataclass(frozen=True)
class VariantResult:
    """One variant: how many of its runs are finished, and the values of those, one for each seed.

    Attributes:
        variant: its name.
        num_runs: runs that it was to have.
        trainable: trained parameters; None where no run is finished.
        validation_losses: per supervised token, of the model that was kept.
        scores: name -> one value for each seed.
        minutes: wall time.
    """

    variant: str
    num_runs: int
    trainable: int | None
    validation_losses: Sequence[float]
    scores: Mapping[str, Sequence[float]]
    minutes: Sequence[float]


def results_of(outcomes: Sequence[Outcome]) -> list[VariantResult]:
    """Gather the summaries of the runs by variant."""
    results = []
    for variant in dict.fromkeys(outcome.run.variant for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.run.variant == variant]
        summaries = [
            summary
            for outcome in own
            if outcome.reason is None and (summary := Run.open(outcome.folder).read_summary()) is not None
        ]
        names = dict.fromkeys(name for summary in summaries for name in summary["scores"])
        results.append(
            VariantResult(
                variant=variant,
                num_runs=len(own),
                trainable=sum(summaries[0]["trainable_parameters"].values()) if summaries else None,
                validation_losses=_known(summary["validation_loss"] for summary in summaries),
                scores={name: _known(summary["scores"].get(name) for summary in summaries) for name in names},
                minutes=[summary["wall_seconds"] / 60 for summary in summaries],
            )
        )
    return results


def _known(values: Iterable[float | None]) -> list[float]:
    """Leave out what is no number: the loss of a run that came apart is null."""
    return [value for value in values if value is not None]


def as_table(results: Sequence[VariantResult]) -> Table:
    """Draw the results: medians over seeds, the spread behind them, the best in bold."""
    scores = list(dict.fromkeys(name for result in results for name in result.scores))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("variant")
    for name in ("trainable", "validation loss", *(score.replace("_", " ") for score in scores), "minutes", "runs"):
        table.add_column(name, justify="right")
    losses = [median(result.validation_losses) for result in results if result.validation_losses]
    tops = {name: _best_score(name, results) for name in scores}
    for result in results:
        cells = [
            _cell(result.validation_losses, "{:.4f}", best=min(losses, default=None)),
            *(_cell(result.scores.get(name, []), form_of_score(name), best=tops[name]) for name in scores),
            _cell(result.minutes, "{:.1f}", best=None),
        ]
        trainable = "-" if result.trainable is None else f"{result.trainable:,}"
        finished = len(result.minutes)
        runs = f"{finished}" if finished == result.num_runs else f"{finished} of {result.num_runs}"
        table.add_row(Text(result.variant), trainable, *cells, runs)
    return table


def _best_score(name: str, results: Sequence[VariantResult]) -> float | None:
    """Give the best median of a score; none where all are 0, or neither more nor less of it is better."""
    medians = [median(result.scores[name]) for result in results if result.scores.get(name)]
    better = better_of(name)
    if not medians or better is None:
        return None
    best = min(medians) if better == "lower" else max(medians)
    return best or None


def _cell(values: Sequence[float], form: str, *, best: float | None) -> Text:
    if not values:
        return Text("-")
    middle, spread = median(values), max(values) - min(values)
    text = form.format(middle) + (f" ± {form.format(spread / 2)}" if len(values) > 1 else "")
    return Text(text, style="bold" if best is not None and middle == best else "")


def as_values(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return what became of every run as plain values."""
    return [
        {
            "folder": str(outcome.folder),
            "variant": outcome.run.variant,
            "seed": outcome.run.seed,
            "failed": outcome.reason,
            "summary": None if outcome.reason is not None else Run.open(outcome.folder).read_summary(),
        }
        for outcome in outcomes
    ]
