"""Each parameter of a chat means what OpenAI's documentation says; what is not followed is refused by name."""

import json
import math
from typing import Any

import pytest

from tests.inference.asked import picture
from tests.serving.asked import Pair, ask, chunks, error_of, post, said, text_of, user
from visgraft import Sample, Turn
from visgraft.inference import Decoding, Engine, answer, prompts_of

HELLO = [user("Hello", picture(0))]


def alone(pair: Pair, **decoding: Any) -> Any:
    [prompt] = prompts_of(pair[1], Sample(images=[picture(0)], dialogs=[[Turn("Hello", "")]]))
    return Engine(*pair, num_slots=1).submit(prompt, Decoding.of(**decoding)).answer()


def test_an_answer_has_the_form_of_openai(url: str) -> None:
    found = ask(url, HELLO, max_tokens=5)
    assert found["id"].startswith("chatcmpl-") and found["object"] == "chat.completion" and found["model"] == "tiny"
    [choice] = found["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"} and choice["finish_reason"] == "length"
    assert choice["message"].keys() == {"role", "content", "refusal"} and choice["message"]["role"] == "assistant"
    usage = found["usage"]
    assert usage["completion_tokens"] == 5 and usage["prompt_tokens_details"]["image_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5


def test_image_tokens_are_counted_apart(url: str) -> None:
    counts = []
    for images in ((), (picture(0),), (picture(0), picture(1))):
        usage = ask(url, [user("Hello", *images)], max_tokens=1)["usage"]
        counts.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["image_tokens"]))
    num_text = counts[0][0]
    assert counts == [(num_text, 0), (num_text + 5, 5), (num_text + 10, 10)]


def test_chunks_have_the_form_of_openai(url: str) -> None:
    found = chunks(url, HELLO, max_tokens=6, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"} and len({c["id"] for c in found}) == 1
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in found[-2:-1]] == ["length"]
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in found[:-1])
    assert "usage" not in chunks(url, HELLO, max_tokens=2)[0]


def test_settings_of_decoding_are_those_of_the_loop(serving_pair: Pair, url: str) -> None:
    drawn = {"do_sample": True, "top_k": 0}
    for asked, decoding in [
        ({"temperature": 0}, {}),
        ({"temperature": 1e-9, "seed": 1}, {}),
        ({"temperature": 1.5, "seed": 3}, {**drawn, "temperature": 1.5, "seed": 3}),
        ({"top_p": 0.4, "seed": 3}, {**drawn, "temperature": 1.0, "top_p": 0.4, "seed": 3}),
        ({"temperature": 2, "top_p": 0, "seed": -5}, {**drawn, "temperature": 2.0, "top_p": 0.0, "seed": -5}),
        ({"presence_penalty": 2, "frequency_penalty": 1}, {"presence_penalty": 2.0, "frequency_penalty": 1.0}),
        ({"logit_bias": {"70": 100}}, {"sequence_bias": {(70,): 100.0}}),
    ]:
        wanted = alone(serving_pair, max_new_tokens=9, **decoding)
        assert text_of(ask(url, HELLO, max_completion_tokens=9, **asked)) == wanted.text, asked
        assert text_of(chunks(url, HELLO, max_tokens=9, **asked)) == wanted.text, asked


def test_several_choices_are_several_draws(serving_pair: Pair, url: str) -> None:
    asked = {"n": 3, "temperature": 1.2, "seed": 5, "max_tokens": 8}
    settings = {"do_sample": True, "temperature": 1.2, "top_k": 0, "max_new_tokens": 8}
    wanted = [alone(serving_pair, seed=seed, **settings).text for seed in (5, 6, 7)]
    found, streamed = ask(url, HELLO, **asked), chunks(url, HELLO, **asked)
    assert len({*wanted}) > 1
    assert [text_of(found, index) for index in range(3)] == [text_of(streamed, index) for index in range(3)] == wanted
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == sum(
        len(alone(serving_pair, seed=seed, **settings).token_ids) for seed in (5, 6, 7)
    )


