"""Images a second of `visgraft annotate`, beside one `generate` an image and prompt; and its memory over many images.

    python bench/annotate.py                           # writes bench/results/annotate.json
    python bench/annotate.py --cpu-seconds             # on a machine that others use
    python bench/annotate.py --rounds 1 --tiny
    .venv-ray/bin/python bench/annotate.py             # in the environment of `make test-ray`: beside Ray Data too

The starter pair (EfficientNet-Lite2, SmolLM2-135M-Instruct), joined and not trained, is asked four prompts about each
JPEG file of 480 x 360, 16 tokens an answer at most, greedily. Each round labels all images:

    annotate    a unit as a worker does it: opened ahead, asked together, log-probabilities, written as parquet, synced
    single      one `model.generate` an image and prompt: image opened, encoded and read each time
    ray         `ray.data.map_batches` with plain `generate` on padded batches of image and prompt pairs, one actor that
                has all cores, as Ray's own examples do it; its start is not counted (a warm-up), reading and writing is

How many answers are the same is written down: frozen weights in bf16 may round another way in a batch. The memory is
that of this process (resident) while a tiny pair labels images of 8 x 8 in tars of 10,000, looked at after each unit.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from caption import make_images, make_pair
from harness import interleave, machine, positive, ratio, write
from PIL import Image

from visgraft.annotate import Request
from visgraft.annotate.collection import open_collection
from visgraft.annotate.folder import Output
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labeller
from visgraft.inference import GREEDY
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.limits import stop_token_ids, text_of
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

PROMPTS = ("", "What is in the picture?", "Which colours are there?", "Is there a cat?")
MAX_NEW_TOKENS = 16
PER_TAR = 10_000
Answers = dict[tuple[str, str], str]


def open_job(data: str, output: Path, **settings: Any) -> Job:
    """Open a job whose model is here already."""
    usual = {"prompts": PROMPTS, "max_new_tokens": MAX_NEW_TOKENS, "model": "here"}
    request = Request(**{**usual, **settings}, data=data, output=str(output))
    collection = open_collection(data, with_texts=False)
    return Job(request, collection, Output.begin(output, key={}, collection=collection, rows_per_unit=None))


def annotate(
    model: VisionLanguageModel, processor: Processor, photos: Path, output: Path, *, batch_size: int
) -> Answers:
    """Label a folder as a worker does."""
    job = open_job(str(photos), output, batch_size=batch_size)
    labeller = Labeller(job, model, processor)
    for unit in job.units(0):
        labeller.label(unit)
    rows = [row for part in job.output.parts() for row in pq.read_table(part).to_pylist()]
    shutil.rmtree(output)
    return {(row["id"], row["prompt"]): row["answer"] for row in rows}


def generate(model: Any, processor: Processor, images: list[Path], prompts: list[str]) -> list[str]:
    """Answer a batch by plain `generate`."""
    stop_ids = stop_token_ids(model, processor)
    with eval_mode(model):
        pictures = [Image.open(path).convert("RGB") for path in images]
        inputs = processor(images=pictures, text=prompts).to(model.device)
        settings = {**GREEDY, "eos_token_id": stop_ids, "pad_token_id": processor.tokenizer.pad_token_id}
        ids = model.generate(**inputs, **settings, max_new_tokens=MAX_NEW_TOKENS)
    return [text_of(processor, row, stop_ids) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]


def single(model: VisionLanguageModel, processor: Processor, paths: list[Path]) -> Answers:
    """Answer by one `generate` an image and prompt."""
    pairs = [(path, prompt) for path in paths for prompt in PROMPTS]
    return {(path.name, prompt): generate(model, processor, [path], [prompt])[0] for path, prompt in pairs}


class PlainGenerate:
    """What Ray Data runs: an actor with the model, which answers batches of image and prompt."""

    def __init__(self, model: VisionLanguageModel, processor: Processor, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model, self.processor = model, processor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the answers of a batch."""
        images = [Path(path) for path in batch["image"]]
        return {**batch, "answer": generate(self.model, self.processor, images, [str(p) for p in batch["prompt"]])}


