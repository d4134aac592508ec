"""`POST /v1/chat/completions`: a chat in, an answer out, whole or piece by piece.

In: a request whose body may be read. Out: OpenAI's `chat.completion`, or a stream of its chunks.

    router = make_chat_router(service)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from visgraft.errors import BusyError
from visgraft.inference.decoding import Decoding
from visgraft.inference.requests import Answer, Prompt, Reply
from visgraft.serving.asking import fetched_images, prompt_for, usage_of
from visgraft.serving.bodies import ChatRequest, read_body
from visgraft.serving.events import EventStream, until_gone
from visgraft.serving.failures import Failure, bad_request, busy, overloaded
from visgraft.serving.messages import Chat
from visgraft.serving.served import ServedModel
from visgraft.serving.service import Record, Service
from visgraft.serving.settings import Limits
from visgraft.serving.tokens import SaidTokens

# Below, logits divided by it would leave float32; the likeliest token is then the only one with a share.
_LEAST_TEMPERATURE = 1e-6


def make_chat_router(service: Service) -> APIRouter:
    """Make the route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def complete_chat(request: Request) -> Response:
        """Answer a chat about images."""
        record: Record = request.scope["visgraft.record"]
        body = await request.body()
        asked = await service.in_thread(lambda: read_body(ChatRequest, body))
        talk = await begin(service, asked, record=record)
        if asked.stream:
            return ChunkStream(talk)
        return await whole_answer(talk, request)

    return router


# --- From parameters to settings


def decoding_of(asked: ChatRequest, *, limits: Limits, vocabulary: int) -> Decoding:
    """Say what a request's parameters mean to the decoding loop.

    Raises:
        Failure: 400, parameters that contradict each other, or that pass a limit.
    """
    limit = asked.max_completion_tokens or asked.max_tokens or limits.default_new_tokens
    if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
        raise bad_request(
            f"max_tokens: got {asked.max_tokens}, and max_completion_tokens says {asked.max_completion_tokens}; give "
            "one of them",
            param="max_tokens",
        )
    if limit > limits.max_new_tokens:
        param = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
        raise bad_request(f"{param}: got {limit}, allowed are 1 to {limits.max_new_tokens}", param=param)
    if (asked.n or 1) > limits.max_choices:
        raise bad_request(f"n: got {asked.n}, allowed are 1 to {limits.max_choices}", param="n")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise bad_request("top_logprobs: needs logprobs: true", param="top_logprobs")
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options: needs stream: true", param="stream_options")
    settings: dict[str, Any] = {}
    temperature = asked.temperature if asked.temperature is not None else 1.0 if asked.top_p is not None else 0.0
    if temperature >= _LEAST_TEMPERATURE:
        top_p = 1.0 if asked.top_p is None else asked.top_p
        settings = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}
    if asked.logit_bias:
        settings["sequence_bias"] = {(token,): bias for token, bias in _biases(asked.logit_bias, vocabulary)}
    return Decoding.of(
        max_new_tokens=limit,
        seed=asked.seed,
        stop=asked.stop,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        log_probabilities=(asked.top_logprobs or 0) if asked.logprobs else None,
        **settings,
    )


def _biases(given: Mapping[str, float], vocabulary: int) -> Iterator[tuple[int, float]]:
    for name, bias in given.items():
        token = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else -1
        if not 0 <= token < vocabulary:
            raise bad_request(
                f"logit_bias: got a token that is not in the vocabulary of {vocabulary}; name tokens by their numbers",
                param="logit_bias",
            )
        yield token, bias


# --- A request on its way


@dataclass(eq=False)
class Talk:
    """A request that the loop works on.

    Attributes:
        replies: one for each choice.
        changed: set whenever one of them has more.
    """

    service: Service
    served: ServedModel
    asked: ChatRequest
    record: Record
    chat: Chat
    prompt: Prompt
    replies: Sequence[Reply]
    changed: asyncio.Event
    answer_id: str
    created: int

    async def wait(self) -> None:
        """Wait until a reply has more."""
        await self.changed.wait()
        self.changed.clear()

    def answers(self) -> list[Answer]:
        """Return the answers, as all replies are done.

        Raises:
            Failure: what went wrong with one of them.
        """
        found = []
        for reply in self.replies:
            answer = reply.answer()
            if answer.finish == "deadline":
                seconds = self.service.settings.limits.timeout_s
                raise Failure(504, f"no whole answer within {seconds:g} seconds; ask for a shorter one", code="timeout")
            if answer.finish == "cancelled":
                raise overloaded("the server ends; ask again later", code="shutting_down")
            found.append(answer)
        return found

    def logprobs(self, said: SaidTokens, reply: Reply, text: str, *, is_end: bool) -> dict[str, Any] | None:
        """Tell of the tokens of a text that were not told of, where that is asked for; `text` is all of it so far."""
        if not self.asked.logprobs:
            return None
        scores = list(reply.scores)
        if scores and scores[-1].token_id in self.served.end_ids:
            scores.pop()
        return {"content": said.take(scores, text_length=len(text), is_end=is_end), "refusal": None}

    def log(self, texts: Sequence[str]) -> None:
        """Log what was asked and said, where the server was told to."""
        self.service.log_content(self.record, self.asked.messages, {"answers": [*texts]})

    def usage(self) -> dict[str, Any]:
        """Count tokens, those of images apart."""
        return usage_of(self.prompt, num_said=sum(len(reply.answer().token_ids) for reply in self.replies))

    def close(self) -> None:
        """Let go: what is not finished is cancelled, what was read is kept for the next turn."""
        for reply in self.replies:
            reply.is_cancelled = not reply.is_done  # the loop's next step ends it
        self._note()
        self.served.keep(self.chat, owner=self.record.owner, reply=self.replies[0])

    def _note(self) -> None:
        """Count what was read and said."""
        record, service, model = self.record, self.service, self.served.name
        num_said = sum(len(reply.token_ids) for reply in self.replies)
        service.metrics.answer_tokens.labels(model=model).inc(num_said)
        first = min((reply.first_token_at for reply in self.replies if reply.first_token_at), default=None)
        if first is not None:
            service.note_prompt(self.prompt, self.served)
            service.metrics.first_token_seconds.labels(model=model).observe(first - record.began_at)
            record.facts["first"] = f"{first - record.began_at:.3f}s"
        if all(reply.is_done for reply in self.replies):
            self.served.note_seconds(time.monotonic() - record.began_at)
        record.facts |= {"answers": len(self.replies), "tokens": num_said}