def test_a_stop_ends_the_text_in_front_of_it(url: str) -> None:
    whole = text_of(ask(url, HELLO, max_tokens=12))
    stop = whole[4:6]
    for given in (stop, ["never said", stop]):
        found = ask(url, HELLO, max_tokens=12, stop=given)
        assert (
            text_of(found)
            == whole[: whole.index(stop)].strip()
            == text_of(chunks(url, HELLO, max_tokens=12, stop=given))
        )
        assert found["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_the_text_streamed_or_not(serving_pair: Pair, url: str) -> None:
    for stop in (None, ["qu", "o"]):
        wanted = alone(serving_pair, max_new_tokens=12, log_probabilities=3, stop=stop)
        asked = {"max_tokens": 12, "logprobs": True, "top_logprobs": 3, **({"stop": stop} if stop else {})}
        content = ask(url, HELLO, **asked)["choices"][0]["logprobs"]["content"]
        text = bytes(byte for token in content for byte in token["bytes"]).decode(errors="replace").strip()
        assert text.startswith(wanted.text) and (stop or text == wanted.text)
        for told, score in zip(content, wanted.scores, strict=False):
            assert told["logprob"] == pytest.approx(score.log_probability, abs=1e-4)
            assert [each["logprob"] for each in told["top_logprobs"]] == pytest.approx(
                [value for _, value in score.alternatives], abs=1e-4
            )
        streamed = [
            token
            for chunk in chunks(url, HELLO, **asked)
            for choice in chunk["choices"]
            for token in (choice["logprobs"] or {"content": []})["content"]
        ]
        assert [token["token"] for token in streamed] == [token["token"] for token in content]
    assert ask(url, HELLO, max_tokens=2)["choices"][0]["logprobs"] is None
    bare = ask(url, HELLO, max_tokens=2, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [token["top_logprobs"] for token in bare] == [[], []]


def test_what_is_null_or_changes_nothing_is_taken(url: str) -> None:
    plain = text_of(ask(url, HELLO, max_tokens=6))
    nothing = ("temperature", "tools", "tool_choice", "stop", "n", "seed", "logit_bias", "audio", "stream_options")
    assert text_of(ask(url, HELLO, max_tokens=6, **dict.fromkeys(nothing))) == plain
    harmless: dict[str, Any] = {
        "user": "somebody",
        "store": False,
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "stream": False,
        "n": 1,
    }
    assert text_of(ask(url, HELLO, max_tokens=6, **harmless)) == plain


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": []}, "tools", "does not follow it, and refuses rather than ignores"),
    ({"functions": [{"name": "a"}]}, "functions", "does not follow it"),
    ({"audio": {}}, "audio", "does not follow it"),
    ({"response_format": {"type": "json_object"}}, "response_format.type", "input should be 'text'"),
    ({"modalities": ["text", "audio"]}, "modalities", "at most 1 item"),
    ({"modalities": ["audio"]}, "modalities.0", "input should be 'text'"),
    ({"store": True}, "store", "input should be False"),
    ({"service_tier": "flex"}, "service_tier", "input should be 'auto' or 'default'"),
    ({"temprature": 1}, "temprature", "no such parameter; did you mean temperature?"),
    ({"qwertz": 1}, "qwertz", "no such parameter; leave it out"),
    ({"temperature": 2.1}, "temperature", "got 2.1, input should be less than or equal to 2"),
    ({"temperature": "1"}, "temperature", 'got "1", input should be a valid number'),
    ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 9}, "n", "n: got 9, allowed are 1 to 8"),
    ({"n": True}, "n", "valid integer"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"seed": 1.5}, "seed", "valid integer"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
    ({"stop": ["a", ""]}, "stop.1", "at least 1 character"),
    ({"stop": 5}, "stop", "got 5, input should be a valid array"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 1025}, "max_tokens", "got 1025, allowed are 1 to 1024"),
    ({"max_tokens": None, "max_completion_tokens": 9999}, "max_completion_tokens", "got 9999, allowed are 1 to 1024"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "give one of them"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream: true"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "not in the vocabulary"),
    ({"logit_bias": {"red": 1}}, "logit_bias", "name tokens by their numbers"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "Hello"}, "messages", "valid array"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'developer', 'user' or 'assistant'"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing, and needed"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "at least 1 item"),
    ({"messages": [{**user("x"), "name": "me"}]}, "messages.0.name", "no such parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0", "input_audio"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages.0.content.0", "whose type is text or image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url", "missing"),
    ({"messages": [said("Hi")]}, "messages", "got the roles assistant; need user and assistant in turn"),
    ({"messages": [user("a"), user("b")]}, "messages", "got the roles user, user"),
    ({"messages": [user("a"), said("b")]}, "messages", "the user first and last"),
    ({"messages": [user("<image>\nWhat is it?")]}, "messages", "text names more images than there are"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "message"), WRONG, ids=[f"{c[1]}-{i}" for i, c in enumerate(WRONG)])
