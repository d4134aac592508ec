"""`visgraft demo`: train the starter pair on easy-VQA and show how it went.

In: nothing but a machine. Out: a run folder with a report. Usage: `visgraft demo`
"""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from visgraft.cli.terminal import end_stopped, note, print_json, print_line, quiet_libraries


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A smoke run of a few steps: shows that it runs, not how well.")
    ] = False,
    all_questions: Annotated[
        bool, typer.Option("--all-questions", help="Ask all 9,673 test questions, not a fixed sample of 2,000.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of images.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where to put the run.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> int:
    """See it work in a few minutes: real weights, real images, an honest score.

    Fetches SmolLM2-135M and EfficientNet-Lite2, joins them, trains the projection and LoRA on easy-VQA's training
    images, then asks official test questions and writes a report beside what the questions alone give away.
    """
    note("loading PyTorch and transformers")
    quiet_libraries()
    from visgraft.demo import run_demo
    from visgraft.training.progress import make_progress

    try:
        result = run_demo(progress=make_progress(), quick=quick, all_questions=all_questions, seed=seed, folder=output)
    except KeyboardInterrupt as error:
        return end_stopped(error)
    if as_json:
        print_json({**vars(result), "folder": str(result.folder)})
        return 0
    for kind, share in result.scores.items():
        blind = result.baseline[kind]
        print_line(
            f"{kind:7} {share:6.1%} of {result.counts[kind]:,} test questions right; without looking {blind:.1%}"
        )
    print_line(f"report: {result.folder / 'report.html'}")
    asking = f'visgraft ask {quote(str(result.folder))} PICTURE "What color is the shape?"'
    print_line(f"ask it about a picture of your own: {asking}")
    return 0
