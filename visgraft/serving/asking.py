"""From a request's messages to what the decoding loop reads: checked, fetched, opened, encoded.

In: a request that was read. Out: its chat and its prompt.

    chat, prompt = await prompt_for(service, asked, served, record=record, keep=True)
"""

from __future__ import annotations

import asyncio
from functools import partial

from visgraft.inference.requests import Prompt
from visgraft.serving.bodies import ChatRequest, ScoreRequest
from visgraft.serving.images import fetch_image, is_remote
from visgraft.serving.messages import Chat, check_chat, image_urls, read_chat
from visgraft.serving.served import ServedModel
from visgraft.serving.service import Record, Service


async def fetched_images(service: Service, asked: ChatRequest | ScoreRequest) -> dict[str, bytes]:
    """Check a chat, and fetch the images of the web that it names, those of one address once.

    Raises:
        Failure: 400.
    """
    settings = service.settings
    check_chat(asked.messages, limits=settings.limits)
    places = {url: place for place, url in image_urls(asked.messages) if is_remote(url)}

    def fetch(url: str) -> bytes:
        return fetch_image(url, place=places[url], settings=settings)

    fetching = [service.in_thread(partial(fetch, url), is_waiting=True) for url in places]
    return dict(zip(places, await asyncio.gather(*fetching), strict=True))


def prompt_for(
    service: Service,
    asked: ChatRequest | ScoreRequest,
    served: ServedModel,
    *,
    record: Record,
    fetched: dict[str, bytes],
    keep: bool,
) -> tuple[Chat, Prompt]:
    """Read a chat and make what is read in front of its answer; it takes time.

    Raises:
        Failure: 400, an image cannot be used.
    """
    chat = read_chat(asked.messages, limits=service.settings.limits, fetched=fetched)
    return chat, served.prompt_of(chat, owner=record.owner, keep=keep)


def usage_of(prompt: Prompt, *, num_said: int) -> dict[str, object]:
    """Count the tokens of a prompt that was read, those of images apart, and of its answers."""
    num_image = prompt.num_image_tokens
    num_prompt = len(prompt.text_ids) + num_image
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_said,
        "total_tokens": num_prompt + num_said,
        "prompt_tokens_details": {"image_tokens": num_image, "cached_tokens": prompt.num_known},
    }
