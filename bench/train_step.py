"""One training step, six ways, on a random pair of real shapes: captions a second.

    python bench/train_step.py                       # writes bench/results/train_step.json
    python bench/train_step.py --rounds 1 --images 1 --tiny

The pair: OPT, 512 wide, 8 layers, vocabulary 50272; ViT-B/16 (197 image tokens); 5 captions of 10 to 18 tokens an
image; projection and LoRA r 8 on q, v train. All variants see the same images and captions, without dropout:

    ancestor   as GIT-LLM trained: a row a caption, padded to 128, dense float mask, eager attention, fp32, logits
               at every position
    llava      transformers' LLaVA classes + peft in a plain loop, bf16 autocast over bf16 frozen weights
    nano       a short script with full logits, as nanoVLM trains: torch alone, in a process of its own
               (bench/nano_like.py), which `--nano-python` puts into another environment
    rows       visgraft, a row a caption, its image encoded again in each row
    shared     visgraft, all captions of an image behind one prefix
    filled     visgraft as it trains by default: rows filled with whole samples

`--images 1 --captions 4 --variants ancestor` is the shape on which GIT-LLM's own code was timed; its speed stands
beside this one's in every result.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import interleave, machine, positive, ratio, write
from nano_like import Nano
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
)

from visgraft.config import LoraSettings
from visgraft.data.batch import Batch, EncodedSample, collate
from visgraft.data.packing import fill_rows
from visgraft.data.prompt import EncodedDialog
from visgraft.model.attention_kernel import choose_attention, set_attention
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel

CAPTIONS = 5  # of an image
ANCESTOR_LENGTH = 128  # text tokens to which GIT-LLM padded on this shape
# GIT-LLM's own code on 4 rows of 197 + 128 positions, on 2 CPU cores: best 2.93 s, median 3.3 s.
ANCESTORS_OWN_POSITIONS_PER_S = 444
LORA_TARGETS = ["q_proj", "v_proj"]
PAD_ID = 1


@dataclass(frozen=True)
class Data:
    """Images [N, 3, H, W] and, for each, its texts as token lists (end-of-text last).

    `num_prompt` counts the tokens of each text that carry no loss; by default the start token alone.
    """

    pixels: Tensor
    captions: list[list[list[int]]]
    num_prompt: list[list[int]] | None = None

    @property
    def num_captions(self) -> int:
        """All captions of all images."""
        return sum(len(texts) for texts in self.captions)


class Training:
    """A model and one step of its training: the loss of each micro-batch and its backward pass, AdamW."""

    def __init__(
        self, model: nn.Module, *losses: Callable[[], Tensor], dtype: torch.dtype | None = torch.bfloat16
    ) -> None:
        """Take what trains of a model, and its losses, whose sum is the step's (under autocast; None: without)."""
        self.model = model.train()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        self._losses = losses
        device = next(model.parameters()).device.type
        self._autocast = lambda: torch.autocast(device, dtype, enabled=dtype is not None)

    def loss(self) -> Tensor:
        """Compute the loss."""
        with self._autocast():
            return torch.stack([loss() for loss in self._losses]).sum()

    def __call__(self) -> None:
        """Make one step."""
        for loss in self._losses:
            with self._autocast():
                value = loss()
            value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def configs(tiny: bool, *, image: tuple[int, int] | None = None) -> tuple[CLIPVisionConfig, OPTConfig]:
    """Give the shapes of the pair; tiny ones only show that a script runs; `image`: another (side, patch)."""
    vision, language = _tiny_configs() if tiny else _real_configs()
    if image is not None:
        vision.image_size, vision.patch_size = image
    return vision, language


NO_DROPOUT: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}


def _tiny_configs() -> tuple[CLIPVisionConfig, OPTConfig]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, intermediate_size=64, image_size=32, patch_size=8)
    language = {"ffn_dim": 64, "vocab_size": 300, "word_embed_proj_dim": 32, "max_position_embeddings": 256}
    return vision, OPTConfig(**sizes, **language, **NO_DROPOUT)


def _real_configs() -> tuple[CLIPVisionConfig, OPTConfig]:
    language = OPTConfig(
        vocab_size=50272,
        hidden_size=512,
        word_embed_proj_dim=512,
        ffn_dim=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
        **NO_DROPOUT,
    )
    return CLIPVisionConfig(patch_size=16), language


