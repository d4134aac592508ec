"""What a user says, read in one place for data, processor, chat templates, questions and chats alike.

In:  prompts with their images, or the messages of a chat as the field writes them, out of a file or from a caller.
Out: the prompt (or the turns) and the images of each sample.

    prompts, images = pair_prompts(["What is it?", "And this?"], images=["cat.jpg", "dog.jpg"])
    turns, images = read_messages([{"role": "user", "content": [{"type": "image", "path": "cat.jpg"}, ...]}])
    [prompt] = read_prompts(["<image>\\nWhat is it?"], num_images=1)            # "What is it?"

`<image>` and `<video>` stand for images in what a user says, and nowhere else: at the beginning of a message, on a line
of its own, or in the middle, as often as there are images. More of them in the middle are words ("the <video> tag").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from visgraft.data.sample import ImageRef, StoredImage, Turn, is_image_array
from visgraft.errors import BadSampleError, ConfigError

# One image; the images of one prompt, or one for each prompt; or a list for each prompt. None = no image.
Images: TypeAlias = ImageRef | Sequence[ImageRef | Sequence[ImageRef] | None]
Messages: TypeAlias = Sequence[Mapping[str, Any]]

USER, ASSISTANT, SYSTEM = ("user", "human"), ("assistant", "gpt", "model", "bot"), ("system", "developer")
_IMAGE_KEYS = ("image", "url", "path", "base64")
_TEXT_KINDS, _URL_KINDS = ("text", "input_text", "output_text"), ("image_url", "input_image")
_PLACEHOLDER = re.compile(r"<image>|<video>")
# those that can mean nothing but an image: the first of a message, and whole lines of them
_STANDING_ALONE = re.compile(r"\A\s*(?:(?:<image>|<video>)\s*)+|^[ \t]*(?:(?:<image>|<video>)[ \t]*)+$", re.MULTILINE)


# --- What a caller asks


def pair_prompts(text: str | Sequence[str] | None, *, images: Images | None) -> tuple[list[str], list[list[ImageRef]]]:
    """Give each prompt its images.

    Args:
        text: one prompt, to which all images of a plain list belong; or a list, each with its own image or list of
            images; or None, an empty prompt for each image.
        images: in any way that `Images` names.

    Raises:
        ConfigError: there is neither text nor image, or there are not as many of one as of the other, or a prompt
            names more images than it has.
    """
    prompts = [text] if isinstance(text, str) else None if text is None else list(text)
    if images is None:
        if not prompts:
            raise ConfigError("got neither text nor images; give one prompt, or one image, at least")
        groups: list[list[ImageRef]] = [[] for _ in prompts]
    elif isinstance(images, (str, bytes, Path, Mapping, Image.Image, StoredImage)) or is_image_array(images):
        groups = [[images]]  # type: ignore[list-item]
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
    try:
        return [read_prompts([p], num_images=len(group))[0] for p, group in zip(prompts, groups, strict=True)], groups
    except BadSampleError as error:
        raise ConfigError(f"text: {error}; give the images, or write about <image> in the middle of a line") from error


def pair_rendered(text: str | Sequence[str], *, images: Images | None) -> tuple[list[str], list[list[ImageRef]]]:
    """Give texts that are framed already their images; as many <image> as a text has images are taken out of it.

    Raises:
        ConfigError: there are not as many texts as there are images for.
    """
    texts = [text] if isinstance(text, str) else list(text)
    groups = [[] for _ in texts] if images is None else pair_prompts([""] * len(texts), images=images)[1]
    return [
        _PLACEHOLDER.sub("", each, count=len(g)) if g else each for each, g in zip(texts, groups, strict=True)
    ], groups


def read_messages(messages: Messages) -> tuple[list[Turn], list[ImageRef]]:
    """Read a chat as turns; the answer of the last turn is empty where the user spoke last.

    Args:
        messages: dicts with `role` (user and assistant in turn, user first, a system message in front if there is one)
            and `content` (a text, or a list of {"type": "text", "text": ...} and
            {"type": "image", "image" | "url" | "path" | "base64": ...}).

    Returns:
        The turns, and all images in their order: they are the prefix of the whole chat. A system message is the first
        turn's instruction.

    Raises:
        ConfigError: another role or order, a part of another type, or an image part that holds no image.
    """
    roles = [message.get("role") for message in messages]
    spoken = roles[1:] if roles and roles[0] in SYSTEM else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2):
        raise ConfigError(
            f"messages: got the roles {roles}, need user and assistant in turn, the user first; a system message may "
            "stand in front of them"
        )
    for message in messages:
        for part in [] if isinstance(message.get("content"), str) else message.get("content") or []:
            _check_part(part)
    try:
        said, images = said_in_messages(messages, images=[])
        return pair_turns(said, num_images=len(images)), images
    except BadSampleError as error:
        raise ConfigError(f"messages: {error}") from error


def check_last(turns: Sequence[Turn], *, add_generation_prompt: bool | None, is_begun: bool) -> None:
    """See that who spoke last fits what is asked for: an answer, its continuation, or the whole dialog.

    Raises:
        ConfigError: it does not.
    """
    is_answered = bool(turns[-1].answer.strip())
    if is_begun != is_answered and (is_begun or add_generation_prompt):
        whose = "the user's, or with continue_final_message=True the assistant's"
        raise ConfigError(f"apply_chat_template: the last message must be {whose}")
    if add_generation_prompt is False and not is_answered:
        raise ConfigError(
            "apply_chat_template: got add_generation_prompt=False and a chat that ends with the user's message; "
            "prompts of these models end where the answer begins, so leave it out"
        )


def _as_list(item: ImageRef | Sequence[ImageRef] | None) -> list[ImageRef]:
    if item is None:
        return []
    return list(item) if isinstance(item, (list, tuple)) else [item]  # type: ignore[list-item]


def _check_part(part: Any) -> None:
    """Say of a part that a caller may not give what he may; raises ConfigError."""
    kind = _kind(part) if isinstance(part, Mapping) else "text" if isinstance(part, str) else type(part).__name__
    if kind not in (*_TEXT_KINDS, *_URL_KINDS, "image"):
        raise ConfigError(f"messages: got a part of type {kind!r}, allowed are text, image and image_url")
    if kind == "image" and _image_of(part) is None:
        raise ConfigError(
            f"messages: an image part holds {sorted(set(part) - {'type'}) or 'nothing'}, need one of "
            f"{', '.join(_IMAGE_KEYS)}"
        )


# --- What a message says, whoever wrote it


def said_in_messages(messages: Sequence[Any], *, images: Sequence[Any]) -> tuple[list[tuple[str, Any]], list[Any]]:
    """Return (role, text) of every message, and all images in the order of the chat.

    images: those beside the chat. A part {"type": "image"} that holds none stands for the next of them; those that no
    part stands for come first where none does, else last.
    Raises BadSampleError for a message of another form, and where parts stand for more images than there are.
    """
    said: list[tuple[str, Any]] = []
    ordered: list[Any] = []
    own, num_taken = list(images), 0
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadSampleError("message is not an object")
        role = message["role"] if message.get("role") is not None else message.get("from")
        content = message["content"] if message.get("content") is not None else message.get("value")
        if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
            texts = []
            for kind, value in map(_read_part, content):
                if kind == "text":
                    texts.append(value)
                elif value is not None:
                    ordered.append(value)
                elif num_taken == len(own):
                    raise BadSampleError(f"messages stand for more images than there are ({len(own)} beside them)")
                else:
                    ordered.append(own[num_taken])
                    num_taken += 1
            content = "\n".join(texts)
        said.append((role.lower() if isinstance(role, str) else "", content))
    left = own[num_taken:]
    return said, [*ordered, *left] if num_taken else [*left, *ordered]


def _read_part(part: Any) -> tuple[str, Any]:
    """Return text and what it says, or image and what holds it (None: it stands for an image that is elsewhere)."""
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Mapping):
        kind = _kind(part)
        if kind in _TEXT_KINDS and isinstance(part.get("text"), str):
            return "text", part["text"]
        if kind in _URL_KINDS and part.get("image_url") is not None:
            url = part["image_url"]
            return "image", url.get("url") if isinstance(url, Mapping) else url
        if kind in ("image", "video"):
            return "image", _image_of(part)
    raise BadSampleError("message has a part that is neither text nor image")


def _kind(part: Mapping[str, Any]) -> Any:
    if part.get("type") is not None:
        return part["type"]
    return next((key for key in ("text", "image_url", "image", "video") if part.get(key) is not None), None)


def _image_of(part: Mapping[str, Any]) -> Any:
    key = next((key for key in ("video", *_IMAGE_KEYS) if part.get(key) is not None), None)
    return None if key is None else {"base64": part[key]} if key == "base64" else part[key]


def pair_turns(said: Sequence[tuple[str, Any]], *, num_images: int) -> list[Turn]:
    """Pair (role, text) as turns; an opening system message is the first turn's instruction.

    The answer of the last turn is empty where the user spoke last.
    Raises BadSampleError where user and assistant do not take turns, or what the user says names more images than
    there are.
    """
    instruction = ""
    if said and said[0][0] in SYSTEM:
        instruction, said = said[0][1], said[1:]
    roles = [role for role, _ in said]
    if not roles or not all(role in (ASSISTANT if place % 2 else USER) for place, role in enumerate(roles)):
        raise BadSampleError("roles are not user and assistant in turn")
    if any(not isinstance(text, str) for text in (instruction, *(text for _, text in said))):
        raise BadSampleError("message is not a string")
    prompts = read_prompts([text for _, text in said[::2]], num_images=num_images)
    answers = [text.strip() for _, text in said[1::2]] + [""] * (len(said) % 2)
    instructions = [instruction.strip(), *[""] * (len(prompts) - 1)]
    turns = zip(prompts, answers, instructions, strict=True)
    return [Turn(prompt, answer, instruction=text) for prompt, answer, text in turns]


# --- What a text of the user says


def asked(prompt: str, *, num_images: int) -> Turn:
    """Return the turn of what a user asks about images, unanswered; see `read_prompts`."""
    return Turn(read_prompts([prompt], num_images=num_images)[0], "")


def read_prompts(prompts: Sequence[str], *, num_images: int, is_caption: bool = False) -> list[str]:
    """Return what the user says in the turns of one dialog, without what stands for images and without outer space.

    num_images: of the sample. is_caption: it is a caption, in which only what stands alone means an image.
    Raises BadSampleError where more placeholders stand alone than there are images.
    """
    if not any("<image>" in prompt or "<video>" in prompt for prompt in prompts):
        return [prompt.strip() for prompt in prompts]
    alone = [[*_standing_alone(prompt)] if "<" in prompt else [] for prompt in prompts]
    num_free = num_images - sum(map(len, alone))
    if num_free < 0:
        raise BadSampleError("text names more images than there are")
    texts = []
    for prompt, places in zip(prompts, alone, strict=True):
        inside = [] if is_caption else [m.span() for m in _PLACEHOLDER.finditer(prompt) if m.span() not in places]
        inside = inside[:num_free]
        num_free -= len(inside)
        texts.append(_without(prompt, sorted([*places, *inside])))
    return texts


def write_prompts(prompts: Sequence[str], *, num_images: int) -> list[str]:
    """Return prompts of which `read_prompts` makes these: where they speak of <image>, each image is named in front."""
    if not prompts or not any(_PLACEHOLDER.search(prompt) for prompt in prompts):
        return list(prompts)
    return ["<image>\n" * num_images + prompts[0], *prompts[1:]]


def _standing_alone(text: str) -> Iterator[tuple[int, int]]:
    for run in _STANDING_ALONE.finditer(text):
        for found in _PLACEHOLDER.finditer(text, run.start(), run.end()):
            yield found.span()


def _without(text: str, places: Sequence[tuple[int, int]]) -> str:
    """Cut stretches out of a text, each with the line end or the space that belongs to it."""
    for start, end in reversed(places):
        before, behind = text[:start], text[end:]
        if behind[:1] in ("\n", " ") and (not before or before[-1] in "\n "):
            behind = behind[1:]
        text = before + behind
    return text.strip()
