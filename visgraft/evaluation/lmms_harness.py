"""How lmms-eval finds visgraft: the manifest that its entry point group `lmms_eval.models` asks for, and what it asks.

In: nothing, or requests. Out: a manifest with a class for simple tasks and one for chat tasks (lmms_models.py), and
what a request means; lmms-eval itself stays as it is.

    python -m lmms_eval --model visgraft --model_args pretrained=runs/my-run --tasks pope
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError

MODULE = "visgraft.evaluation.lmms_models"
MAX_NEW_TOKENS = 32  # where a task does not say


def manifest() -> Any:
    """Give the manifest; lmms-eval calls it, so that it is there."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="visgraft",
        simple_class_path=f"{MODULE}.Visgraft",
        chat_class_path=f"{MODULE}.VisgraftChat",
    )


def sample_of(messages: Sequence[dict[str, Any]]) -> Sample:
    """Make a sample of chat messages: all pictures in front, earlier turns as history.

    Raises:
        ConfigError: a part is neither text nor picture, or the last message is not the user's.
    """
    images: list[Any] = []
    said: list[tuple[str, str]] = []
    for message in messages:
        texts = []
        for part in message["content"]:
            if part["type"] == "image":
                images.append(part["url"])
            elif part["type"] == "text":
                texts.append(part["text"])
            else:
                raise ConfigError(f"messages: got a part of type {part['type']}, visgraft reads text and image")
        said.append((message["role"], "\n".join(texts)))
    instruction = said.pop(0)[1] if said and said[0][0] == "system" else ""
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        raise ConfigError(f"messages: got the roles {', '.join(roles)}, need user and assistant in turn, user last")
    history = [Turn(said[place][1], said[place + 1][1]) for place in range(0, len(said) - 1, 2)]
    turns = [*history, Turn(said[-1][1], "")]
    first = turns[0]
    return Sample(images, [[Turn(first.prompt, first.answer, instruction=instruction), *turns[1:]]])


def settings_of(given: dict[str, Any]) -> tuple[int, float, tuple[str, ...]]:
    """Read a request's settings: the longest answer in tokens, the temperature (0: greedy), where answers end."""
    until = given.get("until") or ()
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
    return (
        int(given.get("max_new_tokens") or MAX_NEW_TOKENS),
        temperature,
        (until,) if isinstance(until, str) else tuple(until),
    )


def cut_answer(text: str, until: Sequence[str]) -> str:
    """Cut an answer where the task says that it ends."""
    for end in until:
        if end:
            text = text.split(end)[0]
    return text.strip()
