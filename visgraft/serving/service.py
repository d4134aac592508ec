"""What all routes of a server share: its models, its settings, its counters, threads for work that takes time.

In: models by name, settings. Out: a `Service`, open while the server runs.

    with Service({"my-run": (model, processor)}, settings) as service: ...
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from visgraft.inference.requests import Prompt
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.serving.bodies import Message
from visgraft.serving.failures import Failure, failure_of, internal_failure
from visgraft.serving.messages import image_urls, texts_of
from visgraft.serving.metrics import Metrics
from visgraft.serving.served import ServedModel
from visgraft.serving.settings import ServeSettings

T = TypeVar("T")
LOG = logging.getLogger("visgraft.serving")


@dataclass(eq=False)
class Record:
    """What is known of one request: for the log, the counters, and the routes.

    Attributes:
        request_id: its name in the log and in the response.
        owner: the name of the api key that asks; empty where there are no keys.
        began_at: its arrival, on `time.monotonic`.
        endpoint: a short name of what was asked for.
        model: the name of the model, if there is such.
        facts: what the log tells of it besides.
    """

    request_id: str
    owner: str = ""
    began_at: float = field(default_factory=monotonic)
    endpoint: str = "other"
    model: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def failure_told(error: BaseException, record: Record) -> Failure:
    """Say what a client is told of an error; one that was not meant goes into the log, and no further."""
    failure = failure_of(error)
    if failure is None:
        LOG.error("%s failed", record.request_id, exc_info=error)
        failure = internal_failure(record.request_id)
    return failure


class Service:
    """The models and what belongs to all of them.

    Attributes:
        models: by the names that clients use.
        settings: of the server.
        metrics: its counters.
        is_draining: it takes no more requests, and ends when those that run are done.
        num_running: requests that are being answered.
    """

    def __init__(self, models: Mapping[str, tuple[VisionLanguageModel, Processor]], settings: ServeSettings) -> None:
        """Make the loops; they run once the service is entered."""
        self.settings = settings
        self.models = {name: ServedModel(name, *pair, settings, after_step=self._wake) for name, pair in models.items()}
        self.metrics = Metrics(self.models)
        self.is_draining = False
        self.num_running = 0
        self._stack = ExitStack()
        self._to_set: deque[asyncio.Event] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        # threads that open images and encode texts; the model itself runs in its loop's thread
        self._pool = ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 1)), thread_name_prefix="requests")
        self._waiting_pool = ThreadPoolExecutor(16, thread_name_prefix="fetching")  # these wait for other servers

    @property
    def most_requests(self) -> int:
        """Requests that are held at once, at most; what comes on top is sent away before its body is read."""
        return len(self.models) * (self.settings.num_slots + self.settings.max_waiting)

    def __enter__(self) -> Service:
        """Run the models' loops; it is entered in the server's thread."""
        self._loop = asyncio.get_running_loop()
        for served in self.models.values():
            self._stack.enter_context(served.engine)
        return self

    def event(self) -> tuple[asyncio.Event, Callable[[], None]]:
        """Make an event, and what a model's loop calls to have it set behind the step that it is in."""
        changed = asyncio.Event()
        return changed, lambda: self._to_set.append(changed)

    def _wake(self) -> None:
        """Let the server's thread set what a step has changed: once a step, as waking it costs the loop its turn."""
        if self._to_set and self._loop is not None:
            with suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._set_events)

    def _set_events(self) -> None:
        while self._to_set:
            self._to_set.popleft().set()

    def stop(self) -> None:
        """Stop the loops: what is not finished is told that the server ends."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
        for pool in (self._pool, self._waiting_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def model(self, name: str) -> ServedModel:
        """Find a model.

        Raises:
            Failure: 404, there is none of this name.
        """
        served = self.models.get(name)
        if served is None:
            shown = name if len(name) <= 80 else name[:77] + "..."
            names = ", ".join(self.models)
            raise Failure(404, f"model: got {shown!r}, served are {names}", param="model", code="model_not_found")
        return served

    def note_prompt(self, prompt: Prompt, served: ServedModel) -> None:
        """Count the tokens of a prompt that was read."""
        numbers = {"text": len(prompt.text_ids), "image": prompt.num_image_tokens, "cached": prompt.num_known}
        for kind, number in numbers.items():
            self.metrics.prompt_tokens.labels(model=served.name, kind=kind).inc(number)

    def log_content(self, record: Record, messages: Sequence[Message], said: Mapping[str, Any]) -> None:
        """Log the texts of a request, where that is asked for; of images their sizes."""
        if not self.settings.log_content:
            return
        asked = [{"role": message.role, "content": texts_of(message)} for message in messages]
        images = [f"{len(url)} characters" for _, url in image_urls(messages)]
        LOG.info("%s %s", record.request_id, json.dumps({"messages": asked, "images": images, **said}))

    async def in_thread(self, work: Callable[[], T], *, is_waiting: bool = False) -> T:
        """Do what takes time in a thread; `is_waiting`: it waits for others, and does not keep a processor busy."""
        pool = self._waiting_pool if is_waiting else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)