class ByRay:
    """`ray.data.map_batches` over pairs of image and prompt, written as parquet."""

    def __init__(self, ray: Any, model: VisionLanguageModel, processor: Processor, *, batch_size: int) -> None:
        self.ray, self.batch_size = ray, batch_size
        ray.init(num_cpus=os.cpu_count(), log_to_driver=False, logging_level="error", include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.parts = ray.put(model), ray.put(processor)

    def __call__(self, paths: list[Path], output: Path) -> Answers:
        """Answer all."""
        model, processor = self.ray.get(self.parts[0]), self.ray.get(self.parts[1])
        items = [{"image": str(path), "prompt": prompt} for path in paths for prompt in PROMPTS]
        done = self.ray.data.from_items(items).map_batches(
            PlainGenerate,
            fn_constructor_args=(model, processor, torch.get_num_threads()),
            batch_size=self.batch_size,
            concurrency=1,
            num_cpus=1,
        )
        done.write_parquet(str(output))
        rows = [row for part in output.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
        shutil.rmtree(output)
        return {(Path(row["image"]).name, row["prompt"]): row["answer"] for row in rows}


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time every way."""
    model, processor = make_pair(tiny=args.tiny)
    set_trainable(model, modes={}, frozen_dtype=computing_dtype("auto", device=model.device))
    model.eval()
    photos = folder / "photos"
    photos.mkdir()
    paths = make_images(photos, number=args.images)
    said: dict[str, Answers] = {}
    ways: dict[str, Any] = {
        "annotate": lambda: said.update(
            annotate=annotate(model, processor, photos, folder / "out", batch_size=args.batch_size)
        ),
        "single": lambda: said.update(single=single(model, processor, paths)),
    }
    try:
        import ray
        import ray.data
    except ImportError:
        ray = None
    if ray is not None and not args.cpu_seconds:  # its actor is another process
        by_ray = ByRay(ray, model, processor, batch_size=args.batch_size)
        ways["ray"] = lambda: said.update(ray=by_ray(paths, folder / "by-ray"))
    times = interleave(
        ways,
        rounds=args.rounds,
        units=args.images,
        unit="images",
        clock=time.process_time if args.cpu_seconds else time.perf_counter,
    )
    others = [name for name in ways if name != "annotate"]
    total = len(paths) * len(PROMPTS)
    assert all(len(answers) == total for answers in said.values()), "every way answers everything"
    return {
        "images": len(paths),
        "prompts": len(PROMPTS),
        "batch_size": args.batch_size,
        "weights": str(model.language.dtype).removeprefix("torch."),
        "times": times,
        **{f"annotate / {name}": ratio(times, slow=name, fast="annotate") for name in others},
        "share_of_answers_that_are_the_same": {
            name: round(sum(said["annotate"][key] == text for key, text in said[name].items()) / total, 4)
            for name in others
        },
    }


# --- Memory


def write_tars(folder: Path, *, rows: int) -> str:
    """Write tars of tiny images; return a pattern."""
    for number, first in enumerate(range(0, rows, PER_TAR)):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for index in range(first, min(first + PER_TAR, rows)):
                encoded = io.BytesIO()
                Image.new("RGB", (8, 8), (index % 251, index // 251 % 251, index // 63001)).save(encoded, "PNG")
                info = tarfile.TarInfo(f"{index:07d}.png")
                info.size = len(encoded.getvalue())
                tar.addfile(info, io.BytesIO(encoded.getvalue()))
    return str(folder / "*.tar")


def measure_memory(folder: Path, *, rows: int) -> dict[str, Any]:
    """Label so many rows and look at the memory as it goes."""
    model, processor = make_pair(tiny=True)
    (folder / "tars").mkdir()
    pattern = write_tars(folder / "tars", rows=rows)
    settings = {"prompts": ("",), "max_new_tokens": 1, "batch_size": 64}
    job = open_job(pattern, folder / "memory", **settings)
    labeller = Labeller(job, model.eval(), processor)
    resident: list[tuple[int, float]] = []
    done, started = 0, time.perf_counter()
    for shard in range(len(job.collection.shards)):
        for unit in job.units(shard):
            done += labeller.label(unit).num_rows
            resident.append((done, round(resident_mb(), 1)))
    assert job.output.done().num_rows == done == rows
    early = max(size for number, size in resident if number <= max(rows // 10, resident[0][0]))
    return {
        "rows": rows,
        "rows_per_s": round(rows / (time.perf_counter() - started), 1),
        "resident_mb_by_rows": resident[:: max(1, len(resident) // 20)],
        "resident_mb_after_a_tenth_at_most": early,
        "resident_mb_at_most": max(size for _, size in resident),
    }


def resident_mb() -> float:
    """Say how much memory this process has now, in 10^6 bytes."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=16, help="each with four prompts")
    parser.add_argument("--rows", type=int, default=200_000, help="of tiny images, for memory; 0: none")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--cpu-seconds", action="store_true", help="count the CPU's seconds, with one thread")
    parser.add_argument("--tiny", action="store_true", help="a tiny pair: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "annotate.json")
    args = parser.parse_args()
    if args.cpu_seconds:
        torch.set_num_threads(1)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "what": __doc__,
            "machine": machine(),
            "load_of_the_machine": {"before": load_before},
            "seconds_are": "of the CPU, one thread" if args.cpu_seconds else "of the clock",
            **compare(args, Path(folder)),
            "memory": measure_memory(Path(folder), rows=args.rows) if args.rows else None,
        }
    result["load_of_the_machine"]["after"] = os.getloadavg()  # type: ignore[index]
    write(result, path=args.output)


if __name__ == "__main__":
    main()
