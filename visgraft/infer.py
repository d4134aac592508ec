"""Ask a model: an image and a prompt in, an answer out; the one way that every command and every score takes.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.

    model, processor = load("runs/20260102-030405-demo")
    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
    for piece in stream(model, processor, sample): print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from visgraft.data.prompt import PromptTemplate, end_token_id
from visgraft.data.sample import ImageRef, Sample
from visgraft.errors import ModelError
from visgraft.model.checkpoint import find_folder
from visgraft.model.parts import input_embedding
from visgraft.model.precision import Precision, computing_dtype, pick_device
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import find_model

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


def load(
    name: str, *, device: str | torch.device | None = None, precision: Precision = "auto"
) -> tuple[VisionLanguageModel, Processor]:
    """Load a model and its processor, ready to answer.

    Args:
        name: run folder, model folder or Hub name.
        device: None = the accelerator that is there, else the CPU.
        precision: format of the weights that were frozen in training; what was trained stays float32. `auto` is bf16
            where the hardware computes in it, else fp16 on a GPU, else fp32.

    Raises:
        CheckpointError: nothing there, or the folder is not whole.
        ConfigError: the device does not exist or lacks the format.
    """
    target = pick_device(device)
    dtype = computing_dtype(precision, device=target)
    folder = find_folder(find_model(name))
    model = VisionLanguageModel.from_pretrained(folder)
    processor = Processor.from_pretrained(folder)
    set_trainable(model, modes={}, frozen_dtype=dtype)
    model.to(target)  # type: ignore[arg-type]  # transformers wraps the method untyped
    return model.eval(), processor


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
            questions = _read(model, processor, window, max_new_tokens=max_new_tokens, batch_size=batch_size)
            questions.sort(key=lambda question: (question.max_new_tokens, question.num_positions))
            for limit, alike in groupby(questions, key=lambda question: question.max_new_tokens):
                for batch in _split(list(alike), batch_size):
                    inputs = _inputs(batch, pad_token_id=processor.tokenizer.pad_token_id or 0, device=model.device)
                    ids = model.generate(**inputs, max_new_tokens=limit, **settings)
                    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
                    given = [(_text(processor, row, stop_ids), not {*stop_ids}.isdisjoint(row)) for row in new]
                    answers.update(zip((question.index for question in batch), given, strict=True))
    if stopped is not None:
        stopped[:] = [answers[index][1] for index in range(len(answers))]
    return [answers[index][0] for index in range(len(answers))]


def stream(
    model: VisionLanguageModel, processor: Processor, sample: Sample, *, max_new_tokens: int = 256, **generate: Any
) -> Iterator[str]:
    """Answer the last turn of a sample's one dialog piece by piece; joined, the pieces are what `answer` returns.

    Closing the iterator early stops the model. Arguments and errors are those of `answer`.
    """
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    failures: Queue[BaseException] = Queue()
    is_closed = Event()

    def run() -> None:
        try:
            stop = StoppingCriteriaList([_StopWhen(is_closed)])
            settings = {"streamer": streamer, "stopping_criteria": stop, **generate}
            answer(model, processor, [sample], max_new_tokens=max_new_tokens, **settings)
        except Exception as error:  # it belongs to whoever reads the stream
            failures.put(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from _without_outer_space(streamer)
    finally:
        is_closed.set()
        thread.join()
    if not failures.empty():
        raise failures.get()


class _StopWhen(StoppingCriteria):
    """Stop when an event is set."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def _without_outer_space(pieces: Iterable[str]) -> Iterator[str]:
    """Pass pieces on without the white space in front of the first and behind the last."""
    held, is_begun = "", False
    for piece in pieces:
        text = held + piece
        text = text if is_begun else text.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        if kept:
            is_begun = True
            yield kept


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


def num_prompt_positions(model: VisionLanguageModel, processor: Processor, sample: Sample) -> int:
    """Count the positions that a sample's one dialog takes in front of its answer; no image is opened.

    Where images bring their own number of tokens, each counts as many as the processor expects at most.
    """
    [dialog] = sample.dialogs
    num_image_tokens = len(sample.images) * processor.num_image_tokens
    return len(processor.prompt(dialog)) + _positions_taken(model, num_image_tokens)


# --- Reading: dialogs to ids, images to prefixes


@dataclass(frozen=True)
class _Question:
    """One dialog to answer: its place among all, its prompt's ids, its prefix [P, D_lm], the longest answer."""

    index: int
    ids: list[int]
    prefix: Tensor
    max_new_tokens: int

    @property
    def num_positions(self) -> int:
        return len(self.ids) + self.prefix.shape[0]


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


def _read(
    model: VisionLanguageModel,
    processor: Processor,
    window: Sequence[tuple[int, Sample]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[_Question]:
    """Encode the dialogs of some samples, and the images that they share once."""
    groups: dict[Hashable, Sequence[ImageRef]] = {}
    for _, sample in window:
        groups.setdefault(_same_images(sample), sample.images)
    prefixes: dict[Hashable, Tensor] = {}
    for keys in _split(list(groups), batch_size):
        prefixes.update(zip(keys, _encode(model, processor, [groups[key] for key in keys]), strict=True))
    questions = []
    for start, sample in window:
        prefix = prefixes[_same_images(sample)]
        for offset, dialog in enumerate(sample.dialogs):
            ids = processor.prompt(dialog)
            limit = min(max_new_tokens, _room(model, len(ids), prefix.shape[0]))
            questions.append(_Question(start + offset, ids, prefix, limit))
    return questions


def _same_images(sample: Sample) -> Hashable:
    """Give a key that is equal where the images are the same; each image stays alive while keys are compared."""
    return tuple(str(image) if isinstance(image, (str, Path)) else id(image) for image in sample.images)


def _encode(model: VisionLanguageModel, processor: Processor, groups: Sequence[Sequence[ImageRef]]) -> list[Tensor]:
    """Make the prefix [P, D_lm] of each group of images."""
    inputs = processor(images=[list(group) for group in groups], text=[""] * len(groups)).to(model.device)
    vision_inputs = {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}
    if not vision_inputs:
        return [torch.zeros(0, model.entrance.width, device=model.device)] * len(groups)
    prefix, is_real = model.image_prefix(**vision_inputs)
    return [tokens[mask] for tokens, mask in zip(prefix, is_real, strict=True)]


def _room(model: VisionLanguageModel, num_text_tokens: int, num_image_tokens: int) -> int:
    """Say how many new tokens the language model's positions leave."""
    limit = model.contract.max_positions
    if limit is None:
        return 2**31
    room = limit - num_text_tokens - _positions_taken(model, num_image_tokens)
    if room < 1:
        raise ModelError(
            f"the prompt has {num_text_tokens} tokens behind {num_image_tokens} image tokens, and the {limit} "
            f"positions of {model.contract.name} leave no room for an answer; shorten the prompt"
        )
    return room


def _positions_taken(model: VisionLanguageModel, num_image_tokens: int) -> int:
    """Count the positions of image tokens; those of an imported ancestor take none (model/entrance.py)."""
    return num_image_tokens if model.entrance.at == "embeddings" else 0


# --- Running: one batch at a time


def _split(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _inputs(batch: Sequence[_Question], *, pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
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
