"""Requests a second and times to the first token of the server, beside what one would use instead.

    python bench/serve.py                              # writes bench/results/serve.json
    python bench/serve.py --shapes vit-b16             # ViT-B/16 and SmolLM2-135M's shapes, random
    python bench/serve.py --minutes 10                 # and ten minutes of mixed load behind it
    python bench/serve.py --tiny --rounds 1 --minutes 0.2 --output /tmp/serve.json

A server in a process of its own, a load generator in this one: 64 questions about 16 images, 32 new tokens each,
streamed, asked by 1, 4 and 16 clients, each of whom asks the next one when the last is answered. Beside it, on the same
machine:

    one client           one request at a time
    static batch         16 equal requests at once, in this process, without HTTP: the loop's, and `generate`'s; no
                         server on this loop can be faster than the first
    transformers serve   on the same model, where `transformers[serve]` is installed; it answers one at a time
    second question      the first token of a second question about an image, beside that of the first

Mixed load: clients that stream, go away, talk on, send rubbish; nothing may be lost, and the server's memory may not
grow. In float32 no text may differ from what was said before the load. In bf16 a greedy answer may, and only where its
first other token is a near tie (bench/near_ties.py): each is looked at, and any other fails. Drawn answers that differ
are counted apart: there a number falls between two roundings of one border.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import near_ties
import torch
from caption import make_images, make_pair
from harness import console, machine, positive, write
from near_ties import Asked
from PIL import Image
from prefix_cache import make_model
from transformers import CLIPImageProcessorPil

from visgraft.data.sample import Sample, Turn
from visgraft.inference import GREEDY, Decoding, Engine, load, prompts_of
from visgraft.inference.eval_mode import eval_mode
from visgraft.processor import Processor
from visgraft.starter import starter_pair

Said = tuple[Asked, tuple[bytes, ...]]
TEXTS = ("What is it?", "Which colours are there?", "Is there anything red in the picture?", "Describe it.")


# --- The load generator: plain sockets, so that it takes little of the machine that it measures


@dataclass
class Heard:
    """What came of one request; times in seconds from its sending."""

    status: int = 0
    text: str = ""
    first_s: float | None = None
    whole_s: float = 0.0
    is_whole: bool = False
    pieces: list[str] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)  # where they were asked for


async def ask(port: int, body: dict[str, Any], *, leave_after: int | None = None) -> Heard:
    """Send a request, and hear its answer, or go away behind so many pieces."""
    data, heard, began = json.dumps(body).encode(), Heard(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        heard.status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        if not body.get("stream"):
            rest = await reader.read()
            heard.is_whole = rest.rstrip().endswith((b"}", b"0"))
            return heard
        async for line in reader:
            if line.startswith(b"data: {"):
                _hear(heard, json.loads(line[6:]), began)
            if leave_after is not None and len(heard.pieces) > leave_after:
                return heard
        return heard
    finally:
        heard.whole_s = time.perf_counter() - began
        heard.text = "".join(heard.pieces)
        writer.close()


def _hear(heard: Heard, chunk: dict[str, Any], began: float) -> None:
    for choice in chunk.get("choices") or ():
        heard.is_whole |= choice.get("finish_reason") is not None
        heard.tokens += [bytes(token["bytes"]) for token in (choice.get("logprobs") or {}).get("content") or ()]
        piece = (choice.get("delta") or {}).get("content")
        if piece:
            heard.first_s = heard.first_s or time.perf_counter() - began
            heard.pieces.append(piece)


async def by_clients(port: int, bodies: Sequence[dict[str, Any]], *, num_clients: int) -> dict[str, Any]:
    """Let clients ask all of it, each the next one when its last is answered."""
    left, heard = iter(bodies), []

    async def client() -> None:
        for body in left:
            heard.append(await ask(port, body))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = time.perf_counter() - began
    assert all(each.status == 200 and each.is_whole for each in heard), [each.status for each in heard]
    firsts = sorted(each.first_s for each in heard if each.first_s is not None)
    wholes = sorted(each.whole_s for each in heard)
    return {
        "requests_per_s": round(len(bodies) / seconds, 3),
        **{f"{name}_p{part}_s": round(_part(times, part), 4)
           for name, times in (("first_token", firsts), ("whole", wholes)) for part in (50, 95)},
    }  # fmt: skip


def _part(times: Sequence[float], part: int) -> float:
    return times[min(len(times) - 1, round(part / 100 * (len(times) - 1)))] if times else float("nan")


# --- What is asked


def data_url(path: Path) -> str:
    """Write an image file as a data: URL."""
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


def body_of(model: str, url: str, text: str, *, num_tokens: int, end_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Ask for an answer of just so many tokens."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "max_tokens": num_tokens, "stream": True}
    return {**body, "logit_bias": {str(token): -100 for token in end_ids}} if end_ids else body


# --- Servers


@contextmanager
def serving(command: Sequence[str], *, port: int, log: Path) -> Iterator[int]:
    """Run a server until it answers at /health; gives its process id."""
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
    try:
        for _ in range(3000):
            time.sleep(0.1)
            assert process.poll() is None, log.read_text()[-3000:]
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                if b" 200 " in connection.recv(100):
                    break
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """Find a port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def run_transformers_serve(folder: str, port: str) -> None:
    """Be `transformers serve` for a model of ours: its class is in their namespace, two arguments are let through."""
    import transformers
    from transformers.cli.transformers import main as transformers_main
    from transformers.models.auto import modeling_auto

    from visgraft import VisionLanguageModel

    transformers.VisionLanguageModel = VisionLanguageModel  # type: ignore[attr-defined]
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[VisionLanguageModel.config_class.model_type] = (
        VisionLanguageModel.__name__
    )
    theirs: Any = Processor.apply_chat_template

    def apply_chat_template(self: Processor, conversation: Any, **given: Any) -> Any:
        del given["tools"], given["load_audio_from_video"]
        return theirs(self, conversation, **given)

    Processor.apply_chat_template = apply_chat_template  # type: ignore[method-assign]
    sys.argv = ["transformers", "serve", folder, "--host", "127.0.0.1", "--port", port]
    transformers_main()


