"""Kill runs of many kinds, at file operations and at moments drawn at random; each must end as if it never was.

In: how many kills, and a seed. Out: a table, one line for each kind of run; exit status 1 if one ended differently.

    python -m tests.training.kill_many --kills 300 --seed 0
    python -m tests.training.kill_many --every 1 --only map-style      # at each operation, in the middle of each write
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.data.test_windows import write_tars
from tests.training.killed_run import Kill, Recipe, Verdict, kill_and_go_on, list_operations, run, what_is_left
from tests.training.tiny import tiny_recipe

STEPS = {"max_steps": 5, "epochs": 3.0, "checkpoint_every_steps": 2, "validate_every_steps": 3, "sample_every_steps": 2,
         "max_new_tokens": 4, "exact_match_samples": 2}  # fmt: skip


# --- The kinds of runs


def map_style(folder: Path) -> Recipe:
    return tiny_recipe(folder, num_images=8, bad=2, **STEPS)


def streams(folder: Path) -> Recipe:
    recipe = tiny_recipe(folder, num_images=8, **STEPS, text_tokens_per_step=20)
    recipe["data"]["train"] = [
        {"source": "webdataset", "path": write_tars(folder / "tars"), "streaming": True, "group": "content"}
    ]
    return {**recipe, "data": {**recipe["data"], "stream_window": 4}}


def webdataset_with_weights(folder: Path) -> Recipe:
    recipe = tiny_recipe(folder, num_images=8, **STEPS, text_tokens_per_step=20)
    recipe["data"]["train"] = [
        {"source": "webdataset", "path": write_tars(folder / name, name=name), "weight": weight, "group": "content"}
        for name, weight in (("a", 1.0), ("b", 0.5))
    ]
    return recipe


def cache_vision(folder: Path) -> Recipe:
    return tiny_recipe(folder, num_images=8, **STEPS, cache_vision="disk")


def start_from(folder: Path) -> Recipe:
    first = folder / "first"
    if not first.exists():
        run(tiny_recipe(folder, num_images=8, max_steps=1), first)
    recipe = tiny_recipe(folder, num_images=8, **STEPS, lora={"r": 4})
    return {**recipe, "model": {"start_from": str(first)}}


def full_fine_tuning(folder: Path) -> Recipe:
    return tiny_recipe(folder, num_images=8, **STEPS, vision="full", language="full", head="full", save="full")


def augmentation_with_workers(folder: Path) -> Recipe:
    recipe = tiny_recipe(folder, num_images=8, **STEPS, num_workers=2)
    recipe["data"]["augment"] = {"crop": [0.5, 1.0], "flip": 0.5, "colour": 0.2}
    return recipe


def dropout(folder: Path) -> Recipe:
    return tiny_recipe(folder, num_images=8, **STEPS, family="opt", dropout=0.1, lora={"r": 2, "lora_dropout": 0.1})


@dataclass(frozen=True)
class Kind:
    """A kind of run: what makes its recipe in a folder, and how many processes train it."""

    name: str
    make: Callable[[Path], Recipe]
    num_processes: int = 1


KINDS = (
    Kind("map-style", map_style),
    Kind("streams", streams),
    Kind("WebDataset with weights", webdataset_with_weights),
    Kind("cache_vision", cache_vision),
    Kind("start_from", start_from),
    Kind("full fine-tuning", full_fine_tuning),
    Kind("augmentation with workers", augmentation_with_workers),
    Kind("dropout", dropout),
    Kind("two processes with dropout", dropout, num_processes=2),
)


# --- Killing one kind


@dataclass
class Tally:
    """How the killed runs of one kind ended."""

    kind: str
    num_operations: int = 0
    ended: Counter[Verdict] = field(default_factory=Counter)

    @property
    def kills(self) -> int:
        return sum(self.ended.values())


class Ground:
    """A folder with the data of a kind, the run that nothing ended, and what it did to files."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True)
        self.recipe = kind.make(folder)
        self.recipe["output"] = str(folder / "runs")
        unhurt = folder / "unhurt"
        self.operations, self.seconds = list_operations(self.recipe, unhurt, num_processes=kind.num_processes)
        self.expected = what_is_left(unhurt)

    def kill(self, kills: list[Kill]) -> tuple[Verdict, str]:
        """Kill a run of this kind, and remove it if it ended as it should."""
        killed = self.folder / "killed"
        verdict, reason = kill_and_go_on(
            self.recipe, killed, kills=kills, expected=self.expected, num_processes=self.kind.num_processes
        )
        for path in self.folder.glob("killed*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return verdict, reason

    def name(self, kills: Sequence[Kill]) -> str:
        """Say when a run was killed, and again while it went on."""
        named = []
        for number, kill in enumerate(kills):
            when = f"after {kill.after_s:.3f} s" if kill.at is None else f"at operation {kill.at}"
            if kill.at is not None and number == 0:  # what comes at which number is known of the first time alone
                when += f", {self.operations[kill.at].replace(str(self.folder), '')}"
            when += ", half of it done" if kill.torn else ""
            named.append(when + (f", process {kill.process} alone" if kill.alone else ""))
        return "; then ".join(named)


def draw(chance: random.Random, ground: Ground) -> list[Kill]:
    """Draw when to kill a run: half of them at an operation, a third a second time, while it goes on."""
    kills = []
    for _ in range(1 + (chance.random() < 1 / 3)):
        several = {
            "process": chance.randrange(ground.kind.num_processes),
            "alone": ground.kind.num_processes > 1 and chance.random() < 0.5,
        }
        if chance.random() < 0.5:
            at, torn = chance.choice(chance.choice(alike(ground.operations))), chance.random() < 0.5
            kills.append(Kill(at=at, torn=torn, **{**several, "process": 0}))  # the others write nothing
        else:
            kills.append(Kill(after_s=chance.uniform(0, ground.seconds), **several))
    return kills


def alike(operations: list[str]) -> list[range]:
    """Put operations of one name on one file together where one follows the other: a file is written in many pieces."""
    starts = [n for n, operation in enumerate(operations) if n == 0 or operation != operations[n - 1]]
    return [range(start, end) for start, end in pairwise([*starts, len(operations)])]


def points(operations: list[str], *, every: int) -> Iterator[Kill]:
    """List the operations at which to kill: in front of every n-th, and in the middle of those that write."""
    for pieces in alike(operations)[::every]:
        yield Kill(at=pieces[0])
        if "*" in operations[pieces[0]]:
            yield Kill(at=pieces[len(pieces) // 2], torn=True)


def kill_kind(kind: Kind, folder: Path, *, kills: int, every: int | None, chance: random.Random) -> Tally:
    """Kill runs of a kind, at every n-th operation or at random."""
    ground = Ground(kind, folder)
    tally = Tally(kind.name, num_operations=len(alike(ground.operations)))
    chosen = [[kill] for kill in points(ground.operations, every=every)] if every else [
        draw(chance, ground) for _ in range(kills)
    ]  # fmt: skip
    for number, each in enumerate(chosen):
        verdict, reason = ground.kill(each)
        tally.ended[verdict] += 1
        if verdict != "equal":
            say(f"{kind.name}, kill {number}, {ground.name(each)}: {verdict}: {reason}")
    return tally


# --- The table


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def table_of(tallies: list[Tally]) -> str:
    lines = [
        "| run | file operations | kills | equal | not equal | refused |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tally in [*tallies, total_of(tallies)]:
        counts = (tally.num_operations, tally.kills, *(tally.ended[key] for key in ("equal", "not equal", "refused")))
        lines.append(f"| {tally.kind} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def total_of(tallies: list[Tally]) -> Tally:
    ended: Counter[Verdict] = Counter()
    for tally in tallies:
        ended += tally.ended
    return Tally("all", num_operations=sum(tally.num_operations for tally in tallies), ended=ended)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=300, help="of all kinds together")
    options.add_argument("--every", type=int, help="kill at every n-th file operation instead")
    options.add_argument("--seed", type=int, help="default: drawn, and printed")
    options.add_argument("--only", action="append", help="a kind of run; may be given often")
    given = options.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    kinds = [kind for kind in KINDS if given.only is None or kind.name in given.only]
    say(f"seed {seed}")
    started, tallies = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(kinds):
            kills = given.kills // len(kinds) + (number < given.kills % len(kinds))
            chance = random.Random(f"{seed} {kind.name}")
            began = time.monotonic()
            tallies.append(kill_kind(kind, Path(folder) / str(number), kills=kills, every=given.every, chance=chance))
            say(f"{kind.name}: {dict(tallies[-1].ended)} in {time.monotonic() - began:.0f} s")
    sys.stdout.write(table_of(tallies) + f"\n\nseed {seed}, {time.monotonic() - started:.0f} s\n")
    total = total_of(tallies)
    return 0 if total.kills and total.ended["equal"] == total.kills else 1


if __name__ == "__main__":
    sys.exit(main())
