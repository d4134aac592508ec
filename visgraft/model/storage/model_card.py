"""The model card of an uploaded folder: parts, licences, data, scores, and lines that run.

In: a model folder and, where it was trained here, its run folder. Out: the text of `README.md`.

    text = model_card(folder, repo_id="me/cats", run="runs/my-run")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from visgraft.errors import CheckpointError
from visgraft.licences import UNKNOWN, Licence, licences_of_model
from visgraft.parsing import parse_json, parse_yaml
from visgraft.runs import Run

_SCORES = "scores.json"  # of an evaluation
_SNIPPET = """```python
from PIL import Image
from visgraft import Processor, VisionLanguageModel

model = VisionLanguageModel.from_pretrained("{repo_id}")
processor = Processor.from_pretrained("{repo_id}")
inputs = processor(images=Image.open("photo.jpg"), text="What is in the picture?")
tokens = model.generate(**inputs, max_new_tokens=32)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def model_card(
    folder: str | Path, *, repo_id: str, run: str | Path | None = None, evaluation: str | Path | None = None
) -> str:
    """Write the card of a model folder.

    Args:
        folder: what `save_pretrained` wrote.
        repo_id: where it will be found.
        run: the run folder that trained it, which gives data and scores.
        evaluation: folder of `visgraft evaluate`, or its scores.json, from which limitations are told; None = the
            newest one of the run or the folder under `evaluations/`.

    Raises:
        CheckpointError: no such model folder or run folder.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no config.json; need a model folder")
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); copy or save the model again") from error
    names = {part: config["parts"][part].get("name") for part in ("vision", "language")}
    found = licences_of_model(str(folder if run is None else run))
    of_part = {each.what: each for each in found}
    licences = {part: of_part[part].licence if part in of_part else UNKNOWN for part in names}
    paragraphs = [
        _front_matter(names, licences),
        f"# {repo_id.rpartition('/')[2]}",
        "A vision encoder joined to a causal language model behind a GIT mask: image tokens see each other, text sees "
        "the image and its own past. Made with visgraft.",
        "## Parts",
        _parts_table(config, names, licences),
        "## Use",
        _SNIPPET.format(repo_id=repo_id),
        *(_about_run(Run.open(run)) if run is not None else []),
        "## Licences",
        "The licences of both parts hold for the whole, and those of the training data where they say so; what no card "
        "names must be looked up where it comes from.",
        *_worries(found),
        "## Limitations",
        _limitations(_find_scores(folder, run, evaluation)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _worries(licences: Sequence[Licence]) -> list[str]:
    lines = [f"- {replace(each, name=str(_shortened(each.name))).line}" for each in licences if each.is_worrying]
    return ["\n".join(lines)] if lines else []


def _find_scores(
    folder: str | Path, run: str | Path | None, evaluation: str | Path | None
) -> tuple[str, dict[str, Any]] | None:
    """Find what was measured of a model: the data's name, and its entry of a scores.json.

    Raises:
        CheckpointError: the evaluation that was given is none.
    """
    own = {Path(each).expanduser().resolve() for each in (folder, run) if each is not None}
    own |= {path / "model" for path in own}
    if evaluation is not None:
        path = Path(evaluation).expanduser()
        paths = [path / _SCORES if path.is_dir() else path]
    else:
        paths = sorted(Path("evaluations").glob(f"*/{_SCORES}"), reverse=True)  # folders begin with their date
    for path in paths:
        try:
            models = parse_json(path.read_bytes())["models"]
            fits = [each for each in models if Path(each["model"]).expanduser().resolve() in own]
            chosen = fits or (models if evaluation is not None and len(models) == 1 else [])
            if chosen:
                return str(chosen[0].get("settings", {}).get("data", path.parent.name)), chosen[0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if evaluation is not None:
                raise CheckpointError(f"{path}: is no scores.json of `visgraft evaluate` ({error})") from error
    if evaluation is not None:
        raise CheckpointError(f"{evaluation}: holds no scores of this model; give the folder of its own evaluation")
    return None


def _limitations(measured: tuple[str, dict[str, Any]] | None) -> str:
    """Write what was measured of four weaknesses, and of each that was not measured that it was not."""
    data, values = measured or ("", {})
    scores, not_measured = values.get("scores") or {}, "not measured"
    gains = {name: each["multi_modal_gain"] for name, each in (values.get("sight") or {}).items()}
    sight = ", ".join(f"{name} {_with_interval(gain, '+.3f')}" for name, gain in gains.items())
    ratio = scores.get("yes_no_yes_ratio", {}).get("value")
    stopped = (values.get("text_quality") or {}).get("never_stopped")
    language = (values.get("settings") or {}).get("language")
    measured_in = f"measured on {data}, in {language or 'the language of its texts'}; no other was" if values else ""
    rows = {
        "what it gains by the image, beside the same questions without it": sight,
        "how often it says yes to questions of yes or no": "" if ratio is None else f"{ratio:.1%}",
        "answers that did not end and were cut": "" if stopped is None else f"{stopped:.1%}",
        "languages": measured_in,
    }
    lines = ["| weakness | measured |", "|---|---|"]
    lines += [f"| {what} | {found or not_measured} |" for what, found in rows.items()]
    return "\n".join([*([f"On {data}, by `visgraft evaluate`:", ""] if values else []), *lines])


def _with_interval(value: dict[str, Any], form: str) -> str:
    low, high = value.get("low"), value.get("high")
    between = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    return f"{value['value']:{form}}{between}"


def _front_matter(names: dict[str, str | None], licences: dict[str, str]) -> str:
    known = set(licences.values())
    values: dict[str, Any] = {
        "library_name": "visgraft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["visgraft", "vision-language"],
        "base_model": [name for name in names.values() if name and not Path(name).is_absolute()],
        "license": known.pop() if len(known) == 1 and UNKNOWN not in known else "other",
    }
    return "---\n" + yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False) + "---"


def _parts_table(config: dict[str, Any], names: dict[str, str | None], licences: dict[str, str]) -> str:
    rows = ["| part | architecture | from | licence |", "|---|---|---|---|"]
    for part, key in (("vision", "vision_config"), ("language", "text_config")):
        architecture = config[key].get("model_type", UNKNOWN)
        lora = ", with LoRA" if config["parts"][part].get("adapters") else ""
        name = names[part]
        origin = "weights in this folder" if not name or Path(name).is_absolute() else name
        rows.append(f"| {part} | {architecture}{lora} | {origin} | {licences[part]} |")
    rows.append(f"| projection | {config['projection'].get('type', 'linear')} | trained here | |")
    return "\n".join(rows)


def _about_run(run: Run) -> list[str]:
    recipe = parse_yaml((run.folder / "recipe.yaml").read_bytes()) or {}
    paragraphs = ["## Data"]
    for key in ("train", "validation"):
        sources = [entry["source"] for entry in (recipe.get("data") or {}).get(key) or []]
        paragraphs.append(f"{key}: {', '.join(sources) or 'none'}")
    scored = [record for record in run.validations() if record["validation_loss"] is not None]
    if scored:
        best = min(scored, key=lambda record: record["validation_loss"])
        rows = ["| score | value |", "|---|---|"]
        for name, value in best.items():
            if isinstance(value, (int, float)) and ("validation" in name or "match" in name or name == "step"):
                rows.append(f"| {name} | {value:.4g} |")
        paragraphs += ["## Scores", "Of the step with the lowest validation loss:", "\n".join(rows)]
    changed = [record for record in run.read_metrics() if "changed" in record]
    if changed:
        rows = ["| after step | what | before | from then on |", "|---|---|---|---|"]
        for record in changed:
            for change in record["changed"]:
                values = (record["step"], change["what"], _shortened(change["before"]), _shortened(change["now"]))
                rows.append(f"| {' | '.join(str(value).replace('|', '&#124;') for value in values)} |")
        paragraphs += ["## Changes", "The run was stopped and resumed with what was not the same:", "\n".join(rows)]
    return [*paragraphs, "## Recipe", f"```yaml\n{_public(recipe)}```"]


def _public(recipe: dict[str, Any]) -> str:
    """Write the recipe without where things lie on this machine."""
    return yaml.safe_dump(_shortened(recipe), sort_keys=False, allow_unicode=True)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_shortened(below) for below in value]
    is_path = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return Path(value).name if is_path else value
