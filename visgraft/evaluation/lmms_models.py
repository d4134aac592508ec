"""Models of visgraft as lmms-eval asks them: its requests in, answers out; only lmms-eval imports this file.

In: `--model_args pretrained=RUN[,batch_size=32,device=cpu,precision=fp32]`. Out: texts, in the order of the requests.
Generation only: the likelihood path of lmms-eval 0.7.3 is broken (one kind of task hands over the text to score,
another a function, a third no images); `visgraft evaluate --metrics choice_likelihood` scores candidates.

    python -m lmms_eval --model visgraft --model_args pretrained=runs/my-run --tasks pope --batch_size 32
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms

from visgraft.data.sample import Sample, Turn
from visgraft.errors import ConfigError
from visgraft.evaluation.lmms_harness import cut_answer, sample_of, settings_of
from visgraft.inference import answer_each, load
from visgraft.reporting.progress import working

LIKELIHOOD = (
    "visgraft answers lmms-eval's generation tasks only, as the likelihood path of lmms-eval 0.7.3 is broken; choose a "
    "generate_until task, or use `visgraft evaluate --metrics choice_likelihood`"
)


class Visgraft(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A model for lmms-eval's simple tasks: a text and a list of pictures."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 32,
        device: str | None = None,
        precision: str = "auto",
        **unknown: Any,
    ) -> None:
        """Load a run folder, a model folder or a name on the Hub.

        Raises:
            ConfigError: an argument that is not known.
        """
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval always gives it
        if unknown:
            allowed = "pretrained, batch_size, device, precision"
            raise ConfigError(f"--model_args: got {', '.join(unknown)}, allowed are {allowed}")
        self.batch_size = 32 if batch_size == "auto" else int(batch_size)
        self.model, self.processor = load(pretrained, device=device, precision=precision)  # type: ignore[arg-type]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer all requests; those with like settings run together."""
        answers: dict[int, str] = {}
        errors: list[str] = []
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(settings_of(request.args[1 if self.is_simple else 2]), []).append(place)
        with working("asking", total=len(requests), unit="questions") as advance:
            for (limit, temperature, until), places in groups.items():
                generate = {"do_sample": True, "temperature": temperature} if temperature else {}
                samples = (self._sample(requests[place].args) for place in places)
                said = answer_each(
                    self.model, self.processor, samples, max_new_tokens=limit, batch_size=self.batch_size, **generate
                )
                for place, each in zip(places, said, strict=True):
                    answers[place] = cut_answer(each.text, until)
                    errors += [] if each.error is None else [str(each.error)]
                    advance(1)
        if errors:
            warnings.warn(f"{len(errors):,} of {len(requests):,} answers are empty: {errors[0]}", stacklevel=2)
        return [answers[place] for place in range(len(requests))]

    def _sample(self, arguments: tuple[Any, ...]) -> Sample:
        context, _, doc_to_visual, doc_id, task, split = arguments
        images = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        return Sample(images, [[Turn(context.replace("<image>", "").strip(), "")]])

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse, with the reason. Raises ConfigError."""
        raise ConfigError(LIKELIHOOD)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse. Raises ConfigError."""
        raise ConfigError("visgraft answers no multi-round tasks of lmms-eval; choose a generate_until task")


class VisgraftChat(Visgraft):
    """A model for lmms-eval's chat tasks: messages with pictures in them."""

    is_simple = False

    def _sample(self, arguments: tuple[Any, ...]) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = arguments
        return sample_of(doc_to_messages(self.task_dict[task][split][doc_id]))
