"""What is asked of the decoding loop, and what comes back: prompts, answers, and the reply that one waits for.

In: images and ids in order. Out: an answer, or its pieces as they come.

    reply = engine.submit(prompt, Decoding(max_new_tokens=64), stream=True)
    for piece in reply: print(piece, end="")
    reply.answer().token_ids
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Protocol

from visgraft.data.prompt import encode_prompt_turns
from visgraft.data.sample import ImageRef, Sample, Turn
from visgraft.errors import VisgraftError
from visgraft.inference.pieces import GrowingText
from visgraft.inference.prefix_cache import Pixels, Prefix, open_pixels
from visgraft.inference.sampling import Rules, Sampler, TokenScore
from visgraft.model.cache import KeptStates
from visgraft.model.configuration import Begins
from visgraft.processor import Processor

Finish = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Answer:
    """What came of one dialog: an answer, or why there is none.

    Attributes:
        text: the answer; empty where there is an error.
        has_stopped: it came to an end of its own and was not cut at `max_new_tokens`.
        error: an image of the sample cannot be used, or the prompt leaves no room for an answer.
        finish: why it ended: `stop` (an end-of-text token or a stop), `length`, `cancelled`, `deadline`.
        token_ids: what was generated, the token at which it stopped included.
        scores: of each of these, where `log_probabilities` was asked for.
    """

    text: str
    has_stopped: bool = False
    error: VisgraftError | None = None
    finish: Finish | None = None
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] | None = None


@dataclass(eq=False)
class ImageSegment:
    """Images that are read in one go, which see each other: their pixels, and what they became.

    Attributes:
        pixels: of the group.
        prefix: what it is to the language model where it stands in front; None = not yet encoded.
        sources: what it was opened from, kept alive with it.
        owner: whoever may know what it became: equal images of two owners are computed twice, and kept twice.
        begins: what it stands behind, which matters to a model with text in front of its images.
    """

    pixels: Pixels
    prefix: Prefix | None = None
    sources: Sequence[ImageRef] = ()
    owner: str = ""
    begins: Begins = "first"

    def behind(self, begins: Begins) -> ImageSegment:
        """Give these images standing behind something else, where they are not yet encoded."""
        return self if begins == self.begins else replace(self, begins=begins, prefix=None)

    @property
    def num_pictures(self) -> int:
        """Pictures that the encoder is given: images, frames or tiles."""
        return max(len(tensor) for tensor in self.pixels.values())

    @property
    def num_tokens(self) -> int:
        """Image tokens, P."""
        assert self.prefix is not None, "images are counted once they are encoded"
        return self.prefix.num_tokens


Segment = ImageSegment | list[int]  # what is read in one go


@dataclass(frozen=True, eq=False)
class ReadRow:
    """What the language model has read of a row: keys and values, and what stands at each position."""

    states: KeptStates
    keys: tuple[Hashable, ...]


@dataclass(eq=False)
class Prompt:
    """What is read in front of an answer.

    Attributes:
        segments: images and ids in order; the last one is ids, at least one.
        dialog: the turns it was made of, the last one to be answered; only `choices` need it.
        read: what of it was read before; reading goes on from the first position that differs.
        keep: the reply is to give what was read.
        num_known: positions that were not read for it, as they were known; once it is admitted.
    """

    segments: Sequence[Segment]
    dialog: Sequence[Turn] = ()
    read: ReadRow | None = None
    keep: bool = False
    num_known: int = 0

    @property
    def is_read_by_a_step(self) -> bool:
        """Whether only one token is left to read: nothing stands before it but an image that is read already."""
        *before, last = self.segments
        images = [each for each in before if isinstance(each, ImageSegment) and each.prefix and each.prefix.is_read]
        return len(last) == 1 and len(images) == len(before) <= 1  # type: ignore[arg-type]  # the last one is ids

    @property
    def text_ids(self) -> list[int]:
        """The ids of all texts, one behind the other."""
        return [token for segment in self.segments if not isinstance(segment, ImageSegment) for token in segment]

    @property
    def num_image_tokens(self) -> int:
        """Image tokens, of those images that are encoded."""
        images = [segment for segment in self.segments if isinstance(segment, ImageSegment)]
        return sum(image.num_tokens for image in images if image.prefix is not None)


def prompts_of(processor: Processor, sample: Sample, *, images: ImageSegment | None = None) -> list[Prompt]:
    """Open a sample's images, once for all its dialogs, and encode what stands in front of each last answer.

    Args:
        processor: of the model that will answer.
        sample: what the last turns have as their answers is ignored.
        images: its images, where they are open already.

    Raises:
        BadSampleError: an image cannot be used.
    """
    if sample.images and images is None:
        images = ImageSegment(open_pixels(processor, sample.images), sources=sample.images)
    front = [images] if sample.images and images is not None else []
    has_images = bool(front)
    return [
        Prompt([*front, processor.prompt(dialog, has_images=has_images)], dialog=dialog) for dialog in sample.dialogs
    ]


def segments_of(processor: Processor, items: Sequence[ImageSegment | Turn]) -> list[Segment]:
    """Lay images and turns out in order, the last turn unanswered; the last segment is text.

    Args:
        processor: of the model that will answer.
        items: what is said about an image stands behind it; the last one is a turn, whose answer is ignored.
    """
    tokenizer, template = processor.tokenizer, processor.prompt_template
    turns: list[Turn] = []
    image_turns: list[int] = []
    for before, item in pairwise([None, *items]):
        if isinstance(item, Turn):
            image_turns += [len(turns)] if isinstance(before, ImageSegment) else []
            turns.append(item)
    texts = iter(encode_prompt_turns(tokenizer, template, turns, image_turns=image_turns))
    segments: list[Segment] = []
    for item in items:
        if isinstance(item, ImageSegment):
            begins: Begins = "next" if segments and isinstance(segments[-1], ImageSegment) else "later"
            segments.append(item.behind(begins if segments else "first") if template.places_images else item)
        elif segments and isinstance(segments[-1], list):
            segments[-1] += next(texts)
        else:  # a prompt behind an image is never empty, whatever the template leaves of it
            segments.append(next(texts) or encode_prompt_turns(tokenizer, template, [Turn("", "")])[0])
    return segments


def position_keys(segments: Sequence[Segment]) -> list[Hashable]:
    """Name what stands at each position: an image's checksum and the place in it, or a token's id."""
    keys: list[Hashable] = []
    for segment in segments:
        if isinstance(segment, ImageSegment):
            assert segment.prefix is not None, "images are named once they are encoded"
            keys += [(segment.prefix.key, place) for place in range(segment.num_tokens)]
        else:
            keys += segment
    return keys


class Loop(Protocol):
    """What runs the requests (engine.py)."""

    def advance(self, reply: Reply, *, timeout_s: float | None) -> None:
        """Come back when a reply has more to give, or when the time is over."""

    def drop(self, reply: Reply) -> None:
        """Finish a request now."""


@dataclass(eq=False)
class Reply:
    """An answer that is on its way. Iterate over it for its pieces, or wait for the whole.

    Where nobody runs the loop in a thread of its own, whoever waits runs it.

    Attributes:
        is_streamed: pieces come as they are said; else the whole text is one.
        is_done: nothing more comes.
        read: what was read, where the prompt asked for it to be kept.
        queued_at: when it was asked for, on `time.monotonic`.
        first_token_at: when its first token was chosen.
        token_ids: what was said so far.
        scores: of these, where `log_probabilities` was asked for.
        on_change: called by whoever runs the loop when there are more pieces, and at the end; it must not wait.
    """

    loop: Loop = field(repr=False)
    is_streamed: bool = False
    is_done: bool = False
    is_cancelled: bool = False
    read: ReadRow | None = field(default=None, repr=False)
    queued_at: float = 0.0
    first_token_at: float | None = None
    token_ids: list[int] = field(default_factory=list, repr=False)
    scores: list[TokenScore] = field(default_factory=list, repr=False)
    on_change: Callable[[], None] | None = field(default=None, repr=False)
    pieces: deque[str] = field(default_factory=deque, repr=False)
    _answer: Answer | None = None
    _error: BaseException | None = None

    def answer(self, *, timeout_s: float | None = None) -> Answer:
        """Wait for the answer.

        Raises:
            TimeoutError: it did not come in time; it is still on its way.
            VisgraftError: what went wrong with this request.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.is_done and (end is None or time.monotonic() < end):
            self.loop.advance(self, timeout_s=None if end is None else max(0.0, end - time.monotonic()))
        if not self.is_done:
            raise TimeoutError(f"no answer within {timeout_s} seconds; wait longer, or cancel it")
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def __iter__(self) -> Iterator[str]:
        """Give the pieces as they come; closed early, the request is cancelled. Errors are those of `answer`."""
        try:
            while True:
                while self.pieces:
                    yield self.pieces.popleft()
                if self.is_done:
                    break
                self.loop.advance(self, timeout_s=None)
            self.answer()
        finally:
            self.cancel()

    def take(self) -> tuple[str, bool]:
        """Return, without waiting, what has come since the last time, and whether that was the last of it."""
        is_done = self.is_done  # before its pieces are taken: none comes behind
        text = ""
        while self.pieces:
            text += self.pieces.popleft()
        return text, is_done

    def cancel(self) -> None:
        """Stop it, within a step; what was said so far is its answer."""
        if not self.is_done:
            self.is_cancelled = True
            self.loop.drop(self)

    def give(self, piece: str) -> None:
        """Hand over a piece (the loop calls this)."""
        self.pieces.append(piece)
        if self.on_change is not None:
            self.on_change()

    def finish(self, result: Answer | BaseException) -> None:
        """Hand over what came of it (the loop calls this)."""
        if isinstance(result, Answer):
            self._answer = result
        else:
            self._error = result
        self.is_done = True
        if self.on_change is not None:
            self.on_change()


@dataclass(eq=False)
class Request:
    """A request from asking to its end, as the loop knows it.

    Attributes:
        length: positions that its row holds, once it is admitted.
        limit: longest answer.
        unread: what of its prompt its row does not hold as it is admitted.
        has_ended: it has said a token that ends the text, though its settings let it go on.
        is_spoiled: its row holds numbers that are none.
    """

    prompt: Prompt
    rules: Rules
    sampler: Sampler
    reply: Reply
    text: GrowingText | None
    length: int = 0
    limit: int = 0
    unread: list[int] = field(default_factory=list)
    has_ended: bool = False
    is_spoiled: bool = False

    @property
    def ids(self) -> list[int]:
        """What it has said; the last of these is not read yet."""
        return self.reply.token_ids

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of its prompt, once they are encoded."""
        return self.prompt.num_image_tokens
