"""Fetch images of the web, where a recipe allows it.

In:  an http(s) address. Out: a StoredImage that downloads it when it is opened, once, into the cache.

    image = open_image(RemoteImage("https://example.org/cat.jpg"))

Data name addresses that someone else wrote, so a download has an end (`_DEADLINE_S` for all of it), only what opens as
an image is kept, and addresses of this machine and of private networks are refused, behind redirects and names too; the
hosts among them that a recipe names under `data.allow_private_hosts` are not. A name is resolved once, and the address
that was checked is the one that is asked.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from threading import Timer
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from visgraft.atomic import write_whole
from visgraft.data.images.opening import open_image
from visgraft.disk_cache import cache_folder
from visgraft.errors import BadSampleError

_TIMEOUT_S = 20.0  # without a byte
_DEADLINE_S = 60.0  # of a whole download
_MAX_BYTES = 100_000_000
_AGENT = "Mozilla/5.0 (compatible; visgraft)"  # some servers give a bare Python client nothing
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"
# an IPv4 address in the last four bytes: NAT64, and the old form for hosts that speak both
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96")))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: what is behind it is the network's own business


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image of the web; see StoredImage. `private_hosts`: names of hosts that may have a private address."""

    url: str
    private_hosts: tuple[str, ...] = field(default=(), repr=False)

    def read(self) -> bytes:
        """Return the encoded file; raises BadSampleError where it cannot be had.

        What is no image that opens is given back all the same, for whoever opens it to say why, and is not kept.
        """
        name = sha256(self.url.encode("utf-8", "surrogatepass")).hexdigest()
        kept = cache_folder() / "downloads" / name
        if kept.is_file():
            return kept.read_bytes()
        data = download(self.url, private_hosts=self.private_hosts)
        try:
            open_image(data)
        except BadSampleError:
            return data
        write_whole(kept, data)
        return data


def download(
    url: str,
    *,
    private_hosts: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    max_bytes: int | None = None,
    deadline_s: float | None = None,
    may_use_proxy: bool = True,
) -> bytes:
    """Fetch what is at an http(s) address, behind redirects too.

    Args:
        url: the address.
        private_hosts: names of hosts that may have a private address.
        hosts: the only ones that are asked: `example.org`, `*.example.org` for those below it, `*` for all; at the
            ports 80 and 443, or at `example.org:8080`. None = all, at any port.
        max_bytes: of what is there; default 100 MB.
        deadline_s: of all of it; default 60 seconds.
        may_use_proxy: ask the proxy that the environment names, which resolves names itself.

    Raises:
        BadSampleError: it cannot be had, or not from there.
    """
    deadline_s = _DEADLINE_S if deadline_s is None else deadline_s
    connections = _Connections(
        private_hosts, hosts=hosts, deadline=monotonic() + deadline_s, may_use_proxy=may_use_proxy
    )
    watch = Timer(deadline_s, connections.end)
    watch.daemon = True
    watch.start()
    try:
        request = urllib.request.Request(_in_ascii(url), headers={"User-Agent": _AGENT})
        with connections.opener().open(request, timeout=_TIMEOUT_S) as answer:
            data = _read(answer, _MAX_BYTES if max_bytes is None else max_bytes)
        if connections.is_late:  # what was broken off looks like the end to an answer of no known length
            raise TimeoutError
        return data
    except urllib.error.HTTPError as error:
        raise BadSampleError(f"image could not be downloaded (HTTP {error.code})") from None
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        is_short = isinstance(error, IncompleteRead)
        reason = "took too long" if connections.is_late else "was cut off" if is_short else "failed"
        raise BadSampleError(f"image could not be downloaded: the transfer {reason}") from None
    finally:
        watch.cancel()
        connections.close()


def _read(answer: HTTPResponse, max_bytes: int) -> bytes:
    length = answer.headers.get("Content-Length", "")
    size_bytes = int(length) if length.isdecimal() else None
    data = b"" if (size_bytes or 0) > max_bytes else answer.read(max_bytes + 1)
    if max(size_bytes or 0, len(data)) > max_bytes:
        raise BadSampleError("image file is too large")
    if size_bytes is not None and len(data) < size_bytes:
        raise IncompleteRead(data)
    return data


