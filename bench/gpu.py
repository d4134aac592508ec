"""The ladder on a GPU: real shapes of four language models, two mixes, bf16; speed, utilisation, memory.

    python bench/gpu.py                                             # all; writes bench/results/gpu.json
    python bench/gpu.py --models llama-2-7b --mixes m3it --images 64
    python bench/gpu.py --device cpu --tiny --rounds 1              # only shows that it runs

OPT-350m, OPT-6.7b, Llama-2-7b and MPT-7b behind ViT-B/16 (224 pixels, 197 image tokens), random weights made on the
device; projection and LoRA r 8 on q, v train (MPT: its one matrix for q, k, v). Each rung is the one before with one
thing changed:

    bf16         the ancestor's recipe in bf16: a row a text, padded to 128 tokens (M3IT: 512, as its author set),
                 eager attention, logits everywhere
    supervised   logits and loss only where a token is supervised
    unpadded     rows as long as the longest of their micro-batch; the language model's own kernel (SDPA), dense masks
    shared       all texts of an image behind one image prefix, the image encoded once
    filled       rows filled with whole samples, up to 4096 positions
    blocks       the kernel that visgraft chooses for the device: FlexAttention's block masks
    compile      the blocks of both parts through torch.compile
    cached       apart: what the encoder makes of each image is given

A step goes through its data in micro-batches as training does, and halves them where memory does not suffice. One model
serves all rungs (two of 7B do not fit), which are timed one after another: a GPU that does nothing else is quiet. The
work counted is that of `shared`, the same for every rung (bench/arithmetic.py): so utilisation, over the card's dense
bf16 rate, counts no padding and nothing done twice. Lengths: bench/lengths/coco.json and m3it.json.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from arithmetic import SIZES, MatrixRate, needed_operations
from gpu_shapes import build, pairs
from harness import console, interleave, machine, ratio, write
from ladder import make_mix, padded, with_features
from torch import Tensor
from train_step import PAD_ID, Data, Training, encode, padded_rows

from visgraft.data.batch import PAD, Batch, EncodedSample, collate, split_dialogs
from visgraft.data.packing import split_by_positions
from visgraft.errors import ConfigError, MaskSizeError
from visgraft.fit.cards import card_here
from visgraft.model.attention import choose_attention, set_attention
from visgraft.model.precision import pick_device
from visgraft.model.vlm import VisionLanguageModel
from visgraft.train.compiling import compile_blocks
from visgraft.train.steps import LoaderSettings, micro_batches

RUNGS = ("bf16", "supervised", "unpadded", "shared", "filled", "blocks", "compile", "cached")
EAGER = ("bf16", "supervised")
A_ROW_A_TEXT = ("supervised", "unpadded")
BLOCKS = ("blocks", "compile", "cached")
FILLED = ("filled", *BLOCKS)
MIXES = {"coco": 128, "m3it": 512}  # and the text tokens to which the ancestor padded
ROW_POSITIONS, MICRO_BATCH_POSITIONS = 4096, 32_768  # visgraft's own on a GPU
ANCESTORS_TEXTS = 1_361_650  # the rows of M3IT that the ancestor's author trained on, in "half a day"


def set_rung(model: VisionLanguageModel, rung: str, *, own_kernel: str, backend: str) -> None:
    """Set the attention kernel of a rung, where the language model has it; compile at `compile`."""
    chosen = choose_attention(model.language, device=model.device) or own_kernel
    try:
        set_attention(model, "eager" if rung in EAGER else chosen if rung in BLOCKS else own_kernel)
    except ConfigError as error:
        console.print(f"{rung}: {error}")  # and it stays with its own
    if rung == "compile":
        compile_blocks(model, backend=backend)


def batches_of(rung: str, samples: Sequence[EncodedSample], *, positions: int, width: int) -> list[Batch]:
    """Lay samples out as a rung does, in micro-batches of at most so many positions."""
    if rung in FILLED:
        row_positions = min(ROW_POSITIONS, positions)
        settings = LoaderSettings("shared", 0, micro_batch_positions=positions, row_positions=row_positions)
        made = []
        for rows in micro_batches(samples, settings=settings):
            count = iter(range(sum(map(len, rows))))
            filled = [[next(count) for _ in row] for row in rows]
            flat = [sample for row in rows for sample in row]
            made.append(collate(flat, layout="shared", pad_token_id=PAD_ID, rows=filled))
        return made
    layout: Any = "rows" if rung in A_ROW_A_TEXT else "shared"
    units = split_dialogs(samples) if layout == "rows" else list(samples)
    costs = [width if rung == "supervised" else unit.num_positions for unit in units]
    parts = split_by_positions(costs, max_cost=positions)
    batches = [collate([units[i] for i in part], layout=layout, pad_token_id=PAD_ID) for part in parts]
    return [padded(batch, width) for batch in batches] if rung == "supervised" else batches


def make_step(
    rung: str, model: VisionLanguageModel, data: Data, samples: Sequence[EncodedSample], *, positions: int, length: int
) -> tuple[Training, dict[str, Any]]:
    """Make a training step of a rung, and say how it is cut and how much of it is padding."""
    width = samples[0].num_prefix_tokens + length
    if rung == "bf16":
        return ancestor_step(model, data, rows=max(1, positions // width), length=length)
    batches = [batch.to(model.device) for batch in batches_of(rung, samples, positions=positions, width=width)]
    total = sum(batch.target.numel() for batch in batches)

    def loss(batch: Batch) -> Tensor:
        return model.loss(batch).loss_sum / total

    all_positions = sum(batch.kind.numel() for batch in batches)
    pads = sum(int((batch.kind == PAD).sum()) for batch in batches)
    facts = {"micro_batches": len(batches), "padding": round(pads / all_positions, 4)}
    return Training(model, *(lambda batch=batch: loss(batch) for batch in batches)), facts


def ancestor_step(model: VisionLanguageModel, data: Data, *, rows: int, length: int) -> tuple[Training, dict[str, Any]]:
    """Make a step of the ancestor's recipe; pads are in its loss."""
    whole = padded_rows(data, length=length)
    parts = [[tensor.to(model.device) for tensor in part] for part in zip(*(t.split(rows) for t in whole), strict=True)]

    def loss(ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=ids)
        return out.loss * len(ids) / len(whole[0])

    step = Training(model, *(lambda part=part: loss(*part) for part in parts))
    return step, {"micro_batches": len(parts), "padding": round(1 - float(whole[1].float().mean()), 4)}


