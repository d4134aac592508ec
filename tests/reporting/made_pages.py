"""Every kind of page that visgraft writes, of made-up runs, answers and models: for looking at, and for axe.

In: an empty folder. Out: HTML files in it, by the name of the command that writes them.

    python -m tests.reporting.made_pages /tmp/pages --pictures   # and each as a picture, wide, narrow, light, dark
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from tests.compare.made_runs import save_experiment, save_run
from tests.evaluation.made_evaluation import made_evaluation
from tests.reporting.chromium import BROWSER
from tests.tiny import randomise
from tests.training.tiny import save_data, save_parts
from visgraft import Processor, VisionLanguageModel, demo
from visgraft.compare.answers import gather
from visgraft.compare.collect import collect
from visgraft.compare.report import write_report as write_comparison
from visgraft.config import SourceSettings
from visgraft.data.contact_sheet import write_contact_sheet
from visgraft.data.images.opening import open_image
from visgraft.data.sources import open_sources
from visgraft.evaluation.report import write_report as write_evaluation
from visgraft.inspection import inspect_image
from visgraft.inspection import write_report as write_inspection
from visgraft.reproduce.page import write_page_of

QUESTIONS = ("what color is the shape?", "is there a red shape?", "what shape does the image contain?")
DRAWN = "Promise.all(Object.values(window.charts ?? {})).then(() => null)"  # until all charts are
ANSWERS = (("red", "blue"), ("yes", "no"), ("circle", "rectangle"))


def make_pages(folder: Path) -> dict[str, Path]:
    """Write one page of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "compare": _comparison(folder),
        "evaluate": write_evaluation(made_evaluation(folder / "drawn", num_images=8), folder / "evaluate.html"),
        "demo": _demo(folder),
        "reproduce": write_page_of(_reproduction(), folder / "reproduce.html"),
        **_of_a_model(folder),
    }


def _comparison(folder: Path) -> Path:
    experiment = save_experiment(folder / "what-to-train", num_variants=4)
    record = yaml.safe_load((experiment / "experiment.yaml").read_text())
    images = str(folder / "what-to-train-images")
    save_run(
        experiment / "stopped", name="stopped", num_steps=40, planned_steps=100, data=images, validation=images,
        final_loss=2.4, train={"head": "full"}, model={"language": "facebook/opt-125m"},
    )  # fmt: skip
    record["runs"].append({"folder": "stopped", "variant": "stopped", "seed": 0, "changes": {}})
    (experiment / "experiment.yaml").write_text(yaml.safe_dump(record))
    comparison = collect([experiment])
    return write_comparison(comparison, gather(comparison.variants), folder / "compare.html")


def _demo(folder: Path) -> Path:
    run = folder / "runs" / "20260102-030405-easy-vqa"
    run.mkdir(parents=True)
    (run / "environment.json").write_text(json.dumps({"date": "2026-01-02"}))
    pictures = folder / "pictures"
    pictures.mkdir()
    questions = []
    for number in range(12):
        place = pictures / f"{number}.png"
        Image.new("RGB", (64, 64), (20 * number, 90, 200 - 15 * number)).save(place)
        truth, other = ANSWERS[number % 3]
        said = other if number % 4 == 3 else truth
        questions.append(demo.DemoQuestion(place, QUESTIONS[number % 3], truth, said))
    rng = np.random.default_rng(0)
    losses = 0.35 + 5.0 * np.exp(-np.arange(120) / 9) * rng.lognormal(0, 0.25, 120) + rng.normal(0, 0.04, 120)
    steps = [{"step": number, "loss": float(max(loss, 0.2)), "samples": 35} for number, loss in enumerate(losses, 1)]
    result = demo.DemoResult(
        run,
        demo.score(questions),
        baseline={"all": 0.67, "what": 0.23, "yes/no": 0.825},
        counts={kind: len(some) for kind, some in demo.by_kind(questions).items()},
        train_seconds=301.0,
    )
    return demo.write_report(result, questions=questions, steps=steps)


def _reproduction() -> dict[str, Any]:
    run = {
        "trained_parameters": 4_500_000, "steps": 120, "samples": 30_720, "loss": 1.9, "validation_loss": 2.1,
        "validation_loss_per_character": 0.52, "scores": {"exact_match": 0.31}, "hours": 0.75, "joules": 9.1e5,
        "peak_memory_bytes": 31 * 2**30, "device": "NVIDIA A100", "answers": [
            {"prompt": "", "expected": ["a dog on a sofa"], "answer": "a dog lies on a couch"},
            {"prompt": "What colour is it?", "expected": ["brown"], "answer": ""},
        ],
    }  # fmt: skip
    value = {"value": 0.41, "low": 0.38, "high": 0.44, "n": 500}
    control = {"scores": {"cider": {**value, "value": 0.1}}, "gain": {"cider": {**value, "value": 0.31}}}
    asked = {"projection": {"scores": {"cider": value}, "controls": {"without_image": control}}}
    return {
        "scale": "hour", "as_written": False, "changed": ["modules.train.max_steps: 120"],
        "experiments": {
            "modules": {
                "runs": {"projection": run, "lora": {"failed": "out of memory"}}, "evaluations": {"coco": asked},
            },
            "language": {"runs": {"opt-6.7b": {**run, "joules": None, "validation_loss": None}}, "evaluations": {}},
        },
        "environment": {
            "date": "2026-01-02", "platform": "Linux", "python": "3.11.7", "git_commit": None,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": None},
        },
        "models": {"facebook/opt-350m": "08ab08cc4b72ff5593870b5d527cf4230323703c"},
        "data": {"revision": None, "rows": {"coco": {"train": {"found": 566_747, "card": 566_747}}}},
    }  # fmt: skip


def _of_a_model(folder: Path) -> dict[str, Path]:
    parts = save_parts(folder)
    model, processor = VisionLanguageModel.from_parts(*parts).eval(), Processor.from_parts(*parts)
    photos = Path(save_data(folder / "photos", num_images=6))
    look = inspect_image(
        randomise(model, seed=0), processor, open_image(photos / "0.png"), prompt="What is it?", max_new_tokens=4
    )
    sources = open_sources([SourceSettings("folder", path=str(photos))])
    return {
        "inspect": write_inspection(folder / "inspect.html", look, title="runs/my-run", subtitle="cat.jpg"),
        "data": write_contact_sheet(folder / "data.html", sources, processor, number=6, title="recipe.yaml"),
    }


def take_pictures(pages: dict[str, Path], folder: Path) -> None:
    """Photograph each page whole, at 1280 and 390 pixels, light and dark."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                size: Any = {"width": width, "height": 844}
                context = browser.new_context(viewport=size, color_scheme=scheme)
                page = context.new_page()
                for name, path in pages.items():
                    page.goto(path.as_uri())
                    page.evaluate(DRAWN)
                    page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
                context.close()
        browser.close()


def main() -> None:
    """Write the pages, and photograph them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    pages = make_pages(given.folder)
    if given.pictures:
        take_pictures(pages, given.folder)


if __name__ == "__main__":
    main()