def _in_ascii(url: str) -> str:
    """Write an address as servers take it: other characters and spaces as %XX, a host's as in the name system."""
    parts = urlsplit(url.strip())
    if not parts.netloc.isascii():
        parts = parts._replace(netloc=parts.netloc.encode("idna").decode())
    return quote(urlunsplit(parts), safe=_URL_CHARACTERS)


class _Connections:
    """The connections of one download: to public addresses alone, and all ended when its time is over."""

    def __init__(
        self, private_hosts: Sequence[str], *, hosts: Sequence[str] | None, deadline: float, may_use_proxy: bool
    ) -> None:
        self.is_late = False
        self._deadline = deadline
        self._allowed = {host.strip("[]").lower() for host in private_hosts}
        self._hosts = None if hosts is None else [host.lower() for host in hosts]
        self.proxies = urllib.request.getproxies() if may_use_proxy else {}
        self._at_proxy = {urlsplit(proxy).netloc.rpartition("@")[2] for proxy in self.proxies.values()}
        self._sockets: list[socket.socket] = []

    def opener(self) -> urllib.request.OpenerDirector:
        """Return what follows redirects and knows no other kind of address than http and https."""
        director = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(self.proxies),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
            _Handler(self),
        ):
            director.add_handler(handler)
        return director

    def connect(self, address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
        """Connect to a host; raises BadSampleError where its address is private, OSError where nobody answers."""
        is_proxy = f"{address[0]}:{address[1]}" in self._at_proxy
        if not is_proxy and not self._may_ask(*address):
            raise BadSampleError("image is at a host, or behind one, from which none may be fetched")
        error = OSError("no address")
        for family, kind, protocol, _, found in self._addresses(address[0], address[1], is_allowed=is_proxy):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(0.1, min(_TIMEOUT_S, self._deadline - monotonic())))
                connection.connect(found)
            except OSError as refused:
                connection.close()
                error = refused
                continue
            connection.settimeout(_TIMEOUT_S)
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))  # stays when TLS takes the other
            return connection
        raise error

    def check(self, host: str) -> None:
        """Raise BadSampleError where a name is known here, and has a private address only."""
        with suppress(OSError):  # the proxy may know it
            self._addresses(host, 80)

    def _may_ask(self, host: str, port: int) -> bool:
        """Say whether a host and its port are among those that may be asked."""
        for allowed in ["*:*"] if self._hosts is None else self._hosts:
            name, _, at = allowed.rpartition(":") if ":" in allowed else (allowed, "", "")
            is_port = at == "*" or (str(port) == at if at else port in (80, 443))
            below = name.startswith("*.") and host.lower().endswith(name[1:])
            if is_port and (name == "*" or below or name == host.lower()):
                return True
        return False

    def _addresses(self, host: str, port: int, *, is_allowed: bool = False) -> list[Any]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if is_allowed or host.lower() in self._allowed:
            return found
        public = [each for each in found if _is_public(str(each[4][0]))]
        if found and not public:
            raise BadSampleError("image is at a private address and data.allow_private_hosts does not name its host")
        return public

    def end(self) -> None:
        """Break off whatever is being waited for."""
        self.is_late = True
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connections."""
        for connection in self._sockets:
            connection.close()


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https addresses through the connections of one download."""

    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._making(HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(self._making(HTTPSConnection), req, context=ssl.create_default_context())

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        """Look at the host of every request, redirected ones too, that a proxy will make in our place."""
        host = urlsplit(request.full_url).hostname or ""
        if self._connections.proxies.get(request.type) and not urllib.request.proxy_bypass(request.host):
            self._connections.check(host)
        prepared: urllib.request.Request = self.do_request_(request)
        return prepared

    https_request = http_request

    def _making(self, kind: Callable[..., HTTPConnection]) -> Any:
        def make(host: str, **settings: Any) -> HTTPConnection:
            made: Any = kind(host, **settings)
            made._create_connection = self._connections.connect
            return made

        return make


def _is_public(address: str) -> bool:
    """Say whether an address is one of the open net, in whatever form it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in _LOCAL_NAT64:
            return False
        if any(found in network for network in _IPV4_INSIDE):
            inside = ipaddress.IPv4Address(found.packed[-4:])
        if inside is not None:
            found = inside
    return found.is_global and not found.is_multicast
