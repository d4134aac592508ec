"""Where an answer ends: the tokens that stop it, and the positions that are left for it.

In: a model, its processor, how long a prompt is. Out: token ids; numbers of positions.
Usage: `limit = min(max_new_tokens, room_for_answer(model, len(ids), num_image_tokens))`
"""

from __future__ import annotations

from collections.abc import Sequence

from visgraft.data.prompt import end_token_id
from visgraft.data.sample import Sample
from visgraft.errors import ModelError
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


def stop_token_ids(model: VisionLanguageModel, processor: Processor) -> list[int]:
    """List where answers end: the token that training put there, and those of the language model itself."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({end_token_id(processor.tokenizer, processor.prompt_template), *own})


def text_of(processor: Processor, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """Decode an answer up to where it stops, without outer white space."""
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    text = processor.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def num_prompt_positions(model: VisionLanguageModel, processor: Processor, sample: Sample) -> int:
    """Count the positions that a sample's one dialog takes in front of its answer; no image is opened.

    Where images bring their own number of tokens, each counts as many as the processor expects at most.
    """
    [dialog] = sample.dialogs
    num_image_tokens = len(sample.images) * processor.most_image_tokens
    return len(processor.prompt(dialog, has_images=bool(sample.images))) + positions_taken(model, num_image_tokens)


def room_for_answer(model: VisionLanguageModel, num_text_tokens: int, num_image_tokens: int) -> int:
    """Say how many new tokens the language model's positions leave.

    Raises:
        ModelError: none.
    """
    limit = model.attention_spec.max_positions
    if limit is None:
        return 2**31
    room = limit - num_text_tokens - positions_taken(model, num_image_tokens)
    if room < 1:
        raise ModelError(
            f"the prompt has {num_text_tokens} tokens behind {num_image_tokens} image tokens, and the {limit} "
            f"positions of {model.attention_spec.name} leave no room for an answer; shorten the prompt"
        )
    return room


def positions_taken(model: VisionLanguageModel, num_image_tokens: int) -> int:
    """Count the positions of image tokens; those of an imported git_llm OPT take none (model/prefix_injection.py)."""
    return num_image_tokens if model.prefix_injection.at == "embeddings" else 0
