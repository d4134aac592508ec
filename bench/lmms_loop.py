"""lmms-eval's own loop on a model of visgraft: run by bench/evaluate.py in an environment that holds lmms-eval 0.7.3.

`write_task` writes the local task that bench/evaluate.py and tests/evaluation/compare_lmms_eval.py ask.

In: a model folder, a folder that it filled. Out: one line of JSON: for each round and way the seconds that
`generate_until` took and those of the whole evaluation, and the answers. The model is loaded once, before.

    .venv-lmms-eval/bin/python bench/lmms_loop.py --model FOLDER --task FOLDER --rounds 3

    engine    our class of the entry point: all requests at once, to the decoding loop
    loop      as lmms-eval's own classes do it (models/simple/llava_hf.py, which takes one at a time): its Collator's
              order, one `model.generate` a request
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NAME = "asked_questions"
TASK = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {file}}}}}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function {name}.visual
doc_to_text: !function {name}.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {max_new_tokens}, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 0.0}}]
"""
FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, **kwargs):
    return doc["question"]
"""


def write_task(folder: Path, rows: Sequence[dict[str, Any]], *, max_new_tokens: int) -> None:
    """Write a local task of lmms-eval; a row has an image's bytes, a question and an answer."""
    import datasets

    held = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    datasets.Dataset.from_list(held).cast_column("image", datasets.Image()).to_parquet(folder / "test.parquet")
    text = TASK.format(file=folder / "test.parquet", name=NAME, max_new_tokens=max_new_tokens)
    (folder / f"{NAME}.yaml").write_text(text)
    (folder / f"{NAME}.py").write_text(FUNCTIONS)


def main() -> None:
    """Load the model, run both ways in turn, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true")
    args = parser.parse_args()
    sys.path.pop(0)  # this folder: lmms-eval imports a package whose name one of its files has
    with contextlib.redirect_stdout(sys.stderr):  # lmms-eval prints there
        found = measure(args)
    sys.stdout.write(json.dumps(found) + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate so many times each way, after one warm-up."""
    import torch
    from lmms_eval import utils
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from visgraft.evaluation.lmms_models import Visgraft
    from visgraft.inference import GREEDY
    from visgraft.inference.eval_mode import eval_mode
    from visgraft.inference.limits import stop_token_ids, text_of

    if args.cpu_seconds:
        torch.set_num_threads(1)
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    ours = Visgraft(args.model, precision=args.precision)
    pair = ours.model, ours.processor

    class OneByOne(Visgraft):
        def __init__(self) -> None:
            self.__dict__.update(ours.__dict__)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            model, processor = self.model, self.processor
            stop, texts = stop_token_ids(model, processor), []
            order = utils.Collator(
                [request.args for request in requests],
                lambda given: (-len(processor.tokenizer(given[0])["input_ids"]), given[0]),
                grouping=True,
            )
            for chunk in order.get_batched(n=1, batch_fn=None):
                [(context, wanted, doc_to_visual, doc_id, task, split)] = chunk
                images = doc_to_visual(self.task_dict[task][split][doc_id])
                settings = {**GREEDY, "eos_token_id": stop, "pad_token_id": processor.tokenizer.pad_token_id}
                with eval_mode(model):
                    inputs = processor(images=images[0], text=context).to(model.device)
                    ids = model.generate(**inputs, max_new_tokens=wanted["max_new_tokens"], **settings)
                texts.append(text_of(processor, ids[0, inputs["input_ids"].shape[1] :].tolist(), stop))
            return list(order.get_original(texts))

    seconds: dict[str, dict[str, list[float]]] = {}
    answers: dict[str, list[str]] = {}

    def timed(name: str, model: Any, *, is_counted: bool) -> None:
        real: Callable[[Sequence[Any]], list[str]] = type(model).generate_until.__get__(model)
        taken: list[float] = []

        def generate_until(requests: Sequence[Any]) -> list[str]:
            begun = clock()
            answers[name] = real(requests)
            taken.append(clock() - begun)
            return answers[name]

        model.generate_until = generate_until
        model.model, model.processor = pair  # lmms-eval takes the model away when it is done
        begun = clock()
        manager = TaskManager(include_path=str(args.task))
        simple_evaluate(model=model, tasks=[NAME], task_manager=manager, bootstrap_iters=0, force_simple=True)
        whole = clock() - begun
        if is_counted:
            of_way = seconds.setdefault(name, {"loop": [], "whole": []})
            of_way["loop"].append(round(sum(taken), 4))
            of_way["whole"].append(round(whole, 4))

    ways = {"engine": ours, "loop": OneByOne()}
    for number in range(args.rounds + 1):
        for name, model in ways.items():
            timed(name, model, is_counted=number > 0)
    return {"seconds": seconds, "answers": answers}


if __name__ == "__main__":
    main()
