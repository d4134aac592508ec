"""`visgraft inspect`: the words nearest to each image token, laid over the image, and where an answer looks.

In: a model and an image. Out: a page, a picture, or JSON. Usage: `visgraft inspect runs/my-run cat.jpg -o inside.html`
"""

from pathlib import Path
from typing import Annotated

import typer

from visgraft.cli.ask import load_model, open_named
from visgraft.cli.options import AsJson, Device, MaxNewTokens, Model, Precision
from visgraft.cli.terminal import note, print_json, print_line
from visgraft.errors import ConfigError

SUFFIXES = (".html", ".png")


def inspect_(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page (.html) or picture (.png).", show_default="inside.html, or --json"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Ask this and show where the answer looks; an empty text asks for a caption."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Words to find near each image token.")] = 5,
    layers: Annotated[
        str | None, typer.Option(help="Whose attention is shown, such as 0,5 or 10-20.", show_default="all")
    ] = None,
    max_new_tokens: MaxNewTokens = 32,
    device: Device = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Show which words a model's image tokens are near, and where an answer looks.

    An image token stands where a text token would. Here is which tokens of the vocabulary it is nearest to there, by
    dot product and by cosine, how long it is beside them, and how near is near.
    """
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output: got {output}, need a name that ends in {' or '.join(SUFFIXES)}")
    if layers is not None and prompt is None:
        raise ConfigError("--layers: there is no attention to show without --prompt; add one")
    picture = open_named(image)
    loaded = load_model(model, device=device, precision=precision)
    from visgraft.inspection import inspect_image, write_picture, write_report

    note(f"looking at {image}")
    look = inspect_image(*loaded, picture, prompt=prompt, number=top, layers=layers, max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"model": model, "image": str(image), **look.as_json()})
    if output is None and as_json:
        return
    path = output or Path("inside.html")
    if path.suffix.lower() == ".png":
        write_picture(path, look)
    else:
        write_report(path, look, title=f"What {Path(model).name} sees", subtitle=f"{image.name}, asked of {model}")
    if not as_json:
        print_line(str(path))
