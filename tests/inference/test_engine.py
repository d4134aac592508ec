"""Requests join, decode, stream, stop and fail each for itself."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.inference.asked import QUESTIONS, Say, ask, picture
from tests.tiny import randomise
from tests.training.tiny import save_parts
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import BusyError, ConfigError, ModelError
from visgraft.inference import (
    Answer,
    Decoding,
    Engine,
    Prompt,
    active,
    answer,
    answer_each,
    prompts_of,
    score_candidates,
)
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.prefix_cache import open_pixels
from visgraft.inference.requests import ImageSegment, Segment
from visgraft.model.slots import SlotCache

Pair = tuple[VisionLanguageModel, Processor]
ON = {"eos_token_id": None}  # an answer of exactly the length that is asked for


def prompt(pair: Pair, question: str = "What is it?", *, seed: int | None = 0) -> Prompt:
    images = () if seed is None else (picture(seed),)
    return prompts_of(pair[1], ask(question, images=images))[0]


def steps(engine: Engine, number: int = 1) -> None:
    with eval_mode(engine.model):
        for _ in range(number):
            engine.step()


def alone(pair: Pair, given: Prompt, **settings: Any) -> Answer:
    again = Prompt(given.segments, dialog=given.dialog)
    return Engine(*pair, num_slots=1).submit(again, Decoding.of(**settings)).answer()


def watch_rows(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note the shape of the ids of every forward over rows."""
    shapes: list[tuple[int, int]] = []
    read_rows = model.read_rows
    monkeypatch.setattr(model, "read_rows", lambda ids, **rest: shapes.append((*ids.shape,)) or read_rows(ids, **rest))
    return shapes


def out_of_memory() -> RuntimeError:
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


# --- Slots


def test_a_request_joins_while_others_decode_and_a_finished_slot_is_free_at_once(pair: Pair) -> None:
    engine = Engine(*pair, num_slots=2)
    long = engine.submit(prompt(pair), Decoding.of(max_new_tokens=12, **ON))
    short = engine.submit(prompt(pair, "Why?"), Decoding.of(max_new_tokens=3, **ON))
    late = engine.submit(prompt(pair, "Is it red?", seed=1), Decoding.of(max_new_tokens=4, **ON))
    steps(engine)
    assert (engine.num_active, engine.num_waiting) == (2, 1)
    steps(engine)
    assert short.is_done and not long.is_done
    assert (engine.num_active, engine.num_waiting) == (1, 1)
    steps(engine)
    assert (engine.num_active, engine.num_waiting) == (2, 0)
    for reply, question, seed in ((long, "What is it?", 0), (short, "Why?", 0), (late, "Is it red?", 1)):
        number = len(reply.answer().token_ids)
        assert reply.answer() == alone(pair, prompt(pair, question, seed=seed), max_new_tokens=number, **ON)


def test_waiting_prompts_of_unlike_length_are_read_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watch_rows(pair[0], monkeypatch)
    engine = Engine(*pair, num_slots=8)
    given = [prompt(pair, question) for question in QUESTIONS]
    replies = [engine.submit(each, Decoding.of(max_new_tokens=2, **ON)) for each in given]
    assert all(reply.answer().finish == "length" for reply in replies)
    assert read == [(5, max(len(each.segments[-1]) for each in given)), (5, 1)]


