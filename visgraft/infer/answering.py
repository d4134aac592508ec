"""Answer many questions in batches; prompts of unlike length and samples of unlike images run together.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.

    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from visgraft.data.prompt import PromptTemplate, end_token_id
from visgraft.data.sample import Sample
from visgraft.infer.questions import Question, read_questions, split
from visgraft.model.parts import input_embedding
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

# The most probable token, whatever settings for chatting the language model brought along.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_BATCHES_AHEAD = 8  # prompts are sorted by length among so many batches at a time


def answer(
    model: VisionLanguageModel,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    stopped: list[bool] | None = None,
    **generate: Any,
) -> list[str]:
    """Answer the last turn of every dialog; what the turn itself has as its answer is ignored.

    Prompts of unlike length share a batch and images are encoded once; neither changes any answer.

    Args:
        model: on its device; it may be in the middle of training.
        processor: of that model.
        samples: each with one dialog or several.
        max_new_tokens: longest answer; shorter where the language model's positions end.
        batch_size: dialogs, or samples' images, that run at once.
        stopped: a list to fill: whether each answer came to an end of its own, not cut at `max_new_tokens`.
        generate: what else Hugging Face's `generate` takes; without it the most probable token is taken each time.

    Returns:
        One text for each dialog, in the order of the samples and their dialogs.

    Raises:
        BadSampleError: an image cannot be used.
        ModelError: a prompt leaves no room for an answer.
    """
    answers: dict[int, tuple[str, bool]] = {}
    stop_ids = _stop_token_ids(model, processor)
    settings = {**GREEDY, "eos_token_id": stop_ids, "pad_token_id": processor.tokenizer.pad_token_id, **generate}
    with _answering(model):
        for window in _windows(samples, num_dialogs=batch_size * _BATCHES_AHEAD):
            questions = read_questions(model, processor, window, max_new_tokens=max_new_tokens, batch_size=batch_size)
            questions.sort(key=lambda question: (question.max_new_tokens, question.num_positions))
            for limit, alike in groupby(questions, key=lambda question: question.max_new_tokens):
                for batch in split(list(alike), batch_size):
                    inputs = _inputs(batch, pad_token_id=processor.tokenizer.pad_token_id or 0, device=model.device)
                    ids = model.generate(**inputs, max_new_tokens=limit, **settings)
                    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
                    given = [(_text(processor, row, stop_ids), not {*stop_ids}.isdisjoint(row)) for row in new]
                    answers.update(zip((question.index for question in batch), given, strict=True))
    if stopped is not None:
        stopped[:] = [answers[index][1] for index in range(len(answers))]
    return [answers[index][0] for index in range(len(answers))]


@contextmanager
def _answering(model: VisionLanguageModel) -> Iterator[None]:
    """Run without gradients and dropout; without the caller's autocast, in the format that frozen weights have."""
    was_training, kind = model.training, model.device.type
    dtype = input_embedding(model).dtype
    is_mixed = dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(kind)
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(kind, dtype=dtype) if is_mixed else nullcontext():
            yield
    finally:
        model.train(was_training)


def _windows(samples: Sequence[Sample], *, num_dialogs: int) -> Iterator[list[tuple[int, Sample]]]:
    """Yield samples, each with the place of its first dialog, so that about so many dialogs come together."""
    window: list[tuple[int, Sample]] = []
    start = first = 0
    for sample in samples:
        window.append((start, sample))
        start += len(sample.dialogs)
        if start - first >= num_dialogs:
            yield window
            window, first = [], start
    if window:
        yield window


# --- Running: one batch at a time


def _inputs(batch: Sequence[Question], *, pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """Lay prompts and prefixes out as the inputs of `generate`, padded on the left."""
    length = max(len(question.ids) for question in batch)
    num_image = max(question.prefix.shape[0] for question in batch)
    pads = [length - len(question.ids) for question in batch]
    ids = [[pad_token_id] * num + question.ids for num, question in zip(pads, batch, strict=True)]
    mask = [[0] * num + [1] * (length - num) for num in pads]
    inputs = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    if num_image:
        prefixes = [question.prefix for question in batch]
        counts = torch.tensor([prefix.shape[0] for prefix in prefixes], device=device)
        inputs["image_embeds"] = torch.nn.utils.rnn.pad_sequence(prefixes, batch_first=True)
        inputs["image_token_mask"] = torch.arange(num_image, device=device) < counts[:, None]
    return inputs


def _stop_token_ids(model: VisionLanguageModel, processor: Processor) -> list[int]:
    """List where answers end: the token that training put there, and those of the language model itself."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    return sorted({end_token_id(processor.tokenizer, PromptTemplate.from_spec(processor.template)), *own})


def _text(processor: Processor, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    text = processor.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()
