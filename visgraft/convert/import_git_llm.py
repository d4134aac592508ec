"""Import a checkpoint of GIT-LLM or heron as a visgraft model folder that computes the same.

In: a folder in their layout, or its Hub name. Out: a full model folder, and a report of what was found in the source.

    report = import_git_llm("GIT-Llama-2-7B", "imported")
    model = VisionLanguageModel.from_pretrained("imported")
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, GenerationConfig, PreTrainedModel

from visgraft.atomic import whole_folder, write_json
from visgraft.config import LoraSettings
from visgraft.convert.git_llm_checkpoint import GitLlmCheckpoint, read_git_llm_checkpoint
from visgraft.convert.git_llm_processors import import_processor
from visgraft.convert.merge import check_target
from visgraft.errors import CheckpointError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.lora import add_lora
from visgraft.model.storage.restoring import find_folder
from visgraft.model.vlm import VisionLanguageModel
from visgraft.parsing import parse_json

DEFAULT_LORA_ALPHA = 32.0  # of GIT-LLM and heron
REPORT_FILE = "import.json"
_CLIP_HEAD_WIDTH = 64  # of every published CLIP


@dataclass(frozen=True)
class ImportReport:
    """What an import found and wrote; itself a path, that of the folder.

    Attributes:
        folder: the model folder.
        model_type: the source's.
        image_attention: the mask inside an image that the checkpoint was trained with.
        num_image_tokens: of one image.
        num_frames: frames with a temporal embedding.
        lora: part -> {"r", "lora_alpha", "modules"}.
        dead: keys that the source stores and its own code never used.
        notes: what is missing or was decided, one sentence each.
        source: a Hub name or folder.
    """

    folder: str
    model_type: str
    image_attention: str
    num_image_tokens: int
    num_frames: int
    lora: dict[str, dict[str, Any]] = field(default_factory=dict)
    dead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""

    def __fspath__(self) -> str:
        return self.folder


def import_git_llm(
    src: str | Path,
    dst: str | Path,
    *,
    lora_alpha: float | None = None,
    image_attention: str | None = None,
    template: str | None = None,
    vision_heads: int | None = None,
    replace: bool = False,
) -> ImportReport:
    """Read a GIT-LLM or heron checkpoint and write it as a model folder.

    Args:
        src: folder in their layout, or its name on the Hub.
        dst: folder to write.
        lora_alpha: LoRA's scaling is this over its rank; None = what the source says, else 32, as theirs.
        image_attention: None = the mask that the checkpoint was trained with: `causal` for GPT-NeoX and Japanese
            StableLM, whose attention hid later image tokens against its authors' intent, else `bidirectional`.
        template: prompt template of the processor; None = the one that the authors of its architecture trained with.
        vision_heads: attention heads of the encoder, where neither its configuration nor its width tells them.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: the source is no such checkpoint, or a tensor of it cannot be accounted for.
        ConfigError: `image_attention` or `template` is none.
    """
    source, folder = find_folder(src), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    checkpoint = read_git_llm_checkpoint(source)
    model = build_model(checkpoint, lora_alpha=lora_alpha, image_attention=image_attention, vision_heads=vision_heads)
    with whole_folder(folder) as building:
        model.save_pretrained(building, full=True)
        notes = import_processor(source, building, model=model, template=template or checkpoint.architecture.template)
        config = model.config
        report = ImportReport(
            folder=str(folder),
            model_type=checkpoint.values["model_type"],
            image_attention=config.image_attention,
            num_image_tokens=model.projection.num_tokens,
            num_frames=config.num_frames,
            lora=_describe_lora(model),
            dead=tuple(checkpoint.dead),
            notes=tuple(notes),
            source=str(src),
        )
        write_json(building / REPORT_FILE, asdict(report))
    return report


def build_model(
    checkpoint: GitLlmCheckpoint,
    *,
    lora_alpha: float | None = None,
    image_attention: str | None = None,
    vision_heads: int | None = None,
) -> VisionLanguageModel:
    """Make the model of a sorted checkpoint.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or cannot be accounted for.
    """
    architecture = checkpoint.architecture
    vision_config = make_vision_config(checkpoint, vision_heads=vision_heads)
    try:
        text_config = architecture.text_config(checkpoint.values, checkpoint.language)
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.folder}: the tensor {error} is missing") from error
    text_config.tie_word_embeddings = checkpoint.is_tied
    language_class = AutoModelForCausalLM._model_mapping[type(text_config)]
    vision = _fill(CLIPVisionModel, vision_config, checkpoint.vision, checkpoint)
    language = _fill(language_class, text_config, checkpoint.language, checkpoint)
    frames = checkpoint.projection.get("temporal_embedding")
    config = VisionLanguageConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_attention=image_attention or architecture.image_attention,
        num_frames=0 if frames is None else frames.shape[0],
        projection={"norm_eps": vision_config.layer_norm_eps},
        prefix_at=architecture.prefix_at,
        parts={"vision": {"name": None, "revision": None}, "language": {"name": None, "revision": None}},
    )
    model = VisionLanguageModel(config, vision=vision, language=language)
    _fill_projection(model.projection, checkpoint)
    for part in checkpoint.lora:
        _put_lora(getattr(model, part), part, checkpoint, lora_alpha=_lora_alpha(checkpoint, lora_alpha))
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model.eval()


def make_vision_config(checkpoint: GitLlmCheckpoint, *, vision_heads: int | None = None) -> CLIPVisionConfig:
    """Read CLIP's sizes from its tensors; the stored configuration may be that of another CLIP.

    Raises:
        CheckpointError: a tensor is missing, or no source tells the number of heads.
    """
    stored = CLIPVisionConfig(**{
        key: value for key, value in (checkpoint.values.get("vision_config") or {}).items() if key in _VISION_KEYS
    })  # fmt: skip
    tensors, root = checkpoint.vision, "vision_model."
    try:
        patch_size = tensors[f"{root}embeddings.patch_embedding.weight"].shape[-1]
        num_tokens, hidden_size = tensors[f"{root}embeddings.position_embedding.weight"].shape
        intermediate_size = tensors[f"{root}encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{checkpoint.folder}: the encoder's tensor {error} is missing") from error
    side = round((num_tokens - 1) ** 0.5)
    if side * side != num_tokens - 1:
        raise CheckpointError(
            f"{checkpoint.folder}: {num_tokens} image tokens are no square of patches and a class token"
        )
    image_size = int(stored.image_size)  # type: ignore[arg-type]
    fits = stored.patch_size == patch_size and image_size // patch_size == side
    layers = {key.split(".")[3] for key in tensors if key.startswith(f"{root}encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=len(layers),
        num_attention_heads=vision_heads or _num_heads(stored, hidden_size, checkpoint),
        image_size=image_size if fits else side * patch_size,
        patch_size=patch_size,
        hidden_act=stored.hidden_act,
        layer_norm_eps=stored.layer_norm_eps,
    )


_VISION_KEYS = ("hidden_size", "num_attention_heads", "image_size", "patch_size", "hidden_act", "layer_norm_eps")


def _num_heads(stored: CLIPVisionConfig, hidden_size: int, checkpoint: GitLlmCheckpoint) -> int:
    if stored.hidden_size == hidden_size:
        return int(stored.num_attention_heads)
    if hidden_size % _CLIP_HEAD_WIDTH == 0:
        return hidden_size // _CLIP_HEAD_WIDTH
    raise CheckpointError(
        f"{checkpoint.folder}: config.json describes an encoder of width {stored.hidden_size}, the tensors have "
        f"{hidden_size}, and no tensor tells the number of heads; give it as vision_heads (--vision-heads)"
    )


def _fill(cls: Any, config: Any, tensors: dict[str, Tensor], checkpoint: GitLlmCheckpoint) -> PreTrainedModel:
    """Make a part of its configuration and tensors, each of which must find its place."""
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    with quiet_transformers():
        module, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed, and refused below
        )
    for what, key in (("unaccounted for", "unexpected"), ("missing", "missing"), ("of another shape", "mismatched")):
        found = sorted(str(name) for name in info[f"{key}_keys"])
        if found:
            raise CheckpointError(
                f"{checkpoint.folder}: {len(found)} tensors of {cls.__name__} are {what}: {', '.join(found[:5])}"
            )
    module.config._name_or_path = ""
    return module.eval()


def _fill_projection(projection: nn.Module, checkpoint: GitLlmCheckpoint) -> None:
    expected = projection.state_dict()
    if set(expected) != set(checkpoint.projection):
        wrong = sorted(set(expected) ^ set(checkpoint.projection))
        raise CheckpointError(f"{checkpoint.folder}: tensors of visual_projection are missing or too many: {wrong}")
    for name, tensor in checkpoint.projection.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{checkpoint.folder}: visual_projection's {name} is {list(tensor.shape)}, the encoder and the "
                f"language model need {list(expected[name].shape)}"
            )
    projection.to(checkpoint.projection["linear.weight"].dtype).load_state_dict(checkpoint.projection)


def _put_lora(module: nn.Module, part: str, checkpoint: GitLlmCheckpoint, *, lora_alpha: float) -> None:
    """Put the checkpoint's LoRA on a part, its rank read from the tensors."""
    pairs = checkpoint.lora[part]
    ranks = {down.shape[0] for down, _ in pairs.values()}
    if len(ranks) > 1:
        raise CheckpointError(f"{checkpoint.folder}: LoRA of the {part} part has ranks {sorted(ranks)}; need one")
    paths = {name: _find_module(module, name, checkpoint) for name in pairs}
    adapter = add_lora(module, LoraSettings(r=ranks.pop(), lora_alpha=lora_alpha), targets=sorted(paths.values()))
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            layer: Any = module.get_submodule(paths[name])
            for own, stored in ((layer.lora_A[adapter].weight, down), (layer.lora_B[adapter].weight, up)):
                if own.shape != stored.shape:
                    raise CheckpointError(
                        f"{checkpoint.folder}: LoRA of {name} is {list(stored.shape)}, need {list(own.shape)}"
                    )
                own.data = stored.clone()


