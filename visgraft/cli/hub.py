"""Whether the Hugging Face Hub can be reached, asked once, so that no one waits for half a minute of retries.

In: the names that a command will load. Out: where the network is missing, offline mode: what is cached is used, and
what is not is an error at once.

    go_offline_without_network(names_of_recipe(recipe))
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from visgraft.cli.terminal import note
from visgraft.config import Recipe
from visgraft.parsing import parse_json

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 5.0


def names_of_recipe(recipe: Recipe) -> list[str]:
    """List the models that a recipe names."""
    model = recipe.model
    named = [model.vision, model.language.name if model.language else None]
    return [*(name for name in named if name), *(names_of_model(model.start_from) if model.start_from else [])]


def names_of_model(name: str) -> list[str]:
    """List what loading a model reads: itself, and for a folder the parts that its config names."""
    folder = Path(name).expanduser()
    paths = [path for path in (folder / "model" / "config.json", folder / "config.json") if path.is_file()]
    if not paths:
        return [name]
    try:
        parts = parse_json(paths[0].read_bytes())["parts"].values()
        return [part["name"] for part in parts if part["name"] and part.get("stored") != "all"]
    except (ValueError, KeyError, AttributeError, TypeError):
        return []  # loading it will say what is wrong with it


def go_offline_without_network(names: Iterable[str]) -> None:
    """Set offline mode where a name is the Hub's and the Hub cannot be reached; before anything imports its library."""
    is_settled = "HF_HUB_OFFLINE" in os.environ or "huggingface_hub" in sys.modules
    if is_settled or not any(_is_hub_name(name) for name in names) or _can_reach_hub():
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    note("the Hugging Face Hub cannot be reached; using what is cached")


def _is_hub_name(name: str) -> bool:
    return not name.startswith(("starter:", "/", ".", "~")) and not Path(name).exists()


def _can_reach_hub() -> bool:
    import ssl
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True  # it answers
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it answers, to someone with other certificates
    except (TimeoutError, ConnectionError):
        return False
    return True
