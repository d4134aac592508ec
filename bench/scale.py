"""A large run's data on one rank of many: memory, opening, planning of a step, and how evenly ranks are laden.

    python bench/scale.py          # 10,240,000 samples, 1,024 ranks; writes bench/results/scale.json
    python bench/scale.py --shards 64 --ranks 32 --ranks-played 1 --steps 2      # a small one

The data are WebDataset shards of 1,000 samples (an image and a caption of 8 to 150 words, lengths as those of web
captions), read by visgraft's own reader: each shard is a file of its own name, and all of them are links to a few, so
that ten million samples take the disk of a few thousand. Ranks are played one at a time, each in a fresh process: it
opens the data and plans the steps as one rank of 1,024 does. What the others would tell it (their parts of the index,
of the scan, of the counted texts) is what it found in its own part, once for each of them: so every rank receives
and takes in as much as it would, but what is sent is not measured, as that is the network's.

    opening     from the recipe's entry to the first epoch's order: index of the tars, scan of the samples, planner
    first       planning steps where nobody has counted the texts yet: each rank reads and encodes its share
    counted     planning steps where all is counted, as in every later epoch or run
    imbalance   positions of the fullest rank of a step over the mean of all, less 1: of the plan, and of dealing every
                n-th group to a rank

Memory is the largest resident set of the rank's process, imports of torch and transformers included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from data import make_tokenizer
from harness import console, machine, positive, write
from PIL import Image
from transformers import CLIPImageProcessorPil

from visgraft import Processor
from visgraft.config import SourceSettings
from visgraft.data.packing import share_out
from visgraft.data.processes import Processes
from visgraft.data.sources import open_sources
from visgraft.training.plan import Planner, Position
from visgraft.training.text_counts import Told

PER_SHARD = 1000
DIFFERENT = 8  # shards; the others are links to them
IMAGE_TOKENS = 197
TEXT_TOKENS = 2048  # a rank and step
WORDS = ("a", "photo", "of", "the", "red", "cat", "on", "green", "grass", "near", "old", "house", "with", "small")


def write_shards(folder: Path, *, number: int) -> None:
    """Write shards, all but a few as links."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for shard in range(number):
        path = folder / f"train-{shard:05d}.tar"
        if shard >= DIFFERENT:
            os.link(folder / f"train-{shard % DIFFERENT:05d}.tar", path)
            continue
        with tarfile.open(path, "w") as tar:
            for sample in range(PER_SHARD):
                words = int(np.clip(rng.lognormal(3.2, 0.6), 8, 150))
                text = " ".join(rng.choice(WORDS, size=words)).encode()
                for suffix, data in (("png", buffer.getvalue()), ("txt", text)):
                    info = tarfile.TarInfo(f"{shard:05d}{sample:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


@dataclass(frozen=True)
class Played(Processes):
    """One rank, which hears from each other what it has found itself."""

    def gather(self, values: list[Any]) -> list[Any]:
        """Return its own values for each."""
        [value] = values
        if not isinstance(value, Told):
            return [value] * self.number
        nothing = np.zeros(0, np.int64)
        # what it knows of the places of its own samples stands there once; the others' samples get other lengths of it
        others = replace(value, places=nothing, codes=nothing, samples=nothing, num_images=nothing)
        return [value if index == self.index else others for index in range(self.number)]

    def first(self, value: Any) -> Any:
        """Return its own: nothing is kept."""
        return value


def play(folder: Path, *, rank: int, ranks: int, steps: int) -> dict[str, Any]:
    """Be one rank."""
    processor = Processor.from_parts(CLIPImageProcessorPil(), make_tokenizer(), num_image_tokens=IMAGE_TOKENS)
    before = resident_gb()
    started = time.perf_counter()
    entry = SourceSettings("webdataset", path=str(folder / "train-*.tar"), group="none")
    processes = Played(rank, ranks)
    sources = open_sources([entry], processes=processes)
    sizes: dict[str, Any] = {"seed": 0, "max_dialogs": 8, "text_tokens_per_step": TEXT_TOKENS * ranks}
    planner = Planner(sources, processor, processes=processes, **sizes)
    num_groups = planner.num_groups(0)
    opening_s = time.perf_counter() - started
    share = {"process_index": rank, "num_processes": ranks}

    def plan(position: Position, number: int) -> tuple[list[float], Any, Position]:
        seconds = []
        for _ in range(number):
            began = time.perf_counter()
            step = planner.step(position, epochs=1.0, **share)
            seconds.append(round(time.perf_counter() - began, 4))
            position = step.end
        return seconds, step, position

    first, _, _ = plan(Position(0, 0), 2)
    # All is counted from here on: the counts of this rank's own texts, over and over, stand for those of all.
    counts = planner._counts
    own = counts._known()[counts._known() >= 0]
    rng = np.random.default_rng(0)
    for start in range(0, len(counts._known()), 10**6):
        part = counts._known()[start : start + 10**6]
        part[:] = rng.choice(own, size=len(part))
    counts._images[:] = 1
    planner._block = None
    counted, step, end = plan(Position(0, 0), steps)
    return {
        "rank": rank,
        "samples": len(sources),
        "groups_of_an_epoch": num_groups,
        "groups_of_a_step": step.num_groups,
        "groups_of_this_rank": len(step.groups),
        "opening_s": round(opening_s, 2),
        "first_steps_s": first,
        "counted_steps_s": counted,
        "counted_step_s": round(float(np.median(counted)), 4),
        "resident_gb_before": before,
        "resident_gb_at_most": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "resident_gb_in_the_end": resident_gb(),
        "imbalance": imbalance(planner, end, ranks=ranks),
    }


def imbalance(planner: Planner, position: Position, *, ranks: int, steps: int = 5) -> dict[str, float]:
    """Say how much more the fullest rank has than the mean, at worst of some steps, in two ways of dealing."""
    found: dict[str, list[float]] = {"planned": [], "every n-th": []}
    for _ in range(steps):
        room, end = planner.text_tokens_per_step, position
        lengths: list[np.ndarray[Any, Any]] = []
        while room > 0:
            stretch = planner._take(end, room=room, epochs=1.0)
            lengths.append(stretch.positions)
            room -= int(stretch.tokens.sum())
            end = stretch.behind(len(stretch.tokens) - 1)
        positions = np.concatenate(lengths)
        assert end == planner.step(position, epochs=1.0).end, "they are the groups of the step"
        dealt = {"planned": share_out(positions, num_processes=ranks), "every n-th": np.arange(len(positions)) % ranks}
        for name, owners in dealt.items():
            laden = np.bincount(owners, weights=positions, minlength=ranks)
            found[name].append(float(laden.max() / laden.mean() - 1))
        position = end
    return {name: round(max(values), 4) for name, values in found.items()}


def resident_gb() -> float:
    """Say how much memory this process has now, in 10^9 bytes."""
    status = Path("/proc/self/statm")
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 1e9, 3) if status.is_file() else 0.0