# --- Beside it


def static_batches(
    folder: Path, prompts: Sequence[tuple[Path, str]], *, num_tokens: int, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Answer batches of equal requests in this process: 16 at once, of one length, no HTTP, no queue."""
    model, processor = load(str(folder))
    text = prompts[0][1]
    paths = [path for path, _ in prompts]
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    settings: dict[str, Any] = {**GREEDY, "eos_token_id": None, "pad_token_id": processor.tokenizer.pad_token_id}

    def by_loop() -> None:
        engine = Engine(model, processor, num_slots=batch_size)
        for batch in batches:
            opened = {
                path: prompts_of(processor, Sample([path], [[Turn(text, "")]]))[0] for path in dict.fromkeys(batch)
            }
            asked = Decoding.of(max_new_tokens=num_tokens, eos_token_id=None)
            replies = [engine.submit(opened[path], asked) for path in batch]
            assert all(len(reply.answer().token_ids) == num_tokens for reply in replies)

    def by_generate() -> None:
        for batch in batches:
            with eval_mode(model):
                images = [Image.open(path).convert("RGB") for path in batch]
                inputs = processor(images=images, text=[text] * len(batch)).to(model.device)
                model.generate(**inputs, **settings, max_new_tokens=num_tokens)

    found = {}
    for name, run in (("loop", by_loop), ("generate", by_generate)):
        run()
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        found[name] = {"requests_per_s": round(len(paths) / statistics.median(times), 3)}
    return found


async def second_question(port: int, model: str, urls: Sequence[str], *, end_ids: Sequence[int]) -> dict[str, Any]:
    """Time the first token of the first and of a second question about each image, one at a time."""
    firsts, seconds = [], []
    for url in urls:
        for text, times in ((TEXTS[0], firsts), (TEXTS[1], seconds)):
            heard = await ask(port, body_of(model, url, text, num_tokens=4, end_ids=end_ids))
            times.append(heard.first_s or heard.whole_s)
    ratios = [second / first for first, second in zip(firsts, seconds, strict=True)]
    return {
        "first_s": round(statistics.median(firsts), 4),
        "second_s": round(statistics.median(seconds), 4),
        "second / first": round(statistics.median(ratios), 3),
    }


# --- Mixed load


class Load:
    """What is asked in the mixed load: 32 ways to ask, of which every fourth is drawn."""

    def __init__(self, model: str, paths: Sequence[Path]) -> None:
        """Know the images."""
        self._model, self._paths = model, paths
        self._urls = {path: data_url(path) for path in paths}

    def asked(self, number: int) -> Asked:
        """Say it as this process would ask."""
        first = Turn(TEXTS[number % len(TEXTS)], "A cat.")
        turns = (first, Turn("And now?", "")) if number % 3 == 2 else (replace(first, answer=""),)
        return Asked(self._paths[number % len(self._paths)], turns, 8 + 8 * (number % 3))

    def is_drawn(self, number: int) -> bool:
        """Say whether chance has a part in it."""
        return number % 4 == 3

    def body(self, number: int) -> dict[str, Any]:
        """Say it as a client asks."""
        asked = self.asked(number)
        shown = {"type": "image_url", "image_url": {"url": self._urls[asked.image]}}
        messages: list[dict[str, Any]] = []
        for turn in asked.turns:
            text = {"type": "text", "text": turn.prompt}
            messages.append({"role": "user", "content": [text] if messages else [shown, text]})
            messages += [{"role": "assistant", "content": turn.answer}] if turn.answer else []
        drawn = {"temperature": 1, "top_p": 0.9, "seed": number} if self.is_drawn(number) else {"logprobs": True}
        return {"model": self._model, "messages": messages, "max_tokens": asked.num_tokens, "stream": True, **drawn}


async def mixed_load(port: int, pid: int, load: Load, *, minutes: float) -> tuple[dict[str, Any], list[Said]]:
    """Ask in every way at once; compare every whole answer with what was said before.

    Returns:
        What came of it; and the greedy answers, those before the load first, that are to be looked at.
    """
    wanted = [await ask(port, load.body(number)) for number in range(32)]
    greedy = [(load.asked(number), tuple(wanted[number].tokens)) for number in range(32) if not load.is_drawn(number)]
    names = ("answered", "left", "refused", "busy", "different", "different_drawn", "lost")
    counts = dict.fromkeys(names, 0)
    memory: list[tuple[float, int]] = []
    end, began = time.monotonic() + 60 * minutes, time.monotonic()

    async def client(draw: random.Random) -> None:
        while time.monotonic() < end:
            number, way = draw.randrange(len(wanted)), draw.random()
            if way < 0.15:
                await ask(port, load.body(number), leave_after=draw.randrange(4))
                counts["left"] += 1
            elif way < 0.3:
                spoiled = {
                    **load.body(number),
                    draw.choice(["temperature", "n", "messages"]): draw.choice([-1, "x", []]),
                }
                counts["refused"] += (await ask(port, {**spoiled, "stream": False})).status == 400
            else:
                heard = await ask(port, load.body(number))
                counts["busy"] += heard.status == 429
                if heard.status != 429:
                    counts["answered" if heard.is_whole else "lost"] += 1
                if heard.is_whole and heard.text != wanted[number].text:
                    counts["different_drawn" if load.is_drawn(number) else "different"] += 1
                    if not load.is_drawn(number):
                        greedy.append((load.asked(number), tuple(heard.tokens)))

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append((time.monotonic() - began, _resident_bytes(pid)))
            await asyncio.sleep(min(5.0, 6 * minutes))

    await asyncio.gather(watch(), *(client(random.Random(seed)) for seed in range(24)))
    settled = [size for at, size in memory if at > 0.3 * 60 * minutes]  # behind the filling of caches
    third = max(1, len(settled) // 3)
    growth = statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1
    found = {"minutes": minutes, **counts, "memory_growth": round(growth, 4), "memory_mib": settled[-1] >> 20}
    return found, greedy


def _resident_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024


# --- All of it


def save_model(folder: Path, *, shapes: str) -> tuple[Path, list[int]]:
    """Write the model that is served; gives its folder and the tokens that would end an answer."""
    if shapes == "vit-b16":
        model = make_model(tiny=False)
        square = CLIPImageProcessorPil()
        processor = Processor.from_parts(
            square,
            starter_pair().language,
            num_image_tokens=model.projection.num_tokens,  # type: ignore[arg-type]
        )
    else:
        model, processor = make_pair(tiny=shapes == "tiny")
    path = folder / shapes
    model.save_pretrained(path)
    processor.save_pretrained(path)
    ends = model.generation_config.eos_token_id
    ids = [ends] if isinstance(ends, int) else list(ends or ())
    settings = path / "generation_config.json"  # `transformers serve` then stops where it is told, as ours does
    written = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: value for name, value in written.items() if name != "eos_token_id"}))
    return path, sorted({*ids, processor.tokenizer.eos_token_id} - {None})


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=["starter", "vit-b16", "tiny"], default="starter")
    parser.add_argument("--tiny", action="store_const", dest="shapes", const="tiny", help="only shows that it runs")
    parser.add_argument("--questions", type=positive, default=64)
    parser.add_argument("--images", type=positive, default=16)
    parser.add_argument("--new-tokens", type=positive, default=32)
    parser.add_argument("--clients", type=positive, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="of mixed load")
    parser.add_argument("--precision", default="auto", help="of the server; texts under load are equal in fp32")
    parser.add_argument("--no-transformers-serve", action="store_true", help="it takes as long as one client")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        paths = make_images(folder, number=args.images + 8)
        model, end_ids = save_model(folder, shapes=args.shapes)
        result = {
            "what": __doc__,
            "machine": machine(),
            "load_of_the_machine": os.getloadavg(),
            "shapes": args.shapes,
            "questions": args.questions,
            "images": args.images,
            "new_tokens": args.new_tokens,
            **measure(model, paths, end_ids, args=args, folder=folder),
        }
        write(result, path=args.output)


def measure(
    model: Path, paths: Sequence[Path], end_ids: list[int], *, args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Time the server, and what it is beside."""
    shown, fresh = paths[: args.images], [data_url(path) for path in paths[args.images :]]
    pairs = list(itertools.islice(itertools.cycle((path, text) for text in TEXTS for path in shown), args.questions))
    urls = {path: data_url(path) for path in shown}
    settings = {"num_tokens": args.new_tokens, "end_ids": end_ids}
    result: dict[str, Any] = {}
    port = free_port()
    command = [sys.executable, "-m", "visgraft", "serve", str(model), "--port", str(port)]
    command += ["--precision", args.precision]
    with serving(command, port=port, log=folder / "serve.log") as pid:
        bodies = [body_of(model.name, urls[path], text, **settings) for path, text in pairs]
        asyncio.run(by_clients(port, bodies[:8], num_clients=4))
        result["second_question"] = asyncio.run(second_question(port, model.name, fresh, end_ids=end_ids))
        console.print(f"second question: {result['second_question']}")
        result["clients"] = {}
        for number in args.clients:
            rounds = [asyncio.run(by_clients(port, bodies, num_clients=number)) for _ in range(args.rounds)]
            rounds.sort(key=lambda each: each["requests_per_s"])
            result["clients"][str(number)] = rounds[len(rounds) // 2]
            console.print(f"{number} clients: {result['clients'][str(number)]}")
        if args.minutes:
            load = Load(model.name, shown)
            result["mixed_load"], greedy = asyncio.run(mixed_load(port, pid, load, minutes=args.minutes))
            console.print(f"mixed load: {result['mixed_load']}")
    if args.minutes:
        result["mixed_load"]["greedy"] = near_ties.look_at(greedy, folder=model, precision=args.precision)
        console.print(f"mixed load, greedy answers: {result['mixed_load']['greedy']}")
        assert not result["mixed_load"]["greedy"]["other"], "a token differs that is no near tie"
    if not args.no_transformers_serve:
        port = free_port()
        command = [sys.executable, __file__, "--as-transformers-serve", str(model), str(port)]
        try:
            with serving(command, port=port, log=folder / "transformers.log"):
                plain = [body_of(str(model), urls[path], text, num_tokens=args.new_tokens) for path, text in pairs]
                asyncio.run(by_clients(port, plain[:2], num_clients=1))
                result["transformers_serve"] = {
                    str(number): asyncio.run(by_clients(port, plain, num_clients=number))
                    for number in (min(args.clients), max(args.clients))
                }
        except AssertionError as error:
            result["transformers_serve"] = f"does not run: {str(error)[-300:]}"
        console.print(f"transformers serve: {result['transformers_serve']}")
    result["static_batch_of_16"] = static_batches(
        model, pairs, num_tokens=args.new_tokens, batch_size=16, rounds=args.rounds
    )
    console.print(f"static batch: {result['static_batch_of_16']}")
    most = result["clients"][str(max(args.clients))]["requests_per_s"]
    static = max(each["requests_per_s"] for each in result["static_batch_of_16"].values())
    one = result["clients"][str(min(args.clients))]["requests_per_s"]
    return {
        **result,
        "most clients / one client": round(most / one, 2),
        "most clients / static batch": round(most / static, 2),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-transformers-serve"]:
        run_transformers_serve(*sys.argv[2:4])
    else:
        torch.manual_seed(0)
        main()
