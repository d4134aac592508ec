"""The ladder on a GPU: real shapes of four language models, two mixes, bf16; speed, utilisation, memory.

    python bench/gpu.py                                             # all; writes bench/results/gpu.json
    python bench/gpu.py --models llama-2-7b --mixes m3it --images 64
    python bench/gpu.py --device cpu --tiny --rounds 1              # only shows that it runs
    make gpu                                                        # 8 minutes: two models, and the tests marked gpu

OPT-350m, OPT-6.7b, Llama-2-7b and MPT-7b behind ViT-B/16 (224 pixels, 197 image tokens), random weights made on the
device; projection and LoRA r 8 on q, v train (MPT: its one matrix for q, k, v). Each rung is the one before with one
thing changed:

    bf16         GIT-LLM's recipe in bf16: a row a text, padded to 128 tokens (M3IT: 512, as its author set),
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
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import torch
from arithmetic import SIZES, MatrixRate, needed_operations
from gpu_shapes import build, pairs
from harness import console, interleave, machine, positive, ratio, write
from ladder import make_mix, padded, with_features
from train_step import PAD_ID, Data, Training, ancestor_losses, encode

from visgraft.data.batch import Batch, EncodedSample, collate
from visgraft.errors import ConfigError, MaskSizeError
from visgraft.estimate.gpus import local_gpu
from visgraft.model.attention_kernel import choose_attention, set_attention
from visgraft.model.precision import pick_device
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import PAD
from visgraft.training.compiling import compile_blocks
from visgraft.training.steps import LoaderSettings, make_batches, micro_batches
from visgraft.training.training_data import MICRO_BATCH_POSITIONS, ROW_POSITIONS

RUNGS = ("bf16", "supervised", "unpadded", "shared", "filled", "blocks", "compile", "cached")
EAGER = ("bf16", "supervised")
A_ROW_A_TEXT = ("supervised", "unpadded")
BLOCKS = ("blocks", "compile", "cached")
FILLED = ("filled", *BLOCKS)
MIXES = {"coco": 128, "m3it": 512}  # and the text tokens to which GIT-LLM padded
GIT_LLM_TEXTS = 1_361_650  # the rows of M3IT that GIT-LLM's author trained on, in "half a day"


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
    at_most: dict[str, Any] = {"micro_batch_positions": positions}
    if rung == "supervised":
        at_most = {"micro_batch_rows": max(1, positions // width)}  # whose rows are padded to that width
    elif rung == "shared":
        at_most["row_positions"] = 1  # so that each sample has a row of its own
    elif rung in FILLED:
        at_most["row_positions"] = ROW_POSITIONS["cuda"]
    settings = LoaderSettings("rows" if rung in A_ROW_A_TEXT else "shared", max_pixels=0, **at_most)
    parts = micro_batches(samples, settings=settings)
    batches = make_batches(parts, partial(collate, pad_token_id=PAD_ID), layout=settings.layout)
    return [padded(batch, width) if rung == "supervised" else batch for batch in batches]


def make_step(
    rung: str, model: VisionLanguageModel, data: Data, samples: Sequence[EncodedSample], *, positions: int, length: int
) -> tuple[Training, dict[str, Any]]:
    """Make a training step of a rung, and say how it is cut and how much of it is padding."""
    width = samples[0].num_prefix_tokens + length
    if rung == "bf16":
        losses = ancestor_losses(model, data, length=length, rows=max(1, positions // width))
        num_positions = length * data.num_captions  # of text: how much of what it pads is pads
        num_pads = sum(max(0, length - len(text)) for texts in data.captions for text in texts)
    else:
        batches = [batch.to(model.device) for batch in batches_of(rung, samples, positions=positions, width=width)]
        total = sum(batch.target.numel() for batch in batches)
        losses = [lambda batch=batch: model.loss(batch).loss_sum / total for batch in batches]
        num_positions = sum(batch.kind.numel() for batch in batches)
        num_pads = sum(int((batch.kind == PAD).sum()) for batch in batches)
    return Training(model, *losses), {"micro_batches": len(losses), "padding": round(num_pads / num_positions, 4)}


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
        if time.monotonic() > given.until:
            variants[rung] = {"left_out": f"{given.minutes:g} minutes were over (--minutes)"}
            continue
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
    return summarize(variants, mix=mix) | {
        "images": given.images,
        "texts": data.num_captions,
        "positions": num_positions,
        "needed_tflop": round(needed / 1e12, 4),
        "variants": variants,
    }


def summarize(variants: dict[str, Any], *, mix: str) -> dict[str, Any]:
    """Give each rung's ratio to the one before and to the first, and how long GIT-LLM's own run would take."""
    done = [rung for rung in variants if "seconds" in variants[rung]]
    result: dict[str, Any] = {
        "to the rung before": {fast: ratio(variants, slow=slow, fast=fast) for slow, fast in pairwise(done)},
        "in all": {rung: ratio(variants, slow=done[0], fast=rung) for rung in done[1:]},
    }
    if mix == "m3it":
        hours = {rung: round(GIT_LLM_TEXTS / variants[rung]["texts_per_s"] / 3600, 2) for rung in done}
        result[f"hours for {GIT_LLM_TEXTS:,} texts"] = hours
    return result


def device_here(text: str) -> torch.device:
    """Read a device from the command line."""
    try:
        return pick_device(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    """Climb every ladder that is asked for; write after each, so that what was measured stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(pairs(tiny=True))
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES))
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--images", type=positive, default=64, help="images a step")
    parser.add_argument("--micro-batch-positions", type=positive, default=MICRO_BATCH_POSITIONS["cuda"])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--minutes", type=float, default=inf, help="begin no rung after so long")
    parser.add_argument("--device", type=device_here, default=pick_device(None))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    given = parser.parse_args()
    if given.device.type == "cpu" and not given.tiny:
        parser.error("--device: got cpu, and the real shapes are for a GPU; name one, or add --tiny to see it run")
    given.until = time.monotonic() + 60 * given.minutes
    given.rungs = sorted(set(given.rungs), key=RUNGS.index)
    card = local_gpu() if given.device.type == "cuda" else None
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
