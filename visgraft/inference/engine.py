"""The decoding loop: requests come and go, and all that are there take each step together. Every answer is made here.

In: prompts, each with its own `Decoding`. Out: a `Reply` for each. One cache holds a row (a slot) for each request that
decodes; a request joins as soon as a slot is free, reads its prompt behind an image that may be known already, and
leaves when it is finished; the others do not wait for it.

    engine = Engine(model, processor, num_slots=16)
    replies = [engine.submit(prompt, Decoding.of(max_new_tokens=64)) for prompt in prompts_of(processor, sample)]
    texts = [reply.answer().text for reply in replies]       # whoever waits runs the loop

    with Engine(model, processor, max_positions=4096) as engine: ...     # a thread runs it, for any number of callers

What is exact: no row sees another, so a greedy answer has the same tokens in float32 whatever its neighbours and the
order of arrival (of logits that are nearer to each other than float32 rounds, either may be taken: a matrix product of
another number of rows may round differently); of draws see sampling.py. In bf16 the same holds where the two best
logits are further apart than a rounding step.

Memory is bounded by `num_slots` x `max_positions`, by the prefix cache and by `max_waiting`. Where it runs out while a
request is read, that request gets a `BusyError`; those that decode go on.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any, TypeVar

from visgraft.data.prompt import encode_dialog
from visgraft.errors import BusyError, ConfigError
from visgraft.inference.active import Active
from visgraft.inference.decoding import Decoding
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.pieces import GrowingText
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.requests import Answer, Finish, Prompt, Reply, Request
from visgraft.inference.sampling import Rules
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

_CLOSED = "the decoding loop is closed; make another one"
_KNOWN_RULES = 32  # decodings that are kept ready

T = TypeVar("T")


class Engine:
    """The decoding loop of one model.

    Attributes:
        num_slots: requests that decode at once, at most.
        max_waiting: requests that wait for a slot, at most.
        prefix_cache: what images became.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        *,
        num_slots: int = 16,
        max_positions: int | None = None,
        max_waiting: int = 256,
        prefix_cache: PrefixCache | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Make a loop that nobody runs yet; memory is taken as requests need it.

        Args:
            model: on its device.
            processor: of that model.
            num_slots: requests that decode at once, at most.
            max_positions: of a row: image tokens, prompt and answer; None = as many as the language model has.
            max_waiting: requests that wait for a slot, at most.
            prefix_cache: what images became, for other loops too; default one of its own.
            after_step: called in the loop's thread behind every step, and at the end; it must not wait.

        Raises:
            ConfigError: a number below 1.
        """
        for name, value in (("num_slots", num_slots), ("max_positions", max_positions), ("max_waiting", max_waiting)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, need 1 or more")
        self.model = model
        self.processor = processor
        self.num_slots = num_slots
        self.max_waiting = max_waiting
        self.prefix_cache = PrefixCache() if prefix_cache is None else prefix_cache
        self._waiting: deque[Request] = deque()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._active = Active(
            model,
            processor,
            num_slots=num_slots,
            max_positions=max_positions,
            prefix_cache=self.prefix_cache,
            end=self._end,
        )
        self._rules: OrderedDict[Decoding, Rules] = OrderedDict()
        self._changed = threading.Condition()  # guards what waits, and tells of every step
        self._stepping = threading.RLock()  # held by whoever runs a step
        self._asking = threading.Lock()  # held while settings are read
        self._after_step = after_step
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def num_active(self) -> int:
        """Requests that decode."""
        return len(self._active.requests)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        """Memory of all slots' keys and values, without the prefix cache."""
        return self._active.size_bytes

    # --- Asking

    def submit(
        self,
        prompt: Prompt,
        decoding: Decoding | None = None,
        *,
        stream: bool = False,
        wait_s: float = 0.0,
        on_change: Callable[[], None] | None = None,
    ) -> Reply:
        """Ask for an answer; it is on its way when this returns.

        Args:
            prompt: of `prompts_of`, or segments of one's own.
            decoding: how; default the most probable tokens.
            stream: the reply gives pieces as they come; else the whole text at the end.
            wait_s: how long to wait for room in the queue.
            on_change: called in the loop's thread when there are more pieces, and at the end; it must not wait.

        Raises:
            BusyError: the queue is full, or the loop is closed.
            ConfigError: the settings cannot be followed.
        """
        request = self._request(prompt, decoding or Decoding(), stream=stream, on_change=on_change)
        return self._submit([request], wait_s=wait_s)[0]

    def submit_several(
        self,
        prompt: Prompt,
        decoding: Decoding,
        *,
        num_answers: int,
        stream: bool = False,
        wait_s: float = 0.0,
        on_change: Callable[[], None] | None = None,
    ) -> list[Reply]:
        """Ask for several answers to one prompt, which is read once for those that are admitted together.

        The first is that of `submit`; of those behind it, each has a seed one higher. Arguments and errors are those of
        `submit`.
        """
        if num_answers < 1:
            raise ConfigError(f"num_answers: got {num_answers}, need 1 or more")
        seeds = [None if decoding.seed is None else decoding.seed + index for index in range(num_answers)]
        each = [
            self._request(prompt, replace(decoding, seed=seed), stream=stream, on_change=on_change) for seed in seeds
        ]
        return self._submit(each, wait_s=wait_s)

    def call(self, job: Callable[[], T]) -> Future[T]:
        """Do something else with the model, between two steps: nothing else runs on it meanwhile.

        Without a thread it is done when this returns. Where the loop is closed first, the result is a `BusyError`.
        """
        result: Future[T] = Future()
        with self._changed:
            if self._is_closed:
                result.set_exception(BusyError(_CLOSED))
                return result
            self._jobs.append((result, job))
            self._changed.notify_all()
        if self._thread is None:
            while not result.done():
                self._run_step()
        return result

    def _request(
        self, prompt: Prompt, decoding: Decoding, *, stream: bool, on_change: Callable[[], None] | None
    ) -> Request:
        choices = [self._choice_ids(prompt, choice) for choice in decoding.choices]
        with self._asking:
            rules = self._rules.get(decoding)
            if rules is None:
                rules = self._rules[decoding] = Rules(self.model, self.processor, decoding)
                if len(self._rules) > _KNOWN_RULES:
                    self._rules.popitem(last=False)
            sampler = rules.sampler(prompt.text_ids, seed=decoding.seed, choices=choices)
        text = GrowingText(self.processor.tokenizer, stop=decoding.stop) if stream or decoding.stop else None
        reply = Reply(self, is_streamed=stream, queued_at=time.monotonic(), on_change=on_change)
        return Request(prompt, rules, sampler, reply, text)

    def _choice_ids(self, prompt: Prompt, choice: str) -> list[int]:
        """Encode an answer to choose and its end-of-text, as training would behind the same prompt."""
        if not prompt.dialog:
            raise ConfigError("choices: got a prompt of ids alone, need its dialog, by which choices become tokens")
        turns = [*prompt.dialog[:-1], replace(prompt.dialog[-1], answer=choice)]
        encoded = encode_dialog(self.processor.tokenizer, self.processor.prompt_template, turns).input_ids
        return list(encoded[len(self.processor.prompt(turns)) :])

    def _submit(self, requests: Sequence[Request], *, wait_s: float) -> list[Reply]:
        end = time.monotonic() + wait_s
        while True:
            with self._changed:
                if self._is_closed:
                    raise BusyError(_CLOSED)
                num_free = self.num_slots - len(self._active.requests)  # which some of them take at the next step
                if len(self._waiting) + len(requests) <= self.max_waiting + num_free:
                    self._waiting.extend(requests)
                    self._changed.notify_all()
                    return [request.reply for request in requests]
                left = end - time.monotonic()
                if left <= 0:
                    raise BusyError(
                        f"{len(self._waiting) - num_free} requests wait already, allowed are {self.max_waiting}: ask "
                        "again later, or raise max_waiting"
                    )
                if self._thread is not None:
                    self._changed.wait(left)
                    continue
            self._run_step()

    # --- Running

    def __enter__(self) -> Engine:
        """Let a thread run the loop, so that any number of others may ask and wait."""
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop: whatever is not finished ends with what was said so far."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        with self._stepping:
            self._sweep()
            while self._jobs:
                self._jobs.popleft()[0].set_exception(BusyError(_CLOSED))
        self._tell()

    def _tell(self) -> None:
        """Tell whoever waits that something may have changed."""
        with self._changed:
            self._changed.notify_all()
        if self._after_step is not None:
            self._after_step()

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting or self._active.requests or self._jobs)

    def _run(self) -> None:
        """Run until the loop is closed; what a step raises, its requests have got."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._is_busy)
                if self._is_closed:
                    return
            with eval_mode(self.model):
                while self._is_busy and not self._is_closed:
                    try:
                        self.step()
                    except Exception:  # every request that was there has got it, and whoever waits raises it
                        break

    def _run_step(self) -> None:
        with self._stepping, eval_mode(self.model):
            self.step()

    def advance(self, reply: Reply, *, timeout_s: float | None) -> None:
        """Come back when a reply has more to give, or when the time is over; without a thread, after one step."""
        if self._thread is None:
            self._run_step()
            return
        with self._changed:
            self._changed.wait_for(lambda: reply.is_done or reply.pieces, timeout_s)

    def drop(self, reply: Reply) -> None:
        """Finish a cancelled request: at once, or with a thread within the step that it is in."""
        if self._thread is None:
            with self._stepping:
                self._sweep()
            return
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: reply.is_done)

    def step(self) -> None:
        """Admit what waits, and let every request that is there say a token.

        For callers that stand in `eval_mode` already, as `answer_each` does. What goes wrong beside memory is raised,
        and ends every request that is there.
        """
        with self._stepping:
            try:
                self._run_job()
                self._sweep()
                self._admit()
                self._active.decode()
            except BaseException as error:
                self._active.fail_all(error)
                raise
            finally:
                self._tell()

    def _run_job(self) -> None:
        """Do one thing that else is wanted of the model, so that those that decode wait for no more."""
        while self._jobs:
            result, job = self._jobs.popleft()
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(job())
                except Exception as error:
                    result.set_exception(error)
                return

    def _sweep(self) -> None:
        """Finish what was cancelled and what is too late."""
        now = time.monotonic()

        def reason(request: Request) -> Finish | None:
            if request.reply.is_cancelled or self._is_closed:
                return "cancelled"
            seconds = request.rules.decoding.deadline_s
            return "deadline" if seconds is not None and now - request.reply.queued_at > seconds else None

        for request in [each for each in self._active.requests if reason(each)]:
            self._active.finish(request, reason(request) or "cancelled")
        with self._changed:
            late = [each for each in self._waiting if reason(each)]
            for request in late:
                self._waiting.remove(request)
        for request in late:
            self._active.finish(request, reason(request) or "cancelled")

    def _admit(self) -> None:
        """Let waiting requests take free slots: all that wait, or a good part of the slots at once.

        Reading costs about as much for one prompt as for some, so while others decode and more wait than there is room
        for, a few slots are let come free before the next prompts are read, together. What the next step reads anyway,
        a single token behind a known image (a caption), waits for nothing.
        """
        active = self._active
        with self._changed:
            number = min(len(self._waiting), self.num_slots - len(active.requests))
            if active.requests and number < min(len(self._waiting), self.num_slots // 4):
                coming = islice(self._waiting, number)
                number = sum(1 for _ in takewhile(lambda request: request.prompt.is_read_by_a_step, coming))
            if not number:
                return
            group, later = active.take([self._waiting.popleft() for _ in range(number)])
            self._waiting.extendleft(reversed(later))
            ahead = [request.prompt for request in self._waiting]
        try:
            active.read(group, ahead=ahead)
        except BaseException as error:
            for request in group:
                if request not in active.requests and not request.reply.is_done:
                    self._end(request, error)
            raise

    def _end(self, request: Request, result: Answer | BaseException) -> None:
        with self._changed:
            request.reply.finish(result)
            self._changed.notify_all()