def test_what_is_wrong_is_told_by_its_name(url: str, change: dict[str, Any], param: str, message: str) -> None:
    response = post(url, {"model": "tiny", "messages": HELLO, "max_tokens": 2, **change})
    error = error_of(response)
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and message in error["message"], error


def test_images_of_others_than_the_user_are_refused(url: str) -> None:
    messages = [user("a"), {**user("b", picture(0)), "role": "assistant"}, user("c")]
    error = error_of(post(url, {"model": "tiny", "messages": messages}))
    assert "images are what the user shows; got one of assistant" in error["message"]


def test_an_unknown_model_is_not_found(url: str) -> None:
    response = post(url, {"model": "gpt-4o", "messages": HELLO})
    error = error_of(response)
    assert response.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
    assert error["message"] == "model: got 'gpt-4o', served are tiny"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": "tiny", "temperature": NaN}', b"[" * 100_000,
     b'{"a":' * 5000 + b"1" + b"}" * 5000, json.dumps({"model": "tiny", "messages": HELLO}).encode() + b"x"],
)  # fmt: skip
def test_what_is_no_body_is_refused(url: str, body: bytes) -> None:
    response = post(url, None, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and error_of(response)["message"], body[:20]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(url: str, value: str) -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO})[:-1] + f', "temperature": {value}}}'
    response = post(url, None, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and error_of(response)["param"] == "temperature"


def test_a_prompt_that_is_too_long_is_told_so_before_a_stream_begins(url: str) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "messages": [user("long " * 200)], "stream": stream}
        response = post(url, body)
        assert response.status_code == 400 and error_of(response)["code"] == "context_length_exceeded"


def test_candidates_are_scored_as_by_score_candidates(serving_pair: Pair, url: str) -> None:
    from visgraft.inference import score_candidates

    candidates = ["red", "a very dark blue", "green"]
    sample = Sample(images=[picture(0)], dialogs=[[Turn("Hello", "")]])
    for normalise in ("sum", "token", "character"):
        wanted = score_candidates(*serving_pair, sample, candidates, normalise=normalise)
        body = {"model": "tiny", "messages": HELLO, "candidates": candidates, "normalise": normalise}
        found = post(url, body, path="/v1/score").json()
        assert [result["score"] for result in found["results"]] == pytest.approx(wanted, abs=1e-4)
        assert found["best"] == wanted.index(max(wanted)) and found["object"] == "scores"
        shares = [result["share"] for result in found["results"]]
        assert sum(shares) == pytest.approx(1) and shares[1] / shares[0] == pytest.approx(
            math.exp(wanted[1] - wanted[0])
        )
        assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 5


def test_candidates_behind_a_later_image_are_scored_as_they_would_be_said(url: str) -> None:
    talk = [user("Hello", picture(0)), said("a"), user("And this?", picture(1))]
    body = {"model": "tiny", "messages": talk, "candidates": ["red", "green"]}
    found = post(url, body, path="/v1/score").json()["results"]
    content = ask(url, talk, max_tokens=1, logprobs=True, top_logprobs=20)["choices"][0]["logprobs"]["content"]
    assert content[0]["top_logprobs"]
    assert [result["candidate"] for result in found] == ["red", "green"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"candidates": []}, "at least 1 item"), ({"candidates": [""]}, "at least 1 character"),
     ({"candidates": [" "]}, "empty"), ({"candidates": ["a"] * 129}, "allowed are 1 to 128"),
     ({"normalise": "letters"}, "'sum', 'token' or 'character'"), ({"temperature": 1}, "no such parameter")],
)  # fmt: skip
def test_what_is_wrong_with_candidates_is_told(url: str, change: dict[str, Any], message: str) -> None:
    body = {"model": "tiny", "messages": HELLO, "candidates": ["a"], **change}
    response = post(url, body, path="/v1/score")
    assert response.status_code == 400 and message in error_of(response)["message"]


def test_a_seed_makes_a_draw_repeatable_and_none_does_not(url: str) -> None:
    asked = {"temperature": 2, "max_tokens": 12}
    assert len({text_of(ask(url, HELLO, **asked, seed=1)) for _ in range(3)}) == 1
    assert len({text_of(ask(url, HELLO, **asked)) for _ in range(5)}) > 1


def test_greedy_is_what_answer_says(serving_pair: Pair, url: str) -> None:
    sample = Sample(images=[picture(0)], dialogs=[[Turn("Hello", "")]])
    assert text_of(ask(url, HELLO, max_tokens=9)) == answer(*serving_pair, [sample], max_new_tokens=9)[0]
