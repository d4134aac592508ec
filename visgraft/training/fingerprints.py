"""What a run depends on besides its recipe, and what of it is no longer what it was: nothing changes unseen.

In: the recipe, the opened data, the processor and the model of a run. Out: plain values, which `fingerprints.json`
keeps in the run folder; at a resume, the changes since then.

    now = take_fingerprints(recipe, data=data, processor=processor, model=model)
    changes = find_changes(run.read_fingerprints(), now)
    refuse(changes, run)                     # or go on, and write it down:
    accept(run, recipe, now=now, changes=changes, step=200)

No data file is read for it: of files of data, sizes and times of change tell; of weights, the checksums that loading
computes anyway.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypedDict

from visgraft.atomic import write_whole
from visgraft.config import Recipe, changeable_keys, effect_of, load_recipe, recipe_to_dict
from visgraft.data.fingerprint import stamp
from visgraft.data.tokenizer_and_image_processor import vocabulary_of
from visgraft.errors import ConfigError
from visgraft.model.storage.checksums import Checksum, read_checksums
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import Run, library_versions
from visgraft.training.plan import Planner
from visgraft.training.stream_plan import StreamPlanner
from visgraft.training.training_data import TrainingData

NOT_THERE = "not there"
_NAMED_CHANGES = 10  # in one message
_LONGEST_VALUE = 80  # of a config; longer ones are kept as a checksum
# Of a config: where it lies, what wrote it, and what loading decides anew.
_OF_NO_EFFECT = ("transformers_version", "dtype", "torch_dtype", "attn_implementation", "id2label", "label2id")
_WEIGHT_FILES = ("*.safetensors", "*.bin")

Fingerprints = dict[str, Any]


class Change(TypedDict):
    """What is no longer what it was: its name, and its value before and now."""

    what: str
    before: Any
    now: Any


def take_fingerprints(
    recipe: Recipe, *, data: TrainingData, processor: Processor, model: VisionLanguageModel
) -> Fingerprints:
    """Take the fingerprints of all that a run depends on; the model is as it was loaded."""
    planners = {"data.train": data.planner, "data.validation": data.validation}
    return {
        "recipe": flat_recipe(recipe),
        "versions": library_versions(),
        **{key: _of_data(planner) for key, planner in planners.items() if planner is not None},
        **_of_model(model, is_continued=recipe.model.start_from is not None),
        "tokenizer": _of_tokenizer(processor),
        "image_processor": _of_config(processor.image_processor.to_dict()),
    }


def _of_data(planner: Planner) -> Mapping[str, Mapping[str, str]]:
    return planner.streams.described() if isinstance(planner, StreamPlanner) else planner.sources.described()


def _of_model(model: VisionLanguageModel, *, is_continued: bool) -> Fingerprints:
    configs: dict[str, Any] = {"vision": model.config.vision_config, "language": model.config.text_config}
    found: Fingerprints = {part: {"config": _of_config(config.to_dict())} for part, config in configs.items()}
    for part, checksums in model.loaded_checksums.items():
        found[part]["weights"] = _sum_of(checksums)
    for part, described in model.config.parts.items():
        if described.get("quantization") or getattr(configs[part], "quantization_config", None) is not None:
            found[part]["files"] = _of_weight_files(described)
    if model.generation_config is not None:
        found["language"]["generation"] = _of_config(model.generation_config.to_dict())
    if is_continued:  # what a model folder holds itself
        known = {f"{part}.{name}" for part, checksums in model.loaded_checksums.items() for name in checksums}
        rest = {name: tensor for name, tensor in model.state_dict().items() if name not in known}
        # Not what is not in memory, and no quantized weights, which kinds of device round differently.
        numbers = {name: t for name, t in rest.items() if t.device.type != "meta" and t.is_floating_point()}
        found["start_from"] = {"weights": _sum_of(read_checksums(numbers))}
    return found


def _of_weight_files(described: Mapping[str, Any]) -> Mapping[str, str]:
    """Describe the files of a part whose weights are not compared, as they are quantized; of the Hub, the commit."""
    folder = Path(described["name"] or "")
    if described["name"] is None or not folder.is_dir():
        return {"commit": str(described["revision"])}
    return stamp(sorted(path for kind in _WEIGHT_FILES for path in folder.glob(kind))).described()


def _of_tokenizer(processor: Processor) -> Fingerprints:
    tokenizer: Any = processor.tokenizer
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return {
        "vocabulary": _digest(vocabulary_of(tokenizer)),
        "special": special,
        "chat_template": _short(tokenizer.chat_template),
    }


def _of_config(values: Mapping[str, Any]) -> Fingerprints:
    """Keep each key of a config by itself, so that a change has a name."""
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in _OF_NO_EFFECT}
    return {key: _short(value) for key, value in sorted(kept.items())}


def _sum_of(checksums: Mapping[str, Checksum]) -> str:
    """Make one text of the checksums of all bits; names are left out, as they change between versions."""
    return _digest(repr(sorted(one.sums[one.dtype] for one in checksums.values())))


def _short(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True, default=str)
    return json.loads(text) if len(text) <= _LONGEST_VALUE else f"sum {_digest(text)}"


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# --- Compared


def find_changes(before: Fingerprints | None, now: Fingerprints) -> list[Change]:
    """List what differs from what a run folder has kept (None: nothing, as older versions did), the recipe apart."""
    if before is None:
        return []
    changes: list[Change] = []
    for section in [name for name in (*before, *(set(now) - set(before))) if name not in ("recipe", "changes")]:
        old, new = dict(_named(before.get(section, {}), section)), dict(_named(now.get(section, {}), section))
        if section == "versions":  # a library that was not there was of no use then, and is of none now
            new = {name: version for name, version in new.items() if old.get(name) is not None}
        changes += _differences(old, new)
    return changes


def recipe_changes(run: Run, recipe: Recipe) -> list[Change]:
    """List the settings in which a recipe differs from the first one of a run and all changes accepted since."""
    kept = run.read_fingerprints()
    before = kept["recipe"] if kept is not None else flat_recipe(load_recipe(run.first_recipe_path))
    return _differences(before, flat_recipe(recipe), absent="the default")


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what differs from the defaults by dotted key, of lists of settings too: `data.train.0.limit`."""
    values: dict[str, Any] = json.loads(json.dumps(recipe_to_dict(recipe), default=str))
    return dict(_dotted(values, ""))


