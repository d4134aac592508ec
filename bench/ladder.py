"""The ladder: what each idea of visgraft is worth in a training step, from the ancestor's recipe up.

    python bench/ladder.py                       # writes bench/results/ladder.json
    python bench/ladder.py --rounds 1 --tiny

Each rung is the one before with one thing changed; all see the same images and texts and train the same weights:

    ancestor     as GIT-LLM trained: a row a text, padded to 128, eager attention, fp32, logits everywhere
    bf16         frozen weights in bf16, autocast
    supervised   logits and loss only where a token is supervised
    unpadded     rows as long as the longest of the step; the kernel that visgraft chooses for the device
    shared       all texts of an image behind one image prefix, the image encoded once
    filled       rows filled with whole samples, little padding
    compile      the language part through torch.compile (not in --tiny, which measures nothing)

Two mixes: `captions`, 5 an image, 10 to 18 tokens; `vqa`, easy-VQA's own questions, 9.6 an image (their lengths:
bench/lengths/easy_vqa.json). The pair is that of train_step.py, and so is the ancestor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, ratio, write
from train_step import (
    ANCESTOR_LENGTH,
    CAPTIONS,
    LORA,
    MODES,
    Data,
    adam,
    ancestor_step,
    configs,
    encode,
    joined,
    make_data,
)

from visgraft.data.batch import Batch, collate
from visgraft.data.packing import fill_rows
from visgraft.model.attention import choose_attention, set_attention
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel

LENGTHS = Path(__file__).parent / "lengths" / "easy_vqa.json"
RUNGS = ("ancestor", "bf16", "supervised", "unpadded", "shared", "filled", "compile")
MIXES = ("captions", "vqa")
PAD_ID = 1


def make_mix(mix: str, num_images: int, *, side: int, vocabulary: int) -> Data:
    """Make random images and texts of a mix's lengths."""
    if mix == "captions":
        return make_data(num_images, captions=CAPTIONS, side=side, vocabulary=vocabulary)
    generator = torch.Generator().manual_seed(0)
    lengths = json.loads(LENGTHS.read_text())["images"][:num_images]

    def text(length: int) -> list[int]:
        return [*torch.randint(4, vocabulary, (length - 1,), generator=generator).tolist(), 2]

    return Data(
        torch.randn(len(lengths), 3, side, side, generator=generator),
        [[text(prompt + answer) for prompt, answer in texts] for texts in lengths],
        num_prompt=[[prompt for prompt, _ in texts] for texts in lengths],
    )


def make_rung(rung: str, data: Data, *, tiny: bool) -> Callable[[], None]:
    """Make a training step of a rung."""
    if rung in ("ancestor", "bf16"):
        return ancestor_step(data, tiny=tiny, dtype=None if rung == "ancestor" else torch.bfloat16)
    model = joined(tiny, attention="eager" if rung == "supervised" else "sdpa")
    set_attention(model, choose_attention(model.language, device=model.device))
    set_trainable(model, modes=MODES, lora=LORA, frozen_dtype=torch.bfloat16)
    model.train()
    batch = lay_out(rung, data, num_tokens=model.projection.num_tokens, tiny=tiny)
    if rung == "compile":
        model.language.compile()
    return _step(model, batch)


def lay_out(rung: str, data: Data, *, num_tokens: int, tiny: bool) -> Batch:
    """Collate the data as a rung lays them out."""
    samples = encode(data, num_tokens=num_tokens)
    if rung in ("supervised", "unpadded"):
        batch = collate(samples, layout="rows", pad_token_id=PAD_ID)
        return padded(batch, num_tokens + (24 if tiny else ANCESTOR_LENGTH)) if rung == "supervised" else batch
    if rung == "shared":
        return collate(samples, layout="shared", pad_token_id=PAD_ID)
    rows = fill_rows([sample.num_positions for sample in samples], row_positions=None)
    return collate(samples, layout="shared", pad_token_id=PAD_ID, rows=rows)


def padded(batch: Batch, width: int) -> Batch:
    """Pad the rows of a batch on the right to a fixed width, as the ancestor did."""
    values = {"input_ids": PAD_ID, "kind": 0, "group": -1, "segment": -1, "position": 0}
    missing = width - batch.kind.shape[1]
    wider = {
        name: torch.nn.functional.pad(batch[name], (0, max(0, missing)), value=value) for name, value in values.items()
    }
    return Batch({**batch, **wider})


def _step(model: VisionLanguageModel, batch: Batch) -> Callable[[], None]:
    optimizer = adam(model)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(batch).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(mix: str, rungs: list[str], *, num_images: int, rounds: int, tiny: bool) -> dict[str, Any]:
    """Time every rung; give each one's ratio to the one before and to the first."""
    vision, language = configs(tiny)
    data = make_mix(mix, num_images, side=vision.image_size, vocabulary=language.vocab_size - 1)
    steps = {rung: make_rung(rung, data, tiny=tiny) for rung in rungs}
    measured = interleave(steps, rounds=rounds, units=data.num_captions, unit="texts")
    before = dict(zip(rungs[1:], rungs, strict=False))
    return {
        "images": num_images,
        "texts": data.num_captions,
        "to the rung before": {rung: ratio(measured, slow=before[rung], fast=rung) for rung in rungs[1:]},
        "in all": {rung: ratio(measured, slow=rungs[0], fast=rung) for rung in rungs[1:]},
        "variants": measured,
    }


def main() -> None:
    """Climb the ladder with both mixes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4, help="images a step; of `vqa` half as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=None)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ladder.json")
    arguments = parser.parse_args()
    rungs = arguments.rungs or [rung for rung in RUNGS if rung != "compile" or not arguments.tiny]
    shares = {"captions": arguments.images, "vqa": max(1, arguments.images // 2)}
    result = {
        "what": "texts per second of one training step, rung by rung",
        "mixes": {
            mix: measure(mix, rungs, num_images=shares[mix], rounds=arguments.rounds, tiny=arguments.tiny)
            for mix in arguments.mixes
        },
        "machine": machine(),
    }
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
