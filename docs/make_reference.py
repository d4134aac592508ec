"""Write the reference: settings, commands, public names, shipped recipes, from the code and files that decide them.

In: visgraft itself. Out: the pages in docs/reference/, which a test keeps equal to what this writes.
Usage: `python docs/make_reference.py` (`make map` calls it)
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

import visgraft
import visgraft.inference
from visgraft.cli import program
from visgraft.config import settings as module
from visgraft.config.effects import Effect, effect_of, settings_in
from visgraft.config.hints import describe
from visgraft.config.plain_values import to_plain
from visgraft.config.settings import Recipe
from visgraft.config.shipped import first_line, shipped_recipes

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "reference"
ON_CPU = ("cpu", "mac")  # recipes for no CUDA GPU
AFFECTS = {"result": "results", "speed": "speed or memory", "disk": "what is kept on disk"}
MARK = "<!-- written by docs/make_reference.py: change the code it reads, then say `make map` -->"
# of settings that no shipped recipe sets and whose type does not show a sensible value
EXAMPLES: dict[str, Any] = {
    "model.tiles": {"max": 6, "thumbnail": True},
    "model.tiles.max": 4,
    "model.start_from": "runs/my-run",
    "model.image_size": 384,
    "model.feature_layer": -2,
    "model.num_frames": 8,
    "model.template": "USER: {prompt} ASSISTANT:",
    "model.vision_revision": "main",
    "model.language_revision": "main",
    "model.attention": "sdpa",
    "model.language.quantization": "4bit",
    "model.language.new_tokens": ["<loc>", "</loc>"],
    "model.projection.pixel_shuffle": 2,
    "train.projection": "frozen",
    "train.learning_rate": {"projection": 1e-3, "language": 2e-4},
    "train.max_steps": 1000,
    "train.weight_decay": 0.01,
    "train.betas": [0.9, 0.95],
    "train.clip_norm": 0.5,
    "train.micro_batch_rows": 8,
    "train.micro_batch_positions": 8192,
    "train.row_positions": 1024,
    "train.logits_chunk": 512,
    "train.cache_vision_max_gb": 200.0,
    "train.num_workers": 4,
    "train.seed": 1,
    "train.report_to": ["tensorboard"],
    "train.keep_checkpoints": 5,
    "train.checkpoint_every_steps": 500,
    "train.checkpoint_every_minutes": 60.0,
    "train.validate_every_steps": 500,
    "train.sample_every_steps": 500,
    "train.exact_match_samples": 500,
    "train.scores": ["cider", "bleu"],
    "train.score_samples": 500,
    "train.best_by": "cider",
    "train.max_new_tokens": 64,
    "train.lora.target_modules": ["q_proj", "v_proj"],
    "train.lora.lora_dropout": 0.05,
    "train.lora.lora_alpha": 16.0,
    "data.train.limit": 1000,
    "data.train.weight": 0.5,
    "data.train.stage": 2,
    "data.train.split": {"validation": "2%"},
    "data.train.num_frames": 4,
    "data.train.frame_spacing_s": 1.0,
    "data.test": [{"source": "folder", "path": "~/pictures", "split": "test"}],
    "data.sample_prompts": [{"image": "cat.jpg", "prompts": ["", "What is it?"]}],
    "data.sample_prompts.image": "cat.jpg",
    "data.sample_prompts.prompts": ["What is it?"],
    "data.max_dialogs_per_prefix": 16,
    "data.max_text_tokens": 1024,
    "data.max_bad_fraction": 0.0,
    "data.max_overlap_fraction": 0.0,
    "data.max_pixels": 50_000_000,
    "data.allow_private_hosts": ["10.0.0.7"],
    "data.mixing_temperature": 2.0,
    "data.stream_window": 8192,
    "data.augment.crop": [0.5, 1.0],
    "data.augment.flip": 0.5,
    "data.augment.colour": 0.2,
    "output": "/scratch/runs",
    "name": "first-try",
}
BESIDE = {"train.best_by": {"scores": ["cider"]}}  # what a setting stands beside
LISTS = ("data.train", "data.validation", "data.test", "data.sample_prompts")  # of settings; an example is a list


@dataclass(frozen=True)
class Setting:
    """One setting: its key as it is typed behind --set, what it means, and what it is where a recipe says nothing."""

    key: str
    meaning: str
    allowed: str
    default: str
    example: Any
    effect: Effect


def groups_of_settings() -> Iterator[tuple[str, str, list[Setting]]]:
    """Give (key, what it is, settings) of each group of a recipe, in the order in which they are declared."""
    comments = _comments()
    used = [
        leaf
        for path in shipped_recipes().values()
        if path.suffix == ".yaml"  # a launch file may be a script
        for leaf in _leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]
    for key, kind in _groups(Recipe, ""):
        hints = get_type_hints(kind, include_extras=True)
        found = []
        for each in fields(kind):
            dotted = f"{key}.{each.name}".lstrip(".")
            if "effect" not in each.metadata or each.name == "options":
                continue  # a group of its own, or the keys that readers declare
            shown = [value for key_, value in used if key_ == dotted and value != each.default]
            shown = [EXAMPLES[dotted]] if dotted in EXAMPLES else shown
            example = shown[0] if shown else _another_value(hints[each.name], each)
            comment = comments[kind.__name__, each.name]
            found.append(
                Setting(dotted, comment, describe(hints[each.name]), _default(each), example, effect_of(Recipe, dotted))
            )
        yield key, " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()), found


def as_recipe(setting: Setting) -> dict[str, Any]:
    """Write an example as the part of a recipe that it is."""
    *way, last = setting.key.split(".")
    nested: Any = {**BESIDE.get(setting.key, {}), last: setting.example}
    for depth in range(len(way), 0, -1):
        is_entry = ".".join(way[:depth]) in LISTS
        if is_entry and "source" not in nested and way[:1] == ["data"] and way[-1] != "sample_prompts":
            nested = {"source": "folder", "path": "~/pictures", **nested}
        if is_entry and "image" not in nested and way[-1] == "sample_prompts":
            nested = {"image": "cat.jpg", **nested}
        nested = {way[depth - 1]: [nested] if is_entry else nested}
    return dict(nested)


def _groups(kind: type, key: str) -> Iterator[tuple[str, type]]:
    yield key, kind
    hints = get_type_hints(kind)
    for each in fields(kind):
        inside = settings_in(hints[each.name])
        if inside is not None and each.name not in ("validation", "test"):  # as train
            yield from _groups(inside, f"{key}.{each.name}".lstrip("."))


def _comments() -> dict[tuple[str, str], str]:
    """Read what stands beside or above each field: {(class, field): comment}."""
    text = inspect.getsource(module)
    lines = text.split("\n")
    comments = {}
    for node in ast.parse(text).body:
        for field in node.body if isinstance(node, ast.ClassDef) else []:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            beside = re.search(r"  # (.*)$", lines[(field.end_lineno or 0) - 1])
            above = []
            for line in reversed(lines[: field.lineno - 1]):
                if not line.strip().startswith("# "):
                    break
                above.insert(0, line.strip().removeprefix("# "))
            comments[node.name, field.target.id] = beside[1] if beside else " ".join(above)
    return comments


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Give every key of a recipe, the entries of lists without their number."""
    if key:
        yield key, value
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _leaves(inside, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and key in LISTS:
        for entry in value:
            for name, inside in entry.items():
                yield from _leaves(inside, f"{key}.{name}")


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return _flow(field.default)
    return _flow(field.default_factory()) if field.default_factory is not MISSING else "must be given"


def _another_value(hint: Any, field: Field[Any]) -> Any:
    """Take a value that the type itself shows: of the words that are allowed, one that is not the default."""
    choices = [choice for choice in _choices(hint) if choice != field.default]
    assert choices, f"{field.name}: needs an example in EXAMPLES"
    return choices[0]


def _choices(hint: Any) -> list[Any]:
    if hint is bool:
        return [True, False]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for each in get_args(hint) for choice in _choices(each)]