def measure_rung(
    rung: str,
    model: VisionLanguageModel,
    data: Data,
    samples: Sequence[EncodedSample],
    *,
    positions: int,
    length: int,
    rounds: int,
) -> dict[str, Any]:
    """Time a rung, in micro-batches as large as memory allows, and note its peak."""
    while True:
        try:
            _reset_peak(model.device)
            step, facts = make_step(rung, model, data, samples, positions=positions, length=length)
            measured = interleave({rung: step}, rounds=rounds, units=data.num_captions, unit="texts")[rung]
            return {**measured, **facts, "micro_batch_positions": positions, "peak_memory_gib": _peak(model.device)}
        except (torch.OutOfMemoryError, MaskSizeError) as error:
            why = str(error).partition("\n")[0]
        model.zero_grad(set_to_none=True)
        _free(model.device)
        if positions <= samples[0].num_prefix_tokens + length:
            return {"left_out": f"memory does not suffice: {why}"}
        positions //= 2
        console.print(f"{rung}: out of memory, now micro-batches of {positions:,} positions")


def measure(name: str, mix: str, *, given: argparse.Namespace, rate: MatrixRate) -> dict[str, Any]:
    """Climb the ladder with one language model and one mix."""
    pair, device = pairs(tiny=given.tiny)[name], given.device
    length = 24 if given.tiny else MIXES[mix]
    vocabulary = pair.language.vocab_size - 1
    data = make_mix(mix, given.images, side=pair.vision.image_size, vocabulary=vocabulary)
    if given.tiny:
        data = Data(data.pixels, [[ids[:length] for ids in texts] for texts in data.captions])
    model = build(pair, device=device)
    own_kernel = model.language.config._attn_implementation
    samples = encode(data, num_tokens=model.projection.num_tokens)
    alone = [collate([sample], layout="shared", pad_token_id=PAD_ID) for sample in samples]
    needed = sum(needed_operations(model, batch).total for batch in alone)
    num_positions = sum(sample.num_positions for sample in samples)
    variants: dict[str, Any] = {}
    for rung in given.rungs:
        console.print(f"[bold]{name}, {mix}, {rung}[/]")
        set_rung(model, rung, own_kernel=own_kernel, backend="eager" if given.tiny else "inductor")
        seen = with_features(samples, model) if rung == "cached" else samples
        settings = {"positions": given.micro_batch_positions, "length": length, "rounds": given.rounds}
        measured = measure_rung(rung, model, data, seen, **settings)
        measured["attention"] = model.language.config._attn_implementation
        if "median_s" in measured:
            per_second = needed / measured["median_s"]
            measured["positions_per_s"] = round(num_positions / measured["median_s"], 1)
            measured["share_of_matrix_rate"] = round(per_second / rate.per_second, 4)
            measured["utilisation"] = round(per_second / given.peak, 4) if given.peak else None
        variants[rung] = measured
    del model
    _free(device)
    return summarize(variants, mix=mix, given=given) | {
        "images": given.images,
        "texts": data.num_captions,
        "positions": num_positions,
        "needed_tflop": round(needed / 1e12, 4),
        "variants": variants,
    }


