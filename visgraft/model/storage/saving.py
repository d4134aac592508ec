"""Write a model folder: what was trained, and the names of the rest.

In: a model and a folder. Out: the files that `load_and_save.py` draws. Weights that are still those of the checkpoint
they were loaded from are only named, with a checksum; everything else is written.

    save_folder(model, Path("runs/first/model"))
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel

from visgraft.errors import CheckpointError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.joined import JoinedModel
from visgraft.model.lora import adapters_of
from visgraft.model.quantization import stored_config
from visgraft.model.storage.adapters import adapter_folder, save_adapter
from visgraft.model.storage.checksums import changed_names, combine, read_checksums, with_rounding
from visgraft.model.storage.weights import Rounded, describe_formats, disk_names, own_weights

STORED_PARTS = ("vision", "language")
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class PartPlan:
    """What a folder will hold of one part.

    Attributes:
        stored: `none` (the part is only named), `some` of its weights, or `all`.
        names: the weights that will be written.
        checksum: of the weights that will not.
        rounded: name -> the half formats that each of those was rounded to.
    """

    stored: str
    names: tuple[str, ...] = ()
    checksum: str | None = None
    rounded: Mapping[str, Rounded] = field(default_factory=dict)


def save_folder(
    model: JoinedModel, folder: Path, *, full: bool = False, max_shard_size: int | str | None = None
) -> None:
    """Write a model folder; config.json comes last, so that a folder without one is known to be incomplete.

    Raises:
        CheckpointError: the folder is one that a part is loaded from, or weights are not in memory.
    """
    plans = plan_save(model, full=full)
    for part in STORED_PARTS:
        name = model.config.parts.get(part, {}).get("name")
        if name is not None and Path(name) in (folder.resolve(), folder.resolve() / part):
            raise CheckpointError(f"{folder}: the {part} part is loaded from there; save into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for part, plan in plans.items():
        _save_part(model, part, plan, folder=folder, max_shard_size=max_shard_size)
    projection = {f"projection.{name}": tensor.contiguous() for name, tensor in model.projection.state_dict().items()}
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file(projection, folder / "model.safetensors", metadata={"format": "pt"})
    if model.generation_config is not None:
        model.generation_config.to_json_file(folder / GENERATION_CONFIG)  # save_pretrained refuses some of them
    describe(model, plans).save_pretrained(folder)


def plan_save(model: JoinedModel, *, full: bool = False) -> dict[str, PartPlan]:
    """List which weights of each part a folder will hold.

    A slim folder holds a weight of a part where its checksum is no longer that with which it was loaded; where a
    checkpoint keeps such a weight cut up or merged, or where a part has no name, the whole part. LoRA and the
    projection are always written.

    Raises:
        CheckpointError: weights are not in memory.
    """
    return {part: _plan_part(model, part, full=full) for part in STORED_PARTS}


def describe(model: JoinedModel, plans: dict[str, PartPlan]) -> VisionLanguageConfig:
    """Make the config of a folder: the model's own, with what is stored of each part and where the rest is from."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    for part, plan in plans.items():
        module: PreTrainedModel = getattr(model, part)
        origin = model.config.parts.get(part, {})
        described: dict[str, Any] = {"name": _public_name(origin, plan), "revision": origin.get("revision")}
        described |= {"stored": plan.stored, "adapters": len(adapters_of(module))}
        if plan.stored != "all":
            described["checksum"] = plan.checksum
            described |= describe_formats(module, plan.rounded)
        quantization = stored_config(module)
        own: Any = config.vision_config if part == "vision" else config.text_config
        if quantization is not None:
            described["quantization"] = quantization
            del own.quantization_config  # would say of the checkpoint that it is quantized itself
        config.parts[part] = described
        own._name_or_path = ""  # is the folder it was loaded from; `parts` names what is read from there
    return config


