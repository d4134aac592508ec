"""The requests that decode: each has a row of one cache, reads its prompt into it, steps with the others, leaves.

In: requests, as they are admitted. Out: their tokens, and an answer or an error for each, handed to whoever runs this.
No thread, no queue: engine.py has these, and alone calls what is here.

    active = Active(model, processor, num_slots=16, max_positions=None, prefix_cache=cache, end=end)
    active.read(active.take(requests)[0])
    while active.requests: active.decode()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from visgraft.errors import BusyError, ModelError
from visgraft.inference.limits import positions_taken, room_for_answer, text_of
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.reading import read_front
from visgraft.inference.requests import Answer, Finish, Prompt, ReadRow, Request, position_keys
from visgraft.inference.sampling import Chosen, choose
from visgraft.model.memory import free_memory, is_out_of_memory
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

_NEW_TOKENS_AT_FIRST = 256  # for which a row has room when it is admitted; longer answers are rare, and rows grow
_IMAGE_POSITIONS_AT_ONCE = 1024  # up to which images of the prompts that come next are read along
_POSITIONS_AT_ONCE = 4096  # prompts' positions that are read in one go, so that those that decode wait for no more


class Active:
    """The rows that decode.

    Attributes:
        requests: that of row 0 first.
        num_slots: rows, at most.
        max_positions: of a row; None = as many as the language model has.
        prefix_cache: what images became.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        *,
        num_slots: int,
        max_positions: int | None,
        prefix_cache: PrefixCache,
        end: Callable[[Request, Answer | BaseException], None],
    ) -> None:
        """Begin with no row; `end` is called with what came of each request."""
        self.model = model
        self.processor = processor
        self.num_slots = num_slots
        self.max_positions = max_positions
        self.prefix_cache = prefix_cache
        self.requests: list[Request] = []
        self._end = end
        self._cache = self.model.make_slots()

    @property
    def size_bytes(self) -> int:
        """Memory of all rows' keys and values."""
        return self._cache.size_bytes

    def fail_all(self, error: BaseException) -> None:
        """Hand an error to all requests, and begin with an empty cache."""
        requests, self.requests = self.requests, []
        self._cache = self.model.make_slots()
        for request in requests:
            self._end(request, error)

    # --- Reading

    def take(self, group: Sequence[Request]) -> tuple[list[Request], list[Request]]:
        """Split requests into those that are read now and those that are too much to read at once."""
        taken: list[Request] = []
        longest = 0
        for index, request in enumerate(group):
            longest = max(longest, len(request.prompt.segments[-1]))  # type: ignore[arg-type]  # the last one is ids
            if taken and longest * (len(taken) + 1) > _POSITIONS_AT_ONCE:
                return taken, list(group[index:])
            taken.append(request)
        return taken, []

    def read(self, group: list[Request], *, ahead: Sequence[Prompt] = ()) -> None:
        """Read prompts into slots; where memory runs out, fewer at once, and one that is too much alone is refused.

        `ahead` are prompts that come next, whose images may be read along.
        """
        if not group:
            return
        try:
            self._read_together(group, ahead)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            begun = [request for request in group if request in self.requests]
            for request in begun if begun or len(group) > 1 else group:
                self._refuse(request, "read this prompt")
            free_memory(self.model.device)
            rest = [request for request in group if not request.reply.is_done]
            half = (len(rest) + 1) // 2
            self.read(rest[:half])
            self.read(rest[half:])

    def _read_together(self, group: Sequence[Request], ahead: Sequence[Prompt]) -> None:
        """Read prompts of unlike length in one go, each into a slot of its own, and choose their first tokens."""
        prompts = [request.prompt for request in group]
        most = _IMAGE_POSITIONS_AT_ONCE // max(1, self.processor.num_image_tokens)
        read = read_front(self.model, prompts, cache=self.prefix_cache, ahead=ahead, most_pictures=most)
        leads: dict[int, Request] = {}
        admitted, fronts = [], []
        for request in group:
            front = read[id(request.prompt)]
            try:
                if isinstance(front, ModelError):
                    raise front
                request.limit = min(request.rules.decoding.max_new_tokens, self._room(request))
            except ModelError as error:
                self._end(request, error)
                continue
            if leads.setdefault(id(request.prompt), request) is request:
                admitted.append(request)
                fronts.append(front)
        copies = [each for each in group if not each.reply.is_done and leads[id(each.prompt)] is not each]
        if not admitted:
            return
        counts, starts = [len(front.unread) for front in fronts], [front.num_read for front in fronts]
        first, num_rows = len(self.requests), len(self.requests) + len(admitted) + len(copies)
        ends = [front.num_read + len(front.unread) for front in fronts]
        room = [end + min(request.limit, _NEW_TOKENS_AT_FIRST) for end, request in zip(ends, admitted, strict=True)]
        self._reserve(num_rows, num_columns=max(room))
        for row, front in enumerate(fronts, start=first):
            if front.states is not None:
                self._cache.place(row, front.states, length=front.num_read)
        for request, front in zip(admitted, fronts, strict=True):
            request.length, request.unread = front.num_read, front.unread
        if max(counts) == 1 and not copies:  # the next step reads a single token for every row anyway
            self.requests += admitted
            return
        rows = [front.unread + [0] * (max(counts) - len(front.unread)) for front in fronts]
        logits = self._run_rows(rows, first=first, starts=starts, counts=counts, requests=admitted)
        for request, end in zip(admitted, ends, strict=True):
            request.length = end
        for row, copy in enumerate(copies, start=first + len(admitted)):
            source = admitted.index(leads[id(copy.prompt)])
            copy.length = ends[source]
            self._cache.copy(first + source, row, length=copy.length)
            logits = torch.cat([logits, logits[source : source + 1]])
        self.requests += [*admitted, *copies]
        self._say([*admitted, *copies], logits)

    def _room(self, request: Request) -> int:
        """Say how many tokens an answer may have.

        Raises:
            ModelError: none.
        """
        num_text, num_image = len(request.prompt.text_ids), request.num_image_tokens
        room = room_for_answer(self.model, num_text, num_image)
        if self.max_positions is None:
            return room
        left = self.max_positions - num_text - num_image
        if left < 1:
            raise ModelError(
                f"the prompt has {num_text} tokens behind {num_image} image tokens, and max_positions: "
                f"{self.max_positions} leaves no room for an answer; shorten the prompt, or raise max_positions"
            )
        return min(room, left)

    def _reserve(self, num_rows: int, *, num_columns: int) -> None:
        """Make room, and if memory allows more than is asked for, so that it need not be made again soon."""
        rows, columns = self._cache.reserved
        most_rows = max(num_rows, min(self.num_slots, 2 * rows)) if num_rows > rows else rows
        most_columns = -(-max(num_columns, 3 * columns // 2) // 64) * 64 if num_columns > columns else columns
        most_columns = min(most_columns, self.max_positions or most_columns)
        try:
            self._cache.reserve(most_rows, num_columns=most_columns)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            free_memory(self.model.device)
            self._cache.reserve(num_rows, num_columns=num_columns)

    # --- Decoding

    def decode(self) -> None:
        """Let every slot read the token that it said last, or its prompt's only one, and say the next one."""
        self._grow()
        while self.requests:
            running = list(self.requests)
            try:
                logits = self._run_rows(
                    [request.ids[-1:] or request.unread for request in running],
                    first=0,
                    starts=[request.length for request in running],
                    counts=[1] * len(running),
                    requests=running,
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_last()
                continue
            for request in running:
                request.length += 1
            self._say(running, logits)
            return

    def _grow(self) -> None:
        """Make room where a row is full; where there is no memory for it, the request that came last is refused."""
        while self.requests and max(request.length for request in self.requests) >= self._cache.reserved[1]:
            try:
                self._reserve(len(self.requests), num_columns=max(request.length for request in self.requests) + 1)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_last()

    def _refuse_last(self) -> None:
        """End the request that came last, as there is no memory for all of them."""
        self._refuse(max(self.requests, key=lambda request: request.reply.queued_at), "go on with this answer")

    def _refuse(self, request: Request, what: str) -> None:
        """End a request for which there is no memory."""
        if request in self.requests:
            self._leave(request)
        others = f" beside {len(self.requests)} others" if self.requests else ""
        error = (
            f"memory does not suffice to {what}{others}: ask again later, or allow fewer slots (num_slots), shorter "
            "rows (max_positions) or a smaller prefix cache"
        )
        self._end(request, BusyError(error))
        with suppress(RuntimeError):  # rows that nobody uses give their room to those that go on
            self._cache.shrink(len(self.requests))
        free_memory(self.model.device)

    def _run_rows(
        self,
        ids: Sequence[Sequence[int]],
        *,
        first: int,
        starts: Sequence[int],
        counts: Sequence[int],
        requests: Sequence[Request],
    ) -> Tensor:
        """Read ids behind rows of the cache, the first of them at `first`; return the logits [B, V] of each last id."""
        image = [request.num_image_tokens for request in requests]
        unplaced = [number - positions_taken(self.model, number) for number in image]
        with self._cache.reading(rows=slice(first, first + len(ids)), starts=starts, counts=counts):
            given = torch.tensor([*map(list, ids)], device=self.model.device)
            return self.model.read_rows(given, unplaced=unplaced, cache=self._cache)

    def _say(self, requests: Sequence[Request], logits: Tensor) -> None:
        """Choose a token for each request; those that are finished leave."""
        chosen = choose([request.sampler for request in requests], logits)
        for request, each in reversed([*zip(requests, chosen, strict=True)]):  # the last rows first: no hole to fill
            request.is_spoiled |= not each.is_finite
            if each.error is not None:
                self._leave(request)
                self._end(request, each.error)
                continue
            finish = self._hear(request, each)
            if finish is not None:
                self.finish(request, finish)

    def _hear(self, request: Request, chosen: Chosen) -> Finish | None:
        """Take in what a request says; say whether that is the end of it."""
        reply, token = request.reply, chosen.token_id
        if reply.first_token_at is None:
            reply.first_token_at = time.monotonic()
        request.ids.append(token)
        if chosen.score is not None:
            reply.scores.append(chosen.score)
        if token in request.rules.stop_ids:
            return "stop"
        request.has_ended |= token in request.rules.end_ids
        if request.text is not None and not request.has_ended:
            piece = request.text.add(token)
            if piece and reply.is_streamed:
                reply.give(piece)
            if request.text.is_stopped:
                return "stop"
        if request.sampler.note(token):
            return "stop"
        return "length" if len(request.ids) >= request.limit else None

    # --- Leaving

    def finish(self, request: Request, finish: Finish) -> None:
        """Make the answer of a request that ends here."""
        end_ids, ids = request.rules.end_ids, tuple(request.ids)
        if request in self.requests:
            if request.prompt.keep:
                row = self.requests.index(request)
                keys = [*position_keys(request.prompt.segments), *ids][: request.length]
                request.reply.read = ReadRow(self._cache.keep(row, length=request.length), tuple(keys))
            self._leave(request)
        text = text_of(self.processor, ids, end_ids)
        if request.text is not None:
            rest = request.text.end()
            if request.text.is_stopped:
                text = request.text.text
            if rest and request.reply.is_streamed:
                request.reply.give(rest)
        if not request.reply.is_streamed and text:
            request.reply.give(text)
        has_stopped = finish == "stop" or not {*end_ids}.isdisjoint(ids)
        scores = None if request.rules.decoding.log_probabilities is None else tuple(request.reply.scores)
        self._end(request, Answer(text, has_stopped, finish=finish, token_ids=ids, scores=scores))

    def _leave(self, request: Request) -> None:
        """Free a slot; the last one moves into its place."""
        row, last = self.requests.index(request), len(self.requests) - 1
        if request.is_spoiled:
            self._cache.clear(row)
        if row != last:
            self._cache.copy(last, row, length=self.requests[last].length)
            self.requests[row] = self.requests[last]
        self.requests.pop()
