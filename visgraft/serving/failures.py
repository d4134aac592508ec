"""What a client is told when something is wrong: OpenAI's error object, with the status that its own clients know.

In: a failure that was meant, or any exception. Out: a response; what was not meant is logged, never shown.

    raise bad_request("n: got 40, allowed are 1 to 8", param="n")

    {"error": {"message": "n: got 40, allowed are 1 to 8", "type": "invalid_request_error", "param": "n", "code": null}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from visgraft.errors import BadSampleError, BusyError, ConfigError, ModelError
from visgraft.model.memory import is_out_of_memory

# Statuses under the names that OpenAI's errors have.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
BUSY_AGAIN_S = 1  # when a client that was sent away may ask again, where nothing better is known


class Failure(Exception):  # noqa: N818  # it is what goes wrong for a client, and no error of ours
    """A request that is not answered, and what its client is told.

    Attributes:
        status: of HTTP.
        message: what was got, what is allowed, what to do.
        param: the parameter that is wrong, as the client wrote it.
        code: a word for programs.
        headers: further ones of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Make the response."""
        return JSONResponse(self.body, self.status, self.headers)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Failure:
    """Say that the request is wrong."""
    return Failure(400, message, param=param, code=code)


def busy(message: str, *, again_s: int = BUSY_AGAIN_S) -> Failure:
    """Say that there is no room now, and when to ask again."""
    return Failure(429, message, code="queue_full", headers={"Retry-After": str(again_s)})


def overloaded(message: str, *, code: str) -> Failure:
    """Say that the request could not be answered, though nothing is wrong with it."""
    return Failure(503, message, code=code, headers={"Retry-After": str(BUSY_AGAIN_S)})


def failure_of(error: BaseException) -> Failure | None:
    """Say what an exception means to a client; None: it is a mistake of the server, to be logged."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, BusyError):
        return overloaded(str(error), code="out_of_memory" if "memory" in str(error) else "closed")
    if isinstance(error, MemoryError) or (isinstance(error, Exception) and is_out_of_memory(error)):
        return overloaded("memory does not suffice for this request now; ask again later", code="out_of_memory")
    if isinstance(error, BadSampleError):
        return bad_request(f"messages: {error}", param="messages")
    if isinstance(error, ModelError):
        return bad_request(str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, ConfigError):
        return bad_request(str(error))
    return None


def internal_failure(request_id: str) -> Failure:
    """Say that the server made a mistake, and under which name it is in its log."""
    return Failure(500, f"the server failed on this request; its log says why, under {request_id}", code="internal")
