"""One question to two, blind: which of them is A is drawn here, and told only to whoever has voted.

In: two contestants (a model and its settings each) and a chat. Out: both answers as they grow, as server-sent events
of sides A and B; behind a vote the names, and the tally.

    POST /page/blind    {"contestants": [{"model": "a"}, {"model": "b", "temperature": 0.7}], "messages": [...]}
        {"side": "A", "text": "a c"}  {"side": "B", "text": "a dog"}  ...  {"blind_id": "3f..."}
    POST /page/votes    {"blind_id": "3f...", "vote": "A"}
        {"names": {"A": "b, temperature 0.7", "B": "a"}, "tally": [...]}

What a watcher may still go by is how fast the two are, and how they write.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from visgraft.serving.bodies import ChatRequest, ImagePart, Message, Stop, Strict, read_body
from visgraft.serving.chat import Talk, begin
from visgraft.serving.events import EventStream
from visgraft.serving.failures import Failure, bad_request
from visgraft.serving.page.votes import Votes
from visgraft.serving.service import Record, Service

Side = Literal["A", "B"]
SIDES: tuple[Side, Side] = ("A", "B")
MOST_OPEN = 1_000  # questions that wait for a vote; the oldest goes


class Contestant(Strict):
    """A model, and how it is asked."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Stop | None = None

    @property
    def name(self) -> str:
        """Name it by its model and settings, as votes know it."""
        settings = self.model_dump(exclude_none=True, exclude={"model"})
        told = [f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
        return ", ".join([self.model, *told])


class BlindRequest(Strict):
    """The body of `POST /page/blind`."""

    contestants: Annotated[list[Contestant], Field(min_length=2, max_length=2)]
    messages: Annotated[list[Message], Field(min_length=1)]


class VoteRequest(Strict):
    """The body of `POST /page/votes`."""

    blind_id: str
    vote: Literal["A", "B", "tie", "both bad"]


@dataclass(frozen=True)
class Answered:
    """A question that waits for its vote.

    Attributes:
        owner: the api key that asked; no other may vote.
        names: who is which side.
        record: what is kept of it besides.
    """

    owner: str
    names: Mapping[Side, str]
    record: Mapping[str, Any]


class OpenQuestions:
    """The questions that wait for a vote, the newest ones."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: OrderedDict[str, Answered] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, question: Answered) -> str:
        """Keep a question; give the word by which it is voted on."""
        blind_id = secrets.token_urlsafe(18)
        with self._lock:
            self._open[blind_id] = question
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return blind_id

    def take(self, blind_id: str, *, owner: str) -> Answered:
        """Take a question out: it is voted on once.

        Raises:
            Failure: 404, there is none.
        """
        with self._lock:
            question = self._open.get(blind_id)
            if question is None or question.owner != owner:
                raise Failure(
                    404,
                    "blind_id: no such question waits for a vote: it was voted on, or the server was started again; "
                    "ask anew",
                    param="blind_id",
                )
            return self._open.pop(blind_id)

    def put_back(self, blind_id: str, question: Answered) -> None:
        """Let a question be voted on again: its vote could not be written down."""
        with self._lock:
            self._open[blind_id] = question


def make_blind_router(service: Service, votes_file: Path) -> APIRouter:
    """Make the routes.

    Raises:
        CheckpointError: the file of votes is there and holds something else.
    """
    router = APIRouter()
    votes, waiting = Votes(votes_file), OpenQuestions()

    @router.post("/page/blind")
    async def ask_both(request: Request) -> Response:
        """Ask both, and stream what they say."""
        record: Record = request.scope["visgraft.record"]
        body = await request.body()
        asked = await service.in_thread(lambda: read_body(BlindRequest, body))
        first, second = asked.contestants
        if first.name == second.name:
            raise bad_request(
                f"contestants: got {first.name} twice; choose another model, or another setting for one of them",
                param="contestants",
            )
        order = [first, second] if secrets.randbits(1) else [second, first]
        talks: dict[Side, Talk] = {}
        try:
            for side, contestant in zip(SIDES, order, strict=True):
                talks[side] = await begin(service, _question(contestant, asked), record=replace(record, facts={}))
        except BaseException:
            for talk in talks.values():
                talk.close()
            raise
        names: dict[Side, str] = {"A": order[0].name, "B": order[1].name}
        return BlindStream(service, record, talks, names, asked, waiting=waiting)

    @router.post("/page/votes")
    async def vote(request: Request) -> dict[str, Any]:
        """Take a vote, and say who was who."""
        owner = request.scope["visgraft.record"].owner
        body = await request.body()

        def add() -> dict[str, Any]:
            asked = read_body(VoteRequest, body)
            question = waiting.take(asked.blind_id, owner=owner)
            try:
                votes.add(_vote(question, asked.vote))
            except BaseException:
                waiting.put_back(asked.blind_id, question)
                raise
            return {"names": question.names, "tally": votes.tally()}

        return await service.in_thread(add)

    @router.get("/page/votes")
    async def tally() -> list[dict[str, Any]]:
        """Say what the votes add up to."""
        return await service.in_thread(votes.tally)

    return router


def _question(contestant: Contestant, asked: BlindRequest) -> ChatRequest:
    settings = contestant.model_dump(exclude_none=True)
    return ChatRequest(**settings, messages=asked.messages, stream=True)


def _vote(question: Answered, vote: Side | Literal["tie", "both bad"]) -> dict[str, Any]:
    """Write down a vote: the two in the order of their names, so that a pair is one pair however it was shown."""
    first, second = sorted(question.names.values())
    winners: dict[str, str] = {side: "first" if name == first else "second" for side, name in question.names.items()}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "first": first,
        "second": second,
        "winner": winners.get(vote, vote),
        "shown_as_A": question.names["A"],
        "key": question.owner,
        **question.record,
    }


class BlindStream(EventStream):
    """Two answers as they grow; they may be voted on once both have ended."""

    def __init__(
        self,
        service: Service,
        record: Record,
        talks: Mapping[Side, Talk],
        names: Mapping[Side, str],
        asked: BlindRequest,
        *,
        waiting: OpenQuestions,
    ) -> None:
        """Make a response that is not begun."""
        super().__init__(service, record)
        self._talks, self._names, self._asked = talks, names, asked
        self._owner, self._waiting = record.owner, waiting

    def close(self) -> None:
        """Let go of both answers."""
        for talk in self._talks.values():
            talk.close()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Give the pieces by their sides, how each ended, and by which word it is voted on."""
        texts: dict[Side, str] = {"A": "", "B": ""}
        async for side, text in self._pieces():
            texts[side] += text
            yield {"side": side, "text": text}
        for side, talk in self._talks.items():
            yield {"side": side, "finish": talk.answers()[0].finish}
        yield {"blind_id": self._waiting.add(Answered(self._owner, self._names, self._said(texts)))}

    async def _pieces(self) -> AsyncIterator[tuple[Side, str]]:
        """Give the pieces of both as they come."""
        open_ones = dict(self._talks)
        while open_ones:
            for side, talk in list(open_ones.items()):
                [reply] = talk.replies
                text, is_done = reply.take()
                if text:
                    yield side, text
                if is_done:
                    del open_ones[side]
            waits = [asyncio.ensure_future(talk.wait()) for talk in open_ones.values()]
            if waits:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()

    def _said(self, texts: Mapping[Side, str]) -> dict[str, Any]:
        """Say what was asked and said; of images their sums, by which their files are found again."""
        messages = [message.model_dump(exclude_none=True) for message in self._asked.messages]
        for message, asked in zip(messages, self._asked.messages, strict=True):
            if not isinstance(asked.content, str):
                message["content"] = [
                    {"type": "image", "sha256": sha256(part.image_url.url.encode()).hexdigest()}
                    if isinstance(part, ImagePart)
                    else {"type": "text", "text": part.text}
                    for part in asked.content
                ]
        return {"messages": messages, "answers": {self._names[side]: texts[side] for side in texts}}
