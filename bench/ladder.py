"""The ladder: what each idea of visgraft is worth in a training step, from GIT-LLM's recipe up.

    python bench/ladder.py                       # writes bench/results/ladder.json
    python bench/ladder.py --rounds 1 --tiny
    python bench/ladder.py --hybrids lfm2 qwen3_5    # writes bench/results/ladder_hybrids.json
    python bench/ladder.py --trees opt lfm2          # writes bench/results/ladder_trees.json

Each rung is the one before with one thing changed; all see the same images and texts and train the same weights:

    ancestor     as GIT-LLM trained: a row a text, padded to 128, eager attention, fp32, logits everywhere
    bf16         frozen weights in bf16, autocast
    supervised   logits and loss only where a token is supervised
    unpadded     rows as long as the longest of the step; the kernel that visgraft chooses for the device
    shared       all texts of an image behind one image prefix, the image encoded once
    filled       rows filled with whole samples, little padding
    compile      the blocks of both parts through torch.compile, as `train.compile: true` does
    cached       what the encoder makes of each image is given, as `train.cache_vision` gives it

`cached` is reported apart: "in all" ends at `compile`, so that the vision part is computed in every step that counts.
From `shared` on, where nothing is done twice, each rung's needed operations (bench/arithmetic.py) are given as a share
of the machine's own matrix rate, which is measured in the same rounds.

Hybrid language models (`--hybrids`) have two rungs of their own, as no mask governs their states: `rows`, each text
with its image in a row, and `shared`, the image read once and its states copied to the texts. Their shapes are those of
LFM2-350M and Qwen3.5-0.8B with 8 layers, behind the same encoder; LoRA on the mixers of every kind of layer.

Dialogs that begin with the same turn (`--trees`) have one rung more, `trees`: what they begin with stands once behind
the image, too; `shared` is without that. Each image has 5 dialogs of a turn of 40 tokens that all have, and 10 to 18
tokens of their own.

Two mixes: `captions`, 5 an image, 10 to 18 tokens; `vqa`, easy-VQA's own questions, 9.6 an image (their lengths:
bench/lengths/vqa.json). The pair is that of train_step.py, and so is GIT-LLM.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from arithmetic import SIZES, MatrixRate, Operations, needed_operations
from harness import interleave, machine, positive, ratio, write
from train_step import (
    ANCESTOR_LENGTH,
    CAPTIONS,
    MODES,
    PAD_ID,
    Data,
    Training,
    ancestor_step,
    configs,
    encode,
    lay_out,
    make_data,
    prepared,
)
from transformers import AutoModelForCausalLM, CLIPVisionModel, Lfm2Config, PreTrainedConfig, Qwen3_5TextConfig

from visgraft.branches import grow
from visgraft.config import LoraSettings
from visgraft.data.batch import Batch, EncodedSample
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import PAD
from visgraft.training.compiling import compile_blocks

LENGTHS = Path(__file__).parent / "lengths"
RESULTS = Path(__file__).parent / "results"
RUNGS = ("ancestor", "bf16", "supervised", "unpadded", "shared", "filled", "compile", "cached")
APART = "cached"
COUNTED = RUNGS[4:]  # rungs that do nothing twice
MIXES = ("captions", "vqa")
HYBRIDS = ("lfm2", "qwen3_5")
FAMILIES = ("opt", *HYBRIDS)
TURN = 40  # tokens with which all dialogs of an image begin, in the mix `dialogs`


def make_mix(mix: str, num_images: int, *, side: int, vocabulary: int) -> Data:
    """Make random images and texts of a mix's lengths: `captions`, `dialogs`, or a file of bench/lengths/."""
    if mix in ("captions", "dialogs"):
        data = make_data(num_images, captions=CAPTIONS, side=side, vocabulary=vocabulary)
        if mix == "captions":
            return data
        turns = torch.randint(4, vocabulary, (num_images, TURN), generator=torch.Generator().manual_seed(1)).tolist()
        dialogs = [[turn + text[1:] for text in texts] for turn, texts in zip(turns, data.captions, strict=True)]
        return Data(data.pixels, dialogs, num_prompt=[[TURN // 4] * CAPTIONS] * num_images)
    generator = torch.Generator().manual_seed(0)
    lengths = json.loads((LENGTHS / f"{mix}.json").read_text())["images"][:num_images]

    def text(length: int) -> list[int]:
        return [*torch.randint(4, vocabulary, (length - 1,), generator=generator).tolist(), 2]

    return Data(
        torch.randn(len(lengths), 3, side, side, generator=generator),
        [[text(prompt + answer) for prompt, answer in texts] for texts in lengths],
        num_prompt=[[prompt for prompt, _ in texts] for texts in lengths],
    )


def make_rung(rung: str, data: Data, *, tiny: bool) -> tuple[Training, Batch | None]:
    """Make a training step of a rung, and the batch that it trains on."""
    if rung in ("ancestor", "bf16"):
        return ancestor_step(data, tiny=tiny, dtype=None if rung == "ancestor" else torch.bfloat16), None
    model = prepared(tiny, attention="eager" if rung == "supervised" else "sdpa")
    samples = encode(data, num_tokens=model.projection.num_tokens)
    if rung == "cached":
        samples = with_features(samples, model)
    layout = {"supervised": "rows", "unpadded": "rows", "shared": "shared"}.get(rung, "filled")
    batch = lay_out(samples, layout)
    if rung == "supervised":
        batch = padded(batch, samples[0].num_prefix_tokens + (24 if tiny else ANCESTOR_LENGTH))
    if rung in ("compile", "cached"):
        compile_blocks(model, backend="eager" if tiny else "inductor")
    return Training(model, lambda: model.loss(batch).loss), batch


def hybrid_config(family: str, *, tiny: bool) -> PreTrainedConfig:
    """Give the shapes of a hybrid language model; tiny ones only show that the script runs."""
    layers = (["conv"] if family == "lfm2" else ["linear_attention"] * 3) + ["full_attention"]
    sizes: dict[str, Any] = {
        "vocab_size": 300 if tiny else 65536,
        "hidden_size": 32 if tiny else 1024,
        "layer_types": layers if tiny else layers * (8 // len(layers)),
        "max_position_embeddings": 2048,
        "pad_token_id": PAD_ID,
    }
    sizes["num_hidden_layers"] = len(sizes["layer_types"])
    if family == "lfm2":
        heads = {"num_attention_heads": 2 if tiny else 16, "num_key_value_heads": 2 if tiny else 8}
        return Lfm2Config(**sizes, **heads, intermediate_size=64 if tiny else 4608, block_auto_adjust_ff_dim=False)
    linear = {"linear_key_head_dim": 8 if tiny else 128, "linear_value_head_dim": 8 if tiny else 128}
    number = {"linear_num_key_heads": 2 if tiny else 16, "linear_num_value_heads": 2 if tiny else 16}
    heads = {"num_attention_heads": 2 if tiny else 8, "num_key_value_heads": 2, "head_dim": 16 if tiny else 256}
    return Qwen3_5TextConfig(**sizes, **linear, **number, **heads, intermediate_size=64 if tiny else 3584)


def make_layout(family: str, layout: str, data: Data, *, tiny: bool) -> Training:
    """Make a training step of a language model's family in a layout: `rows`, `shared` or `trees`."""
    if family == "opt":
        model = prepared(tiny, attention="sdpa")
    else:
        torch.manual_seed(0)
        language = AutoModelForCausalLM.from_config(hybrid_config(family, tiny=tiny))
        model = VisionLanguageModel.from_parts(CLIPVisionModel(configs(tiny)[0]), language)
        assert model.attention_spec.sharing == "state", f"{family} shares by {model.attention_spec.sharing}"
        set_trainable(model, modes=MODES, lora={"language": LoraSettings(r=8)}, frozen_dtype=torch.bfloat16)
    samples = encode(data, num_tokens=model.projection.num_tokens)
    if layout == "shared":
        for sample in samples:  # as if no two texts were alike
            texts = [dialog.input_ids for dialog in sample.dialogs]
            sample.__dict__["grown"] = grow(texts, min_saved=sum(map(len, texts)))
    batch = lay_out(samples, "rows" if layout == "rows" else "shared")
    return Training(model, lambda: model.loss(batch).loss)


def measure_layouts(
    family: str, mix: str, *, layouts: Sequence[str], num_images: int, rounds: int, tiny: bool
) -> dict[str, Any]:
    """Time a language model's texts in several layouts, which all have one loss."""
    vision, language = configs(tiny)
    own = language if family == "opt" else hybrid_config(family, tiny=tiny)
    data = make_mix(mix, num_images, side=vision.image_size, vocabulary=own.vocab_size - 1)
    steps = {layout: make_layout(family, layout, data, tiny=tiny) for layout in layouts}
    check_same_training(steps)
    losses = {layout: float(step.loss().detach()) for layout, step in steps.items()}
    first, *others = layouts
    for layout in others:
        assert abs(losses[layout] - losses[first]) < 0.02 * losses[first], f"{family}: the losses are {losses}"
    measured = interleave(steps, rounds=rounds, units=data.num_captions, unit="texts")
    return {
        "images": num_images,
        "texts": data.num_captions,
        **{f"{fast} / {slow}": ratio(measured, slow=slow, fast=fast) for slow, fast in pairwise(layouts)},
        "variants": measured,
    }


def with_features(samples: Sequence[EncodedSample], model: VisionLanguageModel) -> list[EncodedSample]:
    """Put what the encoder makes of each sample's image in the place of its pixels, as a full vision cache does."""
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        made = [
            model.image_features({name: value.to(model.device) for name, value in sample.vision_inputs.items()})
            for sample in samples
        ]
    return [
        replace(sample, vision_inputs={"features": features.cpu()})
        for sample, features in zip(samples, made, strict=True)
    ]


def padded(batch: Batch, width: int) -> Batch:
    """Pad the rows of a batch on the right to a fixed width, as GIT-LLM did."""
    values = {"input_ids": PAD_ID, "kind": PAD, "group": -1, "segment": -1, "position": 0}
    missing = width - batch.kind.shape[1]
    wider = {
        name: torch.nn.functional.pad(batch[name], (0, max(0, missing)), value=value) for name, value in values.items()
    }
    return Batch({**batch, **wider})


def check_same_training(steps: dict[str, Training]) -> None:
    """See that every rung trains the same weights."""
    trained = {
        rung: {name: parameter.shape for name, parameter in step.model.named_parameters() if parameter.requires_grad}
        for rung, step in steps.items()
    }
    first = next(iter(trained.values()))
    assert first and all(shapes == first for shapes in trained.values()), "the rungs train unlike weights"


def measure(
    mix: str, rungs: Sequence[str], *, num_images: int, rounds: int, tiny: bool, rate: MatrixRate
) -> tuple[dict[str, Any], dict[str, Operations]]:
    """Time every rung and the matrix rate; give each rung's ratios, and what it needs where that is counted."""
    vision, language = configs(tiny)
    data = make_mix(mix, num_images, side=vision.image_size, vocabulary=language.vocab_size - 1)
    steps, needed = {}, {}
    for rung in rungs:
        steps[rung], batch = make_rung(rung, data, tiny=tiny)
        if rung in COUNTED and batch is not None:
            needed[rung] = needed_operations(steps[rung].model, batch)
    check_same_training(steps)
    measured = interleave({**steps, "matrix rate": rate}, rounds=rounds, units=data.num_captions, unit="texts")
    del measured["matrix rate"]  # which keeps its own time
    before = dict(zip(rungs[1:], rungs, strict=False))
    to_before = {rung: ratio(measured, slow=before[rung], fast=rung) for rung in rungs[1:]}
    in_all = {rung: ratio(measured, slow=rungs[0], fast=rung) for rung in rungs[1:]}
    result: dict[str, Any] = {
        "images": num_images,
        "texts": data.num_captions,
        "to the rung before": {rung: value for rung, value in to_before.items() if rung != APART},
        "in all": {rung: value for rung, value in in_all.items() if rung != APART},
    }
    if APART in to_before:
        result["apart, with cached vision"] = {
            "to the rung before": to_before[APART],
            "to the first rung": in_all[APART],
        }
    return {**result, "variants": measured}, needed


def share_of_rate(measured: dict[str, Any], needed: dict[str, Operations], *, rate: MatrixRate) -> dict[str, Any]:
    """Give what each rung's step needs, and the share of the matrix rate at which it was done."""
    return {
        "needed_gflop": {
            rung: {"total": round(own.total / 1e9, 3), **{part: round(n / 1e9, 3) for part, n in asdict(own).items()}}
            for rung, own in needed.items()
        },
        "share_of_matrix_rate": {
            rung: round(own.total / measured["variants"][rung]["median_s"] / rate.per_second, 4)
            for rung, own in needed.items()
        },
    }


def main() -> None:
    """Climb the ladder with both mixes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=4, help="images a step; of `vqa` half as many")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--hybrids", nargs="*", choices=HYBRIDS, default=[], help="measure these instead")
    parser.add_argument("--trees", nargs="*", choices=FAMILIES, default=[], help="or these, dialogs that begin alike")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = {"num_images": arguments.images, "rounds": arguments.rounds, "tiny": arguments.tiny}
    for name, families, mix, layouts in (
        ("hybrids", arguments.hybrids, "captions", ("rows", "shared")),
        ("trees", arguments.trees, "dialogs", ("rows", "shared", "trees")),
    ):
        if families:
            found = {family: measure_layouts(family, mix, layouts=layouts, **settings) for family in families}
            result = {"what": f"texts per second of {name}, {mix}", "families": found, "machine": machine()}
            write(result, path=arguments.output or RESULTS / f"ladder_{name}.json")
            return
    rungs = sorted(set(arguments.rungs), key=RUNGS.index)
    rate = MatrixRate(torch.device("cpu"), sizes=(64, 128) if arguments.tiny else SIZES)
    num_images = {"captions": arguments.images, "vqa": max(1, arguments.images // 2)}
    settings = {"rounds": arguments.rounds, "tiny": arguments.tiny, "rate": rate}
    climbed = {mix: measure(mix, rungs, num_images=num_images[mix], **settings) for mix in arguments.mixes}
    result = {
        "what": "texts per second of one training step, rung by rung",
        "matrix_rate_tflops": round(rate.per_second / 1e12, 4),
        "matrix_rate_tflops_by_size": {size: round(value / 1e12, 4) for size, value in rate.by_size.items()},
        "mixes": {
            mix: {**measured, **share_of_rate(measured, needed, rate=rate)}
            for mix, (measured, needed) in climbed.items()
        },
        "machine": machine(),
    }
    write(result, path=arguments.output or RESULTS / "ladder.json")


if __name__ == "__main__":
    main()
