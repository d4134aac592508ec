"""What a dataset is made of: a sample holds images and the dialogs about them.

In:  whatever a reader or a program has at hand (paths, bytes, PIL images, strings).
Out: Turn and Sample, frozen, and what a Source of them looks like; no image is opened here.

    Sample(images=["cat.jpg"], dialogs=[[Turn("", "a cat on a sofa")], [Turn("What is it?", "A cat.")]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from PIL import Image

from visgraft.errors import BadSampleError


@runtime_checkable
class StoredImage(Protocol):
    """An image that lies somewhere and is fetched when it is opened: part of a tar, a frame of a video, a web page."""

    def read(self) -> bytes | Image.Image:
        """Return the encoded file or the image; raises BadSampleError with a short reason."""


@runtime_checkable
class WrappedImage(StoredImage, Protocol):
    """An image that is changed or watched as it is opened; what it is can be told from `image` alone."""

    @property
    def image(self) -> ImageRef:
        """What it stands for."""


# An image not yet opened: a PIL image, a path, an encoded file's bytes, a data: URL or base64 text, a dict
# {"bytes": ..., "path": ..., "base64": ...}, or a StoredImage; numpy arrays and tensors of uint8 are taken, too.
ImageRef: TypeAlias = Image.Image | str | Path | bytes | Mapping[str, Any] | StoredImage


def unwrapped(ref: ImageRef) -> ImageRef:
    """Give the image that a wrapped one stands for, or the image itself."""
    while isinstance(ref, WrappedImage):
        ref = ref.image
    return ref


def is_image_array(value: object) -> bool:
    """Say whether a value is an array or tensor that holds one image, by its axes."""
    return getattr(value, "ndim", 0) in (2, 3)


@dataclass(frozen=True, slots=True)
class Turn:
    """Hold a prompt and its answer; references are other answers that a score accepts.

    instruction says what to do, apart from the question itself, where a dataset keeps the two apart; kind is the kind
    of question, where a dataset names one, for scores kind by kind.
    Raises BadSampleError where a field is not a string (a NaN or null of a broken row, say), or is one that no file
    can hold: half of a character's two UTF-16 codes, as a program leaves it that cuts texts by such codes.
    """

    prompt: str
    answer: str
    references: tuple[str, ...] = ()
    instruction: str = ""
    kind: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise BadSampleError("prompt is not a string")
        if not isinstance(self.instruction, str):
            raise BadSampleError("instruction is not a string")
        if not isinstance(self.answer, str):
            raise BadSampleError("answer is not a string")
        if not isinstance(self.references, (tuple, list)) or not all(isinstance(text, str) for text in self.references):
            raise BadSampleError("references are not a list of strings")
        object.__setattr__(self, "references", tuple(self.references))
        if not all(map(_is_unicode, (self.prompt, self.answer, self.instruction, *self.references))):
            raise BadSampleError("text is not valid Unicode (half of a surrogate pair)")

    @property
    def request(self) -> str:
        """Instruction and prompt as one text."""
        return "\n".join(text for text in (self.instruction.strip(), self.prompt.strip()) if text)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def references_of(turn: Turn) -> tuple[str, ...]:
    """List the accepted answers of a turn: its references, and its answer where they do not hold it.

    Of ten people's answers the most common one is also the answer to learn; it is not to count twice.
    """
    return turn.references if turn.answer in turn.references else (turn.answer, *turn.references)


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold the images of one sample and the dialogs about them, each independent of the others.

    images may be empty (text only). Several images of one sample (frames, views) form one prefix.
    Raises BadSampleError where dialogs is not a sequence of sequences of Turn.
    """

    images: Sequence[ImageRef]
    dialogs: Sequence[Sequence[Turn]]
    id: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        kinds = (str, bytes, Path, Mapping, Image.Image, StoredImage)
        if isinstance(self.images, kinds) or is_image_array(self.images):
            raise BadSampleError("images is one image, not a sequence of images: write images=[image]")
        if any(isinstance(dialog, Turn) for dialog in self.dialogs):
            raise BadSampleError("dialogs is one dialog, not a sequence of dialogs: write dialogs=[[Turn(...)]]")
        if not all(isinstance(turn, Turn) for dialog in self.dialogs for turn in dialog):
            raise BadSampleError("a dialog holds something that is not a Turn")
        if self.id is not None and not _is_unicode(self.id):
            object.__setattr__(self, "id", self.id.encode("utf-8", "backslashreplace").decode())
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "dialogs", tuple(tuple(dialog) for dialog in self.dialogs))


class Source(Protocol):
    """What a reader returns: samples by number, read when they are asked for, the same from every process."""

    def __len__(self) -> int:
        """Return how many samples there are, bad ones included."""

    def __getitem__(self, index: int) -> Sample:
        """Return a sample; raises BadSampleError with a short reason where its rows are bad."""

    def where(self, index: int) -> str:
        """Say where a user finds that sample (`metadata.jsonl line 17`)."""


def turn_from_row(
    prompt: object, answer: object, *, references: object = (), instruction: object = "", kind: object = ""
) -> Turn:
    """Make a turn of what a file holds, outer white space removed; a kind that is no text is none.

    Raises BadSampleError where something is no string or the answer is empty.
    """
    turn = Turn(prompt, answer, references, instruction)  # type: ignore[arg-type]  # Turn checks them
    if not turn.answer.strip():
        raise BadSampleError("answer is empty")
    references = tuple(text.strip() for text in turn.references)
    named = kind if isinstance(kind, str) else ""
    return Turn(turn.prompt.strip(), turn.answer.strip(), references, turn.instruction.strip(), named)
