"""`visgraft annotate`: captions or answers for every image of a collection, by any number of processes.

In: a model, data, prompts. Out: a folder of parquet shards, itself a source of training. What was killed goes on.
Usage: `visgraft annotate runs/my-run photos/ labels --prompt "What is in the picture?"`
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Device, MaxNewTokens, Model, Precision, split_choices
from visgraft.cli.terminal import note, print_json, print_line, quiet_libraries, tell
from visgraft.wording import counted

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A folder of images; a recipe; a source as READER:PATH (coco:~/coco); a file; shards ('shards/*.tar').",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or one to go on with.", show_default=False)]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="What every image is asked; may be given often. Empty: a caption. Without: the dialogs of DATA.",
        show_default=False,
    ),
]
Part = Annotated[Literal["train", "validation", "test"], typer.Option(help="Of a recipe, which list of sources.")]
Split = Annotated[str | None, typer.Option(help="Of a source that is no recipe's, which split.", show_default="train")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many rows of each source.", show_default=False)
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes on this machine, one a GPU, or sharing out the CPU's threads; with --engine ray its actors.",
        show_default="1; with ray as many as there are GPUs",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Do part I of N, from 0 on, and no other: for job arrays.", show_default=False
    ),
]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="What runs the workers: this machine, or a Ray cluster.")]
KeepImages = Annotated[bool, typer.Option("--keep-images", help="Write the image files too, not where they lie.")]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Try rows again that have an error.")]
Temperature = Annotated[
    float | None, typer.Option(help="Draw answers at it.", show_default="the likeliest token each time")
]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the likeliest tokens of this share.", show_default="1")
]
Seed = Annotated[int | None, typer.Option(help="Of the draws; each row makes its own of it.", show_default="0")]
Choices = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Answers are among these texts, by the likeliest tokens.", show_default=False),
]
RowsPerUnit = Annotated[
    int | None,
    typer.Option(min=1, help="Rows that are written as one file: what a kill costs at most.", show_default="512"),
]


def annotate(
    model: Model,
    data: Data,
    out: Out,
    prompts: Prompts = None,
    part: Part = "train",
    split: Split = None,
    limit: Limit = None,
    workers: Workers = None,
    shard: ShardOption = None,
    engine: Engine = "local",
    keep_images: KeepImages = False,
    retry_errors: RetryErrors = False,
    rows_per_unit: RowsPerUnit = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    choices: Choices = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Dialogs that run at once.")] = 16,
    device: Device = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Label a collection: captions or answers for every image, for one prompt or several.

    OUT becomes a folder of parquet shards and manifest.json, which {source: parquet, path: OUT} trains on. Kill it
    anywhere, and the same command goes on, with any number of processes, on any machines that share the disk: every row
    once. A bad image is a row with its error.
    """
    go_offline_without_network(names_of_model(model))
    note(f"loading {model}")
    quiet_libraries()
    from visgraft.annotate import Request, parse_shard
    from visgraft.annotate import annotate as label

    request = Request(
        model=model,
        data=data,
        output=str(out),
        prompts=None if prompts is None else tuple(prompts),
        part=part,
        split=split,
        limit=limit,
        keep_images=keep_images,
        retry_errors=retry_errors,
        rows_per_unit=rows_per_unit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        choices=() if choices is None else tuple(split_choices(choices)),
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        shard=None if shard is None else parse_shard(shard),
        engine=engine,
    )
    try:
        standing = label(request, say=tell)
    except KeyboardInterrupt:
        tell(f"stopped; the finished parts are in {out}, and the same command goes on from there")
        raise
    if standing.errors:
        tell(f"{counted(standing.errors, 'row')} with an error; --retry-errors tries them again")
    if as_json:
        print_json({"output": str(out), **standing.as_json()})
    else:
        print_line(str(out))
