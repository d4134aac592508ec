"""What one call of `visgraft annotate` is to do, as plain values that travel to other processes.

In: what the user typed. Out: a `Request`, checked as far as nothing need be opened for it.

    request = Request(model="runs/my-run", data="photos/", output="labels", prompts=("What is it?",))
    Request(**json.loads(json.dumps(asdict(request))))     # the same, in another process
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from visgraft.errors import ConfigError
from visgraft.model.precision import Precision

ROWS_PER_UNIT = 512
EngineKind = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call.

    Attributes:
        model: run folder, model folder or Hub name.
        data: what `open_collection` takes.
        output: the folder that is written.
        prompts: what every image is asked; None: the dialogs of the data.
        part: of a recipe, which list of sources.
        split: of a source that is no recipe's.
        limit: the first so many rows of each source.
        keep_images: the images go into the output too; else where they lie.
        retry_errors: rows with an error are tried again.
        rows_per_unit: of an input shard that are written together; None: as the folder was begun, else 512.
        max_new_tokens: longest answer.
        temperature: answers are drawn at it; None: the likeliest token each time.
        top_p: only from the likeliest tokens that together have this share.
        seed: of the draws; each row has its own, made of it, so who labels it when does not matter.
        choices: the answer is one of these texts.
        batch_size: dialogs that run at once.
        device: None: the accelerator that is there.
        precision: of the frozen weights.
        workers: processes on this machine, or Ray's actors.
        shard: (which, of how many) parts of the work this call does; None: whatever no other process does.
        engine: what runs the workers.
        checksum: of the model, where the caller knows it; None: it is summed up.
    """

    model: str
    data: str
    output: str
    prompts: tuple[str, ...] | None = None
    part: str = "train"
    split: str | None = None
    limit: int | None = None
    keep_images: bool = False
    retry_errors: bool = False
    rows_per_unit: int | None = None
    max_new_tokens: int = 64
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    choices: tuple[str, ...] = ()
    batch_size: int = 16
    device: str | None = None
    precision: Precision = "auto"
    workers: int | None = None
    shard: tuple[int, int] | None = None
    engine: EngineKind = "local"
    checksum: str | None = None

    def __post_init__(self) -> None:
        """Check what belongs together."""
        object.__setattr__(self, "choices", tuple(self.choices))
        for name in ("prompts", "shard"):  # JSON knows lists alone
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.prompts is not None and len(set(self.prompts)) < len(self.prompts):
            twice = next(prompt for prompt in self.prompts if self.prompts.count(prompt) > 1)
            raise ConfigError(f"--prompt: got {twice!r} twice; name each prompt once")
        if self.shard is not None and (self.workers is not None or self.engine == "ray"):
            other = "--engine ray" if self.engine == "ray" else f"--workers {self.workers}"
            raise ConfigError(f"--shard: got it beside {other}; a part of the work is done by one process: drop one")
        if self.engine == "ray" and self.device not in (None, "cpu", "cuda"):
            raise ConfigError(
                f"--device: got {self.device} beside --engine ray, which gives each actor a device of its own; say "
                "cuda or cpu, or leave it out"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"--temperature: got {self.temperature:g}, need more than 0, or leave it out: the likeliest token each "
                "time"
            )
        for name, value in (("--top-p", self.top_p), ("--seed", self.seed)):
            if value is not None and self.temperature is None:
                raise ConfigError(
                    f"{name}: got {value:g} without --temperature, so nothing is drawn; give one, such as 1"
                )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p: got {self.top_p:g}, need a share above 0, up to 1")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers: got {self.workers}, need 1 or more")

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are decoded, by the names of `Decoding`."""
        drawn: dict[str, Any] = {}
        if self.temperature is not None:
            drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "seed": self.seed or 0}
            drawn["top_p"] = 1.0 if self.top_p is None else self.top_p
        chosen = {"choices": list(self.choices)} if self.choices else {}
        return {"max_new_tokens": self.max_new_tokens, "log_probabilities": 0, **drawn, **chosen}


def parse_shard(text: str) -> tuple[int, int]:
    """Read `3/8`: the fourth of eight parts. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None:
        raise ConfigError(f"--shard: got {text!r}, need I/N, such as 0/8 for the first of eight parts")
    number, count = int(found[1]), int(found[2])
    if number >= count:
        raise ConfigError(
            f"--shard: got {text}, and of {count} parts the last is {max(0, count - 1)}/{count}: they count from 0 "
            f"(`#SBATCH --array=0-{max(0, count - 1)}`)"
        )
    return number, count
