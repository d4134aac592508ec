"""Join every vision class of transformers, shallow and random, each in a process of its own, and say what became of it.

In: nothing, or names of model types. Out: a line for each class, and counts; JSON with `--json FILE`.

    python -m tests.sweep_encoders                  # about ten minutes on one core
    python -m tests.sweep_encoders clip qwen2_5_vl  # some

    joined     two images together are as each alone, text sees them, a change of a corner is felt most in that corner,
               and what is saved comes back
    refused    one error of visgraft's own, with the reason
    raw        another exception
    wrong      joined, and one of the above does not hold
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.tiny import bare_language, random_ids, randomise
from visgraft.errors import VisgraftError
from visgraft.model.tower import build_tower, vision_tower_config
from visgraft.model.vision import MOST_WEIGHTS, VisionSettings, encode, measure, shallow
from visgraft.model.vision_inputs import dummy_inputs, reads_text
from visgraft.model.vlm import VisionLanguageModel

WIDTHS = ("hidden_size", "intermediate_size", "embed_dim", "out_hidden_size", "mlp_dim")
LIMIT_S = 150
LARGEST_SIDE = 224  # in pixels: what takes larger images is made for such
# Defaults that fit no checkpoint: an MLP or an encoder that is not as wide as what it is given.
INCONSISTENT: dict[str, dict[str, Any]] = {
    "llama4_vision_model": {"hidden_size": 1408},
    "deepseek_ocr2_vision": {
        "encoder_config": {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}
    },
}
CHECKS = ("each image as alone", "two images unlike", "text sees them", "comes back from disk", "a corner felt there")
# Whatever has images among its inputs and no part that sees: text models, and heads that transformers lists by mistake.
NOT_VISION = ("text_model", "vits", "_text", "vqmodel", "codebook")


def model_types() -> dict[str, str]:
    """Name each vision class once: its model type -> a model type of which it is the tower."""
    named = {
        *MODEL_FOR_IMAGE_MAPPING_NAMES,
        *MODEL_FOR_BACKBONE_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        *IMAGE_PROCESSOR_MAPPING_NAMES,
    }
    named |= {name for name in CONFIG_MAPPING_NAMES if "vision" in name or "vit" in name}
    found: dict[str, str] = {}
    for name in sorted(named):
        if name.endswith(NOT_VISION) or name not in CONFIG_MAPPING_NAMES:
            continue
        try:
            tower = vision_tower_config(CONFIG_MAPPING[name]())
            name = tower.model_type if tower.model_type in CONFIG_MAPPING_NAMES else name
        except Exception:
            continue
        found.setdefault(tower.model_type, name)
    return found


def join(model_type: str) -> tuple[str, str]:
    """Join one class; return what became of it, and why."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        config = _shallow_where_it_runs(vision_tower_config(CONFIG_MAPPING[model_type]()))
        if config.model_type in INCONSISTENT:
            config = _changed(config, INCONSISTENT[config.model_type])
        if reads_text(config):
            measure(config, settings=VisionSettings())
        config = _of_smaller_images(config)
        try:
            with torch.device("meta"):
                size = sum(weight.numel() for weight in build_tower(config).parameters())
        except Exception as error:
            measure(config, settings=VisionSettings())  # says so to a user, as an error of visgraft's own
            return "skipped", f"transformers makes no model of its default config: {error}"
        if size > MOST_WEIGHTS:
            return "skipped", f"{size / 1e9:.1f} billion weights are too many for a sweep"
        try:
            vision = randomise(build_tower(_narrow(config)), seed=1).eval()
        except VisgraftError:
            raise
        except Exception as error:
            return "skipped", f"transformers makes no model of its default config: {error}"
        language = bare_language("llama", max_position_embeddings=16384)
        model = VisionLanguageModel.from_parts(vision, language)  # type: ignore[arg-type]
    except VisgraftError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    try:
        wrong = _what_is_wrong(model)
    except Exception as error:
        return "raw", f"after the join: {type(error).__name__}: {error}"
    shape = measure(model.vision.config, settings=model.config.vision_settings)
    facts = f"{shape.num_tokens} x {shape.width}, grid {shape.grid}, {model.config.image_by_image and 'image by image'}"
    return ("wrong", f"{wrong}; {facts}") if wrong else ("joined", facts)


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    values = config.to_dict()
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return type(config).from_dict(values)


def _shallow_where_it_runs(config: Any) -> Any:
    """Copy a config with one layer of each kind, where that makes a model (not CvT)."""
    try:
        with torch.device("meta"):
            build_tower(shallow(config))
    except Exception:
        return config
    return shallow(config)


