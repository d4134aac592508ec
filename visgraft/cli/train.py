"""`visgraft train`: train a recipe, or go on with a run.

In: a recipe and overrides. Out: a run folder. Usage: `visgraft train recipe.yaml --set train.epochs=3`
"""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from visgraft.cli.hub import go_offline_without_network, names_of_recipe
from visgraft.cli.options import shipped_names
from visgraft.cli.terminal import end_stopped, note, print_line, quiet_libraries, tell
from visgraft.config import load_recipe
from visgraft.errors import ConfigError
from visgraft.licences import licences_of_recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            autocompletion=shipped_names,
            metavar="RECIPE",
            help="Recipe: a YAML file, a shipped one's name, or a run folder to train its recipe again.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given often.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Save a model folder that needs nothing else: frozen parts too.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.", show_default=False)
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed", help="Resume even if data, models, settings or libraries changed; writes it down."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The run folder itself, new or empty.", show_default="by date"
        ),
    ] = None,
    resume_or_start: Annotated[
        bool,
        typer.Option("--resume-or-start", help="Go on with the run in --output if one is there, else begin it."),
    ] = False,
) -> int:
    """Train the join of two models on images and texts.

    A recipe names a vision encoder, a language model and the data, and whatever differs from the defaults. The run
    folder holds the model, its checkpoints and what was measured.
    """
    if recipe is None and resume is None:
        raise ConfigError(
            "train: got neither a recipe nor --resume; name a recipe, such as easy_vqa (`visgraft recipes`)"
        )
    if resume_or_start and output is None:
        raise ConfigError("--resume-or-start: got no folder; name the run's own with --output DIR")
    if resume is not None and output is not None:
        raise ConfigError(f"train: got both --resume {resume} and --output {output}; a run goes on in its own folder")
    settings = load_recipe(
        recipe or str(resume), overrides=[*(overrides or []), *(["train.save=full"] if full else [])]
    )
    go_offline_without_network(names_of_recipe(settings))
    if resume is None and os.environ.get("RANK", "0") == "0":  # once, by one of several processes
        for licence in licences_of_recipe(settings):
            if licence.is_worrying:
                tell(f"licence: {licence.line}")
    note("loading PyTorch and transformers")
    quiet_libraries()
    from visgraft.training.loop import train as run_training

    try:
        folder = run_training(
            settings, resume=resume, folder=output, resume_or_start=resume_or_start, allow_changed=allow_changed
        )
    except KeyboardInterrupt as error:
        return end_stopped(error)
    print_line(str(folder))
    note(f'ask it: visgraft ask {quote(str(folder))} IMAGE "question"')
    return 0
