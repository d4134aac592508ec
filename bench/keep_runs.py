"""Keep what is small of an experiment's runs, so that its figures can be drawn again without training.

    python bench/keep_runs.py runs/easy_vqa_modules           # writes bench/results/experiments/easy_vqa_modules/

Recipe (without where it was put), environment, samples and summary of every finished run are copied; of metrics.jsonl
only what curves are drawn from. `visgraft compare bench/results/experiments/NAME -o report.html` shows the runs again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import yaml
from rich.console import Console

from visgraft.runs import Run

KEPT_FILES = ("environment.json", "samples.jsonl", "summary.json")
KEPT_METRICS = (
    *("step", "epoch", "loss", "loss_per_character", "supervised_tokens", "text_tokens", "samples", "dialogs"),
    *("grad_norm", "seconds", "validation_loss", "validation_loss_per_character", "exact_match"),
)


def keep_run(run: Path, folder: Path) -> None:
    """Copy the small files of a run, its metrics trimmed."""
    folder.mkdir(parents=True)
    for name in KEPT_FILES:
        if (run / name).is_file():
            shutil.copy(run / name, folder / name)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe.pop("output", None)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    with (folder / "metrics.jsonl").open("w") as file:
        for record in Run.open(run).read_metrics():
            kept = {key: record[key] for key in KEPT_METRICS if key in record}
            file.write(json.dumps({key: round(v, 5) if isinstance(v, float) else v for key, v in kept.items()}) + "\n")


def main() -> int:
    """Keep the finished runs of an experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--output", type=Path, help="folder; none: bench/results/experiments/NAME")
    arguments = parser.parse_args()
    output = arguments.output or Path(__file__).parent / "results" / "experiments" / arguments.experiment.name
    runs = sorted(path.parent for path in arguments.experiment.glob("*/summary.json"))
    if not runs:
        Console(stderr=True).print(f"{arguments.experiment}: no finished run in it; name the folder of an experiment")
        return 2
    shutil.rmtree(output, ignore_errors=True)
    for run in runs:
        keep_run(run, output / run.name)
    if (arguments.experiment / "experiment.yaml").is_file():
        shutil.copy(arguments.experiment / "experiment.yaml", output / "experiment.yaml")
    Console().print(f"kept {len(runs)} runs in {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