def check_portable(model: JoinedModel, *, full: bool) -> None:
    """See that a folder of this model can be loaded elsewhere.

    Raises:
        CheckpointError: it would name a local folder.
    """
    for part, plan in plan_save(model, full=full).items():
        name = model.config.parts.get(part, {}).get("name")
        if plan.stored != "all" and is_local(name):
            raise CheckpointError(
                f"the {part} part is the local folder {name}, which no one else has: push with full=True, or train "
                "from its Hub name"
            )


def is_local(name: str | None) -> bool:
    """Say whether a part's name is that of a folder on this machine."""
    return name is not None and Path(name).is_absolute()


def _public_name(origin: Mapping[str, Any], plan: PartPlan) -> str | None:
    """Leave out a local folder from which nothing will be read."""
    name = origin.get("name")
    return None if plan.stored == "all" and is_local(name) else name


def _plan_part(model: JoinedModel, part: str, *, full: bool) -> PartPlan:
    module: PreTrainedModel = getattr(model, part)
    weights = own_weights(module)
    if any(tensor.device.type == "meta" for tensor in weights.values()):
        raise CheckpointError(
            f"the {part} part is offloaded, its weights are not in memory: load the model without device_map to save it"
        )
    everything = PartPlan("all", tuple(weights))
    before = model.loaded_checksums.get(part)
    if full or before is None or model.config.parts.get(part, {}).get("name") is None:
        if stored_config(module) is not None:
            raise CheckpointError(
                f"the {part} part is quantized, so a folder can only name it: load it by its name, and save without "
                "full=True (train.save: slim); `visgraft merge` makes a whole model of it"
            )
        return everything
    checksums = read_checksums(weights)
    names = changed_names(weights, checksums, before=before)
    on_disk = disk_names(module)
    if len(names) == len(weights) or any(name not in on_disk for name in names):
        return everything  # a checkpoint holds such a weight cut up or merged: it cannot be put over another
    rest = set(weights) - set(names)
    rounded = {name: with_rounding(before[name].rounded, checksums[name].dtype) for name in weights if name in rest}
    checksum = combine(checksums[name] for name in rest)
    return PartPlan("some" if names else "none", tuple(names), checksum, rounded)


def _save_part(
    model: JoinedModel, part: str, plan: PartPlan, *, folder: Path, max_shard_size: int | str | None
) -> None:
    module: PreTrainedModel = getattr(model, part)
    for index, adapter in enumerate(adapters_of(module)):
        place = folder / adapter_folder(part, index)
        save_adapter(module, adapter, folder=place, name=_public_name(model.config.parts.get(part, {}), plan))
    if plan.stored == "none":
        return
    weights = own_weights(module)
    shards: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    for old in (folder / part).glob("*.safetensors*"):  # a file of an earlier save would be read with the new ones
        old.unlink()
    # that of the language part says where answers end as the whole model's does, for whoever loads the part alone
    ends = model.generation_config if part == "language" else None
    with quiet_transformers(), _chosen_weights_only(module), _plain_generation_config(module, folder / part, ends):
        module.save_pretrained(
            folder / part, state_dict={name: weights[name].detach() for name in plan.names}, **shards
        )


@contextlib.contextmanager
def _chosen_weights_only(module: Any) -> Iterator[None]:
    """Keep transformers from writing all of a quantized part instead of the weights that it is given."""
    quantizer = getattr(module, "hf_quantizer", None)
    if quantizer is not None and not quantizer.pre_quantized:
        module.hf_quantizer = None
    try:
        yield
    finally:
        if quantizer is not None:
            module.hf_quantizer = quantizer


@contextlib.contextmanager
def _plain_generation_config(module: PreTrainedModel, folder: Path, instead: GenerationConfig | None) -> Iterator[None]:
    """Save the module's own generation config, or another instead, though transformers would refuse it.

    Published checkpoints have such (a temperature beside greedy decoding), and a run must not fail at its last step.
    """
    own = getattr(module, "generation_config", None)
    if own is None:
        yield
        return
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own
    (own if instead is None else instead).to_json_file(folder / GENERATION_CONFIG)
