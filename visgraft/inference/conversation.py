"""A dialog that goes on: images at any turn, answers streamed, nothing read twice.

In: images and prompts as they come. Out: answers piece by piece. What is said about an image stands behind it: an image
that arrives later is a new segment, which earlier text and earlier answers do not see, and all later turns do; like
every image it sees itself alone. It takes the next positions, so logical distance is always distance in reading (the
table is drawn in model/sequence.py, `append_segment`).

    talk = Conversation(model, processor)
    talk.show("cat.jpg")
    for piece in talk.say("What is it?"): print(piece, end="")
    talk.show("dog.jpg")
    for piece in talk.say("And this one?"): print(piece, end="")

What the cache holds always equals what reading the whole conversation again would give: answers are kept as text, and
where the tokens of the text differ from what was generated, reading goes on from the first that differs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from visgraft.data.messages import asked
from visgraft.data.sample import ImageRef, Turn
from visgraft.inference.decoding import Decoding
from visgraft.inference.engine import Engine
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.limits import positions_taken, room_for_answer
from visgraft.inference.prefix_cache import PrefixCache, open_pixels
from visgraft.inference.reading import encode_images
from visgraft.inference.requests import ImageSegment, Prompt, ReadRow, Segment, segments_of
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

Item = ImageSegment | Turn


class Conversation:
    """What was shown and said, in order, and what the language model has read of it.

    Attributes:
        items: images and turns, the oldest first.
    """

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, *, prefix_cache: PrefixCache | None = None
    ) -> None:
        """Begin with nothing shown and nothing said; a cache lets an image that was read elsewhere be known here."""
        self.model = model
        self.processor = processor
        self.items: list[Item] = []
        self._engine = Engine(model, processor, num_slots=1, prefix_cache=prefix_cache)
        self._read: ReadRow | None = None

    @property
    def turns(self) -> list[Turn]:
        """What was said, the oldest first."""
        return [item for item in self.items if isinstance(item, Turn)]

    def show(self, image: ImageRef) -> None:
        """Show an image: all that is said from now on is behind it.

        Raises:
            BadSampleError: it cannot be used; the conversation stays as it was.
            ModelError: the language model has no positions for it, whatever is forgotten.
        """
        shown = ImageSegment(open_pixels(self.processor, [image]))
        with eval_mode(self.model):
            encode_images(self.model, [shown], cache=self._engine.prefix_cache)
        room_for_answer(self.model, 1, shown.num_tokens)
        self.items.append(shown)

    def reset(self) -> None:
        """Forget what was said; the newest image stays."""
        self.items = [*[item for item in self.items if isinstance(item, ImageSegment)][-1:]]

    def forget_oldest(self, prompt: str, *, max_new_tokens: int) -> int:
        """Forget the oldest turns, and images about which nothing is remembered, until a prompt and its answer fit.

        Returns:
            How many turns were forgotten.

        Raises:
            ModelError: the prompt alone is too long; nothing is then forgotten.
        """
        limit = self.model.attention_spec.max_positions
        items: list[Item] = list(self.items)
        before = len(self.turns)
        if limit is None:
            return 0
        while self._count(items, prompt) + max_new_tokens > limit:
            oldest = _oldest(items)
            if oldest is None:
                break
            del items[oldest]
        num_image = sum(item.num_tokens for item in items if isinstance(item, ImageSegment))
        room_for_answer(self.model, self._count(items, prompt) - positions_taken(self.model, num_image), num_image)
        self.items = items
        return before - len(self.turns)

    def say(self, prompt: str, *, max_new_tokens: int = 256, **decoding: Any) -> Generator[str, None, None]:
        """Answer a prompt piece by piece, and remember both; closed early, what was said so far is remembered.

        Args:
            prompt: what the user says.
            max_new_tokens: longest answer.
            decoding: settings of `Decoding.of`; without any the most probable token is taken each time.

        Raises:
            ConfigError: a setting cannot be followed; the conversation stays as it was.
            ModelError: the prompt alone is too long; the conversation stays as it was.
            BadSampleError: it names more images than were shown.
        """
        settings = Decoding.of(max_new_tokens=max_new_tokens, **decoding)
        num_shown = sum(isinstance(item, ImageSegment) for item in self.items)
        prompt = asked(prompt, num_images=num_shown).prompt
        self.forget_oldest(prompt, max_new_tokens=max_new_tokens)
        given = Prompt(
            self._segments(self.items, prompt), dialog=[*self.turns, Turn(prompt, "")], read=self._read, keep=True
        )
        reply = self._engine.submit(given, settings, stream=True)
        text, has_failed = "", False
        try:
            for piece in reply:
                text += piece
                yield piece
        except Exception:
            has_failed = True
            raise
        finally:
            reply.cancel()
            self._read = reply.read or self._read
            if not has_failed:
                self.items.append(Turn(prompt, text))

    # --- What is read

    def _segments(self, items: Sequence[Item], prompt: str) -> list[Segment]:
        """Lay out what was shown and said, and a prompt behind it."""
        segments = segments_of(self.processor, [*items, Turn(prompt, "")])
        images = [each for each in segments if isinstance(each, ImageSegment)]
        with eval_mode(self.model):  # an image whose place in the conversation changed has another text before it
            encode_images(self.model, images, cache=self._engine.prefix_cache)
        return segments

    def _count(self, items: Sequence[Item], prompt: str) -> int:
        """Count the positions of a conversation in front of its next answer."""
        return sum(
            positions_taken(self.model, segment.num_tokens) if isinstance(segment, ImageSegment) else len(segment)
            for segment in self._segments(items, prompt)
        )


def _oldest(items: Sequence[Item]) -> int | None:
    """Choose what is forgotten first: the oldest turn, or an image if nothing is remembered before the next one."""
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        if isinstance(item, Turn) or isinstance(following, ImageSegment):
            return index
    return None
