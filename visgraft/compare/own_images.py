"""Put images of one's own, with several prompts each, to the finished models that are compared.

In: variants, image files, prompts. Out: questions without a truth. The models are loaded one after another.
Usage: `questions = ask_variants(comparison.variants, [Path("cat.jpg")], ["What is it?"])`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from visgraft.compare.answers import Given, SamplePrompt
from visgraft.compare.variants import Variant
from visgraft.data.images.opening import open_image
from visgraft.data.messages import asked
from visgraft.data.sample import Sample
from visgraft.errors import BadSampleError, CheckpointError
from visgraft.inference import answer, load


def ask_variants(
    variants: Sequence[Variant],
    images: Sequence[Path],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    device: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[SamplePrompt]:
    """Ask every finished model every prompt about every image; one question for each image and prompt.

    Raises:
        BadSampleError: a file is no image.
        CheckpointError: no variant has a model.
    """
    opened = []
    for path in images:
        try:
            opened.append(open_image(path.expanduser()))
        except BadSampleError as error:
            raise BadSampleError(f"{path}: {error}") from error
    questions = [SamplePrompt(prompt, expected=(), image=image) for image in opened for prompt in prompts]
    samples = [
        Sample(images=[image], dialogs=[[asked(prompt, num_images=1)] for prompt in prompts]) for image in opened
    ]
    with_model = [run for variant in variants for run in variant.runs if (run.folder / "model").is_dir()]
    if not with_model:
        raise CheckpointError(
            "--image: none of these runs has a model yet to be asked; finish one, or leave --image out"
        )
    for run in with_model:
        note(f"asking {run.variant}, seed {run.seed}")
        model, processor = load(str(run.folder), device=device)
        stopped: list[bool] = []
        texts = answer(model, processor, samples, max_new_tokens=max_new_tokens, stopped=stopped)
        step = int(run.training.steps[-1])
        for question, text, has_stopped in zip(questions, texts, stopped, strict=True):
            question.given.append(Given(run.variant, run.seed, step, text, has_stopped, is_right=False))
    return questions
