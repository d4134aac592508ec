"""A chat as a client sends it, read as images and turns in order; what an image shows stands in front of its own turn.

In: messages, checked in form. Out: a `Chat`: items in order, and a key for each turn, by which what was read before is
found again.

    chat = read_chat(asked.messages, limits=limits, fetched={})
    chat.items            # [images of the first turn, Turn(...), images of the third turn, Turn(...), ...]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from PIL import Image

from visgraft.data.messages import pair_turns, said_in_messages
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError
from visgraft.serving.bodies import ImagePart, Message
from visgraft.serving.failures import bad_request
from visgraft.serving.images import is_remote, open_bytes, read_data_url
from visgraft.serving.settings import Limits


@dataclass(frozen=True)
class Chat:
    """What was shown and said.

    Attributes:
        turns: the last one is to be answered.
        shown: the images of each turn, which stand in front of it.
        keys: of what was shown and said up to each turn's question, the answer to it not among it.
    """

    turns: Sequence[Turn]
    shown: Sequence[Sequence[Image.Image]]
    keys: Sequence[bytes]


def image_urls(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """List each image as (place, URL), in order."""
    for number, message in enumerate(messages):
        for index, part in enumerate([] if isinstance(message.content, str) else message.content):
            if isinstance(part, ImagePart):
                yield f"messages.{number}.content.{index}.image_url.url", part.image_url.url


def check_chat(messages: Sequence[Message], *, limits: Limits) -> None:
    """Check the order of a chat and its size, before anything is opened or fetched.

    Raises:
        Failure: 400.
    """
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or len(spoken) % 2 == 0 or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        shown = ", ".join(roles[:12]) + (", ..." if len(roles) > 12 else "")
        raise bad_request(
            f"messages: got the roles {shown}; need user and assistant in turn, the user first and last, and at most "
            "one system message in front of them",
            param="messages",
        )
    _check_size("turns of the user", len(spoken) // 2 + 1, limits.max_turns)
    texts = [text for message in messages for text in texts_of(message)]
    _check_size("characters", sum(map(len, texts)), limits.max_characters)
    _check_size("images", sum(1 for _ in image_urls(messages)), limits.max_images)
    for place, _ in image_urls(messages):
        number = int(place.split(".")[1])
        if messages[number].role != "user":
            raise bad_request(
                f"{place}: images are what the user shows; got one of {messages[number].role}", param=place
            )


def read_chat(messages: Sequence[Message], *, limits: Limits, fetched: Mapping[str, bytes]) -> Chat:
    """Read a chat that `check_chat` has let through, and open its images.

    Args:
        messages: of the request.
        limits: of the server.
        fetched: the files of images of the web, by their address.

    Raises:
        Failure: 400, an image cannot be used, or a text is none.
    """
    shown: list[list[Image.Image]] = []
    digests: list[bytes] = []
    left = limits.max_pixels
    urls = dict(image_urls(messages))
    for number, message in enumerate(messages):
        if message.role != "user":
            continue
        group, digest = [], blake2b(digest_size=20)
        for place in [place for place in urls if place.startswith(f"messages.{number}.")]:
            url = urls[place]
            data = fetched[url] if is_remote(url) else read_data_url(url, place=place)
            image = open_bytes(data, max_pixels=left, place=place)
            left -= image.width * image.height
            group.append(image)
            digest.update(blake2b(data, digest_size=20).digest())
        shown.append(group)
        digests.append(digest.digest() if group else b"")
    said, _ = said_in_messages([message.model_dump(exclude_none=True) for message in messages], images=[])
    try:
        turns = pair_turns(said, num_images=sum(map(len, shown)))
    except BadSampleError as error:
        raise bad_request(f"messages: {error}", param="messages") from None
    return Chat(turns, shown, list(_keys(turns, digests)))


def texts_of(message: Message) -> list[str]:
    """List the texts of a message."""
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content if not isinstance(part, ImagePart)]


def _check_size(what: str, number: int, limit: int) -> None:
    if number > limit:
        raise bad_request(
            f"messages: got {number:,} {what}, allowed are {limit:,}; leave the oldest out, or ask for less at once",
            param="messages",
            code="too_large",
        )


def _keys(turns: Sequence[Turn], digests: Sequence[bytes]) -> Iterator[bytes]:
    chain = b""
    for turn, digest in zip(turns, digests, strict=True):
        chain = _digest(chain, digest, turn.instruction.encode(), turn.prompt.encode())
        yield chain
        chain = _digest(chain, turn.answer.encode())


def _digest(*pieces: bytes) -> bytes:
    digest = blake2b(digest_size=20)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.digest()
