"""The page of the server: what people see at `/`, and what it asks the server for besides /v1.

In: the service. Out: a router with the page's own routes. Usage: `app.include_router(make_page_router(service))`

The files in `static/` are all that a browser loads: no script of others, no style of others, nothing from the net.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from visgraft.reporting.page import template_file
from visgraft.serving.bodies import MAX_STOPS, MAX_TOP_LOGPROBS
from visgraft.serving.failures import Failure
from visgraft.serving.page.blind import make_blind_router
from visgraft.serving.page.evaluations import make_evaluations_router
from visgraft.serving.page.runs import make_runs_router
from visgraft.serving.service import Service

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# What the page may load and run: its own files, and pictures that the user chose.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_page_router(service: Service) -> APIRouter:
    """Make the routes of the page; `/static/` and `/` are open to everybody, all others need a key where there are."""
    router = APIRouter(include_in_schema=False)
    settings = service.settings
    static = _static_files()

    @router.get("/")
    async def index() -> Response:
        """Give the page."""
        return _file(static, "index.html")

    @router.get("/static/{name}")
    async def static_file(name: str) -> Response:
        """Give a file of the page."""
        return _file(static, name)

    @router.get("/favicon.ico")
    async def icon() -> Response:
        """Give the page's sign."""
        return _file(static, "icon.svg")

    @router.get("/page/about")
    async def about() -> dict[str, Any]:
        """Say what there is to see, and how much may be asked."""
        limits = settings.limits
        return {
            "models": list(service.models),
            "views": {
                "compare": settings.votes_file is not None,
                "runs": settings.runs_folder is not None,
                "evaluations": settings.evaluations_folder is not None,
            },
            "limits": {
                "body_bytes": limits.max_body_bytes,
                "images": limits.max_images,
                "new_tokens": limits.max_new_tokens,
                "default_new_tokens": limits.default_new_tokens,
                "stops": MAX_STOPS,
                "top_logprobs": MAX_TOP_LOGPROBS,
            },
        }

    if settings.votes_file is not None:
        router.include_router(make_blind_router(service, settings.votes_file))
    if settings.runs_folder is not None:
        router.include_router(make_runs_router(service, settings.runs_folder))
    if settings.evaluations_folder is not None:
        router.include_router(make_evaluations_router(service, settings.evaluations_folder))
    return router


def _static_files() -> dict[str, bytes]:
    """Read the page's files, and the look that all pages share."""
    folder = files("visgraft.serving.page") / "static"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _KINDS}
    return {**found, "page.css": template_file("page.css").encode()}


def _file(static: dict[str, bytes], name: str) -> Response:
    if name not in static:
        raise Failure(404, "there is nothing at this address")
    return Response(static[name], media_type=_KINDS[name.rpartition(".")[2]], headers=_HEADERS)
