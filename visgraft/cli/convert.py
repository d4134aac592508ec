"""`visgraft import`, `merge` and `export`: checkpoints of the field in, plain model folders out.

In: a checkpoint of LLaVA, nanoVLM, GIT-LLM or heron, a training file of the latter two; a model with LoRA. Out: a model
folder or a recipe, and what was found on the way.
Usage: `visgraft import GIT-Llama-2-7B imported`, then `visgraft merge imported merged`
"""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from visgraft.atomic import write_whole
from visgraft.cli.hub import go_offline_without_network, names_of_model
from visgraft.cli.options import AsJson, Force, Model
from visgraft.cli.terminal import note, print_error, print_json, print_line, quiet_libraries
from visgraft.errors import ConfigError
from visgraft.wording import counted

REFUSED = 1  # exit status: the answer is no


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Checkpoint folder or Hub name; with --recipe a YAML file.", show_default=False
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="DST", help="Folder to write; with --recipe a file.", show_default=False),
    ] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Convert a training file to a recipe.")] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA's scaling is this over its rank.", show_default="the source's, else 32")
    ] = None,
    image_attention: Annotated[
        Literal["bidirectional", "causal"] | None,
        typer.Option(help="Mask inside an image.", show_default="what it was trained with"),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template of the processor.", show_default="its authors'")
    ] = None,
    vision_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the encoder, where nothing else tells them.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Import a checkpoint: LLaVA 1.5 (transformers), nanoVLM, or GIT-LLM and heron.

    Of the last two: OPT, LLaMA, MPT, GPT-NeoX, Japanese StableLM alpha.

    The model folder computes what the original computed. LoRA stays LoRA. With --recipe, their training file becomes a
    recipe instead; without DST it is printed.
    """
    if recipe:
        _import_recipe(source, target)
        return
    if target is None:
        raise ConfigError("DST: missing; name the folder to write")
    if Path(source).suffix in (".yaml", ".yml"):
        raise ConfigError(
            f"{source}: is a YAML file, need a checkpoint folder; say --recipe to convert a training file"
        )
    go_offline_without_network([source])
    note(f"importing {source}")
    quiet_libraries()
    from visgraft.convert.importing import import_model

    report = import_model(
        source,
        target,
        lora_alpha=lora_alpha,
        image_attention=image_attention,
        template=template,
        vision_heads=vision_heads,
        replace=force,
    )
    if as_json:
        print_json(asdict(report))
        return
    _print_report(report)


def _print_report(report: Any) -> None:
    frames = f", {counted(report.num_frames, 'frame')}" if report.num_frames else ""
    tokens = counted(report.num_image_tokens, "image token")
    print_line(f"{report.folder}: {report.model_type}, {tokens}{frames}, image attention {report.image_attention}")
    for part, lora in report.lora.items():
        print_line(f"LoRA on {lora['modules']} linears of the {part} part: r {lora['r']}, alpha {lora['lora_alpha']:g}")
    if report.dead:
        print_line(f"left out or never used, as in the original: {len(report.dead)} tensors")
        for name in report.dead:
            print_line(f"  {name}")
    for line in report.notes:
        print_line(f"note: {line}")


def _import_recipe(source: str, target: Path | None) -> None:
    from visgraft.convert.git_llm_recipes import convert_recipe

    converted = convert_recipe(source)
    if target is None:
        print_line(converted.to_yaml().rstrip())
        return
    write_whole(target, converted.to_yaml())
    for line in converted.notes:
        print_line(f"note: {line}")
    print_line(f"{target}: next, visgraft show {quote(str(target))}")


def merge(
    model: Model,
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.", show_default=False)],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Format of the merged weights.", show_default="as they are stored"),
    ] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Unpack a language model of 8 or 4 bits first, at its full size.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> int:
    """Fold LoRA into the weights below it and write a model folder without adapters.

    Logits are compared before and after. Where they move more than the number format explains, nothing is written and
    the exit status is 1.
    """
    go_offline_without_network(names_of_model(model))
    note(f"merging {model}")
    quiet_libraries()
    from visgraft.convert.merge import MergeRefusedError, merge_model

    try:
        report = merge_model(model, target, dtype=dtype, dequantize_first=dequantize, replace=force)
    except MergeRefusedError as error:
        print_error(f"refused: {error}")
        return REFUSED
    if as_json:
        print_json(asdict(report))
        return 0
    parts = ", ".join(f"{count} linears of the {part} part" for part, count in report.merged.items())
    print_line(f"{report.folder}: merged {parts}; logits moved by {report.change:.1e} of the largest")
    return 0


def export(
    model: Model,
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.", show_default=False)],
    format_: Annotated[
        Literal["visgraft", "llava"],
        typer.Option("--format", help="visgraft: all weights in one folder; llava: a plain LLaVA of transformers."),
    ] = "visgraft",
    layout: Annotated[
        Literal["prefix", "placeholders"],
        typer.Option(help="placeholders: image tokens stand in the text, as vLLM and `transformers serve` want it."),
    ] = "prefix",
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Put the code in too: loads with trust_remote_code=True without visgraft."),
    ] = False,
    force: Force = False,
) -> int:
    """Write a model for use elsewhere.

    A LLaVA has an MLP projection and causal image tokens; with placeholders, an image has a fixed number of tokens and
    the language model no ALiBi and no states. A model that cannot be written so is refused with every reason, and the
    exit status is 1.
    """
    if layout == "placeholders" and format_ == "llava":
        raise ConfigError("--layout: got placeholders, which a LLaVA folder has anyway; leave it out, or --format")
    if layout == "placeholders" and portable:
        raise ConfigError("--portable: a folder with placeholders has its code in it anyway; leave it out")
    if portable and format_ == "llava":
        raise ConfigError("--portable: a LLaVA folder needs no code of ours; leave it out")
    go_offline_without_network(names_of_model(model))
    note(f"exporting {model}")
    quiet_libraries()
    if format_ == "visgraft" and layout == "prefix":
        from visgraft.convert.portable import export_full

        folder = export_full(model, target, portable=portable, replace=force)
        print_line(f"{folder}: written whole{', with code' if portable else ''}")
        return 0
    from visgraft.convert.llava import ExportRefusedError, export_llava
    from visgraft.convert.placeholders import export_placeholders

    write = export_llava if format_ == "llava" else export_placeholders
    try:
        notes = write(model, target, replace=force)
    except ExportRefusedError as error:
        print_error(f"refused: {error}")
        return REFUSED
    print_line(f"{target}: " + ("a LLaVA folder" if format_ == "llava" else "with image placeholders and code"))
    for line in notes:
        print_line(f"note: {line}")
    return 0
