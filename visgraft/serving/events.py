"""Server-sent events: a response that grows, and ends where its client goes away.

In: events as they come. Out: a line `data: ...` for each; what goes wrong behind the first piece is the last of them.

    class Answers(EventStream):
        async def events(self): yield {"text": "a c"}; yield {"text": "at"}
"""

from __future__ import annotations

import abc
import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from visgraft.serving.service import Record, Service, failure_told

_READING_S = 30.0  # that a client has to read the rest of a stream which is whole
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


async def until_gone(receive: Receive) -> None:
    """Wait until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response, abc.ABC):
    """A response of events. What goes wrong before the first one has its own status."""

    def __init__(self, service: Service, record: Record) -> None:
        """Make a response that is not begun."""
        self.background = None
        self._record = record
        self._most_s = service.settings.limits.timeout_s + _READING_S

    async def ready(self) -> None:  # most streams begin at once
        """Wait until there is something to send. What it raises becomes the status."""

    @abc.abstractmethod
    def events(self) -> AsyncIterator[Mapping[str, Any] | str]:
        """Give the events: objects, or a word that is sent as it is."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what is not finished; called on every way out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        gone = asyncio.ensure_future(until_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait([gone, sending], timeout=self._most_s, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._record.facts["gone"] = True
                sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
        finally:
            gone.cancel()
            sending.cancel()
            self.close()

    async def _send(self, send: Send) -> None:
        await self.ready()
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async for event in self.events():
                await _event(send, event)
        except Exception as error:
            failure = failure_told(error, self._record)
            self._record.facts["failed"] = failure.status
            await _event(send, failure.body)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _event(send: Send, event: Mapping[str, Any] | str) -> None:
    text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    await send({"type": "http.response.body", "body": b"data: " + text.encode() + b"\n\n", "more_body": True})
