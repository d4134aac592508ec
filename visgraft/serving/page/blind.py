"""One conversation with two, blind: which of them is A is drawn here, and told only to whoever has voted.

In: two contestants (a model and its settings each) and a chat. Out: both answers as they grow, as server-sent events
of sides A and B; behind a vote the names, and the tally.

    POST /page/blind    {"contestants": [{"model": "a"}, {"model": "b", "temperature": 0.7}], "messages": [...]}
        {"side": "A", "text": "a c"}  {"side": "B", "text": "a dog"}  ...  {"blind_id": "3f..."}
    POST /page/blind    {"blind_id": "3f...", "messages": [...]}          what the user said before, and a further turn
        {"side": "A", "text": "Bec"}  ...  {"blind_id": "3f..."}
    POST /page/votes    {"blind_id": "3f...", "vote": "A"}
        {"names": {"A": "b, temperature 0.7", "B": "a"}, "tally": [...]}

Who is A stays so until the vote, as each side goes on from its own answers: the server puts them between what the user
said, of which it keeps sums in the place of images, so that whoever goes on sends the images again.

What a watcher may still go by is how fast the two are, and how they write.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from visgraft.serving.bodies import MOST_MESSAGES, ChatRequest, ImagePart, Message, Stop, Strict, read_body
from visgraft.serving.chat import Talk, begin
from visgraft.serving.events import EventStream
from visgraft.serving.failures import Failure, bad_request
from visgraft.serving.page.votes import Votes
from visgraft.serving.service import Record, Service

Side = Literal["A", "B"]
MOST_OPEN = 1_000  # conversations that wait for a vote; the oldest goes


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
    """The body of `POST /page/blind`: two contestants, or the conversation that goes on."""

    contestants: Annotated[list[Contestant], Field(min_length=2, max_length=2)] | None = None
    blind_id: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)]


class VoteRequest(Strict):
    """The body of `POST /page/votes`."""

    blind_id: str
    vote: Literal["A", "B", "tie", "both bad"]


@dataclass(frozen=True)
class Blind:
    """A conversation with two, which waits for its vote.

    Attributes:
        owner: the api key that asked; no other may go on or vote.
        sides: who is which side.
        said: the messages of the user, with a sum in the place of each image.
        answers: of each turn: how many messages were said before it was answered, and what each side answered.
    """

    owner: str
    sides: Mapping[Side, Contestant]
    said: Sequence[Mapping[str, Any]] = ()
    answers: Sequence[tuple[int, Mapping[Side, str]]] = ()

    def messages_of(self, side: Side, messages: Sequence[Message]) -> list[Message]:
        """Put a side's answers between what the user said."""
        heard: list[Message] = []
        begun = 0
        for number, answers in self.answers:
            heard += [*messages[begun:number], Message(role="assistant", content=answers[side])]
            begun = number
        return [*heard, *messages[begun:]]

    def and_then(self, messages: Sequence[Message], answers: Mapping[Side, str]) -> Blind:
        """Add a turn; `messages` is all that the user said."""
        said = [said_in(message) for message in messages]
        return replace(self, said=said, answers=[*self.answers, (len(said), dict(answers))])

    def check_goes_on(self, messages: Sequence[Message]) -> None:
        """Check that a further turn stands behind what was said.

        Raises:
            Failure: 400.
        """
        number = len(self.said)
        if [said_in(message) for message in messages[:number]] != [*self.said] or len(messages) != number + 1:
            raise bad_request(
                f"messages: need the {number} of before, with the same images, and a further one of the user: the "
                "answers between them are added here",
                param="messages",
            )

    def vote(self, vote: Side | Literal["tie", "both bad"]) -> dict[str, Any]:
        """Write down a vote: the two in the order of their names, so that a pair is one pair however it was shown."""
        names = {side: contestant.name for side, contestant in self.sides.items()}
        first, second = sorted(names.values())
        winners: dict[str, str] = {side: "first" if name == first else "second" for side, name in names.items()}
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "first": first,
            "second": second,
            "winner": winners.get(vote, vote),
            "shown_as_A": names["A"],
            "key": self.owner,
            "messages": self.said,
            "answers": {name: [answers[side] for _, answers in self.answers] for side, name in names.items()},
        }


