"""What a language model has forgotten by learning to see: the loss of a text, before and after.

In: a model, a text file. Out: its cross-entropy per character with no image in front, of the bare language model and of
the one that it became; what is more afterwards is forgotten.

    found = measure_forgetting("runs/my-run", Path("book.txt"), device=None, precision="auto")
    found.after - found.before
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visgraft.data.control_tokens import encode_data
from visgraft.errors import DataError
from visgraft.evaluation.asking import Loaded
from visgraft.evaluation.loading import Lazy, LazyBare
from visgraft.inference.eval_mode import eval_mode
from visgraft.model.precision import Precision
from visgraft.reporting.progress import working

MOST_TOKENS = 1_024  # read in one piece


@dataclass(frozen=True)
class Forgetting:
    """The loss of a text, in nats a character.

    Attributes:
        model: its name.
        before: of the bare language model.
        after: of the model, with no image in front.
        characters: of the text.
        tokens: that were predicted, the same ones by both.
    """

    model: str
    before: float
    after: float
    characters: int
    tokens: int

    @property
    def words(self) -> str:
        """What came out, as a sentence."""
        change = self.after - self.before
        word = "as before" if change == 0 else f"{abs(change):.5f} {'more' if change > 0 else 'less'}"
        return (
            f"{self.model}: text loss per character {self.before:.5f} of the bare language model, {self.after:.5f} "
            f"now: {word}, over {self.characters:,} characters"
        )

    def as_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        counts = {"characters": self.characters, "tokens": self.tokens}
        return {"model": self.model, "before": self.before, "after": self.after, **counts}


def measure_forgetting(name: str, path: Path, *, device: str | None, precision: Precision) -> Forgetting:
    """Measure the loss of a text by a model and by the language model that it was made of.

    Raises:
        DataError: the file is no text, or too short to be predicted.
        ConfigError: the model's folder does not name its language model.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--text {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--text {path}: not a text file in UTF-8") from error
    seeing = Lazy(name, device=device, precision=precision)
    bare = LazyBare(seeing)
    bare.language  # noqa: B018  # raises before anything is loaded
    pieces = _pieces(seeing.get(), text)
    tokens = sum(len(piece) - 1 for piece in pieces)
    if not tokens:
        raise DataError(f"--text {path}: got {len(text)} characters, need at least two tokens of text")
    after, before = (_loss_sum(each.get(), pieces, what=what) for each, what in ((seeing, "now"), (bare, "before")))
    return Forgetting(name, before / len(text), after / len(text), len(text), tokens)


def _pieces(loaded: Loaded, text: str) -> list[list[int]]:
    """Cut a text into pieces that fit; what each begins with, the start token or its first one, is not counted."""
    tokenizer = loaded.processor.tokenizer
    ids = encode_data(tokenizer, text)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = min(MOST_TOKENS, loaded.model.attention_spec.max_positions or MOST_TOKENS) - len(start)
    return [[*start, *ids[place : place + size]] for place in range(0, len(ids), size)]


def _loss_sum(loaded: Loaded, pieces: list[list[int]], *, what: str) -> float:
    total = 0.0
    with working(f"reading, {what}", total=len(pieces), unit="pieces") as advance, eval_mode(loaded.model):
        for piece, logits in _logits(loaded, pieces):
            targets = torch.tensor(piece[1:], device=logits.device)
            total -= float(logits.float().log_softmax(-1).gather(1, targets[:, None]).double().sum())
            advance(1)
    return total


def _logits(loaded: Loaded, pieces: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    for piece in pieces:
        ids = torch.tensor([piece], device=loaded.model.device)
        yield piece, loaded.model(input_ids=ids).logits[0, :-1]
