"""The server's page in Chromium: ask, stream, stop, look at tokens, vote, watch a run; axe finds no violation.

Nothing is asked of others, and nothing is said in the console, whatever a test does. Without a Chromium these tests are
skipped, and say so; `.ci/run` installs one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from tests.compare.made_runs import save_run
from tests.reporting.chromium import BROWSER, needs_chromium
from tests.serving.served_page import ServedPage, run_in_thread, serve_page, tiny_models
from visgraft.runs import Run
from visgraft.serving import ServeSettings, Service
from visgraft.serving.settings import ApiKey, digest_of

pytestmark = [needs_chromium, pytest.mark.slow]
Visit = Callable[..., Page]
LONG = 1000  # tokens: far more than are said before a hand reaches the button
SHORT = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    with serve_page(tmp_path_factory.mktemp("served")) as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser, served: ServedPage) -> Iterator[Visit]:
    """Open the page at a view; at the end nothing may have been asked of others, and nothing said in the console."""
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def open_view(view: str = "try", *, address: str = served.address, width: int = 1280) -> Page:
        is_phone = width < 600
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 844}, has_touch=is_phone, is_mobile=is_phone)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(_told(message)))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/#{view}")
        return page

    yield open_view
    for context in contexts:
        context.close()
    others = [url for url in asked if not re.match(r"http://127\.0\.0\.1:|data:|blob:", url)]
    assert others == []
    assert [text for text in said if text] == []


def _told(message: ConsoleMessage) -> str:
    """Give what the console says, but that a request was refused: the page says that itself."""
    return "" if "Failed to load resource" in message.text else message.text


def view_of(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name, exact=True)


def ask(view: Locator, text: str, *, image: Path | None = None, max_tokens: int = SHORT) -> None:
    """Write a question, and press Enter."""
    for form in view.locator("form.settings").all():
        form.evaluate("(form, value) => { form.elements.max_tokens.value = value; }", str(max_tokens))
    if image is not None:
        view.get_by_label("Choose images").set_input_files(str(image))
        expect(view.locator(".strip img")).to_have_count(1)
    question = view.get_by_role("textbox", name="Question")
    question.fill(text)
    question.press("Enter")


def answers(view: Locator) -> list[str]:
    return [str(text.evaluate("text => text.textContent")) for text in view.locator(".answer .text").all()]


def wait_for_answers(view: Locator, number: int) -> None:
    expect(view.get_by_role("button", name="Copy", exact=True)).to_have_count(number)


def test_a_question_about_an_image_is_answered_as_the_api_answers_and_the_second_turn_holds_the_first(
    served: ServedPage, visit: Visit
) -> None:
    page = visit()
    view, bodies = view_of(page, "Try"), []
    page.on("request", lambda request: bodies.append(request.post_data_json) if is_chat(request) else None)
    ask(view, "What colour is it?", image=served.image)
    wait_for_answers(view, 1)
    ask(view, "And what else?")
    wait_for_answers(view, 2)
    first, second = answers(view)
    assert [message["role"] for message in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[1]["messages"][:2] == [*bodies[0]["messages"], {"role": "assistant", "content": first}]
    assert bodies[0]["stream"] is True
    for body, answer in zip(bodies, (first, second), strict=True):
        whole = {name: value for name, value in body.items() if name not in ("stream", "logprobs", "top_logprobs")}
        told = httpx.post(f"{served.address}/v1/chat/completions", json=whole).json()
        assert told["choices"][0]["message"]["content"] == answer
    page.get_by_role("button", name="New conversation").click()
    assert answers(view) == []


def is_chat(request: Request) -> bool:
    return request.url.endswith("/v1/chat/completions")


def test_an_answer_grows_on_the_page_and_stop_frees_its_slot(
    served: ServedPage, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served.service.models["first"].engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: time.sleep(0.01) or step())  # as slow as a model of the world
    view = view_of(visit(), "Try")
    ask(view, "Tell me a long story.", max_tokens=LONG)
    text = view.locator(".answer .text")
    expect(text).not_to_have_text("")
    begun = answers(view)[0]
    expect(view.locator("[aria-busy=true]")).to_have_count(1)
    expect(text).not_to_have_text(begun)
    view.get_by_role("button", name="Stop").click()
    expect(view.locator(".foot")).to_contain_text("stopped")
    expect(view.locator("[aria-busy=true]")).to_have_count(0)
    assert answers(view)[0].startswith(begun)
    until(lambda: served.service.models["first"].engine.num_active == 0)
    ask(view, "And a short one?")  # the conversation goes on with what was said
    wait_for_answers(view, 2)


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_a_refusal_is_told_in_words_and_the_question_goes_back_to_where_it_was_written(
    served: ServedPage, visit: Visit, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page = visit()
    view = view_of(page, "Try")
    ask(view, "What is it?", image=broken)
    expect(page.get_by_role("alert")).to_contain_text("not an image of a kind that is read: PNG, JPEG")
    expect(view.get_by_role("textbox", name="Question")).to_have_value("What is it?")
    view.get_by_role("button", name="Remove broken.png").click()
    page.keyboard.press("Enter")
    wait_for_answers(view, 1)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_copied_request_asks_the_same_with_curl_and_with_python(
    served: ServedPage, visit: Visit, tmp_path: Path
) -> None:
    page = visit()
    view = view_of(page, "Try")
    ask(view, 'Is "it" $HOME, `red` or C:\\new?\nEOF', image=served.image)
    wait_for_answers(view, 1)
    codes = {}
    for name in ("curl", "Python"):
        view.get_by_role("button", name=f"The request as {name}").click()
        codes[name] = page.get_by_role("dialog").locator("code").text_content() or ""
        page.keyboard.press("Escape")
    (tmp_path / served.image.name).write_bytes(served.image.read_bytes())
    settings: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True, "timeout": 60}
    told = json.loads(subprocess.run(["bash", "-c", codes["curl"]], **settings).stdout)
    assert told["choices"][0]["message"]["content"] == answers(view)[0]
    told = subprocess.run([sys.executable, "-c", codes["Python"]], **settings).stdout
    assert told == answers(view)[0] + "\n"


def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(visit: Visit, tmp_path: Path) -> None:
    settings = ServeSettings(api_keys=(ApiKey(digest_of("a-good-key"), "key-1"),))
    with run_in_thread(Service(tiny_models(tmp_path, names=("only",)), settings)) as address:
        page = visit(address=address)
        for key in ("a-bad-key", "a-good-key"):
            expect(page.get_by_role("alert")).to_contain_text("key: got none, or one that is not known")
            page.get_by_label("API key").fill(key)
            page.keyboard.press("Enter")
        view = view_of(page, "Try")
        ask(view, "What is it?")
        wait_for_answers(view, 1)
        expect(page.get_by_label("API key")).to_be_hidden()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_two_answers_are_blind_until_the_vote_is_given(served: ServedPage, visit: Visit) -> None:
    page = visit("compare")
    view = view_of(page, "Compare")
    for number, vote in enumerate(("A is better", "B is better", "A tie", "Both are bad"), start=1):
        ask(view, "What is it?", image=served.image)
        button = view.get_by_role("button", name=vote)
        button.wait_for()
        markup = str(view.locator(".pair").last.evaluate("pair => pair.parentElement.outerHTML"))
        assert "first" not in markup
        assert "second" not in markup
        before = answers(view)
        button.click()
        expect(view.get_by_role("status")).to_contain_text(f"Your vote: {vote}. A was ")
        record = json.loads(served.votes.read_text().splitlines()[-1])
        shown = view.get_by_role("article", name="Answer A").get_by_role("heading").inner_text()
        assert shown == f"A {record['shown_as_A']}"
        others = {record["first"], record["second"]} - {record["shown_as_A"]}
        assert [record["answers"][name] for name in (record["shown_as_A"], *others)] == [[said] for said in before]
        assert len(served.votes.read_text().splitlines()) == number
        assert record["messages"][0]["content"][1] == {"type": "text", "text": "What is it?"}
        assert "base64" not in json.dumps(record)
    expect(view.locator(".tally")).to_contain_text("of 2 decided votes (95 % interval")
    expect(view.locator(".tally")).to_contain_text("besides 1 tie, 1 both bad")


def test_a_blind_conversation_has_several_turns_and_one_vote(served: ServedPage, visit: Visit) -> None:
    page = visit("compare", width=390)
    view = view_of(page, "Compare")
    ask(view, "What is it?")
    view.get_by_role("button", name="A tie").wait_for()
    assert view.get_by_label("Model").first.is_disabled()  # a conversation that is on is asked as it was begun
    before = answers(view)
    page.route("**/page/blind", lambda route: route.abort())
    ask_on(view, "And this?", image=served.image)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.unroute("**/page/blind")
    assert answers(view) == before
    view.get_by_role("textbox", name="Question").press("Enter")  # question and image are where they were written
    expect(view.get_by_role("article", name="Answer B, turn 2")).to_have_count(1)
    view.get_by_role("button", name="A tie").wait_for()
    said = answers(view)
    assert said[:2] == before
    check(page, 390)
    view.get_by_role("button", name="A is better").click()
    expect(view.get_by_role("status").first).to_contain_text("Your vote: A is better. A was ")
    record = json.loads(served.votes.read_text().splitlines()[-1])
    [other] = {record["first"], record["second"]} - {record["shown_as_A"]}
    assert record["answers"] == {record["shown_as_A"]: said[::2], other: said[1::2]}
    assert [len(message["content"]) for message in record["messages"]] == [len("What is it?"), 2]
    headings = view.get_by_role("heading", name=re.compile(f"^A {re.escape(record['shown_as_A'])}$"))
    expect(headings).to_have_count(2)
    assert view.get_by_label("Model").first.is_enabled()
    ask(view, "A new one?")
    expect(view.get_by_role("article", name="Question")).to_have_count(1)
    view.get_by_role("button", name="Begin again without a vote").click()
    assert answers(view) == []


def ask_on(view: Locator, text: str, *, image: Path) -> None:
    """Write a further question of a conversation that is on, and press Enter."""
    view.get_by_label("Choose images").set_input_files(str(image))
    expect(view.locator(".strip img")).to_have_count(1)
    view.get_by_role("textbox", name="Question").fill(text)
    view.get_by_role("textbox", name="Question").press("Enter")


def test_a_curve_tells_its_values_where_it_is_pointed_at_and_to_the_keyboard(served: ServedPage, visit: Visit) -> None:
    save_run(served.folder / "runs" / "read", name="read", num_steps=40)
    view = view_of(visit("runs/read"), "Runs")
    chart = view.get_by_role("img", name=re.compile("^loss over steps, at step 40:"))
    reading = view.locator(".curve").first.locator("output")
    expect(reading).to_have_text("")
    box = chart.bounding_box()
    assert box is not None
    chart.hover(position={"x": 52 + (box["width"] - 64) / 2, "y": 100})  # between its margins
    logged = [json.loads(line) for line in (served.folder / "runs" / "read" / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in logged if "loss" in record}
    expect(reading).to_contain_text(f"step 20: each step {float(f'{losses[20]:.4g}'):.6g}, training ")
    view.page.mouse.move(2, 2)
    expect(reading).to_have_text("")
    chart.focus()
    view.page.keyboard.press("Home")
    expect(reading).to_contain_text(f"step 1: each step {float(f'{losses[1]:.4g}'):.6g}")
    view.page.keyboard.press("ArrowRight")
    expect(reading).to_contain_text("step 2: ")
    with (served.folder / "runs" / "read" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 41, "loss": 0.5, "samples": 32, "seconds": 0.5}\n')
    longer = view.get_by_role("img", name=re.compile("at step 41"))
    expect(longer).to_be_focused()  # what is read stays, as the run goes on
    expect(reading).to_contain_text("step 2: ")
    view.page.keyboard.press("End")
    expect(reading).to_contain_text("step 41: each step 0.5")
    view.page.keyboard.press("Escape")
    expect(reading).to_have_text("")


def test_a_run_is_drawn_as_it_trains(served: ServedPage, visit: Visit) -> None:
    page = visit("runs/growing")
    view = view_of(page, "Runs")
    chart = view.get_by_role("img", name=re.compile("^loss over steps, at step 20:"))
    chart.wait_for()
    with served.run_folder.joinpath("metrics.jsonl").open("a") as log:
        log.write('{"step": 21, "loss": 0.5, "samples": 32, "seconds": 0.5}\n{"step": 22, "lo')  # the second is torn
    view.get_by_role("img", name=re.compile("at step 21")).wait_for()
    Run(served.run_folder).append("samples", {"step": 21, "id": "x", "prompt": "Whose?", "answer": "<b>mine</b>"})
    expect(view.get_by_role("article", name="Sample prompt Whose?")).to_contain_text("<b>mine</b> at step 21")
    view.get_by_role("link", name="done").click()
    view.get_by_role("img", name=re.compile("at step 60")).first.wait_for()


def test_the_report_of_an_evaluation_opens_apart_from_the_page(visit: Visit) -> None:
    page = visit("evaluations")
    view = view_of(page, "Evaluations")
    expect(view.get_by_role("article", name="shapes")).to_contain_text("exact_match")
    with page.expect_popup() as opening:
        view.get_by_role("link", name="Every answer").click()
    report = opening.value
    expect(report.locator(".answers li").first).to_be_visible()
    expect(report.locator(".plot svg").first).to_be_visible()
    assert report.evaluate("origin") == "null"  # so it reads neither the page's key nor its answers


@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_is_accessible_in_light_and_dark_and_fits(served: ServedPage, visit: Visit, width: int) -> None:
    page = visit(width=width)
    view = view_of(page, "Try")
    ask(view, "What colour is it?", image=served.image)
    wait_for_answers(view, 1)
    view.get_by_text("Settings", exact=True).click()
    view.get_by_role("button", name="Probabilities").click()
    view.locator(".token").nth(1).click()
    check(page, width)
    view.get_by_role("button", name="The request as curl").click()
    check(page, width)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Compare").click()
    view = view_of(page, "Compare")
    ask(view, "What is it?")
    view.get_by_role("button", name="A tie").wait_for()
    check(page, width)
    view.get_by_role("button", name="A tie").click()
    view.locator(".tally").wait_for()
    check(page, width)
    page.get_by_role("link", name="Runs").click()
    view_of(page, "Runs").locator(".curve svg").first.wait_for()
    view_of(page, "Runs").get_by_text("earlier").first.click()
    check(page, width)
    page.get_by_role("link", name="Evaluations").click()
    view_of(page, "Evaluations").get_by_role("article").first.wait_for()
    check(page, width)


def check(page: Page, width: int) -> None:
    """Find no violation that axe knows, of colours in the dark neither, and nothing beyond the edge."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.emulate_media(color_scheme="dark")
    found = Axe().run(page, options={"runOnly": {"type": "rule", "values": ["color-contrast"]}})
    assert found.violations_count == 0, found.generate_report()
    assert found.response["passes"], "axe saw no text in the dark"
    page.emulate_media(color_scheme="light")


def test_the_whole_way_can_be_gone_by_keyboard(served: ServedPage, visit: Visit) -> None:
    page = visit()
    view = view_of(page, "Try")
    view.locator("form.settings").evaluate("(form, value) => { form.elements.max_tokens.value = value; }", str(SHORT))
    expect(view.get_by_role("textbox", name="Question")).to_be_focused()
    page.keyboard.type("What is it?")
    page.keyboard.press("Enter")
    wait_for_answers(view, 1)
    toggle = view.get_by_role("button", name="Probabilities")
    toggle.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    expect(view.locator(".token").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(view.locator(".token").nth(1)).to_be_focused()
    expect(view.locator(".detail caption")).to_contain_text("came with")
    expect(view.locator(".detail tbody tr")).to_have_count(5)
    page.keyboard.press("End")
    expect(view.locator(".token").last).to_be_focused()
