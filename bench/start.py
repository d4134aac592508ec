"""How long `visgraft ask` takes until its first token, beside importing torch and transformers and reading the weights.

    python bench/start.py                        # the starter pair, untrained; writes bench/results/start.json
    python bench/start.py --model runs/my-run --rounds 5

Every measurement is a process of its own, and all come once a round, so that ratios are of neighbours:

    nothing     an empty Python program
    import      `import visgraft`
    help        `visgraft --help`
    least       torch, transformers and the classes of the two parts imported, and the files of weights read: what no
                program that answers with this pair can do without
    ask         `visgraft ask MODEL IMAGE QUESTION --max-new-tokens 1`, whole
    stages      the same in three stages: its imports, the model (weights, checks, processor), the first token

Each is given in seconds of the clock and of the processor (its threads together, and of the system in its name). On a
machine that others use at the same time only the latter says something; there, run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import console, machine, positive, write
from PIL import Image

RESULTS = Path(__file__).parent / "results"
AIM = 1.3  # times `least`

LEAST = """
import sys, time
start = time.perf_counter()
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
for kind, folder in ((AutoModel, sys.argv[1]), (AutoModelForCausalLM, sys.argv[2])):
    kind._model_mapping[type(AutoConfig.from_pretrained(folder))]  # the module of this class, and what that imports
imported = time.perf_counter()
from safetensors.torch import load_file
for name in sys.argv[3:]:
    weights = [tensor.clone() for tensor in load_file(name).values()]  # which reads what is but mapped
print(imported - start, time.perf_counter() - imported)
"""
STAGES = """
import sys, time
start = time.perf_counter()
from visgraft.cli.terminal import quiet_libraries
quiet_libraries()
from visgraft.data.messages import asked
from visgraft.data.sample import Sample
from visgraft.inference import load, stream
imported = time.perf_counter()
loaded = load(sys.argv[1])
there = time.perf_counter()
sample = Sample(images=[sys.argv[2]], dialogs=[[asked(sys.argv[3], num_images=1)]])
list(stream(*loaded, sample, max_new_tokens=1))
print(imported - start, there - imported, time.perf_counter() - there)
"""
PROCESSES = ("nothing", "import", "help", "least", "ask", "stages")
NAMES = {"least": ("imports", "weights"), "stages": ("imports", "model", "first_token")}


def make_model(folder: Path) -> None:
    """Save the starter pair, joined as the demo joins it and untrained."""
    from visgraft.builder.build import apply_modes, build
    from visgraft.config import load_recipe

    recipe = load_recipe("demo")
    model, processor = build(recipe)
    apply_modes(model, recipe.train, frozen_dtype=None)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def parts_of(folder: Path) -> tuple[str, str, list[str]]:
    """Give the folders of the two parts of a slim model, and all files of weights that make it up."""
    from visgraft.starter import resolve

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vision, language = (str(resolve(config["parts"][part]["name"])) for part in ("vision", "language"))
    files = [
        str(path) for part in (folder, Path(vision), Path(language)) for path in sorted(part.rglob("*.safetensors"))
    ]
    return vision, language, files


def commands(model: Path, image: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Give the processes to measure, those of these names."""
    vision, language, files = parts_of(model) if "least" in names else ("", "", [])
    question = "what colour is it?"
    python = [sys.executable]
    found = {
        "nothing": [*python, "-c", "pass"],
        "import": [*python, "-c", "import visgraft"],
        "help": [*python, "-m", "visgraft", "--help"],
        "least": [*python, "-c", LEAST, vision, language, *files],
        "ask": [*python, "-m", "visgraft", "ask", str(model), str(image), question, "--max-new-tokens", "1"],
        "stages": [*python, "-c", STAGES, str(model), str(image), question],
    }
    return {name: command for name, command in found.items() if name in names}


def timed(command: list[str]) -> tuple[float, float, list[float]]:
    """Run a process: seconds of the clock, of the processor, and what it printed of its stages."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)[:200]} failed:\n{errors.read().decode()[-2000:]}")
        said = out.read().decode().split()
    numbers = [float(word) for word in said] if command[1] == "-c" else []
    return seconds, usage.ru_utime + usage.ru_stime, numbers


def main() -> None:
    """Measure every process in every round and write medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a slim model folder; default: the starter pair, made here")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--only", nargs="+", choices=PROCESSES, default=PROCESSES, help="these processes alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "start.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, image = given.model or Path(scratch) / "model", Path(scratch) / "image.png"
        if given.model is None:
            make_model(model)
        Image.new("RGB", (128, 128), (200, 30, 30)).save(image)
        measured = commands(model, image, given.only)
        rounds: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in measured}
        for command in measured.values():
            timed(command)  # files come into the system's memory
        for number in range(given.rounds):
            for name, command in measured.items():
                rounds[name].append(timed(command))
            shown = "  ".join(f"{name} {found[-1][0]:.2f} s ({found[-1][1]:.2f})" for name, found in rounds.items())
            console.print(f"round {number + 1}/{given.rounds}: {shown}")
    result: dict[str, Any] = {"what": "seconds until the first token, each a process of its own", "processes": {}}
    for name, found in rounds.items():
        clock, processor, stages = zip(*found, strict=True)
        result["processes"][name] = {
            "median_s": round(statistics.median(clock), 3),
            "median_processor_s": round(statistics.median(processor), 3),
            "seconds": [round(value, 3) for value in clock],
            "processor_seconds": [round(value, 3) for value in processor],
            **{
                f"{stage}_s": round(statistics.median(values), 3)
                for stage, values in zip(NAMES.get(name, ()), zip(*stages, strict=True), strict=True)
            },
        }
    if {"ask", "least"} <= rounds.keys():
        pairs = list(zip(rounds["ask"], rounds["least"], strict=True))
        result["ask / least"] = round(statistics.median(ask[0] / least[0] for ask, least in pairs), 2)
        result["ask / least, processor"] = round(statistics.median(ask[1] / least[1] for ask, least in pairs), 2)
        result["aim"] = AIM
    write({**result, "machine": machine()}, path=given.output)


if __name__ == "__main__":
    main()