def _flow(value: Any) -> str:
    plain = (
        to_plain(value)
        if hasattr(value, "__dataclass_fields__")
        else list(value)
        if isinstance(value, tuple)
        else value
    )
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()


def settings_page() -> str:
    """Write the page of all settings."""
    parts = [
        "# Settings",
        MARK,
        "Every setting of a recipe. A key is written as `--set` takes it; in a recipe it is nested: `train.epochs` is "
        "`train: {epochs: 5}`. Only what differs from a default needs to stand in a recipe. A resumed run may have "
        "other values of those that say so, no others. Keys of a source that are not here belong to its reader "
        "([data](../data.md)).",
    ]
    for key, meaning, found in groups_of_settings():
        if not found:
            continue
        parts.append(f"## {key or 'The run'}\n\n{meaning}")
        for each in found:
            facts = [f"- default: `{each.default}`" if each.default != "must be given" else "- must be given"]
            facts += [f"- allowed: {each.allowed}", f"- affects {AFFECTS[each.effect.affects]}"]
            facts[-1] += "; a resumed run may change it" if each.effect.may_change else ""
            example = yaml.safe_dump(as_recipe(each), default_flow_style=True, sort_keys=False, width=10_000).strip()[
                1:-1
            ]
            meaning_ = each.meaning[:1].upper() + each.meaning[1:]
            parts.append(f"### `{each.key}`\n\n{meaning_}.\n\n" + "\n".join(facts) + f"\n\n```yaml\n{example}\n```")
    return "\n\n".join(parts) + "\n"


# --- Commands