def main() -> None:
    """Play some ranks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=positive, default=10_240, help=f"of {PER_SHARD:,} samples")
    parser.add_argument("--ranks", type=positive, default=1024, help="divides the shards evenly")
    parser.add_argument("--ranks-played", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=10, help="planned with everything counted")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    parser.add_argument("--play", nargs=2, metavar=("FOLDER", "RANK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        folder, rank = args.play
        print(json.dumps(play(Path(folder), rank=int(rank), ranks=args.ranks, steps=args.steps)))
        return
    if args.shards % args.ranks:
        parser.error(f"--shards: got {args.shards}, need a multiple of the {args.ranks} ranks")
    played = []
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), number=args.shards)
        for number in range(args.ranks_played):
            rank = number * (args.ranks - 1) // max(1, args.ranks_played - 1)
            sizes = ["--ranks", str(args.ranks), "--steps", str(args.steps)]
            console.print(f"rank {rank} of {args.ranks}")
            done = subprocess.run(
                [sys.executable, __file__, *sizes, "--play", folder, str(rank)],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "VISGRAFT_CACHE": str(Path(folder) / f"cache-{rank}"), "OMP_NUM_THREADS": "1"},
            )
            played.append(json.loads(done.stdout.splitlines()[-1]))
            console.print(played[-1])
    result = {
        "what": __doc__,
        "machine": machine(),
        "shards": args.shards,
        "ranks": args.ranks,
        "text_tokens_a_rank": TEXT_TOKENS,
        "image_tokens": IMAGE_TOKENS,
        "played": played,
        "resident_gb_at_most": max(each["resident_gb_at_most"] for each in played),
        "opening_s_at_most": max(each["opening_s"] for each in played),
        "counted_step_s_at_most": max(each["counted_step_s"] for each in played),
        "imbalance_at_most": max(each["imbalance"]["planned"] for each in played),
    }
    write(result, path=args.output)


if __name__ == "__main__":
    main()
