"""`POST /v1/score`: how likely each of some answers is, as the model would say it and end there.

In: a chat and candidates. Out: for each its log-likelihood in nats and its share among the candidates.

    router = make_score_router(service)
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visgraft.inference.candidates import Normalise
from visgraft.inference.requests import Prompt
from visgraft.serving.asking import fetched_images, prompt_for, usage_of
from visgraft.serving.bodies import ScoreRequest, read_body
from visgraft.serving.events import until_gone
from visgraft.serving.failures import Failure, bad_request
from visgraft.serving.served import ServedModel
from visgraft.serving.service import Record, Service


def make_score_router(service: Service) -> APIRouter:
    """Make the route."""
    router = APIRouter()

    @router.post("/v1/score")
    async def score(request: Request) -> Response:
        """Score candidates as answers to a chat's last question."""
        record: Record = request.scope["visgraft.record"]
        body = await request.body()
        asked = await service.in_thread(lambda: read_body(ScoreRequest, body))
        served = service.model(asked.model)
        record.model = served.name
        limits = service.settings.limits
        if len(asked.candidates) > limits.max_candidates:
            raise bad_request(
                f"candidates: got {len(asked.candidates)}, allowed are 1 to {limits.max_candidates}", param="candidates"
            )
        num_letters = sum(map(len, asked.candidates))
        if num_letters > limits.max_candidate_characters:
            raise bad_request(
                f"candidates: got {num_letters:,} characters in all, allowed are {limits.max_candidate_characters:,}",
                param="candidates",
            )
        fetched = await fetched_images(service, asked)
        prompt, scores = await _scores(service, asked, served, request, record=record, fetched=fetched)
        record.facts["candidates"] = len(scores)
        service.note_prompt(prompt, served)
        service.log_content(record, asked.messages, {"candidates": asked.candidates, "scores": scores})
        return JSONResponse(_result(asked, served, prompt, scores))

    return router


async def _scores(
    service: Service,
    asked: ScoreRequest,
    served: ServedModel,
    request: Request,
    *,
    record: Record,
    fetched: dict[str, bytes],
) -> tuple[Prompt, list[float]]:
    """Score between two steps of the model's loop."""
    _, prompt = await service.in_thread(
        lambda: prompt_for(service, asked, served, record=record, fetched=fetched, keep=False)
    )
    normalise: Normalise = asked.normalise or "sum"
    job = served.score_later(prompt, asked.candidates, normalise=normalise)
    gone = asyncio.ensure_future(until_gone(request.receive))
    waiting = asyncio.wrap_future(job)
    seconds = service.settings.limits.timeout_s
    try:
        either: list[asyncio.Future[Any]] = [waiting, gone]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return prompt, waiting.result()
        job.cancel()  # unless it is being done
        if gone.done():
            record.facts["gone"] = True
            raise Failure(499, "the client has gone away")
        raise Failure(504, f"no scores within {seconds:g} seconds; ask for fewer", code="timeout")
    finally:
        gone.cancel()


def _result(asked: ScoreRequest, served: ServedModel, prompt: Prompt, scores: list[float]) -> dict[str, Any]:
    weights = [math.exp(score - max(scores)) for score in scores]
    results = [
        {"index": index, "candidate": candidate, "score": score, "share": weight / sum(weights)}
        for index, (candidate, score, weight) in enumerate(zip(asked.candidates, scores, weights, strict=True))
    ]
    return {
        "object": "scores",
        "model": served.name,
        "normalise": asked.normalise or "sum",
        "results": results,
        "best": scores.index(max(scores)),
        "usage": usage_of(prompt, num_said=0),
    }
