"""Every row draws and is warped by its own rules, as transformers' own processors say."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from visgraft import Processor, VisionLanguageModel
from visgraft.errors import ConfigError, ModelError
from visgraft.inference import Decoding
from visgraft.inference.decoding import needs_generate
from visgraft.inference.sampling import Rules, choose

Pair = tuple[VisionLanguageModel, Processor]
PROMPT = [5, 6, 7, 5, 6]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[9], [7, 5]]},
    {"typical_p": 0.7, "temperature": 1.3},
    {"suppress_tokens": [3, 4], "top_k": 10, "top_p": 0.9},
]


def logits_of(pair: Pair, *, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, len(pair[1].tokenizer), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_distribution_that_transformers_own_processors_leave(pair: Pair, settings: Any) -> None:
    model, processor = pair
    logits = logits_of(pair)
    config = GenerationConfig(do_sample=True, eos_token_id=2, **{"top_k": 50, **settings})
    model._prepare_special_tokens(config, True, device=model.device)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PROMPT))
    shares = processors(torch.tensor([PROMPT]), logits.clone()).softmax(-1)[0]
    rules = Rules(model, processor, Decoding.of(do_sample=True, **settings))
    draws = 1200
    seen = Counter(choose([rules.sampler(PROMPT, seed=seed)], logits)[0].token_id for seed in range(draws))
    assert all(shares[token] > 0 for token in seen)
    for token, share in enumerate(shares.tolist()):
        deviation = (share * (1 - share) / draws) ** 0.5
        assert abs(seen[token] / draws - share) < 5 * deviation + 2e-3


def test_a_draw_is_the_same_among_any_neighbours_and_the_last_digits_of_logits_move_none(pair: Pair) -> None:
    rules = Rules(*pair, Decoding.of(do_sample=True, temperature=1.5))
    logits = logits_of(pair, rows=6)
    alone = [[choose([rules.sampler(PROMPT, seed=row)], logits[row : row + 1])[0].token_id] for row in range(6)]
    for _ in range(20):
        noise = 1 + 1e-6 * torch.randn(logits.shape)  # what a matrix product of another number of rows may change
        together = choose([rules.sampler(PROMPT, seed=row) for row in range(6)], logits * noise)
        assert [[each.token_id] for each in together] == alone


def test_a_generator_gives_one_number_for_each_token_whatever_is_warped(pair: Pair) -> None:
    logits = logits_of(pair, rows=1)
    samplers = [
        Rules(*pair, Decoding.of(do_sample=True, **settings)).sampler(PROMPT, seed=3)
        for settings in ({}, {"top_k": 5}, {"repetition_penalty": 1.2})
    ]
    for sampler in samplers:
        for _ in range(3):
            choose([sampler], logits)
    left = [float(torch.rand((), generator=sampler._generator, dtype=torch.float64)) for sampler in samplers]
    assert len({*left}) == 1


def test_without_a_seed_torch_s_own_generator_decides(pair: Pair) -> None:
    rules, logits = Rules(*pair, Decoding.of(do_sample=True, temperature=3.0)), logits_of(pair)

    def draw() -> list[int]:
        return [choose([rules.sampler(PROMPT, seed=None)], logits)[0].token_id for _ in range(8)]

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert (draw(), draw()) == (first, second)
    assert first != second
    before = torch.get_rng_state()
    Rules(*pair, Decoding()).sampler(PROMPT, seed=None)  # greedy: training's own draws stay as they were
    assert torch.equal(torch.get_rng_state(), before)


def test_penalties_count_what_the_answer_said_and_not_the_prompt(pair: Pair) -> None:
    logits = torch.zeros(1, len(pair[1].tokenizer))
    logits[0, 5], logits[0, 8], logits[0, 9] = 3.0, 2.9, 2.0
    frequent = Rules(*pair, Decoding.of(frequency_penalty=0.5)).sampler(PROMPT, seed=None)
    present = Rules(*pair, Decoding.of(presence_penalty=0.5)).sampler(PROMPT, seed=None)
    for sampler, expected in ((frequent, [5, 8, 5, 8, 5, 9]), (present, [5, 8, 5, 5, 5, 5])):
        said = []
        for _ in range(6):
            said.append(choose([sampler], logits)[0].token_id)
            sampler.note(said[-1])
        assert said == expected


def test_choices_allow_what_leads_to_one_of_them_alone(pair: Pair) -> None:
    logits = logits_of(pair)
    sampler = Rules(*pair, Decoding()).sampler(PROMPT, seed=None, choices=[[7, 8, 2], [7, 9, 2], [11, 2]])
    said: list[int] = []
    while not said or said[-1] != 2:
        said.append(choose([sampler], logits)[0].token_id)
        sampler.note(said[-1])
    assert said in ([7, 8, 2], [7, 9, 2], [11, 2])
    scores = logits[0].log_softmax(-1)
    first = 7 if scores[7] > scores[11] else 11
    assert said[0] == first


def test_log_probabilities_are_the_model_s_own_before_any_setting(pair: Pair) -> None:
    logits = logits_of(pair, rows=2)
    rules = Rules(*pair, Decoding.of(do_sample=True, top_k=2, temperature=0.5, log_probabilities=3))
    plain = Rules(*pair, Decoding.of(log_probabilities=0))
    warped, greedy = choose([rules.sampler(PROMPT, seed=1), plain.sampler(PROMPT, seed=None)], logits)
    logs = logits.double().log_softmax(-1)
    assert warped.score is not None and greedy.score is not None
    assert warped.score.log_probability == pytest.approx(float(logs[0, warped.token_id]), abs=1e-5)
    assert [token for token, _ in warped.score.alternatives] == logs[0].topk(3).indices.tolist()
    assert [value for _, value in warped.score.alternatives] == pytest.approx(logs[0].topk(3).values.tolist(), abs=1e-5)
    assert greedy.score.alternatives == ()
    assert greedy.score.log_probability == pytest.approx(float(logs[1].max()), abs=1e-5)


def test_a_row_that_can_say_nothing_fails_alone(pair: Pair) -> None:
    logits = logits_of(pair, rows=3)
    logits[2] = float("nan")
    everything = [*range(logits.shape[1])]
    barred = Rules(*pair, Decoding.of(suppress_tokens=everything)).sampler(PROMPT, seed=None)
    plain = Rules(*pair, Decoding()).sampler(PROMPT, seed=None)
    drawn = Rules(*pair, Decoding.of(do_sample=True)).sampler(PROMPT, seed=1)
    chosen = choose([barred, plain, drawn], logits)
    with pytest.raises(ModelError, match="the settings of this request forbid every token"):
        raise chosen[0].error  # type: ignore[misc]
    assert (chosen[1].token_id, chosen[1].error) == (int(logits[1].argmax()), None)
    with pytest.raises(ModelError, match="the logits of this request are no numbers, so no token can be drawn"):
        raise chosen[2].error  # type: ignore[misc]
    assert [each.is_finite for each in chosen] == [True, True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: got 0, need 1 or more"),
        ({"log_probabilities": -1}, r"log_probabilities: got -1, need 0 \(the token's own\) or more"),
        ({"deadline_s": 0}, "deadline_s: got 0, need more than 0 seconds"),
        ({"presence_penalty": float("inf")}, "presence_penalty: got inf, need a finite number"),
        ({"stop": ["a", ""]}, r"stop: got \['a', ''\], and an empty text is everywhere; leave it out"),
        ({"temperatur": 1.0}, "temperatur: got 1.0, which the decoding loop does not know; did you mean temperature"),
        ({"num_beams": 3}, "num_beams: got 3, which the decoding loop does not know"),
        ({"penalty_alpha": 0.6}, "penalty_alpha: got 0.6, .* may be one that model.generate takes"),
    ],
)
def test_settings_that_cannot_be_are_said(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Decoding.of(**settings)


@pytest.mark.parametrize("settings", [{"temperature": -1.0, "do_sample": True}, {"top_k": -1, "do_sample": True}])
def test_values_that_transformers_refuses_are_errors_of_settings(pair: Pair, settings: Any) -> None:
    with pytest.raises(ConfigError, match="settings of decoding: "):
        Rules(*pair, Decoding.of(**settings)).sampler(PROMPT, seed=1)


def test_what_needs_generate_is_told_from_what_the_loop_does() -> None:
    assert needs_generate({"num_beams": 1, "top_k": 3, "cache_implementation": None, "eos_token_id": None}) == []
    assert needs_generate({"num_beams": 2, "use_cache": False, "prompt_lookup_num_tokens": 2}) == [
        "num_beams",
        "use_cache",
        "prompt_lookup_num_tokens",
    ]
