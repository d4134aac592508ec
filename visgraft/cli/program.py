"""The program: which commands there are, and what becomes of their errors.

In: the process's arguments. Out: the exit status. An error is one line on standard error, with `--debug` a traceback.
Usage: `visgraft ask runs/my-run cat.jpg "What is it?"`
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pickle import UnpicklingError
from typing import Annotated, Any

import typer
from rich.markup import escape

from visgraft.cli.annotate import annotate
from visgraft.cli.ask import ask
from visgraft.cli.cache import cache
from visgraft.cli.caption import caption
from visgraft.cli.chat import chat
from visgraft.cli.compare import compare
from visgraft.cli.convert import export, import_, merge
from visgraft.cli.data import data
from visgraft.cli.demo import demo
from visgraft.cli.env import env
from visgraft.cli.estimate import estimate
from visgraft.cli.evaluate import evaluate
from visgraft.cli.experiment import experiment
from visgraft.cli.init import init
from visgraft.cli.inspection import inspect_
from visgraft.cli.licences import licences
from visgraft.cli.recipes import recipes
from visgraft.cli.reproduce import reproduce
from visgraft.cli.serve import serve
from visgraft.cli.show import show
from visgraft.cli.terminal import debugging, logging_as, print_error
from visgraft.cli.threads import share_cores
from visgraft.cli.train import train
from visgraft.cli.watch import watch
from visgraft.config.renamed import COMMANDS
from visgraft.errors import VisgraftError

BAD_INPUT, INTERRUPTED = 2, 130
# What typer raises for arguments that it cannot read; the base of its own BadParameter, wherever typer keeps it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

# What is wrong with a file, where whoever reads it did not say so; no mistake of ours, most of the time.
UNREADABLE = (EOFError, RecursionError, UnpicklingError)
LOG_FORMS = {"--quiet": "quiet", "--log-json": "json"}
HELP = ["-h", "--help"]
WHERE = "; with --debug you see where"

EPILOG = (
    "Exit status: 0 done, 1 the answer is no, 2 bad input, 130 Ctrl-C, 128 + its number any other signal behind which "
    "a run was saved. Models come from folders or from the Hugging Face Hub; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are "
    "honoured. VISGRAFT_CACHE is where the starter pair is kept."
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program on the process's arguments, or on those given, and return its exit status.

    Errors that a user can act on become one line; anything else is a mistake of ours and keeps its traceback.
    """
    share_cores(os.environ)
    flags, rest = _split_flags(list(sys.argv[1:] if args is None else args))
    is_debug = "--debug" in flags
    with debugging(is_debug), logging_as(next((form for flag, form in LOG_FORMS.items() if flag in flags), None)):
        try:
            status = command()([*flags, *rest] or ["--help"], prog_name="visgraft", standalone_mode=False)
        except KeyboardInterrupt:
            return INTERRUPTED
        except SystemExit:  # typer's way to end where the reader of its output stopped early, as `head` does
            return 0
        except (VisgraftError, UsageError, OSError, typer.Abort, *UNREADABLE) as error:
            if isinstance(error, typer.Abort) and not isinstance(error.__cause__, EOFError):
                return INTERRUPTED  # a question of ours that was not answered
            if is_debug:
                traceback.print_exc()
            print_error(_in_words(error))
            return BAD_INPUT
    return status if isinstance(status, int) else 0


def _split_flags(args: list[str]) -> tuple[list[str], list[str]]:
    """Take out the flags that every command has, wherever among the options they stand."""
    end = args.index("--") if "--" in args else len(args)
    flags = [flag for flag in ("--debug", *LOG_FORMS) if flag in args[:end]]
    return flags, [arg for arg in args[:end] if arg not in flags] + args[end:]


def command() -> Any:
    """Build the program; a flag's help names no type, as it takes no value."""
    command = typer.main.get_command(app)
    commands: list[Any] = [command]
    while commands:
        each = commands.pop()
        commands += getattr(each, "commands", {}).values()
        for option in each.get_params(each.context_class(each, help_option_names=HELP)):
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return command


def _in_words(error: Exception) -> str:
    """Say an error in one line, with the way to the right command where the arguments are wrong."""
    if isinstance(error, UsageError):
        usage: Any = error
        text = str(usage.format_message()).replace("Value error, ", "").rstrip(".")
        for old, new in COMMANDS.items():
            if text.startswith(f"No such command '{old}'"):
                text = f"No such command '{old}': it is called '{new}' today"
        command = usage.ctx.command_path if usage.ctx else "visgraft"
        return f"{text}{'' if text.endswith('?') else '.'} See `{command} --help`."
    if isinstance(error, typer.Abort | EOFError):  # typer turns the one into the other
        said = str(error.__cause__ or "") if isinstance(error, typer.Abort) else str(error)
        return f"a file or a pipe ended where more was to come{f' ({said})' if said else ''}{WHERE}"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read or worked on{WHERE}"
    if isinstance(error, UnpicklingError):
        return f"a file holds something else than plain tensors, which is not run{WHERE}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


