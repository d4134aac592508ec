"""Evaluations that are there: a list with their scores, and the report of each as it was written.

In: the folder that `--evaluations` names. Out: JSON, and reports at addresses that only the list tells.

    view = EvaluationsView(Path("evaluations"))
    view.listing()        # [{"name": "20260102-easy-vqa", "models": [...], "report": "/reports/3f0c..."}]

A link cannot carry a key, so a report's address is one: it is made from the report's name and a secret of this process.
A report runs apart from the page (`sandbox`): whatever it holds, it can neither read the page nor ask the server.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from visgraft.evaluation.running import REPORT, SCORES
from visgraft.listing import listing
from visgraft.parsing import parse_json
from visgraft.serving.failures import Failure
from visgraft.serving.page.runs import name_below
from visgraft.serving.service import Service

_HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class EvaluationsView:
    """The evaluations of a folder, or the one that it is."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; evaluations may come and go."""
        self._folder = folder.expanduser().absolute()
        self._secret = secrets.token_bytes(32)

    def listing(self) -> list[dict[str, Any]]:
        """List the evaluations, the newest in front."""
        return [self._told(name, folder) for name, folder in self._find().items()]

    def report(self, address: str) -> Path | None:
        """Find the report at an address; None: there is none."""
        for name, folder in self._find().items():
            if hmac.compare_digest(self._address(name), address) and (folder / REPORT).is_file():
                return folder / REPORT
        return None

    def _find(self) -> dict[str, Path]:
        found = [each for pattern in ("", "*/", "*/*/") for each in listing(self._folder, f"{pattern}{SCORES}")]
        found.sort(key=lambda each: (-each.state.st_mtime, each.path))
        return {name_below(self._folder, each.path.parent): each.path.parent for each in found}

    def _told(self, name: str, folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {"name": name, "models": [], "report": None}
        if (folder / REPORT).is_file():
            told["report"] = f"/reports/{self._address(name)}"
        try:
            models = parse_json((folder / SCORES).read_bytes())["models"]
            told["models"] = [
                {
                    "name": str(each["model"]),
                    "scores": {score: [value.get(key) for key in ("value", "low", "high")]
                               for score, value in each["scores"].items()},
                }
                for each in models
            ]  # fmt: skip
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            told["problem"] = f"{SCORES} cannot be read ({error}); give the `visgraft evaluate` of it again"
        return told

    def _address(self, name: str) -> str:
        return hmac.digest(self._secret, name.encode("utf-8", "surrogateescape"), "sha256").hex()


def make_evaluations_router(service: Service, folder: Path) -> APIRouter:
    """Make the routes."""
    router = APIRouter()
    view = EvaluationsView(folder)

    @router.get("/page/evaluations")
    async def list_evaluations() -> list[dict[str, Any]]:
        """List the evaluations."""
        return await service.in_thread(view.listing)

    @router.get("/reports/{address}")
    async def get_report(address: str) -> Response:
        """Give a report."""
        path = await service.in_thread(lambda: view.report(address)) if address.isascii() else None
        if path is None:
            raise Failure(404, "there is no report at this address; open it again from the page's list")
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=_HEADERS)

    return router
