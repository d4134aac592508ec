"""Run folders as training writes them, with made-up numbers: for looking at reports and for tests that need no model.

In: an empty folder. Out: an experiment of variants and seeds in it. Usage: `folder = save_experiment(tmp_path)`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from visgraft.config import load_recipe
from visgraft.runs import Run

# What the ancestor's author trained, and in which order of goodness they are to come out here.
MODULES: dict[str, dict[str, str]] = {
    "projection": {},
    "lora": {"language": "lora"},
    "language": {"language": "full"},
    "vision": {"vision": "full"},
    "head": {"head": "full"},
    "lora-vision": {"language": "lora", "vision": "full"},
    "lora-head": {"language": "lora", "head": "full"},
    "language-vision": {"language": "full", "vision": "full"},
    "all": {"language": "full", "vision": "full", "head": "full"},
    "lora-on-vision": {"language": "lora", "vision": "lora"},
    "random-language": {"language": "full"},
}
PARAMETERS = {"vision": 85_800_000, "projection": 788_480, "language": 305_500_000, "head": 25_739_264}
PROBES = [
    ("", ["a cat on a sofa", "a grey cat lies on a red sofa"]),
    ("What colour is the sofa?", ["red"]),
    ("How many dogs are there?", ["two"]),
]


def save_images(folder: Path) -> Path:
    """Save a folder of data: one plain image for each question."""
    folder.mkdir(parents=True)
    lines = []
    for number, (prompt, expected) in enumerate(PROBES):
        Image.new("RGB", (96, 64), (200 - 60 * number, 60 + 50 * number, 90)).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "question": prompt, "answer": expected[0]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def save_run(
    folder: Path,
    *,
    name: str = "projection",
    seed: int = 0,
    num_steps: int = 100,
    planned_steps: int | None = None,
    final_loss: float = 1.0,
    train: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    data: str = "data",
    validation: str | None = "held-out",
    with_summary: bool = True,
) -> Path:
    """Save one run; `num_steps` below `planned_steps` is a run that is not finished."""
    planned = planned_steps or num_steps
    recipe = {
        "name": name,
        "model": {"vision": "openai/clip-vit-base-patch16", "language": "facebook/opt-350m", **(model or {})},
        "train": {"projection": "full", "max_steps": planned, "epochs": 1000.0, "seed": seed, **(train or {})},
        "data": {
            "train": [{"source": "folder", "path": data}],
            "validation": [{"source": "folder", "path": validation}] if validation else [],
        },
    }
    settings = load_recipe(recipe)
    run = Run.create(settings, folder=folder)
    rng = np.random.default_rng([seed, *name.encode()])
    validations: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        loss = final_loss + (6.0 - final_loss) * np.exp(-9 * step / planned) + rng.normal(0, 0.06)
        record = {"step": step, "epoch": step / planned, "loss": loss, "loss_per_character": loss / 4.2}
        record |= {"samples": 32, "dialogs": 64, "supervised_tokens": 480}
        run.append("metrics", {**record, "seconds": rng.uniform(0.4, 0.6)})
        if validation and step % max(1, planned // 10) == 0:
            held_out = final_loss + 0.15 + (5.5 - final_loss) * np.exp(-9 * step / planned) + rng.normal(0, 0.01)
            line = {"step": step, "validation_loss": held_out, "validation_loss_per_character": held_out / 4.2}
            validations.append({**line, "exact_match": float(np.clip(1.4 - held_out / 2, 0, 1))})
            run.append("metrics", validations[-1])
            _answer(run, step, share=step / planned, good=final_loss < 1.3)
    if with_summary and num_steps == planned:
        _summarise(run, settings, validations, num_steps)
    return folder


def _answer(run: Run, step: int, *, share: float, good: bool) -> None:
    for number, (prompt, expected) in enumerate(PROBES):
        text = (
            expected[0] if good and share > 0.5 else "a cat a cat a cat a cat a cat" if share < 0.3 else "a dog & <b>"
        )
        record = {"step": step, "id": f"folder:{number}.png", "prompt": prompt, "answer": text, "expected": expected}
        run.append("samples", {**record, "stopped": share >= 0.3})


def _summarise(run: Run, recipe: Any, validations: list[dict[str, Any]], num_steps: int) -> None:
    trained = {part: num if recipe.train.mode_of(part) == "full" else 0 for part, num in PARAMETERS.items()}
    trained |= {part: num // 200 for part, num in PARAMETERS.items() if recipe.train.mode_of(part) == "lora"}
    best = min(validations, key=lambda record: record["validation_loss"], default={})
    summary = {
        "trainable_parameters": trained,
        "wall_seconds": num_steps * 0.6 + 30,
        "supervised_tokens_per_second": 930.0 - sum(trained.values()) / 1e6,
        "peak_memory_bytes": int(2.1e9 + 12 * sum(trained.values())),
        "scores": {"exact_match": best["exact_match"]} if best else {},
    }
    (run.folder / "summary.json").write_text(json.dumps(summary))


def save_experiment(folder: Path, *, num_variants: int = 9, seeds: int = 2, num_steps: int = 100) -> Path:
    """Save an experiment: variants of what trains, two seeds each, in the form that `visgraft experiment` leaves."""
    images = save_images(folder.parent / f"{folder.name}-images")
    runs = []
    random = {"language": {"name": "facebook/opt-350m", "init": "random"}}
    for place, (name, modes) in enumerate(list(MODULES.items())[:num_variants]):
        for seed in range(seeds):
            inside = f"{name}-seed{seed}"
            save_run(
                folder / inside, name=name, seed=seed, num_steps=num_steps, final_loss=2.0 - 0.12 * place + 0.03 * seed,
                train=modes, data=str(images), validation=str(images),
                model=random if name == "random-language" else {},
            )  # fmt: skip
            runs.append({"folder": inside, "variant": name, "seed": seed, "changes": modes})
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"name": folder.name, "runs": runs}))
    return folder
