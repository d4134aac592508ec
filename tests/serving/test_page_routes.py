"""What the page asks the server for besides /v1: its files, runs, evaluations, blind questions and votes."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.compare.made_runs import save_run
from tests.serving.served_page import tiny_models
from visgraft import Processor, VisionLanguageModel
from visgraft.errors import CheckpointError
from visgraft.folder_lock import FolderLock
from visgraft.runs import Run
from visgraft.serving import ServeSettings, Service, create_app
from visgraft.serving.page.blind import MOST_OPEN, Blind, BlindStream, OpenConversations
from visgraft.serving.page.runs import RunsView
from visgraft.serving.page.votes import Votes
from visgraft.serving.settings import ApiKey, digest_of

Models = dict[str, tuple[VisionLanguageModel, Processor]]
KEYS = tuple(ApiKey(digest_of(f"key-of-{name}"), name) for name in ("ann", "ben"))
ANN, BEN = ({"Authorization": f"Bearer key-of-{name}"} for name in ("ann", "ben"))
TWO = [{"model": "first", "max_tokens": 8}, {"model": "second", "max_tokens": 8}]
MESSAGES = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return tiny_models(tmp_path_factory.mktemp("models"))


@contextmanager
def client_of(models: Models, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Service(models, ServeSettings(**settings)))) as client:
        yield client


# --- Files and doors


def test_only_files_of_the_page_are_given_and_they_run_no_script_of_others(models: Models) -> None:
    with client_of(models, api_keys=KEYS) as client:
        index = client.get("/")
        assert "script-src 'self'" in index.headers["content-security-policy"]
        assert "unsafe" not in index.headers["content-security-policy"]
        assert "http" not in index.text.replace("http-equiv", "")
        for name in ("app.js", "serve.css", "page.css", "icon.svg"):
            assert client.get(f"/static/{name}").status_code == 200
        for name in ("..%2f__init__.py", "%2e%2e/__init__.py", "../runs.py", "index.html%00.js", ""):
            assert client.get(f"/static/{name}").status_code in (401, 404)


def test_what_is_not_asked_for_at_the_start_is_not_there(models: Models, tmp_path: Path) -> None:
    with client_of(models) as client:
        assert client.get("/page/about").json()["views"] == {"compare": False, "runs": False, "evaluations": False}
        for path in ("/page/runs", "/page/evaluations", "/page/votes"):
            assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/page/about", "/page/runs", "/page/run?name=a", "/page/evaluations", "/page/votes"])
def test_every_route_that_tells_something_needs_a_key_where_there_are(
    models: Models, tmp_path: Path, path: str
) -> None:
    settings = {"runs_folder": tmp_path, "evaluations_folder": tmp_path, "votes_file": tmp_path / "votes.jsonl"}
    with client_of(models, api_keys=KEYS, **settings) as client:
        assert client.get(path).status_code == 401
        assert client.get(path, headers=ANN).status_code != 401


# --- Runs


def test_a_run_is_read_on_from_where_it_was_and_what_was_made_again_does_not_count(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "runs" / "a", num_steps=10, planned_steps=100)
    view, whole = RunsView(tmp_path / "runs"), lambda: RunsView(tmp_path / "runs").one("a")["charts"]
    run = Run(folder)
    assert view.one("a")["charts"] == whole()
    for record in (
        {"step": 11, "loss": 3.0},
        {"step": 12, "loss": None},
        {"resumed_from": 10},
        {"step": 11, "loss": 2},
    ):
        run.append("metrics", record)
        told = view.one("a")
        assert told["charts"] == whole()
    assert told["step"] == 11
    assert len(told["charts"][0]["lines"][0]["points"]) == 11
    assert view.one("a", known=told["stamp"]) == {"stamp": told["stamp"]}
    run.log_path("metrics").write_text('{"step": 1, "loss": 1.0}\n')  # the run was begun again
    assert view.one("a")["charts"] == whole()


def test_a_run_says_whether_it_trains(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "runs" / "inside" / "a", num_steps=10, planned_steps=100)
    view = RunsView(tmp_path / "runs")
    [told] = view.listing()
    assert (told["name"], told["state"], told["step"]) == ("inside/a", "stopped", 10)
    with FolderLock() as lock:
        lock.take(folder, say=print)
        assert view.listing()[0]["state"] == "training"
    (folder / "failure.txt").write_text("out of luck")
    [told] = view.listing()
    assert (told["state"], told["problem"]) == ("failed", "out of luck")
    (folder / "metrics.jsonl").write_text("no record\n")
    [told] = view.listing()
    assert told["state"] == "unreadable"
    assert "line 1 is not JSON" in told["problem"]
    assert view.one("inside/a")["charts"] == []


def test_what_is_drawn_of_a_run_does_not_grow_with_its_length(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "a", num_steps=1, planned_steps=100)
    lines = [json.dumps({"step": step, "loss": 2.0 + step % 7}) for step in range(2, 5000)]
    Run(folder).log_path("metrics").open("a").write("\n".join(lines) + "\n")
    for step in range(40):
        Run(folder).append("samples", {"step": step, "id": "x", "prompt": "Who?", "answer": str(step)})
    told = RunsView(tmp_path).one("a")
    for line in told["charts"][0]["lines"]:
        assert 290 <= len(line["points"]) <= 302
        assert line["points"][-1][0] == 4999
    assert [answer["step"] for answer in told["prompts"][0]["answers"]] == list(range(39, 27, -1))


def test_a_run_is_known_by_its_name_in_the_list_alone(models: Models, tmp_path: Path) -> None:
    save_run(tmp_path / "runs" / "a", num_steps=10)
    save_run(tmp_path / "secret", num_steps=10)
    with client_of(models, runs_folder=tmp_path / "runs") as client:
        assert [run["name"] for run in client.get("/page/runs").json()] == ["a"]
        assert client.get("/page/run", params={"name": "a"}).status_code == 200
        for name in ("../secret", str(tmp_path / "secret"), ".", "", "a/", "a/../../secret", "\0"):
            for path in ("/page/run", "/page/run/pictures"):
                told = client.get(path, params={"name": name})
                assert told.status_code == 404
                assert "there is no such run" in told.json()["error"]["message"]


def test_a_folder_without_runs_is_an_empty_list_until_there_is_one(tmp_path: Path) -> None:
    view = RunsView(tmp_path)
    assert view.listing() == []
    save_run(tmp_path / "a", num_steps=10)
    assert [run["name"] for run in view.listing()] == ["a"]


# --- Evaluations


def test_a_report_is_found_at_the_address_that_the_list_tells_and_runs_apart(models: Models, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "scores.json").write_text('{"models": [{"model": "m", "scores": {"cider": {"value": 1.5}}}]}')
    (tmp_path / "a" / "report.html").write_text("<p>the report</p>")
    (tmp_path / "b" / "scores.json").write_text("[]")
    with client_of(models, api_keys=KEYS, evaluations_folder=tmp_path) as client:
        told = {each["name"]: each for each in client.get("/page/evaluations", headers=ANN).json()}
        assert told["a"]["models"] == [{"name": "m", "scores": {"cider": [1.5, None, None]}}]
        assert told["b"]["report"] is None
        assert "scores.json cannot be read" in told["b"]["problem"]
        report = client.get(told["a"]["report"])  # a link carries no key
        assert report.text == "<p>the report</p>"
        assert report.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none';")
        for address in ("a", "x" * 64, told["a"]["report"][9:-1], "%2e%2e%2fsecret", "ä"):
            assert client.get(f"/reports/{address}").status_code == 404


# --- Blind questions and votes


def ask_blind(client: TestClient, *, headers: dict[str, str] | None = None, **changed: Any) -> Any:
    body = {"contestants": TWO, "messages": MESSAGES, **changed}
    return client.post("/page/blind", json=body, headers=headers or {})


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def said_by(events: list[dict[str, Any]], side: str) -> str:
    return "".join(event.get("text", "") for event in events if event.get("side") == side)


def test_nothing_that_is_sent_before_the_vote_tells_who_is_who_and_the_order_changes(
    models: Models, tmp_path: Path
) -> None:
    with client_of(models, votes_file=tmp_path / "votes.jsonl") as client:
        plain = {
            name: client.post("/v1/chat/completions", json={"model": name, "max_tokens": 8, "messages": MESSAGES})
            for name in ("first", "second")
        }
        texts = {name: told.json()["choices"][0]["message"]["content"] for name, told in plain.items()}
        shown = []
        for _ in range(12):
            told = ask_blind(client)
            for name in ("first", "second", "max_tokens"):
                assert name not in told.text
                assert name not in str(told.headers)
            events = events_of(told.text)
            assert [event["finish"] for event in events if "finish" in event] == ["length", "length"]
            vote = client.post("/page/votes", json={"blind_id": events[-1]["blind_id"], "vote": "A"}).json()
            for side, name in vote["names"].items():
                assert said_by(events, side) == texts[name.split(",")[0]]
            shown.append(vote["names"]["A"])
        assert set(shown) == {"first, max_tokens 8", "second, max_tokens 8"}  # 1 in 2,048 else
        [pair] = vote["tally"]
        assert pair["wins"] == [shown.count("first, max_tokens 8"), shown.count("second, max_tokens 8")]


def test_a_vote_is_taken_once_and_from_whoever_asked(models: Models, tmp_path: Path) -> None:
    with client_of(models, api_keys=KEYS, votes_file=tmp_path / "votes.jsonl") as client:
        vote = {"blind_id": events_of(ask_blind(client, headers=ANN).text)[-1]["blind_id"], "vote": "both bad"}
        told = client.post("/page/votes", json=vote, headers=BEN)
        assert told.status_code == 404
        assert "no such question waits for a vote" in told.json()["error"]["message"]
        assert client.post("/page/votes", json=vote, headers=ANN).status_code == 200
        assert client.post("/page/votes", json=vote, headers=ANN).status_code == 404
        [record] = map(json.loads, (tmp_path / "votes.jsonl").read_text().splitlines())
        assert (record["winner"], record["key"]) == ("both bad", "ann")


def test_two_that_are_one_are_refused_and_so_is_what_the_server_does_not_know(models: Models, tmp_path: Path) -> None:
    with client_of(models, votes_file=tmp_path / "votes.jsonl") as client:
        for changed, words in (
            ({"contestants": [TWO[0], TWO[0]]}, "got first, max_tokens 8 twice; choose another model"),
            ({"contestants": [TWO[0], {"model": "third"}]}, "model: got 'third', served are first, second"),
            ({"contestants": [TWO[0], {**TWO[1], "n": 2}]}, "contestants.1.n: no such parameter"),
            ({"contestants": TWO[:1]}, "contestants: "),
            ({"messages": []}, "messages: "),
        ):
            told = ask_blind(client, **changed)
            assert told.status_code in (400, 404)
            assert told.json()["error"]["message"].startswith(("contestants: ", words))
            assert words in told.json()["error"]["message"]
        told = ask_blind(client, contestants=[TWO[0], {**TWO[0], "temperature": 0.7, "seed": 1}])
        assert "blind_id" in events_of(told.text)[-1]


def test_a_vote_that_cannot_be_written_down_can_be_given_again(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(models, votes_file=tmp_path / "votes.jsonl") as client:
        vote = {"blind_id": events_of(ask_blind(client).text)[-1]["blind_id"], "vote": "tie"}

        def refuse(*_: object) -> None:
            raise OSError("no room")

        with monkeypatch.context() as patched:
            patched.setattr(Votes, "add", refuse)
            told = client.post("/page/votes", json=vote)
        assert told.status_code == 500
        assert "no room" not in told.text
        assert client.post("/page/votes", json=vote).json()["tally"][0]["ties"] == 1


def go_on(client: TestClient, blind_id: str, *messages: Any, headers: dict[str, str] | None = None) -> Any:
    return client.post("/page/blind", json={"blind_id": blind_id, "messages": messages}, headers=headers or {})


def shown_image() -> dict[str, Any]:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def test_a_blind_conversation_goes_on_from_each_sides_own_answers_until_the_vote(
    models: Models, tmp_path: Path
) -> None:
    what, why = {"role": "user", "content": "What is it?"}, {"role": "user", "content": "Why?"}
    where = {"role": "user", "content": [shown_image(), {"type": "text", "text": "And this?"}]}
    with client_of(models, votes_file=tmp_path / "votes.jsonl") as client:
        told = [events_of(ask_blind(client, messages=[what]).text)]
        blind_id = told[0][-1]["blind_id"]
        for messages in ([what, why], [what, why, where]):
            response = go_on(client, blind_id, *messages)
            assert not any(name in response.text for name in ("first", "second", "max_tokens"))
            told.append(events_of(response.text))
            assert told[-1][-1] == {"blind_id": blind_id}
        names = client.post("/page/votes", json={"blind_id": blind_id, "vote": "B"}).json()["names"]
        for side, name in names.items():
            heard: list[dict[str, Any]] = []
            for message, events in zip((what, why, where), told, strict=True):
                body = {"model": name.split(",")[0], "max_tokens": 8, "messages": [*heard, message]}
                plain = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
                assert said_by(events, side) == plain
                heard = [*body["messages"], {"role": "assistant", "content": plain}]
        record = json.loads((tmp_path / "votes.jsonl").read_text().splitlines()[-1])
        assert record["answers"] == {name: [said_by(each, side) for each in told] for side, name in names.items()}
        assert [message["role"] for message in record["messages"]] == ["user"] * 3
        assert list(record["messages"][2]["content"][0]) == ["type", "sha256"]
        assert go_on(client, blind_id, what, why).status_code == 404  # who is who is known


def test_a_blind_conversation_goes_on_from_what_was_said_and_for_whoever_asked(models: Models, tmp_path: Path) -> None:
    [what] = MESSAGES
    with client_of(models, api_keys=KEYS, votes_file=tmp_path / "votes.jsonl") as client:
        shown = {"role": "user", "content": [shown_image()]}
        blind_id = events_of(ask_blind(client, headers=ANN, messages=[shown]).text)[-1]["blind_id"]
        other = {"role": "user", "content": [{"type": "text", "text": "x"}]}
        for messages in ([what], [shown], [other, what], [shown, what, what], [what, shown]):
            told = go_on(client, blind_id, *messages, headers=ANN)
            assert told.status_code == 400
            assert "messages: need the 1 of before, with the same images" in told.json()["error"]["message"]
        told = go_on(client, blind_id, shown, {"role": "system", "content": "x"}, headers=ANN)
        assert "messages: got the roles user, assistant, system" in told.json()["error"]["message"]
        assert go_on(client, blind_id, shown, what, headers=BEN).status_code == 404
        body = {"blind_id": blind_id, "contestants": TWO, "messages": [shown, what]}
        told = client.post("/page/blind", json=body, headers=ANN)
        assert "contestants: they are those of the blind_id" in told.json()["error"]["message"]
        told = client.post("/page/blind", json={"messages": [what]}, headers=ANN)
        assert "contestants: missing, and needed where no blind_id" in told.json()["error"]["message"]
        assert events_of(go_on(client, blind_id, shown, what, headers=ANN).text)[-1] == {"blind_id": blind_id}


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [what] = MESSAGES
    with client_of(models, votes_file=tmp_path / "votes.jsonl") as client:
        events = events_of(ask_blind(client).text)
        blind_id = events[-1]["blind_id"]

        async def broken(self: object) -> AsyncIterator[tuple[str, str]]:
            yield "A", "so"
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(BlindStream, "_pieces", broken)
            told = events_of(go_on(client, blind_id, what, what).text)
        assert told[0] == {"side": "A", "text": "so"}
        assert "memory does not suffice" in told[1]["error"]["message"]
        names = client.post("/page/votes", json={"blind_id": blind_id, "vote": "tie"}).json()["names"]
        record = json.loads((tmp_path / "votes.jsonl").read_text())
        assert record["answers"] == {name: [said_by(events, side)] for side, name in names.items()}


def test_the_oldest_conversation_makes_room_for_the_newest() -> None:
    waiting = OpenConversations()
    for number in range(MOST_OPEN + 1):
        waiting.put(str(number), Blind("", {}, [{"number": number}]))
    assert waiting.take(str(MOST_OPEN), owner="").said == [{"number": MOST_OPEN}]
    with pytest.raises(Exception, match="no such question waits for a vote"):
        waiting.take("0", owner="")


def test_votes_are_added_up_by_pair_with_ties_apart(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "deep" / "votes.jsonl")
    for winner in ("first", "first", "second", "first", "tie", "both bad"):
        votes.add({"first": "a", "second": "b", "winner": winner})
    votes.add({"first": "a", "second": "c", "winner": "tie"})
    ab, ac = Votes(tmp_path / "deep" / "votes.jsonl").tally()
    assert (ab["wins"], ab["ties"], ab["both_bad"], ab["share"]) == ([3, 1], 1, 1, 0.75)
    assert (round(ab["low"], 3), round(ab["high"], 3)) == (0.301, 0.954)
    assert "share" not in ac


def test_a_file_that_holds_something_else_is_refused_at_the_start(models: Models, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text("something else\n")
    with pytest.raises(CheckpointError, match=r"votes\.jsonl: line 1 is not JSON"):
        create_app(Service(models, ServeSettings(votes_file=tmp_path / "votes.jsonl")))