def test_a_prompt_of_one_token_joins_the_next_step(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watch_rows(pair[0], monkeypatch)
    engine = Engine(*pair, num_slots=4)
    long = engine.submit(prompt(pair), Decoding.of(max_new_tokens=5, **ON))
    steps(engine)
    captions = [engine.submit(prompt(pair, "", seed=seed), Decoding.of(max_new_tokens=2, **ON)) for seed in (1, 2)]
    assert len(prompt(pair, "").segments[-1]) == 1
    steps(engine, 2)
    assert read == [(1, len(prompt(pair).segments[-1])), (1, 1), (3, 1), (3, 1)]
    for reply, seed in zip(captions, (1, 2), strict=True):
        assert reply.answer() == alone(pair, prompt(pair, "", seed=seed), max_new_tokens=2, **ON)
    assert long.answer() == alone(pair, prompt(pair), max_new_tokens=5, **ON)


@pytest.mark.parametrize(("positions", "expected"), [(1024, [5]), (20, [4, 1]), (5, [2, 2, 1])])
def test_images_of_the_prompts_that_come_next_are_read_along(
    positions: int, expected: list[int], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgraft.inference.active._IMAGE_POSITIONS_AT_ONCE", positions)  # 5 an image
    read: list[int] = []
    read_image = pair[0].read_image
    monkeypatch.setattr(pair[0], "read_image", lambda x, **rest: read.append(len(x)) or read_image(x, **rest))
    engine = Engine(*pair, num_slots=2)
    given = [prompt(pair, seed=seed) for seed in (0, 1, 2, 3, 4)]
    replies = [engine.submit(each, Decoding.of(max_new_tokens=3, **ON)) for each in given]
    answers = [reply.answer() for reply in replies]
    assert read == expected  # two are admitted at once, the others are read ahead
    assert answers == [alone(pair, prompt(pair, seed=seed), max_new_tokens=3, **ON) for seed in (0, 1, 2, 3, 4)]


def test_each_request_has_its_own_length_seed_stop_and_sampling(pair: Pair) -> None:
    given = prompt(pair)
    ways: list[dict[str, Any]] = [
        {"max_new_tokens": 7, **ON},
        {"max_new_tokens": 5, "do_sample": True, "temperature": 2.0, "seed": 1, **ON},
        {"max_new_tokens": 9, "do_sample": True, "temperature": 2.0, "seed": 2, "top_k": 9, **ON},
        {"max_new_tokens": 6, "repetition_penalty": 3.0, **ON},
        {"max_new_tokens": 8, "frequency_penalty": 20.0, "no_repeat_ngram_size": 2, **ON},
        {"max_new_tokens": 9, "stop": ["e"], "do_sample": True, "seed": 5, **ON},
    ]
    apart = [alone(pair, given, **way) for way in ways]
    assert len({each.text for each in apart}) == len(ways)
    engine = Engine(*pair, num_slots=3)
    assert [r.answer() for r in [engine.submit(given, Decoding.of(**way)) for way in ways]] == apart
    order = [3, 0, 5, 4, 2, 1]
    again = {index: engine.submit(given, Decoding.of(**ways[index])) for index in order}
    assert [again[index].answer() for index in range(len(ways))] == apart


def test_several_answers_to_one_prompt_read_it_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read = watch_rows(pair[0], monkeypatch)
    given, way = prompt(pair), {"max_new_tokens": 5, "do_sample": True, "temperature": 2.0, **ON}
    engine = Engine(*pair, num_slots=4)
    texts = [r.answer().text for r in engine.submit_several(given, Decoding.of(seed=7, **way), num_answers=4)]
    assert read == [(1, len(given.segments[-1])), *[(4, 1)] * 4]
    assert texts == [alone(pair, given, seed=7 + index, **way).text for index in range(4)]
    assert len({*texts}) > 1
    narrow = Engine(*pair, num_slots=3)  # fewer slots than answers
    again = narrow.submit_several(given, Decoding.of(seed=7, **way), num_answers=4)
    assert [reply.answer().text for reply in again] == texts
    with pytest.raises(ConfigError, match="num_answers: got 0, need 1 or more"):
        engine.submit_several(given, Decoding.of(**way), num_answers=0)


def test_memory_is_bounded_by_slots_and_positions(pair: Pair) -> None:
    model, _ = pair
    engine = Engine(*pair, num_slots=3, max_positions=40)
    replies = [engine.submit(prompt(pair, seed=seed), Decoding.of(max_new_tokens=99, **ON)) for seed in range(7)]
    lengths = [len(reply.answer().token_ids) for reply in replies]
    config = model.language.config
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert engine.size_bytes == 3 * 40 * position
    taken = 5 + len(prompt(pair).segments[-1])  # image tokens and text
    assert lengths == [40 - taken] * 7
    with pytest.raises(ModelError, match="behind 5 image tokens, and max_positions: 40 leaves no room for an answer"):
        engine.submit(prompt(pair, "cat " * 40)).answer()
    for name in ("num_slots", "max_positions", "max_waiting"):
        with pytest.raises(ConfigError, match=f"{name}: got 0, need 1 or more"):
            Engine(*pair, **{name: 0})


def test_a_prompt_that_is_too_long_fails_alone(pair: Pair) -> None:
    engine = Engine(*pair)
    good, bad, last = (
        engine.submit(prompt(pair, text), Decoding.of(max_new_tokens=4)) for text in ("Why?", "cat " * 200, "")
    )
    assert good.answer() == alone(pair, prompt(pair, "Why?"), max_new_tokens=4)
    with pytest.raises(ModelError, match="leave no room for an answer"):
        bad.answer()
    assert last.answer() == alone(pair, prompt(pair, ""), max_new_tokens=4)


@pytest.mark.parametrize("num_slots", [1, 3])  # with one the others' images are read ahead
def test_images_and_earlier_turns_that_are_too_long_fail_alone(num_slots: int, pair: Pair) -> None:
    wide = ImageSegment(open_pixels(pair[1], [picture(seed) for seed in range(26)]))  # 130 tokens of 128 positions
    later = ImageSegment(open_pixels(pair[1], [picture(9)]))
    segments: list[list[Segment]] = [[wide, [5, 6]], [[7] * 200, later, [5]], [[7] * 20, wide, [5]]]
    engine = Engine(*pair, num_slots=num_slots)
    first = engine.submit(prompt(pair, seed=1), Decoding.of(max_new_tokens=3))
    bad = [engine.submit(Prompt(each), Decoding.of(max_new_tokens=3)) for each in segments]
    last = engine.submit(prompt(pair, seed=2), Decoding.of(max_new_tokens=3))
    for reply, seed in ((first, 1), (last, 2)):
        assert reply.answer() == alone(pair, prompt(pair, seed=seed), max_new_tokens=3)
    for reply in bad:
        with pytest.raises(ModelError, match="the 128 positions of llama leave no room for an answer"):
            reply.answer()


def test_what_a_row_held_before_is_gone_even_where_it_was_no_number(parts: tuple[str, str]) -> None:
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    for seed, part in enumerate((model.vision, model.projection, model.language)):
        randomise(part, seed=seed)
    bad, good = prompt((model, processor), "Is it red?"), prompt((model, processor), "Why?", seed=1)
    embedding = model.get_input_embeddings().weight
    token = next(t for t in bad.segments[-1] if t not in good.segments[-1])  # type: ignore[union-attr, misc]
    engine = Engine(model, processor, num_slots=2)
    both = Engine(model, processor, num_slots=2)
    expected = engine.submit(good, Decoding.of(max_new_tokens=4, **ON)).answer()
    whole = embedding.data[token].clone()
    embedding.data[token] = float("nan")
    both.submit(bad, Decoding.of(max_new_tokens=3, **ON)).answer()
    embedding.data[token] = whole
    replies = [
        both.submit(Prompt(good.segments), Decoding.of(max_new_tokens=4, **ON)),
        both.submit(bad, Decoding.of(max_new_tokens=9)),
    ]
    assert replies[0].answer() == expected


# --- How an answer ends


def test_a_stop_text_ends_an_answer_wherever_its_tokens_end(pair: Pair) -> None:
    said = "a cat on a sofa"
    reply = Engine(*pair).submit(
        prompt(pair), Decoding.of(stop=["t on a s"], logits_processor=[Say(pair[1], said)]), stream=True
    )
    assert "".join(reply) == reply.answer().text == "a ca"
    assert (reply.answer().finish, reply.answer().has_stopped) == ("stop", True)
    texts = answer(*pair, [ask("Why?", images=(picture(0),))], stop="on a", logits_processor=[Say(pair[1], said)])
    assert texts == ["a cat"]


def test_an_answer_says_why_it_ended_and_by_which_tokens(pair: Pair) -> None:
    tokenizer = pair[1].tokenizer
    reply = Engine(*pair).submit(prompt(pair), Decoding.of(logits_processor=[Say(pair[1], "a cat")]))
    assert reply.answer().finish == "stop"
    assert reply.answer().token_ids == (
        *tokenizer("a cat", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    )
    cut = alone(pair, prompt(pair), max_new_tokens=2, **ON)
    assert (cut.finish, cut.has_stopped, len(cut.token_ids)) == ("length", False, 2)


def test_choices_are_answered_as_their_likelihood_greedily_leads(pair: Pair) -> None:
    colours = ["red", "blue", "dark green", "dark grey"]
    sample = ask("Which colour?", images=(picture(0),))
    [text] = answer(*pair, [sample], choices=colours)
    assert text in colours
    texts = {answer(*pair, [sample], choices=colours, do_sample=True, temperature=9.0, seed=s)[0] for s in range(20)}
    assert len(texts) > 1 and texts <= {*colours}
    with pytest.raises(ConfigError, match="choices: got a prompt of ids alone, need its dialog"):
        Engine(*pair).submit(Prompt([[5, 6]]), Decoding.of(choices=["red"]))


def test_the_log_probabilities_of_an_answer_are_its_likelihood(pair: Pair) -> None:
    sample = ask("What is it?", images=(picture(0),))
    for choice in ("red", "a cat on a sofa"):
        [each] = answer_each(*pair, [sample], choices=[choice], log_probabilities=2)
        assert each.text == choice and each.scores is not None
        [expected] = score_candidates(*pair, sample, [choice])
        assert sum(score.log_probability for score in each.scores) == pytest.approx(expected, abs=1e-4)
        assert tuple(score.token_id for score in each.scores) == each.token_ids
        assert all(len(score.alternatives) == 2 for score in each.scores)


# --- Streams, cancelling, deadlines


def test_pieces_come_as_they_are_said_while_others_decode(pair: Pair) -> None:
    engine = Engine(*pair)
    other = engine.submit(prompt(pair, "Why?"), Decoding.of(max_new_tokens=20, **ON))
    reply = engine.submit(prompt(pair), Decoding.of(max_new_tokens=20, **ON), stream=True)
    pieces = iter(reply)
    begun = next(pieces)
    assert not reply.is_done and not other.is_done
    whole = begun + "".join(pieces)
    assert whole == reply.answer().text == alone(pair, prompt(pair), max_new_tokens=20, **ON).text
    assert other.answer() == alone(pair, prompt(pair, "Why?"), max_new_tokens=20, **ON)


def test_a_cancelled_request_leaves_at_once_with_what_it_said(pair: Pair) -> None:
    engine = Engine(*pair, num_slots=2)
    replies = [engine.submit(prompt(pair, seed=s), Decoding.of(max_new_tokens=20, **ON)) for s in range(3)]
    steps(engine, 4)
    assert engine.num_waiting == 1
    replies[2].cancel()  # it waits
    replies[0].cancel()
    assert (engine.num_active, engine.num_waiting) == (1, 0)
    assert (replies[2].answer().finish, replies[2].answer().token_ids) == ("cancelled", ())
    whole = alone(pair, prompt(pair), max_new_tokens=20, **ON)
    assert replies[0].answer().token_ids == whole.token_ids[:5]
    assert replies[1].answer() == alone(pair, prompt(pair, seed=1), max_new_tokens=20, **ON)
    replies[1].cancel()  # it is done
    assert replies[1].answer().finish == "length"


def test_a_deadline_ends_a_request_that_decodes_or_waits(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine = Engine(*pair, num_slots=1)
    first = engine.submit(prompt(pair), Decoding.of(max_new_tokens=50, deadline_s=3, **ON))
    second = engine.submit(prompt(pair), Decoding.of(max_new_tokens=2, deadline_s=2, **ON))
    third = engine.submit(prompt(pair), Decoding.of(max_new_tokens=2, **ON))
    steps(engine, 3)
    now = 102.5
    steps(engine)
    assert second.is_done and not first.is_done
    now = 104.0
    assert (third.answer().finish, second.answer().finish, first.answer().finish) == ("length", "deadline", "deadline")
    assert (len(first.answer().token_ids), second.answer().token_ids) == (5, ())


def test_a_full_queue_refuses_or_waits(pair: Pair) -> None:
    engine = Engine(*pair, num_slots=1, max_waiting=2)
    three = [engine.submit(prompt(pair), Decoding.of(max_new_tokens=2, **ON)) for _ in range(3)]  # a slot is free
    with pytest.raises(
        BusyError, match="2 requests wait already, allowed are 2: ask again later, or raise max_waiting"
    ):
        engine.submit(prompt(pair))
    late = engine.submit(prompt(pair), Decoding.of(max_new_tokens=2, **ON), wait_s=60)  # whoever waits runs the loop
    assert len({reply.answer().text for reply in [*three, late]}) == 1
    with pytest.raises(TimeoutError, match=r"no answer within 0\.0 seconds; wait longer, or cancel it"):
        engine.submit(prompt(pair)).answer(timeout_s=0.0)


# --- A thread runs the loop


def test_a_thread_serves_any_number_of_callers(pair: Pair) -> None:
    questions = [(question, seed) for question in QUESTIONS for seed in range(4)]
    expected = [alone(pair, prompt(pair, q, seed=s), max_new_tokens=6) for q, s in questions]
    answers: dict[int, Answer] = {}
    streamed: dict[int, str] = {}
    with Engine(*pair, num_slots=4, max_waiting=6) as engine:

        def ask_some(first: int) -> None:
            for index in range(first, len(questions), 5):
                question, seed = questions[index]
                given = prompt(pair, question, seed=seed)
                reply = engine.submit(given, Decoding.of(max_new_tokens=6), stream=index % 2 == 0, wait_s=60)
                streamed[index] = "".join(reply)
                answers[index] = reply.answer(timeout_s=60)

        threads = [threading.Thread(target=ask_some, args=(first,)) for first in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answers[index] for index in range(len(questions))] == expected
    assert [streamed[index] for index in range(len(questions))] == [each.text for each in expected]


def test_a_thread_cancels_within_a_step_and_ends_what_is_left_when_the_loop_is_closed(pair: Pair) -> None:
    with Engine(*pair, num_slots=1) as engine:
        long = engine.submit(prompt(pair), Decoding.of(max_new_tokens=110, **ON), stream=True)
        waiting = engine.submit(prompt(pair), Decoding.of(max_new_tokens=110, **ON))
        next(iter(long))
        long.cancel()
        assert long.is_done and len(long.answer().token_ids) < 110
    assert waiting.is_done and waiting.answer().finish == "cancelled"
    with pytest.raises(BusyError, match="the decoding loop is closed; make another one"):
        engine.submit(prompt(pair))


def test_an_error_in_a_step_reaches_those_it_concerns_and_the_thread_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_rows, broken = pair[0].read_rows, threading.Event()

    def reading(ids: Any, **rest: Any) -> Any:
        if broken.is_set():
            broken.clear()
            raise ValueError("a broken part")
        return read_rows(ids, **rest)

    monkeypatch.setattr(pair[0], "read_rows", reading)
    with Engine(*pair) as engine:
        expected = engine.submit(prompt(pair), Decoding.of(max_new_tokens=4)).answer(timeout_s=60)
        broken.set()
        with pytest.raises(ValueError, match="a broken part"):
            engine.submit(prompt(pair), Decoding.of(max_new_tokens=4)).answer(timeout_s=60)
        assert engine.submit(prompt(pair), Decoding.of(max_new_tokens=4)).answer(timeout_s=60) == expected


# --- Memory that runs out


def starve(monkeypatch: pytest.MonkeyPatch, model: VisionLanguageModel, *, fails: Callable[[Any], bool]) -> None:
    read_rows = model.read_rows

    def reading(ids: Any, **rest: Any) -> Any:
        if fails(ids):
            raise out_of_memory()
        return read_rows(ids, **rest)

    monkeypatch.setattr(model, "read_rows", reading)


def test_memory_that_runs_out_while_prompts_are_read_costs_the_one_that_does_not_fit(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [alone(pair, prompt(pair, q), max_new_tokens=6, **ON) for q in ("Why?", "Is it red?", "Who?")]
    engine = Engine(*pair, num_slots=8)
    running = engine.submit(prompt(pair, "Why?"), Decoding.of(max_new_tokens=6, **ON))
    steps(engine, 2)
    long = len(prompt(pair, QUESTIONS[2]).segments[-1])
    starve(monkeypatch, pair[0], fails=lambda ids: ids.shape[1] >= long)
    big = engine.submit(prompt(pair, QUESTIONS[2]), Decoding.of(max_new_tokens=6, **ON))
    others = [engine.submit(prompt(pair, q), Decoding.of(max_new_tokens=6, **ON)) for q in ("Is it red?", "Who?")]
    with pytest.raises(BusyError, match=r"memory does not suffice to read this prompt beside \d others: ask"):
        big.answer()
    assert [reply.answer() for reply in (running, *others)] == expected


def test_memory_that_runs_out_in_a_step_costs_the_last_one_admitted(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(*pair, num_slots=8)
    first = engine.submit(prompt(pair, "Why?"), Decoding.of(max_new_tokens=9, **ON))
    steps(engine, 2)
    second = engine.submit(prompt(pair, "Who?"), Decoding.of(max_new_tokens=9, **ON))
    starve(monkeypatch, pair[0], fails=lambda ids: tuple(ids.shape) == (2, 1))
    with pytest.raises(BusyError, match="memory does not suffice to go on with this answer beside 1 others"):
        second.answer()
    assert first.answer() == alone(pair, prompt(pair, "Why?"), max_new_tokens=9, **ON)


def test_rows_that_outgrow_their_room_get_more_or_the_last_one_leaves(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(pair, prompt(pair), max_new_tokens=90, **ON)
    monkeypatch.setattr(active, "_NEW_TOKENS_AT_FIRST", 2)
    assert expected == alone(pair, prompt(pair), max_new_tokens=90, **ON)
    engine = Engine(*pair, num_slots=2)
    replies = [engine.submit(prompt(pair), Decoding.of(max_new_tokens=90, **ON)) for _ in range(2)]
    steps(engine)
    reserve = SlotCache.reserve

    def limited(cache: SlotCache, num_rows: int, *, num_columns: int) -> None:
        if max(num_rows, cache.reserved[0]) * max(num_columns, cache.reserved[1]) > 2 * 64:
            raise out_of_memory()
        reserve(cache, num_rows, num_columns=num_columns)

    monkeypatch.setattr(SlotCache, "reserve", limited)
    with pytest.raises(BusyError, match="memory does not suffice to go on with this answer"):
        replies[1].answer()
    assert replies[0].answer() == expected


def test_a_later_turn_reads_on_from_what_was_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = pair
    turns = [Turn("What is it?", ""), Turn("Why?", "")]
    [first] = prompts_of(processor, Sample([picture(0)], [turns[:1]]))
    first.keep = True
    engine = Engine(*pair)
    reply = engine.submit(first, Decoding.of(max_new_tokens=4))
    turns[0] = Turn("What is it?", reply.answer().text)
    assert reply.read is not None
    [second] = prompts_of(processor, Sample([picture(0)], [turns]), images=first.segments[0])  # type: ignore[arg-type]
    expected = alone(pair, second, max_new_tokens=4)
    read = watch_rows(model, monkeypatch)
    second.read = reply.read
    assert engine.submit(second, Decoding.of(max_new_tokens=4)).answer() == expected
    assert read[0][1] < len(second.segments[-1]) - len(first.segments[-1]) + 1  # neither image nor first question


def test_training_s_draws_and_mode_are_left_alone(tmp_path: Any) -> None:
    parts = save_parts(tmp_path)
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    model.train()
    before = torch.get_rng_state()
    answer(model, processor, [ask("Why?", images=(picture(0),))], max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and torch.is_grad_enabled()


def test_something_else_is_done_with_the_model_between_steps(pair: Pair) -> None:
    steps: list[int] = []
    engine = Engine(*pair, after_step=lambda: steps.append(1))
    assert engine.call(lambda: 5).result() == 5 and len(steps) == 1
    assert isinstance(engine.call(lambda: 1 // 0).exception(), ZeroDivisionError)
    with Engine(*pair) as running:
        told: list[str] = []
        reply = running.submit(
            prompt(pair), Decoding.of(max_new_tokens=4), stream=True, on_change=lambda: told.append("")
        )
        assert running.call(lambda: 6).result(timeout=60) == 6
        assert reply.answer().token_ids == tuple(reply.token_ids) and told
    with pytest.raises(BusyError, match="the decoding loop is closed"):
        running.call(lambda: 7).result()
