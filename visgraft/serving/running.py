"""A server from its start to its end: a port of its own, a line when it is ready, and an end that drops nobody.

In: a service, an address. Out: an exit status.

    with open_port("127.0.0.1", 8000) as port: status = run(service, port, ready=print)
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import uvicorn

from visgraft.errors import ConfigError
from visgraft.serving.app import create_app
from visgraft.serving.service import LOG, Service

INTERRUPTED = 130
_TICK_S = 0.05


def open_port(host: str, port: int) -> socket.socket:
    """Take a port; nobody is let in yet.

    Raises:
        ConfigError: it is taken, or may not be taken, or there is no such address here.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: there is no such address here ({error.strerror or error})") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: taken already; name another one, or 0 for a free one") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"--port {port}: not allowed to you; name one above 1023, or 0 for a free one") from None
        raise ConfigError(f"--host {host}: {error.strerror}; name an address of this machine") from None
    return opened


def address_of(opened: socket.socket) -> str:
    """Write where a port is, as a browser takes it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them."""
        yield


def make_server(service: Service) -> uvicorn.Server:
    """Make what lets requests in; it logs nothing itself."""
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    return _Server(config)


def run(service: Service, opened: socket.socket, *, ready: Callable[[str], None], drain_s: float = 60.0) -> int:
    """Serve until a signal ends it; `ready` is told where, once requests are taken.

    Returns:
        0 behind SIGTERM, 130 behind Ctrl-C.
    """
    server = make_server(service)
    status = 0

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        ending = _Ending(service, server, drain_s=drain_s)

        def end(number: int) -> None:
            nonlocal status
            status = INTERRUPTED if number == signal.SIGINT else 0
            ending.begin()

        for number in (signal.SIGINT, signal.SIGTERM):
            _hear(loop, number, end)
        serving = loop.create_task(server.serve([opened]))
        while not server.started and not serving.done():
            await asyncio.sleep(_TICK_S)
        if server.started:
            ready(address_of(opened))
        await serving

    asyncio.run(serve())
    return status


def _hear(loop: asyncio.AbstractEventLoop, number: int, end: Callable[[int], None]) -> None:
    """Let a function of the loop hear a signal."""
    try:
        loop.add_signal_handler(number, end, number)
    except NotImplementedError:  # loops of Windows hear none
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(end, number) and None)


class _Ending:
    """The end of a server: no more requests, those that run are finished; asked a second time, they are cut off."""

    def __init__(self, service: Service, server: uvicorn.Server, *, drain_s: float) -> None:
        self._service, self._server, self._drain_s = service, server, drain_s
        self._is_hurried = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to end, or end at once."""
        self._is_hurried = self._task is not None
        self._task = self._task or asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        service = self._service
        service.is_draining = True
        if service.num_running:
            LOG.warning("ending: %d requests are being finished; again ends at once", service.num_running)
        end = monotonic() + self._drain_s
        while service.num_running and monotonic() < end and not self._is_hurried:
            await asyncio.sleep(_TICK_S)
        if service.num_running:
            LOG.warning("ending: %d requests are cut off", service.num_running)
            await asyncio.to_thread(service.stop)
        self._server.should_exit = True