def _of_smaller_images(config: Any) -> Any:
    """Copy a config with images as large as it takes quickly, where it can still be measured."""
    small = copy.deepcopy(config)
    if isinstance(getattr(small, "image_size", None), int) and small.image_size > LARGEST_SIDE:
        with contextlib.suppress(Exception):
            small.image_size = LARGEST_SIDE
            measure(small, settings=VisionSettings())
            return small
    return config


def _narrow(config: Any) -> Any:
    """Copy a config with an eighth of its widths, where that can still be built and run."""
    values = config.to_dict()
    for name in WIDTHS:
        if isinstance(values.get(name), int) and values[name] >= 512:
            values[name] //= 8
    try:
        narrow = type(config).from_dict(values)
        with torch.no_grad():
            black = dummy_inputs(narrow, image_size=None, device="cpu")
            encode(build_tower(narrow).eval(), black, settings=VisionSettings())
        return narrow
    except Exception:
        return config


@torch.no_grad()
def _what_is_wrong(model: VisionLanguageModel) -> str | None:
    black = dummy_inputs(model.vision.config, image_size=None, device="cpu")
    inputs = {name: torch.cat([value, value]) for name, value in black.items()}
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape)
    both, real = model.image_prefix(**inputs)
    for row in range(2):
        alone, own = model.image_prefix(**{name: value[row : row + 1] for name, value in inputs.items()})
        error = (both[row][real[row]] - alone[0][own[0]]).abs().max() / alone.abs().max()
        if not error < 1e-3:
            return f"beside another image its tokens differ by {error:.1e}"
    if torch.equal(both[0], both[1]):
        return "two images have the same tokens"
    logits = model(input_ids=random_ids(2, 3).expand(2, -1), **inputs).logits[:, -3:]
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    if not (model(input_ids=random_ids(2, 3), **other).logits[:, -3:] - logits).abs().max() > 0:
        return "text does not see the image"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = VisionLanguageModel.from_pretrained(folder).image_prefix(**inputs)[0]
    if not torch.equal(again, both):
        return "what was saved comes back as another"
    return _locality(model, inputs)


def _locality(model: VisionLanguageModel, inputs: dict[str, Any]) -> str | None:
    """See that a change of the upper left corner is felt most among the tokens of that corner."""
    shape = measure(model.vision.config, settings=model.config.vision_settings)
    pixels = inputs["pixel_values"]
    rows, columns = shape.grid
    if pixels.ndim != 4 or min(shape.grid) < 2:
        return None
    changed = pixels.clone()
    height, width = pixels.shape[-2:]
    changed[..., : height // 2, : width // 2] += torch.randn(changed[..., : height // 2, : width // 2].shape)
    moved = (model.image_features({**inputs, "pixel_values": changed}) - model.image_features(inputs)).abs().mean(-1)
    squares = moved[0, shape.num_leading :].view(rows, columns)
    corner, other = squares[: rows // 2, : columns // 2].mean(), squares[-(rows // 2) :, -(columns // 2) :].mean()
    return None if corner > 0.9 * other else f"a change of a corner is not felt there ({corner / other:.2f})"


def _send(pipe: Any, name: str) -> None:
    pipe.send(join(name))


def main() -> None:
    """Go through the classes."""
    arguments = [each for each in sys.argv[1:] if not each.startswith("--")]
    target = Path(arguments.pop()) if "--json" in sys.argv else None
    classes = model_types()
    if arguments:
        classes = {tower: name for tower, name in classes.items() if {tower, name} & set(arguments)}
    context = multiprocessing.get_context("fork")
    hf.logging.set_verbosity_error()
    results = {}
    for tower, name in classes.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(sender, name))
        start = time.time()
        process.start()
        sender.close()
        what, why = "raw", f"no answer within {LIMIT_S} s"
        try:
            if receiver.poll(LIMIT_S):
                what, why = receiver.recv()
        except EOFError:
            why = "the process ended"
        process.kill()
        process.join()
        passed = {"checks": CHECKS} if what == "joined" else {}
        results[tower] = {"of": name, "what": what, "why": why, "seconds": round(time.time() - start, 1), **passed}
        print(f"{what:8} {tower} ({name}): {' '.join(why.split())[:230]}", flush=True)  # noqa: T201
    print(len(results), dict(Counter(each["what"] for each in results.values())))  # noqa: T201
    if target is not None:
        made = {"transformers": hf.__version__, "torch": torch.__version__, "date": str(datetime.now(UTC).date())}
        target.write_text(json.dumps({**made, "classes": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