def _find_module(module: nn.Module, name: str, checkpoint: GitLlmCheckpoint) -> str:
    """Find a linear by its name on disk, which may have more in front than the name in memory."""
    found = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and (path == name or name.endswith(f".{path}"))
    ]
    if len(found) != 1:
        raise CheckpointError(f"{checkpoint.folder}: LoRA on {name}, which is no linear layer of the model")
    return found[0]


def _lora_alpha(checkpoint: GitLlmCheckpoint, given: float | None) -> float:
    if given is not None:
        return given
    adapter = checkpoint.folder / "adapter_config.json"
    try:
        stored = parse_json(adapter.read_bytes()) if adapter.is_file() else checkpoint.values
    except ValueError as error:
        raise CheckpointError(f"{adapter}: is not JSON ({error}); download the checkpoint again") from error
    for values in (stored, stored.get("lora"), stored.get("lora_config")):
        if isinstance(values, dict) and "lora_alpha" in values:
            return float(values["lora_alpha"])
    return DEFAULT_LORA_ALPHA


def _describe_lora(model: VisionLanguageModel) -> dict[str, dict[str, Any]]:
    described = {}
    for part in ("vision", "language"):
        for config in getattr(getattr(model, part), "peft_config", {}).values():
            described[part] = {"r": config.r, "lora_alpha": config.lora_alpha, "modules": len(config.target_modules)}
    return described
