"""The arguments and options that several commands share.

In: what the user types. Out: values with one meaning in every command. Usage: `def ask(model: Model, ...)`
"""

from typing import Annotated, Literal

import typer

from visgraft.config.shipped import shipped_recipes
from visgraft.errors import ConfigError


def shipped_names(incomplete: str) -> list[str]:
    """Complete the name of a shipped recipe, for shells; where none begins so, a shell completes files."""
    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def split_choices(choices: str) -> list[str]:
    """Take the choices apart; each one counts once. Raises ConfigError."""
    candidates = list(dict.fromkeys(choice.strip() for choice in choices.split(",") if choice.strip()))
    if len(candidates) < 2:
        raise ConfigError(f"--choices: got {choices!r}, need two answers or more, such as red,blue")
    return candidates


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Run folder, model folder or Hub name.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Write over a model folder that is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu, cuda, cuda:1 or mps.", show_default="the accelerator that is there")
]
Precision = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    typer.Option(help="Number format of the frozen weights; auto: bf16 where the hardware computes in it."),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