def commands_page() -> str:
    """Write the page of all commands."""
    root = program.command()
    parts = [
        "# Commands",
        MARK,
        "Every command has `--help`. `--debug` (where an error comes from, and what libraries log), `--quiet` (nothing "
        "but errors on standard error) and `--log-json` (standard error as one JSON object a line) may stand anywhere. "
        f"{program.EPILOG} `visgraft --install-completion` lets your shell complete commands, options and the names of "
        "what is shipped.",
    ]
    for name, each in root.commands.items():
        below = getattr(each, "commands", None)
        parts += [_command(f"{name} {inner}", sub) for inner, sub in below.items()] if below else [_command(name, each)]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"visgraft {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## visgraft {name}", _plain(command.help), f"```text\nvisgraft {name} {usage}\n```"]
    rows = []
    for option in command.get_params(context):
        if option.name in ("help", "debug"):
            continue
        is_argument = option.param_type_name == "argument"
        called = option.display_name_raw if is_argument else ", ".join([*option.opts, *option.secondary_opts])
        takes = "" if is_argument or getattr(option, "is_flag", False) else f" {option.display_type_rich(context)}"
        shown = _shown_default(option)
        rows.append(f"- `{called}{takes}`: {_plain(option.help or '')}{f' Default: {shown}.' if shown else ''}")
    if rows:
        lines.append("\n".join(rows))
    examples = [
        line.strip() for line in _plain(command.epilog or "").split("\n") if line.strip().startswith("visgraft ")
    ]
    if examples:
        lines.append("```sh\n" + "\n".join(examples) + "\n```")
    return "\n\n".join(lines)


def _shown_default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if (
        getattr(option, "is_flag", False)
        or option.default is None
        or option.show_default is False
        or callable(option.default)
    ):
        return ""
    return f"`{option.default}`"


def _plain(text: str) -> str:
    return re.sub(r"\[/?[a-z]+( [a-z]+)*\]", "", text or "").replace("\\[", "[")


# --- Python


def python_page() -> str:
    """Write the page of all public names; Sphinx puts their docstrings in."""
    parts = ["# Python", MARK]
    for package, words in (
        (visgraft, "What `import visgraft` gives. Nothing is loaded before it is used."),
        (visgraft.inference, "Answers, many at a time and each with its own settings ([inference](../inference.md))."),
    ):
        parts.append(f"## {package.__name__}\n\n{words}")
        for name in public_names(package):
            value = getattr(package, name)
            kind = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
            lines = [f".. {kind}:: {package.__name__}.{name}"]
            if kind == "autoclass" and not issubclass(value, Exception):
                lines += ["   :members:", "   :show-inheritance:"]
            parts.append("\n".join(["```{eval-rst}", *lines, "```"]))
    return "\n\n".join(parts) + "\n"


def public_names(package: Any) -> list[str]:
    """Name what a package hands on to those outside of it."""
    own = [name for name, value in vars(package).items() if getattr(value, "__module__", "").startswith("visgraft.")]
    return sorted(getattr(package, "__all__", [name for name in own if not name.startswith("_")]))


# --- Recipes


def recipes_page() -> str:
    """Write the page of the shipped recipes, each with what it takes (bench/recipe_costs.py)."""
    measured = json.loads((ROOT / "bench" / "results" / "recipe_costs.json").read_text(encoding="utf-8"))
    parts = [
        "# Recipes",
        MARK,
        "```sh\nvisgraft recipes                            # all of them, with what they are for\n"
        "visgraft recipes nanovlm -o recipe.yaml     # a copy to change\n"
        "visgraft train cpu --set data.train.0.path=pictures\n```",
        "Every command that takes a recipe takes these names. What follows others' work says where it differs. Memory "
        "and time are estimates of `visgraft estimate`, from the sizes of the parts alone, on the day "
        f"{measured['machine']['date']} (`python bench/recipe_costs.py`), with one text an image, as long as those of "
        "the recipe's own data; several texts about an image share its prefix and take less. Hours are of one A100 at "
        "40 % of its rate.",
    ]
    experiments = []
    for name, path in shipped_recipes().items():
        if "/" in name:
            experiments.append(f"- `{name}`: {first_line(path)}")
            continue
        takes = _takes(measured["recipes"].get(name), name)
        text = path.read_text(encoding="utf-8").strip()
        parts.append(f"## {name}\n\n{first_line(path)}\n\n{takes}\n\n```yaml\n{text}\n```")
    parts.append("## Experiments and launch files\n\n" + "\n".join(experiments))
    return "\n\n".join(parts) + "\n"


def _takes(found: dict[str, Any] | None, name: str) -> str:
    if found is None:
        return "**Takes** minutes on two CPU cores, measured: [the demo](../demo.md)."
    if name in ON_CPU:
        return f"**Takes** {found['memory_gib']} GiB of memory."
    takes = f"**Takes** {found['memory_gib']} GiB of a GPU"
    if found["seconds_per_step_a100"] is not None:
        takes += f", {found['seconds_per_step_a100']:.2g} s a step of {found['texts_per_step']} texts on an A100"
    hours = found["hours_a100"]
    return f"{takes}; {hours:.3g} hours for {found['steps']:,} steps, its whole data." if hours else f"{takes}."


PAGES = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "python.md": python_page,
    "recipes.md": recipes_page,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (FOLDER / name).write_text(write(), encoding="utf-8")
