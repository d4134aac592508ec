"""A server of two tiny models with runs, an evaluation and votes, on a free port of this machine.

In: an empty folder. Out: a `ServedPage` that runs until its block ends.
Usage: `with serve_page(tmp_path) as page: browser.goto(page.address)`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn
from PIL import Image
from transformers import AutoModelForCausalLM

from tests.compare.made_runs import save_run
from tests.evaluation.made_evaluation import made_evaluation
from tests.tiny import randomise
from tests.training.tiny import language_config, save_data, save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.atomic import write_json
from visgraft.evaluation.report import write_report
from visgraft.serving import ServeSettings, Service, create_app, open_port
from visgraft.serving.running import address_of

POSITIONS = 1024  # long enough for an answer that can be stopped


@dataclass(frozen=True)
class ServedPage:
    """What is served, and where."""

    address: str
    folder: Path
    service: Service

    @property
    def run_folder(self) -> Path:
        """The run that a test may add to."""
        return self.folder / "runs" / "growing"

    @property
    def votes(self) -> Path:
        """The file of votes."""
        return self.folder / "votes.jsonl"

    @property
    def image(self) -> Path:
        """An image to ask about."""
        return self.folder / "images" / "0.png"


@contextmanager
def serve_page(folder: Path) -> Iterator[ServedPage]:
    """Serve until the block ends."""
    save_data(folder / "images", num_images=2)
    save_run(folder / "runs" / "growing", num_steps=20, planned_steps=100)
    save_run(folder / "runs" / "done", name="done", num_steps=60)
    pictures = folder / "runs" / "done" / "sample_prompts"
    pictures.mkdir()
    Image.new("RGB", (32, 32), "red").save(pictures / "0.jpg")
    evaluation = made_evaluation(folder / "drawn", num_images=4)
    scored = folder / "evaluations" / "shapes"
    scored.mkdir(parents=True)
    write_report(evaluation, scored / "report.html")
    write_json(scored / "scores.json", evaluation.as_json())
    settings = ServeSettings(
        runs_folder=folder / "runs",
        evaluations_folder=folder / "evaluations",
        votes_file=folder / "votes.jsonl",
    )
    service = Service(tiny_models(folder), settings)
    with run_in_thread(service) as address:
        yield ServedPage(address, folder, service)


@contextmanager
def run_in_thread(service: Service) -> Iterator[str]:
    """Serve until the block ends; give the address."""
    with open_port("127.0.0.1", 0) as opened:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, lifespan="on", ws="none"))
        thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive(), "the server did not start"
        try:
            yield address_of(opened)
        finally:
            server.should_exit = True
            thread.join(30)


def tiny_models(
    folder: Path, *, names: tuple[str, ...] = ("first", "second")
) -> dict[str, tuple[VisionLanguageModel, Processor]]:
    """Make models that say different things."""
    vision, language = save_parts(folder)
    models = {}
    for number, name in enumerate(names):
        processor = Processor.from_parts(vision, language)
        config = language_config("llama", len(processor.tokenizer))
        config.max_position_embeddings = POSITIONS
        torch.manual_seed(number)
        model = VisionLanguageModel.from_parts(vision, AutoModelForCausalLM.from_config(config)).eval()
        models[name] = (randomise(model, seed=number), processor)
    return models
