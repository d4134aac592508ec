"""The page of the server: what people see at `/`, and what it asks the server for besides /v1.

In: the service. Out: a router with the page's own routes. Usage: `app.include_router(make_page_router(service))`
"""

from __future__ import annotations

from fastapi import APIRouter

from visgraft.serving.service import Service


def make_page_router(service: Service) -> APIRouter:
    """Make the routes of the page; `/static/` and `/` are open to everybody, all others need a key where there are."""
    router = APIRouter()

    @router.get("/")
    async def index() -> dict[str, object]:
        """Say what is here."""
        return {
            "models": list(service.models),
            "endpoints": ["/v1/chat/completions", "/v1/models", "/health", "/ready"],
        }

    return router
