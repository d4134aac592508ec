"""What a short training script does, as nanoVLM does it: full logits, one row a text; imports torch alone.

    python -I bench/nano_like.py                     # then, on stdin: one line of JSON, and a line "step" for each step
    with Nano([[12, 15], [10, 18]], python="/venv/bin/python") as step: step()

In: `{"lengths": tokens of each text of each image, "tiny": bool, "threads": n}`. Out: `ready` and what it runs with;
then the loss of each step. It ends when its stdin does. bench/train_step.py drives it, so that it can stand in an
environment of its own, with no line of visgraft's or transformers' in it, and yet be timed in the same rounds.

A ViT of B/16's shape (frozen, bfloat16, once a row), a linear projection, a decoder of the shape of train_step.py's OPT
(512 wide, 8 layers, vocabulary 50272) with LoRA r 8 on q and v; projection and LoRA train under bf16 autocast. Rows are
padded on the right to the longest, attention is causal SDPA, and logits and cross-entropy are computed at all
positions; targets at image and pads are ignored (as in nanoVLM, github.com/huggingface/nanoVLM, written anew).
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RANK, LORA_SCALE = 8, 4.0  # alpha 32
PAD_ID, END_ID, IGNORED = 1, 2, -100


@dataclass(frozen=True)
class Shape:
    """The shape of the pair."""

    side: int = 224
    patch: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    width: int = 512
    layers: int = 8
    heads: int = 8
    vocabulary: int = 50272
    positions: int = 2048

    @property
    def num_image_tokens(self) -> int:
        """The patches and the class token."""
        return (self.side // self.patch) ** 2 + 1


TINY = Shape(32, 8, 32, 2, 2, 32, 2, 2, 300, 256)


class LoraLinear(nn.Linear):
    """A linear layer with a trained low-rank term beside it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.down = nn.Parameter(torch.randn(RANK, width) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(width, RANK))

    def forward(self, states: Tensor) -> Tensor:
        """Add the low-rank term."""
        return super().forward(states) + LORA_SCALE * F.linear(F.linear(states, self.down), self.up)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, is_decoder: bool) -> None:
        super().__init__()
        self.heads = heads
        self.is_decoder = is_decoder
        self.norm, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        adapted: Callable[[int], nn.Linear] = LoraLinear if is_decoder else lambda width: nn.Linear(width, width)
        self.query, self.value = adapted(width), adapted(width)
        self.key, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Mix positions, then channels: [N, S, D] to [N, S, D]."""
        inside = self.norm(states)
        query, key, value = (
            linear(inside).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_decoder)
        states = states + self.out(mixed.transpose(1, 2).flatten(2))
        hidden = self.wide(self.norm_2(states))
        return states + self.narrow(F.relu(hidden) if self.is_decoder else F.gelu(hidden))


class Encoder(nn.Module):
    """A ViT: pixels [N, 3, H, W] to features [N, P, D_vision], the class token first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.vision_width
        self.patches = nn.Conv2d(3, width, shape.patch, stride=shape.patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, shape.num_image_tokens, width) * 0.02)
        blocks = [Block(width, shape.vision_heads, is_decoder=False) for _ in range(shape.vision_layers)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode."""
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.first.expand(len(patches), -1, -1), patches], 1) + self.places)


class VisionLanguage(nn.Module):
    """Encoder, projection and decoder; gives the logits of every position."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.projection = nn.Linear(shape.vision_width, shape.width)
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        blocks = [Block(shape.width, shape.heads, is_decoder=True) for _ in range(shape.layers)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(shape.width))
        self._freeze()

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            is_trained = name.startswith("projection.") or name.endswith((".down", ".up"))
            parameter.requires_grad_(is_trained)
            parameter.data = parameter.data.to(torch.float32 if is_trained else torch.bfloat16)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """Give logits [N, P + T, V] of ids [N, T] behind the image of each row, pixels [N, 3, H, W]."""
        with torch.no_grad():
            features = self.encoder(pixels)
        states = torch.cat([self.projection(features), self.tokens(ids)], 1)
        states = self.blocks(states + self.places.weight[: states.shape[1]])
        return F.linear(states, self.tokens.weight)


def make_rows(lengths: Sequence[Sequence[int]], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Make random ids [N, T], targets [N, P + T] and the pixels of each row, one row a text."""
    generator = torch.Generator().manual_seed(0)
    texts = [
        [END_ID, *torch.randint(4, shape.vocabulary, (length - 2,), generator=generator).tolist(), END_ID]
        for own in lengths
        for length in own
    ]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD_ID] * (width - len(text))] for text in texts])
    targets = torch.full((len(texts), shape.num_image_tokens + width), IGNORED)
    for row, text in zip(targets, texts, strict=True):  # each position predicts the next; the start token is no target
        row[shape.num_image_tokens :][: len(text) - 1] = torch.tensor(text[1:])
    images = torch.randn(len(lengths), 3, shape.side, shape.side, generator=generator)
    return ids, targets, images.repeat_interleave(torch.tensor([len(own) for own in lengths]), 0)


def make_step(lengths: Sequence[Sequence[int]], *, tiny: bool) -> Callable[[], float]:
    """Make a training step that gives its loss."""
    torch.manual_seed(0)
    shape = TINY if tiny else Shape()
    model = VisionLanguage(shape)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids, targets, pixels = make_rows(lengths, shape)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, pixels)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


class Nano:
    """The other end of the pipe: a step that another Python makes.

    Attributes:
        facts: its versions of Python and torch.
        loss: of the last step.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], *, python: str = sys.executable, tiny: bool = False) -> None:
        """Start it, and wait until it is ready."""
        self.loss: float | None = None
        self.process = subprocess.Popen(
            [python, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        order = {"lengths": lengths, "tiny": tiny, "threads": torch.get_num_threads()}
        self.facts: dict[str, Any] = json.loads(self._ask(json.dumps(order)).removeprefix("ready "))

    def __call__(self) -> None:
        """Let it make one step."""
        self.loss = float(self._ask("step"))

    def __enter__(self) -> Nano:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # closes its stdin, at which it ends

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which its silence says below
            print(line, file=self.process.stdin)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"{self.process.args[0]} ended with status {self.process.wait()}; what it said stands above. It needs "
                "torch and nothing else"
            )
        return answer.strip()


def main() -> None:
    """Answer each line of stdin."""
    order = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    step = make_step(order["lengths"], tiny=order["tiny"])
    print("ready", json.dumps({"python": platform.python_version(), "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            raise SystemExit(f'got {line.strip()!r}, allowed is "step"')
        print(step(), flush=True)


if __name__ == "__main__":
    main()