def refuse(changes: Sequence[Change], run: Run) -> None:
    """Refuse to go on with a run that depends on something else than it did.

    Raises:
        ConfigError: with all that changed.
    """
    if changes:
        raise ConfigError(
            f"{run.folder}: what this run depends on has changed since it began:\n{in_words(changes)}\n"
            "Bring back what was; or go on all the same with --allow-changed (in Python allow_changed=True), which "
            "metrics.jsonl and the model card will say; or begin a new run"
        )


def refuse_recipe(changes: Sequence[Change]) -> None:
    """Refuse to go on with a run under settings that would have made another run of it.

    Raises:
        ConfigError: with all of them.
    """
    fixed = [change for change in changes if not _may_change(change["what"])]
    if fixed:
        named = "; ".join(
            f"{each['what']}: got {each['now']}, but the run began with {each['before']}" for each in fixed
        )
        raise ConfigError(
            f"{named}; resume it as it was (only these may change: {', '.join(changeable_keys(Recipe))}), go on all "
            "the same with --allow-changed, or start a new run with model.start_from"
        )


def in_words(changes: Sequence[Change]) -> str:
    """List changes, one a line; of very many the first."""
    lines = [f"  {each['what']}: {each['before']} before, {each['now']} now" for each in changes[:_NAMED_CHANGES]]
    if len(changes) > _NAMED_CHANGES:
        lines.append(f"  and {len(changes) - _NAMED_CHANGES:,} more")
    return "\n".join(lines)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], *, absent: str = NOT_THERE) -> list[Change]:
    names = [*before, *(name for name in now if name not in before)]
    pairs = {name: (before.get(name, absent), now.get(name, absent)) for name in names}
    return [Change(what=name, before=old, now=new) for name, (old, new) in pairs.items() if old != new]


def _named(values: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        yield name, values
        return
    for key, value in values.items():
        yield from _named(value, f"{name} {key}")


def _dotted(values: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _dotted(value, f"{name}.{key}" if name else key)
    elif isinstance(values, list) and values and all(isinstance(value, Mapping) for value in values):
        for number, value in enumerate(values):
            yield from _dotted(value, f"{name}.{number}")
    else:
        yield name, values


def _may_change(key: str) -> bool:
    try:
        return effect_of(Recipe, key).may_change
    except AssertionError:  # a key of an older version
        return False


# --- Written down


def accept(run: Run, recipe: Recipe, *, now: Fingerprints, changes: Sequence[Change], step: int) -> None:
    """Take what a resumed run depends on from here on for what it is to depend on, and write down what changed.

    The history in `fingerprints.json` is what counts; `metrics.jsonl` is brought to it, whenever a run was killed.
    """
    if recipe.to_yaml() != run.recipe_path.read_text(encoding="utf-8"):
        write_whole(run.recipe_path, recipe.to_yaml())
    kept = run.read_fingerprints() or {}
    history = [{**each, "step": min(step, each["step"])} for each in kept.get("changes", [])]
    if changes:
        history.append({"step": step, "changed": [dict(change) for change in changes]})
    if {**now, "changes": history} != kept:
        run.write_fingerprints({**now, "changes": history})
    there = [record for record in run.read_metrics() if "changed" in record]
    for each in history:
        if each not in there:
            run.append("metrics", each)
