"""Pictures, questions and answers that every test of inference shares.

In: seeds and texts. Out: images made in memory, samples to answer, a model that says what it is made to say.
Usage: `answer(model, processor, [ask("What is it?", images=(picture(0),))], logits_processor=[Say(processor, "a")])`
"""

from typing import Any

import torch
from PIL import Image

from visgraft import Processor, Sample, Turn

QUESTIONS = ["What is it?", "", "Which colour has the cat on the sofa, if there is one?", "Is it red?", "Why?"]


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def ask(*questions: str, images: tuple[Any, ...] = ()) -> Sample:
    """A sample with one dialog for each question."""
    return Sample(images=images, dialogs=[[Turn(question, "")] for question in questions])


class Say:
    """Make the model say a text, and end."""

    def __init__(self, processor: Processor, text: str) -> None:
        tokenizer = processor.tokenizer
        self.ids = iter([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scores).index_fill_(1, torch.tensor([next(self.ids)]), 1.0)
