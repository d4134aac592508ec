"""Which token comes next, for each row by its own rules: the processors and warpers of transformers, and its own draws.

In: logits [B, V] of rows that decode together, a `Sampler` for each. Out: a token for each, with log-probabilities.

    rules = Rules(model, processor, decoding)              # once for all requests that are decoded alike
    samplers = [rules.sampler(prompt_ids, seed=seed) for seed in (1, 2)]
    chosen = choose(samplers, logits)

A draw is one number u of the request's own generator for each token: the token in whose share of the distribution u
falls, the tokens in the order of their ids, shares summed in float64. So a request's draws depend on no neighbour. What
can depend on them is the last digit of a logit (a matrix product of another number of rows may round differently): it
moves the borders of shares by as much, so in float32 a draw comes out differently about once in a million tokens; in
bf16, whose logits have 8 bits, about once in some hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from visgraft.errors import ConfigError, ModelError
from visgraft.inference.decoding import GREEDY, Decoding
from visgraft.inference.limits import stop_token_ids
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor


@dataclass(frozen=True)
class TokenScore:
    """A token of an answer and how likely it was, as the model gave it, before any setting changed that.

    Attributes:
        token_id: the token.
        log_probability: of it, in nats.
        alternatives: (token, log-probability) of the likeliest, itself maybe among them, the likeliest first.
    """

    token_id: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chosen:
    """What a row says next.

    Attributes:
        token_id: the token.
        score: how likely it was, where that was asked for.
        is_finite: its logit is a number; else what the row has read is of no use to another request.
        error: why there is no token.
    """

    token_id: int
    score: TokenScore | None = None
    is_finite: bool = True
    error: Exception | None = None


class Rules:
    """What a `Decoding` means for one model.

    Attributes:
        decoding: the settings.
        end_ids: tokens that end an answer's text.
        stop_ids: those of them at which generation stops (`eos_token_id` may say otherwise).
        criteria: further reasons to stop, given ids [1, T] and scores [1, V].
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, decoding: Decoding) -> None:
        """Read the settings, those that the language model brought along among them.

        Raises:
            ConfigError: transformers refuses a value.
        """
        self.decoding = decoding
        self.end_ids = stop_token_ids(model, processor)
        own = {"eos_token_id": self.end_ids, "pad_token_id": processor.tokenizer.pad_token_id}
        settings = {**GREEDY, **own, **decoding.settings}
        self._processors = settings.pop("logits_processor", None) or []
        self.criteria: list[Callable[..., Any]] = list(settings.pop("stopping_criteria", None) or [])
        self._allowed = settings.pop("prefix_allowed_tokens_fn", None)
        self._model = generator = cast(Any, model)  # whose mixin's methods are not typed
        try:
            self._config, _ = generator._prepare_generation_config(
                None, max_new_tokens=decoding.max_new_tokens, **settings
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"settings of decoding: {error}") from error
        stop = self._config.eos_token_id
        self.stop_ids = frozenset([] if stop is None else [stop] if isinstance(stop, int) else stop)
        generator._prepare_special_tokens(self._config, True, device=model.device)

    def sampler(self, prompt_ids: Sequence[int], *, seed: int | None, choices: Sequence[Sequence[int]] = ()) -> Sampler:
        """Make what chooses the tokens of one request.

        Args:
            prompt_ids: the text that is read; penalties and n-grams know it.
            seed: of its generator; None = drawn from torch's own.
            choices: the ids of each answer that is allowed, its end included; none = all answers.

        Raises:
            ConfigError: transformers refuses a value.
        """
        decoding, config = self.decoding, self._config
        own: list[Any] = list(self._processors)
        if decoding.frequency_penalty or decoding.presence_penalty:
            own.append(_Penalties(len(prompt_ids), decoding.frequency_penalty, decoding.presence_penalty))
        if choices:
            own.append(_Choices(len(prompt_ids), choices))
        config.max_length = len(prompt_ids) + decoding.max_new_tokens
        try:
            processors = self._model._get_logits_processor(
                generation_config=config,
                input_ids_seq_length=len(prompt_ids),
                prefix_allowed_tokens_fn=self._allowed,
                logits_processor=LogitsProcessorList(own),
                device=self._model.device,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"settings of decoding: {error}") from error
        generator = None
        if config.do_sample:
            seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
            generator = torch.Generator().manual_seed(seed % 2**63)
        ids = None
        if processors or self.criteria:
            ids = torch.tensor([[*prompt_ids]], dtype=torch.long, device=self._model.device)
        return Sampler(self, processors, generator, ids)


