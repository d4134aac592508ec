"""The clients that people have work as they are: openai's and LangChain's, and the examples of docs/serve.md."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from tests.inference.asked import picture
from tests.serving.asked import Pair, data_url, served, user
from tests.warm_python import warm_python
from visgraft import Sample, Turn
from visgraft.inference import answer
from visgraft.serving.settings import ApiKey, digest_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def locked(serving_pair: Pair) -> Iterator[str]:
    with served(serving_pair, api_keys=(ApiKey(digest_of(KEY), "key"),)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def said(serving_pair: Pair) -> str:
    sample = Sample(images=[picture(0)], dialogs=[[Turn("What is it?", "", instruction="Answer shortly.")]])
    return answer(*serving_pair, [sample], max_new_tokens=12)[0]


def test_the_openai_client_works_as_it_is(locked: str, said: str) -> None:
    client = openai.OpenAI(base_url=f"{locked}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    messages = [{"role": "system", "content": "Answer shortly."}, user("What is it?", picture(0))]
    asked = {"model": "tiny", "messages": messages, "max_completion_tokens": 12}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == said
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    assert whole.usage.prompt_tokens_details.image_tokens == 5
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with client.chat.completions.stream(**asked) as events:
        assert events.get_final_completion().choices[0].message.content == said


def test_the_openai_client_raises_its_own_errors(locked: str) -> None:
    client = openai.OpenAI(base_url=f"{locked}/v1", api_key=KEY, max_retries=0)
    asked = {"model": "tiny", "messages": [user("Hello")]}
    with pytest.raises(openai.BadRequestError, match="tools: this server does not follow it") as caught:
        client.chat.completions.create(**asked, tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.param == "tools" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError, match="served are tiny"):
        client.chat.completions.create(**{**asked, "model": "gpt-4o"})
    with pytest.raises(openai.AuthenticationError, match="got none, or one that is not known"):
        openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong", max_retries=0).models.list()


async def _ask_async(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        messages = [{"role": "system", "content": "Answer shortly."}, user("What is it?", picture(0))]
        found = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)  # type: ignore[arg-type]
    return found.choices[0].message.content or ""


def test_the_asynchronous_openai_client_works_as_it_is(locked: str, said: str) -> None:
    import asyncio

    assert asyncio.run(_ask_async(locked)) == said


def test_langchain_works_as_it_is(locked: str, said: str, serving_pair: Pair) -> None:
    model = ChatOpenAI(base_url=f"{locked}/v1", api_key=KEY, model="tiny", max_tokens=12, temperature=0)
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": data_url(picture(0))}},
    ]
    messages = [SystemMessage("Answer shortly."), HumanMessage(content)]
    found = model.invoke(messages)
    assert found.content == said and found.usage_metadata["output_tokens"] >= 1
    assert "".join(chunk.content for chunk in model.stream(messages)) == said
    talk = [*messages, AIMessage(said), HumanMessage("Why?")]
    turns = [Turn("What is it?", said, instruction="Answer shortly."), Turn("Why?", "")]
    assert model.invoke(talk).content == answer(*serving_pair, [Sample([picture(0)], [turns])], max_new_tokens=12)[0]
    assert len(model.bind(logprobs=True).invoke(messages).response_metadata["logprobs"]["content"]) > 0
    assert [each.content for each in model.batch([messages] * 3)] == [said] * 3


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(examples("python"))))
def test_the_python_examples_of_the_docs_run(locked: str, tmp_path: Path, number: int) -> None:
    picture(0).save(tmp_path / "cat.jpg")
    code = examples("python")[number].replace("http://127.0.0.1:8000", locked).replace('"my-run"', '"tiny"')
    code = code.replace('"unused"', f'"{KEY}"')
    done = subprocess.run([*warm_python(), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(examples("bash"))))
def test_the_curl_examples_of_the_docs_run(locked: str, tmp_path: Path, number: int) -> None:
    picture(0).save(tmp_path / "cat.jpg")
    code = examples("bash")[number].replace("http://127.0.0.1:8000", locked).replace("my-run", "tiny")
    code = code.replace(
        "curl ", f"curl --silent --show-error --fail-with-body -H {shlex.quote(f'Authorization: Bearer {KEY}')} "
    )
    done = subprocess.run(["bash", "-ec", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
