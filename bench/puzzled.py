"""Two causes of a "puzzled" language model that no setting can bring about: padding in the loss, and positions lost.

    python bench/puzzled.py                                  # runs/easy_vqa_puzzled/, beside the runs of the recipe
    python bench/puzzled.py --set train.max_steps=2 -o /tmp/smoke

GIT-LLM padded every text to a fixed length and let the pads carry loss, and its OPT read positions from a fresh
random table instead of the pretrained one. Here a run named `...+padding` learns, behind each text, pads up to
PADDED_LENGTH tokens; validation is without them. A run named `...+positions` gives the language model its positions
through a fixed random permutation: SmolLM2 has no table (its positions are rotations), so this is the nearest: every
position keeps a code of its own, and none is the one that was learned with. Samples, steps and rates stay the same.
Each run is `visgraft train` in a process of its own with the one change made before it starts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from visgraft.cli import main as visgraft
from visgraft.config.shipped import shipped_recipes
from visgraft.experiment import Experiment, PlannedRun, load_experiment, run_experiment
from visgraft.experiment.display import ExperimentProgress
from visgraft.experiment.process import ProcessJob, launch_process
from visgraft.experiment.variant_results import as_table, results_of
from visgraft.reporting.progress import error_console

FILE = shipped_recipes()["experiments/easy_vqa_puzzled"]
PADDED_LENGTH = 32  # tokens; the texts have about 8
CHANGED = ("per-part", "one-high-rate")  # the variants of the recipe that are run again with each cause
NUM_POSITIONS = 8192  # of SmolLM2


def pad_the_loss() -> None:
    """Let every training text end in pads that carry loss."""
    from visgraft.training.steps import StepDataset

    encode = StepDataset.encode

    def padded(self: StepDataset, plan: Any) -> Any:
        encoded, bad = encode(self, plan)
        if not self.planner.shuffle:  # validation, which is measured as it always is
            return encoded, bad
        pad = self.planner.processor.tokenizer.pad_token_id
        pad = self.planner.processor.tokenizer.eos_token_id if pad is None else pad

        def behind(dialog: Any) -> Any:
            missing = max(0, PADDED_LENGTH - len(dialog.input_ids))
            ids, supervised = dialog.input_ids + (pad,) * missing, dialog.supervised + (True,) * missing
            return replace(dialog, input_ids=ids, supervised=supervised)

        return [replace(sample, dialogs=tuple(map(behind, sample.dialogs))) for sample in encoded], bad

    StepDataset.encode = padded  # type: ignore[method-assign]


def scramble_positions() -> None:
    """Give the language model its positions through a fixed random permutation, once it has been joined as it is."""
    import torch

    from visgraft.model.language import AttentionSpec
    from visgraft.training import setup

    permutation = torch.randperm(NUM_POSITIONS, generator=torch.Generator().manual_seed(0))
    build_model = setup.build_model

    class Scrambled(AttentionSpec):
        """An attention spec whose positions are permuted."""

        def arguments(self, table: Any, *, positions: Any = None, **settings: Any) -> dict[str, Any]:
            positions = table.position if positions is None else positions
            return super().arguments(table, positions=permutation.to(positions.device)[positions], **settings)

    def scrambled(recipe: Any, **settings: Any) -> Any:
        model = build_model(recipe, **settings)
        model.attention_spec = Scrambled(**vars(model.attention_spec))
        return model

    setup.build_model = scrambled


CAUSES: dict[str, Callable[[], None]] = {"padding": pad_the_loss, "positions": scramble_positions}


def with_causes(experiment: Experiment) -> Experiment:
    """Run some variants again with each cause; their folders stand beside the recipe's own."""
    again = [
        replace(
            run,
            variant=f"{run.variant}+{cause}",
            recipe=replace(run.recipe, name=f"{run.variant}+{cause}"),
            changes={**run.changes, "bench/puzzled.py": cause},
        )
        for cause in CAUSES
        for run in experiment.runs
        if run.variant in CHANGED
    ]
    return replace(experiment, runs=tuple(again))


def launch(run: PlannedRun, folder: Path, device: str | None, say: Callable[[str], None]) -> ProcessJob:
    """Start a run with its cause, which its name says."""
    cause = run.variant.rpartition("+")[2]
    program = (sys.executable, __file__, "--cause", cause)
    return launch_process(run, folder, device, say, program=program)


def main() -> int:
    """Run what is asked for on the command line, or, with --cause, be the program of one run."""
    if sys.argv[1:2] == ["--cause"]:
        CAUSES[sys.argv[2]]()
        return visgraft(sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every run")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="run again only this one; may come twice")
    parser.add_argument("--seeds", type=int, help="runs of each variant")
    parser.add_argument("-o", "--output", help="folder of the experiment")
    given = parser.parse_args()
    experiment = load_experiment(
        FILE, only=given.only or (), seeds=given.seeds, overrides=given.set, output=given.output
    )
    with ExperimentProgress(error_console()) as progress:
        outcomes = run_experiment(with_causes(experiment), launch=launch, progress=progress)
    Console().print(as_table(results_of(outcomes)))
    return int(any(outcome.reason is not None for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
