"""Is each first token that is another under load than alone a near tie? Asked of a model of a folder, in this process.

In: a model folder, questions, and the tokens that a server said to each, as bytes. Out: how many differ, and how near
the two candidates were where they first do, in rounding steps of bf16 at the size of their logits.

    found = look_at([(Asked(image, turns, 32), [b"A", b" cat"])], folder=Path("model"), precision="auto")
    found["other"]    # 0: every difference is a near tie

    within one step     the two logits, alone, lie one rounding step apart or less
    within its error    they lie further apart, but not further than bf16 is wrong there by itself: in float32, with
                        the same weights, the two logits are that far from what bf16 makes of them alone. The rounding
                        of thirty layers adds up, and in a few places of a model that was never trained it is a
                        hundred steps.
    other               none of the two: something but rounding moved a token
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visgraft.data.sample import Turn
from visgraft.inference import Decoding, Engine, load
from visgraft.inference.prefix_cache import open_pixels
from visgraft.inference.requests import ImageSegment, Prompt, segments_of
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.serving.tokens import TokenNames

Tokens = tuple[bytes, ...]


@dataclass(frozen=True)
class Asked:
    """A question about an image, behind earlier turns, and how long its answer may be."""

    image: Path
    turns: tuple[Turn, ...]
    num_tokens: int


class _Recorder:
    """Keep the logits of every token; where tokens are given, let no others come."""

    def __init__(self, given: Sequence[int] | None = None) -> None:
        self.logits: list[torch.Tensor] = []
        self._given = given

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores[0].float().clone())
        if self._given is None:
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[0, self._given[len(self.logits) - 1]] = 0
        return only


def look_at(said: Sequence[tuple[Asked, Tokens]], *, folder: Path, precision: Any) -> dict[str, Any]:
    """Answer each question alone, and weigh every answer's first other token."""
    model, processor = load(str(folder), precision=precision)
    names = TokenNames(processor.tokenizer)
    vocabulary = int(model.config.get_text_config().vocab_size)
    told = [bytes(names.told(token, 0.0)["bytes"]) for token in range(vocabulary)]
    alone: dict[Asked, tuple[Sequence[int], _Recorder]] = {}
    exact: VisionLanguageModel | None = None
    counts = dict.fromkeys(("different", "within_one_step", "within_its_error", "other"), 0)
    found: dict[str, Any] = {"answers": len(said), **counts, "steps_apart": []}
    for asked, tokens in said:
        if asked not in alone:
            alone[asked] = _answer(model, processor, asked)
        ids, recorder = alone[asked]
        first = _first_other(tokens, [told[token] for token in ids])
        if first is None:
            continue
        found["different"] += 1
        logits = recorder.logits[first]
        other = max(
            (token for token, name in enumerate(told) if name == tokens[first]),
            key=lambda token: float(logits[token]),
        )
        pair = [ids[first], other]
        step = 2.0 ** (math.floor(math.log2(max(*logits[pair].abs().tolist(), 1e-30))) - 7)
        gap = float(logits[pair[0]] - logits[pair[1]])
        found["steps_apart"].append(round(gap / step, 2))
        if gap <= step:
            found["within_one_step"] += 1
            continue
        exact = exact or _in_float32(model, folder)
        _, reference = _answer(exact, processor, asked, given=ids)
        error = float((logits[pair] - reference.logits[first][pair]).abs().sum())
        found["within_its_error" if gap <= error else "other"] += 1
    found["steps_apart"].sort()
    return found


def _answer(
    model: VisionLanguageModel, processor: Processor, asked: Asked, *, given: Sequence[int] | None = None
) -> tuple[Sequence[int], _Recorder]:
    recorder = _Recorder(given)
    items = [ImageSegment(open_pixels(processor, [asked.image])), *asked.turns]
    limit = asked.num_tokens if given is None else len(given)
    decoding = Decoding.of(max_new_tokens=limit, logits_processor=[recorder])
    reply = Engine(model, processor, num_slots=1).submit(Prompt(segments_of(processor, items)), decoding)
    return reply.answer().token_ids, recorder


def _first_other(said: Tokens, alone: Sequence[bytes]) -> int | None:
    """Find the first token that is another."""
    for place, (one, other) in enumerate(zip(said, alone, strict=False)):
        if one != other:
            return place
    return None


def _in_float32(model: VisionLanguageModel, folder: Path) -> VisionLanguageModel:
    """Make the model that computes in float32 with the same weights, rounded as they are."""
    exact, _ = load(str(folder), precision="fp32")
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    return exact