def make_data(num_images: int, *, captions: int, side: int, vocabulary: int) -> Data:
    """Make random images and as many captions of each, of 10 to 18 tokens."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(num_images, 3, side, side, generator=generator)

    def caption() -> list[int]:
        length = int(torch.randint(10, 19, (1,), generator=generator))
        return [2, *torch.randint(4, vocabulary, (length - 2,), generator=generator).tolist(), 2]

    return Data(pixels, [[caption() for _ in range(captions)] for _ in range(num_images)])


def visgraft_step(data: Data, *, tiny: bool, layout: str, image: tuple[int, int] | None = None) -> Training:
    """Make a step of visgraft in one of the layouts of `lay_out`."""
    model = prepared(tiny, image=image)
    batch = lay_out(encode(data, num_tokens=model.projection.num_tokens), layout)
    return Training(model, lambda: model.loss(batch).loss)


def lay_out(samples: Sequence[EncodedSample], layout: str) -> Batch:
    """Collate samples in the layout `rows`, `shared`, or `filled` (shared, several samples in a row)."""
    rows = fill_rows([sample.num_positions for sample in samples], row_positions=None) if layout == "filled" else None
    return collate(samples, layout="rows" if layout == "rows" else "shared", pad_token_id=PAD_ID, rows=rows)


def ancestor_step(data: Data, *, tiny: bool, dtype: torch.dtype | None = None) -> Training:
    """Make a step of GIT-LLM's recipe, as it was in fp32 or with frozen weights and autocast in `dtype`."""
    model = joined(tiny, attention="eager")
    set_trainable(model, modes=MODES, lora=LORA, frozen_dtype=dtype)
    return Training(model, *ancestor_losses(model, data, length=24 if tiny else ANCESTOR_LENGTH), dtype=dtype)


def ancestor_losses(
    model: VisionLanguageModel, data: Data, *, length: int, rows: int | None = None
) -> list[Callable[[], Tensor]]:
    """Give GIT-LLM's loss, pads and all, in parts of so many rows (None: whole), which add up to the mean."""
    whole = padded_rows(data, length=length)
    num_rows = len(whole[0])

    def loss(ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=ids)
        return out.loss * len(ids) / num_rows

    parts = zip(*(tensor.to(model.device).split(rows or num_rows) for tensor in whole), strict=True)
    return [partial(loss, *part) for part in parts]


def llava_step(data: Data, *, tiny: bool) -> Training:
    """Make a step of transformers' LLaVA with the same parts, LoRA on the same linears."""
    vision, language = configs(tiny)
    language.tie_word_embeddings = False  # LLaVA cannot tie OPT's head; the arithmetic is the same
    image_token = language.vocab_size - 1
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16).requires_grad_(False)
    settings = LoraConfig(r=8, lora_alpha=32, target_modules=LORA_TARGETS)
    inject_adapter_in_model(settings, model.model.language_model)
    trained: list[nn.Parameter] = [p for name, p in model.named_parameters() if "lora_" in name]
    trained += list(model.model.multi_modal_projector.parameters())
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    ids, mask, pixels = padded_rows(data, length=None)
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    prefix = torch.full((ids.shape[0], num_tokens), image_token)
    labels = torch.cat([torch.full_like(prefix, -100), ids.masked_fill(~mask, -100)], 1)
    labels[:, num_tokens] = -100  # the start token is no target
    inputs = {
        "input_ids": torch.cat([prefix, ids], 1),
        "attention_mask": torch.cat([prefix > 0, mask], 1).long(),
        "pixel_values": pixels,
        "labels": labels,
    }
    return Training(model, lambda: model(**inputs).loss)


MODES: Any = {"projection": "full", "language": "lora"}
LORA: Any = {"language": LoraSettings(r=8, lora_alpha=32, target_modules=tuple(LORA_TARGETS))}


def encode(data: Data, *, num_tokens: int) -> list[EncodedSample]:
    """Put the data into visgraft's form: every token behind the prompt is supervised."""
    num_prompt = data.num_prompt or [[1] * len(texts) for texts in data.captions]
    return [
        EncodedSample(
            dialogs=tuple(
                EncodedDialog(
                    input_ids=tuple(ids),
                    supervised=(*[False] * prompt, *[True] * (len(ids) - prompt)),
                    num_answer_characters=4 * len(ids),
                    truncated=False,
                )
                for ids, prompt in zip(texts, prompts, strict=True)
            ),
            vision_inputs={"pixel_values": image[None]},
            num_image_tokens=(num_tokens,),
        )
        for image, texts, prompts in zip(data.pixels, data.captions, num_prompt, strict=True)
    ]