class Sampler:
    """What chooses the tokens of one request."""

    def __init__(
        self, rules: Rules, processors: LogitsProcessorList, generator: torch.Generator | None, ids: Tensor | None
    ) -> None:
        """Begin behind a prompt.

        Args:
            rules: of its settings.
            processors: of its logits.
            generator: of its draws; None = the most probable token.
            ids: [1, T] long, prompt and answer so far; None = nothing looks at them.
        """
        self.rules = rules
        self._processors = processors
        self._generator = generator
        self._ids: Any = ids

    @property
    def is_plain(self) -> bool:
        """Whether the most probable token is taken as it is."""
        return not self._processors and self._generator is None

    def choose(self, logits: Tensor) -> int:
        """Choose a token by logits [V] float32.

        Raises:
            ModelError: the settings forbid every token, or the logits are no numbers.
        """
        scores = logits[None]
        if self._processors:
            scores = self._processors(self._ids, scores)
        best = scores.max()
        if best == -torch.inf:
            raise ModelError("the settings of this request forbid every token; allow one, an end of the answer say")
        if self._generator is None:
            return int(scores.argmax())
        if not best.isfinite():
            raise ModelError("the logits of this request are no numbers, so no token can be drawn")
        shares = scores[0].double().softmax(-1).cumsum(-1)  # [V], growing to 1
        drawn = torch.rand((), dtype=torch.float64, generator=self._generator).to(shares.device) * shares[-1]
        token = int(torch.searchsorted(shares, drawn, right=True))
        return min(token, int((shares < shares[-1]).sum()))  # rounding must not lead behind the last share

    def note(self, token_id: int) -> bool:
        """Take in what was said; say whether a further criterion stops the answer there."""
        if self._ids is None:
            return False
        self._ids = torch.cat([self._ids, self._ids.new_tensor([[token_id]])], 1)
        empty = self._ids.new_zeros(1, 0)
        return any(bool(torch.as_tensor(criterion(self._ids, empty)).all()) for criterion in self.rules.criteria)


def choose(samplers: Sequence[Sampler], logits: Tensor) -> list[Chosen]:
    """Choose the next token of each row; an error is that row's own.

    Args:
        samplers: of the rows.
        logits: [B, V].
    """
    best, most_probable = logits.max(-1)  # [B] each; where a logit is no number, it is the best
    tokens, is_finite = most_probable.tolist(), best.isfinite().tolist()
    chosen = []
    for row, sampler in enumerate(samplers):
        token, error = tokens[row], None
        wanted = sampler.rules.decoding.log_probabilities
        own = None if sampler.is_plain and wanted is None else logits[row].float()
        if own is not None and not sampler.is_plain:
            try:
                token = sampler.choose(own)
            except Exception as raised:  # a processor may be anybody's
                error = raised
        score = None if own is None or wanted is None or error else _score(own, token, number=wanted)
        chosen.append(Chosen(token, score, is_finite[row], error))
    return chosen


def _score(logits: Tensor, token: int, *, number: int) -> TokenScore:
    """Give the log-probability of a token, and of some of the likeliest; logits: [V] float32."""
    logs = logits.log_softmax(-1)
    values, ids = logs.topk(min(number, logs.shape[0]))
    return TokenScore(token, float(logs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


class _Penalties(LogitsProcessor):
    """Make what the answer has said less likely, by how often and by whether it was said."""

    def __init__(self, num_prompt: int, frequency: float, presence: float) -> None:
        self.num_prompt, self.frequency, self.presence = num_prompt, frequency, presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids[:, self.num_prompt :]
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class _Choices(LogitsProcessor):
    """Forbid all that leads to none of the given answers."""

    def __init__(self, num_prompt: int, choices: Sequence[Sequence[int]]) -> None:
        self.num_prompt, self.choices = num_prompt, [[*choice] for choice in choices]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids[0, self.num_prompt :].tolist()
        num = len(said)
        allowed = {choice[num] for choice in self.choices if len(choice) > num and choice[:num] == said}
        kept = torch.tensor(sorted(allowed), dtype=torch.long, device=scores.device)
        return torch.full_like(scores, -torch.inf).index_copy(1, kept, scores[:, kept])
