"""Read what a caller asks: prompts and images in every usual way, or chat messages.

In: one prompt or many with their images, or the messages of a chat as the field writes them. Out: the prompt (or the
turns) and the images of each sample.

    prompts, images = pair_prompts(["What is it?", "And this?"], images=["cat.jpg", "dog.jpg"])
    turns, images = read_messages([{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, ...]}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from visgraft.data.sample import ImageRef, StoredImage, Turn, is_image_array
from visgraft.errors import ConfigError

# One image; the images of one prompt, or one for each prompt; or a list for each prompt. None = no image.
Images: TypeAlias = ImageRef | Sequence[ImageRef | Sequence[ImageRef] | None]
Messages: TypeAlias = Sequence[Mapping[str, Any]]

_IMAGE_KEYS = ("image", "url", "path", "base64")


def pair_prompts(text: str | Sequence[str] | None, *, images: Images | None) -> tuple[list[str], list[list[ImageRef]]]:
    """Give each prompt its images.

    Args:
        text: one prompt, to which all images of a plain list belong; or a list, each with its own image or list of
            images; or None, an empty prompt for each image.
        images: in any way that `Images` names.

    Raises:
        ConfigError: there is neither text nor image, or there are not as many of one as of the other.
    """
    prompts = [text] if isinstance(text, str) else None if text is None else list(text)
    if images is None:
        if not prompts:
            raise ConfigError("got neither text nor images; give one prompt, or one image, at least")
        return prompts, [[] for _ in prompts]
    if isinstance(images, (str, bytes, Path, Mapping, Image.Image, StoredImage)) or is_image_array(images):
        groups: list[list[ImageRef]] = [[images]]  # type: ignore[list-item]
    elif isinstance(text, str) and not any(isinstance(item, (list, tuple)) for item in images):
        groups = [[item for item in images if item is not None]]  # type: ignore[misc]
    else:
        groups = [_as_list(item) for item in images]
    prompts = [""] * len(groups) if prompts is None else prompts
    if not prompts or len(prompts) != len(groups):
        raise ConfigError(
            f"got {len(prompts)} prompts and images for {len(groups)}; give each prompt its image, "
            "a list of its images, or None"
        )
    return prompts, groups


def read_messages(messages: Messages) -> tuple[list[Turn], list[ImageRef]]:
    """Read a chat as turns; the answer of the last turn is empty where the user spoke last.

    Args:
        messages: dicts with `role` (user and assistant in turn, user first) and `content` (a text, or a list of
            {"type": "text", "text": ...} and {"type": "image", "image" | "url" | "path" | "base64": ...}).

    Returns:
        The turns, and all images in their order: they are the prefix of the whole chat.

    Raises:
        ConfigError: another role or order, a part of another type, or an image part that holds no image.
    """
    roles = [message.get("role") for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
        raise ConfigError(
            f"messages: got the roles {roles}, need user and assistant in turn, the user first; "
            "write what the system should say into the first user message"
        )
    images: list[ImageRef] = []
    texts = [_read_content(message.get("content"), images=images) for message in messages]
    answers = [*texts[1::2], ""] if len(texts) % 2 else texts[1::2]
    return [Turn(prompt, answer) for prompt, answer in zip(texts[::2], answers, strict=True)], images


def _as_list(item: ImageRef | Sequence[ImageRef] | None) -> list[ImageRef]:
    if item is None:
        return []
    return list(item) if isinstance(item, (list, tuple)) else [item]  # type: ignore[list-item]


def _read_content(content: Any, *, images: list[ImageRef]) -> str:
    """Return the text of a message; append its images to those given."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content or []:
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part["text"]))
        elif kind == "image":
            images.append(_read_image(part))
        elif kind == "image_url":  # as OpenAI's interface writes it
            url = part["image_url"]
            images.append(url["url"] if isinstance(url, Mapping) else url)
        else:
            raise ConfigError(f"messages: got a part of type {kind!r}, allowed are text, image and image_url")
    return "\n".join(texts)


def _read_image(part: Mapping[str, Any]) -> ImageRef:
    key = next((key for key in _IMAGE_KEYS if part.get(key) is not None), None)
    if key is None:
        raise ConfigError(
            f"messages: an image part holds {sorted(set(part) - {'type'}) or 'nothing'}, need one of "
            f"{', '.join(_IMAGE_KEYS)}"
        )
    return {"base64": part[key]} if key == "base64" else part[key]
