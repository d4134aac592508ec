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

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visgraft.data.messages import asked
from visgraft.data.prompt import encode_prompt_turns
from visgraft.data.sample import ImageRef, Turn
from visgraft.inference.answering import GREEDY, eval_mode, positions_taken, room_for_answer, stop_token_ids
from visgraft.inference.prefix_cache import Pixels, Prefix, PrefixCache, encode_prefixes, open_pixels, read_prefixes
from visgraft.inference.streaming import stream_pieces
from visgraft.model.cache import PreallocatedCache
from visgraft.model.sequence import append_segment, empty_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.segments import IMAGE, TEXT

_POSITIONS_AT_FIRST = 512  # for which the cache has room; it grows with the conversation


@dataclass(eq=False)
class ConversationImage:
    """An image of the conversation: its pixels, and what they are to the language model where it stands in front."""

    pixels: Pixels
    prefix: Prefix

    @property
    def num_tokens(self) -> int:
        """Image tokens, P."""
        return self.prefix.num_tokens


Item = ConversationImage | Turn
Segment = ConversationImage | list[int]  # what is read in one go; the ids of turns with no image between are one


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
        self._prefix_cache = PrefixCache() if prefix_cache is None else prefix_cache
        self._cache = PreallocatedCache(capacity=_POSITIONS_AT_FIRST)
        self._table = empty_table(1, device=model.device)
        self._cached_keys: list[Hashable] = []  # of every position of the cache

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
        pixels = open_pixels(self.processor, [image])
        with eval_mode(self.model):
            self._prefix_cache.belong_to(self.model)
            [prefix] = encode_prefixes(self.model, [pixels], cache=self._prefix_cache, batch_size=1)
        room_for_answer(self.model, 1, prefix.num_tokens)
        self.items.append(ConversationImage(pixels, prefix))

    def reset(self) -> None:
        """Forget what was said; the newest image stays."""
        self.items = [*[item for item in self.items if isinstance(item, ConversationImage)][-1:]]

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
        num_image = sum(item.num_tokens for item in items if isinstance(item, ConversationImage))
        room_for_answer(self.model, self._count(items, prompt) - positions_taken(self.model, num_image), num_image)
        self.items = items
        return before - len(self.turns)

    def say(self, prompt: str, *, max_new_tokens: int = 256, **generate: Any) -> Generator[str, None, None]:
        """Answer a prompt piece by piece, and remember both; closed early, what was said so far is remembered.

        Args:
            prompt: what the user says.
            max_new_tokens: longest answer.
            generate: what else Hugging Face's `generate` takes; without it the most probable token is taken each time.

        Raises:
            ModelError: the prompt alone is too long; the conversation stays as it was.
            BadSampleError: it names more images than were shown.
        """
        num_shown = sum(isinstance(item, ConversationImage) for item in self.items)
        prompt = asked(prompt, num_images=num_shown).prompt
        self.forget_oldest(prompt, max_new_tokens=max_new_tokens)
        segments = self._segments(self.items, prompt)
        num_text = sum(len(segment) for segment in segments if not isinstance(segment, ConversationImage))
        num_image = sum(segment.num_tokens for segment in segments if isinstance(segment, ConversationImage))
        limit = min(max_new_tokens, room_for_answer(self.model, num_text, num_image))
        stream = stream_pieces(
            self.processor.tokenizer, lambda hooks: self._generate(segments, limit, {**hooks, **generate})
        )
        text, has_failed = "", False
        try:
            for piece in stream:
                text += piece
                yield piece
        except Exception:
            has_failed = True
            raise
        finally:
            stream.close()
            if has_failed:
                self._reset_cache()
            else:
                self.items.append(Turn(prompt, text))

    # --- Reading

    def _segments(self, items: Sequence[Item], prompt: str) -> list[Segment]:
        """Lay images and the ids of turns out in order; the last segment is text."""
        tokenizer, template = self.processor.tokenizer, self.processor.prompt_template
        turns = [item for item in items if isinstance(item, Turn)]
        texts = iter(encode_prompt_turns(tokenizer, template, [*turns, Turn(prompt, "")]))
        segments: list[Segment] = []
        for item in [*items, None]:
            if isinstance(item, ConversationImage):
                segments.append(item)
            elif segments and isinstance(segments[-1], list):
                segments[-1] += next(texts)
            else:  # a prompt behind an image is never empty, whatever the template leaves of it
                segments.append(next(texts) or encode_prompt_turns(tokenizer, template, [Turn("", "")])[0])
        return segments

    def _count(self, items: Sequence[Item], prompt: str) -> int:
        """Count the positions of a conversation in front of its next answer."""
        return sum(
            positions_taken(self.model, segment.num_tokens) if isinstance(segment, ConversationImage) else len(segment)
            for segment in self._segments(items, prompt)
        )

    def _generate(self, segments: Sequence[Segment], limit: int, settings: dict[str, Any]) -> None:
        """Read what is not yet read, and answer."""
        own = {"eos_token_id": stop_token_ids(self.model, self.processor)}
        own["pad_token_id"] = self.processor.tokenizer.pad_token_id
        with eval_mode(self.model):
            ids = self._read(segments)
            output = self.model.generate(
                input_ids=torch.tensor([ids], device=self.model.device),
                context=self._table,
                past_key_values=self._cache,
                max_new_tokens=limit,
                **{**GREEDY, **own, **settings},
            )
            num_read = int(self._cache.get_seq_length()) - self._table.length  # the last token was not run
            self._note_read(output[0, :num_read].tolist())

    def _read(self, segments: Sequence[Segment]) -> list[int]:
        """Read all but the last text's ids that are not yet read, at least one, and give these."""
        wanted = [key for segment in segments for key in _position_keys(segment)]
        common = next(
            (place for place, (old, new) in enumerate(zip(self._cached_keys, wanted, strict=False)) if old != new),
            min(len(self._cached_keys), len(wanted)),
        )
        common = min(common, len(wanted) - 1)
        self._cache.cut(common)
        self._table, self._cached_keys = self._table.cut(common), self._cached_keys[:common]
        place = 0
        for segment in segments[:-1]:
            length = len(_position_keys(segment))
            unread = segment if isinstance(segment, ConversationImage) else segment[max(0, common - place) :]
            place += length
            if place <= common:
                continue
            if isinstance(unread, ConversationImage):
                self._read_image(unread)
            else:
                row = torch.tensor([unread], device=self.model.device)
                self.model.read_text(row, context=self._table, cache=self._cache, logits_to_keep=1)
                self._note_read(unread)
        last = segments[-1]
        assert isinstance(last, list)
        return last[max(0, common - place) :]

    def _read_image(self, image: ConversationImage) -> None:
        mask = torch.ones(1, image.num_tokens, dtype=torch.bool, device=self.model.device)
        if self._table.length == 0:  # as in front of any question, so what is kept of it serves
            read_prefixes(self.model, [image.prefix], cache=self._prefix_cache)
            self._cache.put([image.prefix.states])
            self._table = append_segment(self._table, mask, kind=IMAGE)
        else:
            tokens = image.prefix.tokens
            if tokens is None:
                fresh = encode_prefixes(self.model, [image.pixels], cache=PrefixCache(max_bytes=0), batch_size=1)
                tokens = fresh[0].tokens
            assert tokens is not None
            self._table = self.model.read_image(
                tokens[None], image_token_mask=mask, context=self._table, cache=self._cache
            )
        self._cached_keys += _position_keys(image)

    def _note_read(self, ids: Sequence[int]) -> None:
        mask = torch.ones(1, len(ids), dtype=torch.bool, device=self.model.device)
        self._table = append_segment(self._table, mask, kind=TEXT)
        self._cached_keys += ids

    def _reset_cache(self) -> None:
        self._cache = PreallocatedCache(capacity=_POSITIONS_AT_FIRST)
        self._table, self._cached_keys = self._table.cut(0), []


def _position_keys(segment: Segment) -> list[Hashable]:
    """Name what stands at each position: an image and the place in it, or a token's id."""
    if isinstance(segment, ConversationImage):
        return [(segment, place) for place in range(segment.num_tokens)]
    return [*segment]


def _oldest(items: Sequence[Item]) -> int | None:
    """Choose what is forgotten first: the oldest turn, or an image if nothing is remembered before the next one."""
    for index, item in enumerate(items):
        following = items[index + 1] if index + 1 < len(items) else None
        if isinstance(item, Turn) or isinstance(following, ConversationImage):
            return index
    return None