async def begin(service: Service, asked: ChatRequest, *, record: Record) -> Talk:
    """Check a request, open its images, and ask the loop.

    Raises:
        Failure: it is not answered.
    """
    served = service.model(asked.model)
    record.model = served.name
    limits = service.settings.limits
    decoding = decoding_of(asked, limits=limits, vocabulary=served.vocabulary)
    fetched = await fetched_images(service, asked)
    changed, wake = service.event()
    num_answers = asked.n or 1

    def ask() -> tuple[Chat, Prompt, list[Reply]]:
        chat, prompt = prompt_for(service, asked, served, record=record, fetched=fetched, keep=num_answers == 1)
        left_s = max(0.001, limits.timeout_s - (time.monotonic() - record.began_at))
        try:
            replies = served.submit(
                prompt,
                replace(decoding, deadline_s=left_s),
                num_answers=num_answers,
                stream=bool(asked.stream),
                on_change=wake,
            )
        except BusyError as error:
            service.metrics.refused.labels(reason="queue").inc()
            raise busy(str(error), again_s=served.again_s) from None
        return chat, prompt, replies

    chat, prompt, replies = await service.in_thread(ask)
    return Talk(
        service, served, asked, record, chat, prompt, replies, changed,
        answer_id=f"chatcmpl-{record.request_id}", created=int(time.time()),
    )  # fmt: skip


# --- The whole answer


async def whole_answer(talk: Talk, request: Request) -> Response:
    """Wait for all choices; where the client goes away, stop them."""
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        while not all(reply.is_done for reply in talk.replies):
            waiting = asyncio.ensure_future(talk.wait())
            await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if gone.done():
                talk.record.facts["gone"] = True
                return Response(status_code=499)
        answers = talk.answers()
    finally:
        gone.cancel()
        talk.close()
    talk.log([answer.text for answer in answers])
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": talk.logprobs(SaidTokens(talk.served.names), reply, answer.text, is_end=True),
            "finish_reason": answer.finish,
        }
        for index, (answer, reply) in enumerate(zip(answers, talk.replies, strict=True))
    ]
    return JSONResponse(
        {
            "id": talk.answer_id,
            "object": "chat.completion",
            "created": talk.created,
            "model": talk.served.name,
            "choices": choices,
            "usage": talk.usage(),
        }
    )


# --- Piece by piece


class ChunkStream(EventStream):
    """An answer as it grows, in server-sent events. What goes wrong before the first piece has its own status."""

    def __init__(self, talk: Talk) -> None:
        """Make a response that is not begun."""
        super().__init__(talk.service, talk.record)
        self.talk = talk

    async def ready(self) -> None:
        """Wait for the first piece."""
        talk = self.talk
        while not any(reply.pieces or reply.is_done for reply in talk.replies):
            await talk.wait()
        if all(reply.is_done for reply in talk.replies):
            talk.answers()

    def close(self) -> None:
        """Let go of the answers."""
        self.talk.close()

    async def events(self) -> AsyncIterator[dict[str, Any] | str]:
        """Give the chunks, and OpenAI's word for the end."""
        talk = self.talk
        has_usage = bool(talk.asked.stream_options and talk.asked.stream_options.include_usage)
        for index in range(len(talk.replies)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, has_usage=has_usage)
        open_ones = dict(enumerate(talk.replies))
        texts = dict.fromkeys(open_ones, "")
        said = {index: SaidTokens(talk.served.names) for index in open_ones}
        while open_ones:
            for index, reply in list(open_ones.items()):
                piece, is_done = reply.take()
                texts[index] += piece
                finish = self._finish(reply) if is_done else None
                if piece or is_done:
                    logprobs = talk.logprobs(said[index], reply, texts[index], is_end=is_done)
                    if piece or (logprobs and logprobs["content"]):
                        yield self._chunk(index, {"content": piece}, logprobs=logprobs, has_usage=has_usage)
                if finish:
                    del open_ones[index]
                    yield self._chunk(index, {}, finish=finish, has_usage=has_usage)
            if open_ones and not any(reply.pieces or reply.is_done for reply in open_ones.values()):
                await talk.wait()
        talk.log([*texts.values()])
        if has_usage:
            yield {**self._head(), "choices": [], "usage": talk.usage()}
        yield "[DONE]"

    def _finish(self, reply: Reply) -> str:
        answer = reply.answer()
        if answer.finish not in ("stop", "length"):
            self.talk.answers()
        return str(answer.finish)

    def _head(self) -> dict[str, Any]:
        talk = self.talk
        return {
            "id": talk.answer_id,
            "object": "chat.completion.chunk",
            "created": talk.created,
            "model": talk.served.name,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
        has_usage: bool,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head(), "choices": [choice], **({"usage": None} if has_usage else {})}