def padded_rows(data: Data, *, length: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out a row a caption, cut to `length`: ids and mask [N, T], and the image of each row."""
    texts = [ids[:length] for captions in data.captions for ids in captions]
    width = length or max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD_ID] * (width - len(text))] for text in texts])
    mask = torch.tensor([[True] * len(text) + [False] * (width - len(text)) for text in texts])
    return ids, mask, data.pixels.repeat_interleave(torch.tensor([len(texts) for texts in data.captions]), 0)


def joined(tiny: bool, *, attention: str = "sdpa", image: tuple[int, int] | None = None) -> VisionLanguageModel:
    """Join the parts, random and the same at every call."""
    vision, language = configs(tiny, image=image)
    torch.manual_seed(0)
    parts = (CLIPVisionModel(vision), OPTForCausalLM(language))
    for part in parts:
        part.set_attn_implementation(attention)
    return VisionLanguageModel.from_parts(*parts)


def prepared(tiny: bool, *, attention: str = "sdpa", image: tuple[int, int] | None = None) -> VisionLanguageModel:
    """Join the parts, with the kernel that visgraft chooses for the device, ready to train."""
    model = joined(tiny, attention=attention, image=image)
    set_attention(model, choose_attention(model.language, device=model.device))
    set_trainable(model, modes=MODES, lora=LORA, frozen_dtype=torch.bfloat16)
    return model


def ancestor_speed(measured: dict[str, Any], data: Data, *, vision: CLIPVisionConfig) -> dict[str, float]:
    """Give GIT-LLM's positions a second in the language model, beside what its own code made."""
    if "ancestor" not in measured:
        return {}
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    positions = data.num_captions * (num_tokens + ANCESTOR_LENGTH)
    here = {name: round(positions / measured["ancestor"][f"{name}_s"], 1) for name in ("best", "median")}
    return {**here, "its_own_code_best": ANCESTORS_OWN_POSITIONS_PER_S}


def ratios_of(measured: Mapping[str, Any]) -> dict[str, float]:
    """Say how much faster visgraft's layouts are than everything else, and than its plain one."""
    fast = [name for name in ("filled", "shared", "rows") if name in measured]
    slow = [name for name in measured if name not in ("filled", "shared")]
    return {
        f"{name} / {other}": ratio(measured, slow=other, fast=name) for name in fast for other in slow if other != name
    }


VARIANTS = ("ancestor", "llava", "nano", "rows", "shared", "filled")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the variants in the same rounds."""
    vision, language = configs(arguments.tiny)
    data = make_data(
        arguments.images, captions=arguments.captions, side=vision.image_size, vocabulary=language.vocab_size - 1
    )
    with contextlib.ExitStack() as stack:
        steps: dict[str, Callable[[], Any]] = {}
        nano = None
        for name in arguments.variants:
            if name == "nano":
                lengths = [[len(text) for text in texts] for texts in data.captions]
                nano = stack.enter_context(Nano(lengths, python=arguments.nano_python, tiny=arguments.tiny))
                steps[name] = nano
            elif name in ("ancestor", "llava"):
                steps[name] = {"ancestor": ancestor_step, "llava": llava_step}[name](data, tiny=arguments.tiny)
            else:
                steps[name] = visgraft_step(data, tiny=arguments.tiny, layout=name)
        measured = interleave(steps, rounds=arguments.rounds, units=data.num_captions, unit="captions")
    own = arguments.nano_python != sys.executable
    return {
        "what": "captions per second of one training step",
        "images": arguments.images,
        "captions_per_image": arguments.captions,
        "ratios": ratios_of(measured),
        "ancestor_lm_positions_per_s": ancestor_speed(measured, data, vision=vision),
        "nano_runs_with": None if nano is None else {**nano.facts, "in_an_environment_of_its_own": own},
        "variants": measured,
        "machine": machine(),
    }


def main() -> None:
    """Run the variants and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=8, help="images a step")
    parser.add_argument("--captions", type=positive, default=CAPTIONS, help="captions of each image")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--nano-python", default=sys.executable, help="interpreter of the environment of `nano`")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    arguments = parser.parse_args()
    if shutil.which(arguments.nano_python) is None:
        parser.error(f"--nano-python: got {arguments.nano_python}, which is no program; name a Python that has torch")
    write(measure(arguments), path=arguments.output)


if __name__ == "__main__":
    main()