def said_in(message: Message) -> dict[str, Any]:
    """Write a message down; of images their sums, by which their files are found again."""
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [
        {"type": "image", "sha256": sha256(part.image_url.url.encode()).hexdigest()}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


class OpenConversations:
    """The conversations that wait for a vote, the newest ones."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: OrderedDict[str, Blind] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, blind_id: str, blind: Blind) -> None:
        """Let a conversation be voted on, or go on, by this word."""
        with self._lock:
            self._open[blind_id] = blind
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)

    def take(self, blind_id: str, *, owner: str) -> Blind:
        """Take a conversation out: it is voted on once, and goes on in one way.

        Raises:
            Failure: 404, there is none.
        """
        with self._lock:
            blind = self._open.get(blind_id)
            if blind is None or blind.owner != owner:
                raise Failure(
                    404,
                    "blind_id: no such question waits for a vote: it was voted on, it is being answered, or the server "
                    "was started again; ask anew",
                    param="blind_id",
                )
            return self._open.pop(blind_id)


def make_blind_router(service: Service, votes_file: Path) -> APIRouter:
    """Make the routes.

    Raises:
        CheckpointError: the file of votes is there and holds something else.
    """
    router = APIRouter()
    votes, waiting = Votes(votes_file), OpenConversations()

    @router.post("/page/blind")
    async def ask_both(request: Request) -> Response:
        """Ask both, and stream what they say."""
        record: Record = request.scope["visgraft.record"]
        body = await request.body()
        asked = await service.in_thread(lambda: read_body(BlindRequest, body))
        blind_id = asked.blind_id or secrets.token_urlsafe(18)
        before = waiting.take(blind_id, owner=record.owner) if asked.blind_id else None
        talks: dict[Side, Talk] = {}
        try:
            blind = before or Blind(record.owner, _drawn(asked))
            if before is not None:
                _check_alone(asked)
                before.check_goes_on(asked.messages)
            for side, contestant in blind.sides.items():
                question = _question(contestant, blind.messages_of(side, asked.messages))
                talks[side] = await begin(service, question, record=replace(record, facts={}))
        except BaseException:
            for talk in talks.values():
                talk.close()
            if before is not None:
                waiting.put(blind_id, before)
            raise

        def end(answers: Mapping[Side, str] | None) -> None:
            if answers is not None:
                waiting.put(blind_id, blind.and_then(asked.messages, answers))
            elif before is not None:  # what was answered before can still be voted on
                waiting.put(blind_id, before)

        return BlindStream(service, record, talks, blind_id, end=end)

    @router.post("/page/votes")
    async def vote(request: Request) -> dict[str, Any]:
        """Take a vote, and say who was who."""
        owner = request.scope["visgraft.record"].owner
        body = await request.body()

        def add() -> dict[str, Any]:
            asked = read_body(VoteRequest, body)
            blind = waiting.take(asked.blind_id, owner=owner)
            try:
                votes.add(blind.vote(asked.vote))
            except BaseException:
                waiting.put(asked.blind_id, blind)
                raise
            names = {side: contestant.name for side, contestant in blind.sides.items()}
            return {"names": names, "tally": votes.tally()}

        return await service.in_thread(add)

    @router.get("/page/votes")
    async def tally() -> list[dict[str, Any]]:
        """Say what the votes add up to."""
        return await service.in_thread(votes.tally)

    return router


def _drawn(asked: BlindRequest) -> dict[Side, Contestant]:
    """Draw who is A.

    Raises:
        Failure: 400, there are not two.
    """
    if asked.contestants is None:
        raise bad_request("contestants: missing, and needed where no blind_id says who they are", param="contestants")
    first, second = asked.contestants
    if first.name == second.name:
        raise bad_request(
            f"contestants: got {first.name} twice; choose another model, or another setting for one of them",
            param="contestants",
        )
    return {"A": first, "B": second} if secrets.randbits(1) else {"A": second, "B": first}


def _check_alone(asked: BlindRequest) -> None:
    if asked.contestants is not None:
        raise bad_request("contestants: they are those of the blind_id; leave one of the two out", param="contestants")


def _question(contestant: Contestant, messages: Sequence[Message]) -> ChatRequest:
    return ChatRequest(**contestant.model_dump(exclude_none=True), messages=[*messages], stream=True)


class BlindStream(EventStream):
    """Two answers as they grow; they may be voted on once both have ended."""

    def __init__(
        self,
        service: Service,
        record: Record,
        talks: Mapping[Side, Talk],
        blind_id: str,
        *,
        end: Callable[[Mapping[Side, str] | None], None],
    ) -> None:
        """Make a response that is not begun; `end` is told the answers, or None where there are not two."""
        super().__init__(service, record)
        self._talks, self._blind_id, self._end = talks, blind_id, end
        self._answers: dict[Side, str] | None = None

    def close(self) -> None:
        """Let go of both answers."""
        for talk in self._talks.values():
            talk.close()
        if self._answers is None:
            self._end(None)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Give the pieces by their sides, how each ended, and by which word it is voted on."""
        texts: dict[Side, str] = {"A": "", "B": ""}
        async for side, text in self._pieces():
            texts[side] += text
            yield {"side": side, "text": text}
        for side, talk in self._talks.items():
            yield {"side": side, "finish": talk.answers()[0].finish}
        self._answers = texts
        self._end(texts)
        yield {"blind_id": self._blind_id}

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
