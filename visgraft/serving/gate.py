"""The gate in front of all routes: who may come in, how much they may bring, and how many at once.

In: every request, before anything of its body is read. Out: the request with its `Record`, or OpenAI's error object;
a line of the log, and the counters.

    app.add_middleware(Gate, service=service)
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visgraft.serving.failures import Failure, busy, overloaded
from visgraft.serving.service import LOG, Record, Service, failure_told
from visgraft.serving.settings import digest_of

_OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")
_OPEN_FOLDERS = ("/static/", "/reports/")  # a report's address is as good as a key: it cannot be guessed
_ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/score": "score",
    "/v1/models": "models",
    "/health": "health",
    "/ready": "ready",
    "/metrics": "metrics",
    "/": "page",
}


class Gate:
    """Let requests through, or say why not."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        """Stand in front of `app`."""
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        record = scope["visgraft.record"] = Record(request_id=secrets.token_hex(12))
        record.endpoint = _ENDPOINTS.get(scope["path"], "other")
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._let_through(scope, receive, send_noting, record)
        except ClientDisconnect:
            record.facts["gone"] = True
        except Exception as error:
            failure = failure_told(error, record)
            if status:
                raise  # its response is begun, and breaks off
            await failure.response()(scope, receive, send_noting)
        finally:
            self._note(scope, record, status)

    async def _let_through(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        service = self.service
        headers = Headers(scope=scope)
        self._check_host(headers)
        path = scope["path"]
        if path not in _OPEN_PATHS and not path.startswith(_OPEN_FOLDERS):
            record.owner = self._owner(headers)
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            await self.app(scope, receive, send)
            return
        self._check_head(headers)
        if service.is_draining:
            raise overloaded("the server ends, and takes no more requests; ask another one", code="shutting_down")
        if service.num_running >= service.most_requests:
            service.metrics.refused.labels(reason="queue").inc()
            raise busy(
                f"{service.num_running} requests are here already, and there is room for no more; ask again later"
            )
        service.num_running += 1
        try:
            await self.app(scope, _Body(receive, service).receive, send)
        finally:
            service.num_running -= 1

    def _check_host(self, headers: Headers) -> None:
        """Refuse to be asked under another name: a page of the net may have let its own name point here."""
        allowed = self.service.settings.host_names
        if not allowed:
            return
        host = headers.get("host", "")
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if name.lower().rstrip(".") not in allowed:
            raise Failure(
                403,
                f"host: asked under a name that is not this server's; it is {', '.join(allowed)}",
                code="host_not_allowed",
            )

    def _owner(self, headers: Headers) -> str:
        """Name the api key that asks; every key is compared, so that the time says nothing.

        Raises:
            Failure: 401, there is none, or a wrong one.
        """
        keys = self.service.settings.api_keys
        if not keys:
            return ""
        kind, _, given = headers.get("authorization", "").partition(" ")
        digest = digest_of(given.strip())
        found = [key for key in keys if hmac.compare_digest(key.digest, digest)]
        if kind.lower() != "bearer" or not found:
            self.service.metrics.refused.labels(reason="key").inc()
            raise Failure(
                401,
                "api key: got none, or one that is not known; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found[0].name

    def _check_head(self, headers: Headers) -> None:
        """Check what is said of a body before it is read."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Failure(415, "content-type: need application/json", code="wrong_content_type")
        length = headers.get("content-length", "")
        limit = self.service.settings.limits.max_body_bytes
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)

    def _note(self, scope: Scope, record: Record, status: int) -> None:
        """Count a request that is over, and log it: no text, no image, no key."""
        seconds = monotonic() - record.began_at
        metrics = self.service.metrics
        metrics.requests.labels(endpoint=record.endpoint, model=record.model, status=str(status)).inc()
        if record.endpoint in ("chat", "score"):
            metrics.seconds.labels(endpoint=record.endpoint, model=record.model).observe(seconds)
        told = [record.request_id, scope["method"], record.endpoint, status, f"{seconds:.3f}s"]
        told += [f"model={record.model or '-'}", f"key={record.owner or '-'}"]
        told += [f"{name}={value}" for name, value in record.facts.items()]
        LOG.info(" ".join(map(str, told)))


class _Body:
    """The body of a request, up to a size, within a time."""

    def __init__(self, receive: Receive, service: Service) -> None:
        self._receive = receive
        self._limits = service.settings.limits
        self._end = monotonic() + self._limits.body_timeout_s
        self._num_bytes = 0
        self._is_whole = False

    async def receive(self) -> Message:
        """Give the next piece.

        Raises:
            Failure: 413, it is too large; 408, it does not come.
        """
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._end - monotonic())):
                message = await self._receive()
        except TimeoutError:
            seconds = self._limits.body_timeout_s
            raise Failure(
                408, f"the body did not arrive within {seconds:g} seconds", code="body_timeout",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        self._num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        return message


def _too_large(limit: int) -> Failure:
    return Failure(
        413,
        f"the body is larger than {limit / 2**20:g} MiB; send fewer or smaller images",
        code="body_too_large",
        headers={"Connection": "close"},
    )