app = typer.Typer(
    name="visgraft",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP},
    epilog=EPILOG,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"visgraft {metadata.version('visgraft')}")
        raise typer.Exit


@app.callback()
def _program(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, and what libraries log.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing on standard error but what went wrong; for every command.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write standard error as one JSON object a line; for every command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Graft sight onto a language model: join a vision encoder and a language model, train the join, ask it."""


def _add(panel: str, command: Callable[..., int | None], *examples: str) -> None:
    """Add a command: its docstring is its help, its examples stand below."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    lines = "\n\n".join(f"  [bold]{escape(example)}[/bold]" for example in examples)
    title = "Example" if len(examples) == 1 else "Examples"
    app.command(command.__name__.strip("_"), rich_help_panel=panel, help=text, epilog=f"{title}:\n\n{lines}")(command)


_add("Build", init, "visgraft init --data ~/photos -o recipe.yaml")
_add("Build", recipes, "visgraft recipes", "visgraft recipes easy_vqa -o recipe.yaml")
_add("Train", train, "visgraft train recipe.yaml --set train.epochs=3", "visgraft train --resume runs/my-run")
_add("Train", demo, "visgraft demo", "visgraft demo --all-questions --seed 1")
_add(
    "Train",
    experiment,
    "visgraft experiment experiments/modules --dry-run",
    "visgraft experiment modules.yaml --seeds 2 --only 'lora*' --set train.max_steps=100",
)
_add(
    "Train",
    reproduce,
    "visgraft reproduce --scale smoke",
    "visgraft reproduce --data ~/m3it --scale hour",
    "visgraft reproduce --verify reproductions/hour",
)
_add("Look", show, "visgraft show recipe.yaml", "visgraft show runs/my-run --json")
_add("Look", licences, "visgraft licences recipe.yaml", "visgraft licences runs/my-run --json")
_add(
    "Look",
    compare,
    "visgraft compare runs/modules -o report.html",
    'visgraft compare runs/a runs/b --image cat.jpg --prompt "What is it?" --prompt "Which colour?"',
)
_add("Look", watch, "visgraft watch runs/modules")
_add(
    "Look",
    inspect_,
    "visgraft inspect runs/my-run cat.jpg -o inside.html",
    'visgraft inspect runs/my-run cat.jpg --prompt "What is it?"',
)
app.add_typer(data, name="data", rich_help_panel="Look")
_add(
    "Look",
    evaluate,
    "visgraft evaluate runs/my-run --data easy-vqa",
    "visgraft evaluate --answers answers.jsonl --metrics cider,bleu,rouge_l --json",
)
_add(
    "Look",
    estimate,
    "visgraft estimate recipe.yaml --gpu 24GB",
    "visgraft estimate recipe.yaml --gpu rtx4090 --json",
)
_add("Use", ask, 'visgraft ask runs/my-run cat.jpg "What is it?"')
_add(
    "Use",
    annotate,
    'visgraft annotate runs/my-run photos/ labels --prompt "What is in the picture?" --prompt "Where is it?"',
    "visgraft annotate runs/my-run 'shards/*.tar' labels --prompt '' --workers 8",
)
_add("Use", caption, "visgraft caption runs/my-run photos/*.jpg")
_add("Use", chat, "visgraft chat runs/my-run cat.jpg")
_add("Use", serve, "visgraft serve runs/my-run", "visgraft serve runs/a runs/b --port 0 --api-key-file keys.txt")
_add(
    "Bring",
    import_,
    "visgraft import llava-hf/llava-1.5-7b-hf imported",
    "visgraft import GIT-Llama-2-7B imported",
    "visgraft import --recipe exp001.yml recipe.yaml",
)
_add("Bring", merge, "visgraft merge runs/my-run merged")
_add(
    "Bring",
    export,
    "visgraft export runs/my-run whole --portable",
    "visgraft export runs/my-run plain --format llava",
    "visgraft export runs/my-run for-servers --layout placeholders",
)
_add("Keep", cache, "visgraft cache", "visgraft cache --clear vision --clear answers")
_add("Keep", env, "visgraft env", "visgraft env --json")
