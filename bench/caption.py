"""Captions a second of a folder of images, beside a plain loop of one `generate` for each image.

    python bench/caption.py                            # writes bench/results/caption.json
    python bench/caption.py --cpu-seconds              # on a machine that others use
    python bench/caption.py --rounds 1 --images 4 --tiny

The starter pair (EfficientNet-Lite2, SmolLM2-135M-Instruct) with a random projection, as only speed is measured: every
caption has 16 tokens. Both variants open the same JPEG files of 480 x 360 and decode greedily.

    loop      an image at a time: open it, `processor(...)`, `model.generate(...)`
    caption   what `visgraft caption` runs: `answer_each` in batches, images opened ahead
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import make_tokenizer
from harness import interleave, machine, positive, ratio, write
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from visgraft.data.sample import Sample, Turn
from visgraft.inference import GREEDY, answer_each
from visgraft.inference.eval_mode import eval_mode
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.starter import starter_pair

NUM_NEW_TOKENS = 16


def make_images(folder: Path, *, number: int) -> list[Path]:
    """Write smooth random pictures as JPEG files."""
    paths = []
    for index in range(number):
        coarse = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(coarse).resize((480, 360), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_pair(*, tiny: bool) -> tuple[VisionLanguageModel, Processor]:
    """Join the starter pair, or a tiny random one, which only shows that the script runs."""
    if not tiny:
        pair = starter_pair()
        model = VisionLanguageModel.from_parts(pair.vision, pair.language)
        return model, Processor.from_parts(pair.vision, pair.language)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8))
    language = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
    square = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = VisionLanguageModel.from_parts(vision, language)
    return model, Processor.from_parts(square, tokenizer, num_image_tokens=model.projection.num_tokens)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=32)
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--cpu-seconds", action="store_true", help="count the CPU's seconds, with one thread")
    parser.add_argument("--tiny", action="store_true", help="a tiny pair: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "caption.json")
    args = parser.parse_args()
    if args.cpu_seconds:
        torch.set_num_threads(1)
    model, processor = make_pair(tiny=args.tiny)
    set_trainable(model, modes={}, frozen_dtype=computing_dtype("auto", device=model.device))
    settings: dict[str, Any] = {**GREEDY, "eos_token_id": None, "pad_token_id": processor.tokenizer.pad_token_id}
    settings["max_new_tokens"] = NUM_NEW_TOKENS

    with tempfile.TemporaryDirectory() as folder:
        paths = make_images(Path(folder), number=args.images)

        def loop() -> None:
            for path in paths:
                with eval_mode(model):
                    inputs = processor(images=Image.open(path).convert("RGB"), text="").to(model.device)
                    ids = model.generate(**inputs, **settings)
                processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

        def caption() -> None:
            samples = (Sample(images=[path], dialogs=[[Turn("", "")]]) for path in paths)
            for answered in answer_each(model, processor, samples, batch_size=args.batch_size, **settings):
                assert answered.error is None

        times = interleave(
            {"loop": loop, "caption": caption},
            rounds=args.rounds,
            units=args.images,
            unit="images",
            clock=time.process_time if args.cpu_seconds else time.perf_counter,
        )
    result = {
        "what": __doc__,
        "machine": machine(),
        "weights": str(model.language.dtype).removeprefix("torch."),
        "seconds_are": "of the CPU, one thread" if args.cpu_seconds else "of the clock",
        "batch_size": args.batch_size,
        "image_tokens": processor.num_image_tokens,
        "times": times,
        "times_as_fast": ratio(times, slow="loop", fast="caption"),
    }
    write(result, path=args.output)


if __name__ == "__main__":
    main()
