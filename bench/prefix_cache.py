"""Time to the first token of a second question on an image, beside the first question on it.

    python bench/prefix_cache.py                       # writes bench/results/prefix_cache.json
    python bench/prefix_cache.py --cpu-seconds         # on a machine that others use
    python bench/prefix_cache.py --rounds 1 --tiny

The pair, random: ViT-B/16 (197 image tokens) and the shape of SmolLM2-135M (30 layers of 576, 9 heads on 3, vocabulary
49152); a question of 20 tokens; frozen weights in bf16 where the machine computes in it. Each round asks about an image
never seen before:

    first          pixels to image tokens, both read by the language model, one token
    second         another question on the same image: its keys and values are kept
    first_prefill  `first` without the encoder: the language model alone reads image tokens and question
    second_prefill the same as `second` (there is no encoder in it)
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, positive, ratio, write
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.prefix_cache import Pixels, Prefix, PrefixCache, encode_prefixes, read_prefixes
from visgraft.model.cache import PreallocatedCache
from visgraft.model.precision import computing_dtype
from visgraft.model.sequence import append_segment, empty_table
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE

NUM_QUESTION_TOKENS = 20


def make_model(*, tiny: bool) -> VisionLanguageModel:
    """Join two parts of the shapes named above; tiny ones only show that the script runs."""
    torch.manual_seed(0)
    if tiny:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
        language = LlamaConfig(**sizes, vocab_size=300, num_key_value_heads=1)
    else:
        vision = CLIPVisionConfig(patch_size=16)
        language = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
        )
    parts = CLIPVisionModel(vision), AutoModelForCausalLM.from_config(language)
    model = VisionLanguageModel.from_parts(*parts)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    set_trainable(model, modes={}, frozen_dtype=computing_dtype("auto", device=device))
    return model.to(device).eval()  # type: ignore[arg-type, return-value]


def first_token(model: VisionLanguageModel, prefix: Prefix, ids: Tensor, *, cache: PrefixCache) -> int:
    """Read what of the image is not yet read, and the question; choose one token."""
    read_prefixes(model, [prefix], cache=cache)
    read = PreallocatedCache(capacity=prefix.num_tokens + ids.shape[1] + 32)
    read.put([prefix.states])
    mask = torch.ones(1, prefix.num_tokens, dtype=torch.bool, device=model.device)
    context = append_segment(empty_table(1, device=model.device), mask, kind=IMAGE)
    logits = model.read_text(ids, context=context, cache=read, logits_to_keep=1).logits
    assert logits is not None
    return int(logits[0, -1].argmax())


def measure(model: VisionLanguageModel, *, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Time the four ways, a new image in every round."""
    side = model.vision.config.image_size
    seeds, kept = itertools.count(), PrefixCache()
    ids = torch.randint(3, model.vision.config.hidden_size // 2, (1, NUM_QUESTION_TOKENS), device=model.device)
    image: dict[str, Any] = {}

    def ask(*, with_encoder: bool, is_second: bool) -> None:
        with eval_mode(model):
            if is_second:
                [prefix] = encode_prefixes(model, [image["pixels"]], cache=kept, batch_size=1)
                assert prefix.states is not None, "the second question must find the image"
            elif with_encoder:
                pixels: Pixels = {
                    "pixel_values": torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(next(seeds)))
                }
                [prefix] = encode_prefixes(model, [pixels], cache=kept, batch_size=1)
                image.update(pixels=pixels, tokens=prefix.tokens)
            else:
                prefix = Prefix(image["tokens"].shape[0], key=f"again {next(seeds)}", tokens=image["tokens"])
            first_token(model, prefix, ids, cache=kept)

    return interleave(
        {
            "first": lambda: ask(with_encoder=True, is_second=False),
            "second": lambda: ask(with_encoder=True, is_second=True),
            "first_prefill": lambda: ask(with_encoder=False, is_second=False),
            "second_prefill": lambda: ask(with_encoder=False, is_second=True),
        },
        rounds=rounds,
        units=1,
        unit="questions",
        clock=clock,
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--cpu-seconds", action="store_true", help="count the CPU's seconds, with one thread")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "prefix_cache.json")
    args = parser.parse_args()
    model = make_model(tiny=args.tiny)
    if args.cpu_seconds:
        torch.set_num_threads(1)
    times = measure(model, rounds=args.rounds, clock=time.process_time if args.cpu_seconds else time.perf_counter)
    result = {
        "what": __doc__,
        "machine": machine(),
        "weights": str(model.language.dtype).removeprefix("torch."),
        "seconds_are": "of the CPU, one thread" if args.cpu_seconds else "of the clock",
        "image_tokens": model.projection.num_tokens,
        "times": times,
        "second_of_first": round(1 / ratio(times, slow="first", fast="second"), 3),
        "second_of_first_prefill": round(1 / ratio(times, slow="first_prefill", fast="second_prefill"), 3),
    }
    write(result, path=args.output)


if __name__ == "__main__":
    main()
