"""The server's application: its routes behind the gate.

In: a service. Out: an ASGI application that uvicorn runs, or a test asks without a socket.

    app = create_app(Service({"my-run": (model, processor)}, ServeSettings()))
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visgraft.serving.chat import make_chat_router
from visgraft.serving.description import describe
from visgraft.serving.failures import Failure
from visgraft.serving.gate import Gate
from visgraft.serving.page import make_page_router
from visgraft.serving.scoring import make_score_router
from visgraft.serving.service import Service


def create_app(service: Service) -> FastAPI:
    """Put the routes together; the models' loops run while the application does."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with service:
            yield

    app = FastAPI(title="visgraft", lifespan=running, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.include_router(make_chat_router(service))
    app.include_router(make_score_router(service))
    _add_models(app, service)
    _add_state(app, service)
    app.include_router(make_page_router(service))
    app.add_exception_handler(HTTPException, _told)
    describe(app, service)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_models(app: FastAPI, service: Service) -> None:
    def described(name: str) -> dict[str, Any]:
        served = service.model(name)
        return {"id": name, "object": "model", "created": served.created_at, "owned_by": "visgraft"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [described(name) for name in service.models]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        """Describe a model."""
        return described(name)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server is there."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Say whether it takes requests."""
        if service.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Give the counters to Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _told(request: Request, error: Exception) -> Response:
    """Say in OpenAI's form what the router itself refuses."""
    assert isinstance(error, HTTPException)
    messages = {404: "there is nothing at this address", 405: "this address takes another method"}
    message = messages.get(error.status_code, str(error.detail))
    return Failure(error.status_code, message, headers=error.headers).response()