def summarize(variants: dict[str, Any], *, mix: str, given: argparse.Namespace) -> dict[str, Any]:
    """Give each rung's ratio to the one before and to the first, and how long the ancestor's own run would take."""
    done = [rung for rung in variants if "seconds" in variants[rung]]
    result: dict[str, Any] = {
        "to the rung before": {fast: ratio(variants, slow=slow, fast=fast) for slow, fast in pairwise(done)},
        "in all": {rung: ratio(variants, slow=done[0], fast=rung) for rung in done[1:]},
    }
    if mix == "m3it":
        hours = {rung: round(ANCESTORS_TEXTS / variants[rung]["texts_per_s"] / 3600, 2) for rung in done}
        result[f"hours for {ANCESTORS_TEXTS:,} texts"] = hours
    return result


def main() -> None:
    """Climb every ladder that is asked for; write after each, so that what was measured stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(pairs(tiny=True))
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--images", type=int, default=64, help="images a step")
    parser.add_argument("--micro-batch-positions", type=int, default=MICRO_BATCH_POSITIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=pick_device(None))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    given = parser.parse_args()
    given.rungs = sorted(set(given.rungs), key=RUNGS.index)
    card = card_here() if given.device.type == "cuda" else None
    given.peak = card.tflops * 1e12 if card is not None and card.tflops else None
    rate = MatrixRate(given.device, sizes=(64, 128) if given.tiny else (*SIZES, 8192))
    for _ in range(3):
        rate()
    result: dict[str, Any] = {
        "what": "training steps of one GPU, rung by rung",
        "card_tflops": given.peak and given.peak / 1e12,
        "matrix_rate_tflops": round(rate.per_second / 1e12, 4),
        "models": {},
        "machine": machine(),
    }
    del rate.squares
    for name in given.models:
        for mix in given.mixes:
            result["models"].setdefault(name, {})[mix] = measure(name, mix, given=given, rate=rate)
            write(result, path=given.output)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
