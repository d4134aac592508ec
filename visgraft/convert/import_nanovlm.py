"""Import a folder of nanoVLM (huggingface/nanoVLM) as a visgraft model folder that computes the same.

In: a folder with its `config.json` and `model.safetensors`, or its Hub name. Out: a full model folder: a SigLIP
encoder, pixel shuffle and one linear layer, a Llama. Every tensor is accounted for.

    report = import_nanovlm("lusxvr/nanoVLM-222M", "imported")

nanoVLM's first models have the image in front of the text; later ones put it inside the text, in the place of
`<|image|>` tokens; both are causal throughout. Those that cut images into squares of a grid (`max_img_size`)
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from visgraft.atomic import whole_folder, write_json
from visgraft.convert.import_git_llm import REPORT_FILE, ImportReport
from visgraft.convert.import_llava import save_processor
from visgraft.convert.merge import check_target
from visgraft.data.prompt import IMAGE_FIELD, PROMPT_FIELD, PromptTemplate, text_before_images
from visgraft.data.tokenizer_and_image_processor import load_tokenizer
from visgraft.errors import CheckpointError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.storage.restoring import find_folder
from visgraft.model.vlm import VisionLanguageModel
from visgraft.parsing import parse_json

Tensors = dict[str, Tensor]
IMAGE_TOKEN = "image_token"  # its key in vlm_extra_tokens
FIRST_TEMPLATE = "question"  # of the models with the image in front of the text
_MARK = "<<prompt>>"
_BILINEAR = 2  # PIL's
_NEEDED = (
    "vit_hidden_dim", "vit_inter_dim", "vit_patch_size", "vit_img_size", "vit_n_heads", "vit_n_blocks", "vit_ln_eps",
    "lm_hidden_dim", "lm_inter_dim", "lm_rms_eps", "lm_re_base", "lm_max_position_embeddings", "lm_vocab_size",
    "lm_n_heads", "lm_n_kv_heads", "lm_n_blocks", "mp_pixel_shuffle_factor",
)  # fmt: skip
_VISION = {
    "patch_embedding.conv": "embeddings.patch_embedding",
    "layer_norm": "post_layernorm",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LANGUAGE = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


def is_nanovlm(values: Mapping[str, Any]) -> bool:
    """Say whether a config.json is nanoVLM's: it names no model_type, and its settings by part."""
    return "model_type" not in values and "vit_hidden_dim" in values and "lm_hidden_dim" in values


def import_nanovlm(
    src: str | Path, dst: str | Path, *, template: str | None = None, replace: bool = False
) -> ImportReport:
    """Read a nanoVLM checkpoint and write it as a model folder.

    Args:
        src: folder or Hub name.
        dst: folder to write.
        template: prompt template of the processor; None = that of its training.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: it is no such checkpoint, one that cuts images, or a tensor cannot be accounted for.
        ConfigError: `template` is none.
    """
    source, folder = find_folder(src), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    values = _read_values(source)
    tokenizer, notes = _load_tokenizer(source, values)
    template = template or _template_of(values, source, tokenizer)
    before = None
    if tokenizer is not None:
        before = text_before_images(tokenizer, PromptTemplate(template))
    model = build_model(values, _read_tensors(source), source, text_before=before)
    with whole_folder(folder) as building:
        model.save_pretrained(building, full=True)
        if tokenizer is not None:
            save_processor(building, model, _image_processor(values), tokenizer, template=template)
        report = ImportReport(
            folder=str(folder),
            model_type="nanovlm",
            image_attention="causal",
            num_image_tokens=model.projection.num_tokens,
            num_frames=0,
            notes=tuple(notes),
            source=str(src),
        )
        write_json(building / REPORT_FILE, asdict(report))
    return report


def build_model(
    values: Mapping[str, Any], tensors: Tensors, source: Path, *, text_before: dict[str, list[int]] | None
) -> VisionLanguageModel:
    """Make the model of a checkpoint's settings and tensors.

    Raises:
        CheckpointError: a tensor is missing, too many or of another shape.
    """
    text_config = _text_config(values)
    vision, language = SiglipVisionModel(_vision_config(values)), LlamaForCausalLM(text_config)
    config = VisionLanguageConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_attention="causal",
        projection={"type": "plain", "pixel_shuffle": int(values["mp_pixel_shuffle_factor"])},
        text_before_images=text_before,
        parts={"vision": {"name": None, "revision": None}, "language": {"name": None, "revision": None}},
    )
    model = VisionLanguageModel(config, vision=vision, language=language)
    sorted_ = _sort(tensors, is_tied=bool(text_config.tie_word_embeddings))
    for part, given in sorted_.items():
        _fill(getattr(model, part), given, source)
    return model.eval()


def _vision_config(values: Mapping[str, Any]) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=values["vit_hidden_dim"],
        intermediate_size=values["vit_inter_dim"],
        num_hidden_layers=values["vit_n_blocks"],
        num_attention_heads=values["vit_n_heads"],
        image_size=values["vit_img_size"],
        patch_size=values["vit_patch_size"],
        layer_norm_eps=values["vit_ln_eps"],
        attention_dropout=0.0,
        vision_use_head=False,
    )


def _text_config(values: Mapping[str, Any]) -> LlamaConfig:
    config: Any = LlamaConfig
    made: LlamaConfig = config(
        vocab_size=values["lm_vocab_size"],
        hidden_size=values["lm_hidden_dim"],
        intermediate_size=values["lm_inter_dim"],
        num_hidden_layers=values["lm_n_blocks"],
        num_attention_heads=values["lm_n_heads"],
        num_key_value_heads=values["lm_n_kv_heads"],
        rms_norm_eps=values["lm_rms_eps"],
        rope_theta=float(values["lm_re_base"]),
        max_position_embeddings=values["lm_max_position_embeddings"],
        tie_word_embeddings=bool(values.get("lm_tie_weights", True)),
        bos_token_id=None,
        eos_token_id=values.get("lm_eos_token_id"),
        pad_token_id=None,
    )
    return made


def _sort(tensors: Tensors, *, is_tied: bool) -> dict[str, Tensors]:
    """Name every tensor as its part does; one that no part knows keeps its name, and is refused later."""
    parts: dict[str, Tensors] = {"vision": {}, "projection": {}, "language": {}}
    for key, tensor in tensors.items():
        root, _, name = key.partition(".")
        if root == "vision_encoder":
            parts["vision"].update(_vision_tensors(name, tensor))
        elif root == "MP":
            parts["projection"][name.replace("proj.", "linear.", 1)] = tensor
        elif not name.startswith("rotary_embd."):  # frequencies, which follow from the settings
            parts["language"][_language_name(name) if root == "decoder" else key] = tensor
    if is_tied:
        either = {"lm_head.weight", "model.embed_tokens.weight"} & parts["language"].keys()
        for name in ("lm_head.weight", "model.embed_tokens.weight") if either else ():
            parts["language"].setdefault(name, parts["language"][min(either)])
    parts["projection"].setdefault("linear.bias", torch.zeros(len(parts["projection"].get("linear.weight", []))))
    return parts


def _vision_tensors(name: str, tensor: Tensor) -> Tensors:
    module, _, kind = name.rpartition(".")
    if name == "patch_embedding.position_embedding":
        return {"embeddings.position_embedding.weight": tensor.squeeze(0)}
    if not module.startswith("blocks."):
        return {f"{_VISION.get(module, module)}.{kind}": tensor}
    _, number, inner = module.split(".", 2)
    layer = f"encoder.layers.{number}"
    if inner == "attn.qkv_proj":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{letter}_proj.{kind}": third.contiguous() for letter, third in thirds}
    return {f"{layer}.{_VISION.get(inner, inner)}.{kind}": tensor}


def _language_name(name: str) -> str:
    known = {
        "token_embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    if not name.startswith("blocks."):
        return known.get(name, name)
    _, number, inner = name.split(".", 2)
    module, _, kind = inner.rpartition(".")
    return f"model.layers.{number}.{_LANGUAGE.get(module, module)}.{kind}"


def _fill(part: nn.Module, tensors: Tensors, source: Path) -> None:
    """Put tensors into a part, each of which must find its place."""
    expected = part.state_dict()
    root = "vision_model." if any(name.startswith("vision_model.") for name in expected) else ""
    given = {root + name: tensor for name, tensor in tensors.items()}
    for what, names in (("missing", expected.keys() - given.keys()), ("too many", given.keys() - expected.keys())):
        if names:
            raise CheckpointError(
                f"{source}: {len(names)} tensors of {type(part).__name__} are {what}: {', '.join(sorted(names)[:5])}"
            )
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: {name} of the {type(part).__name__} is {list(tensor.shape)}, config.json describes "
                f"{list(expected[name].shape)}"
            )
    part.load_state_dict(given)


def _read_values(source: Path) -> dict[str, Any]:
    """Read config.json, and refuse what visgraft does not compute.

    Raises:
        CheckpointError: with the reason.
    """
    values: dict[str, Any] = parse_json((source / "config.json").read_bytes())
    lacking = [name for name in _NEEDED if name not in values]
    if lacking:
        raise CheckpointError(f"{source}: config.json is nanoVLM's, but lacks {', '.join(lacking)}")
    extra = values.get("vlm_extra_tokens") or {}
    reasons = {
        "it cuts images into squares of a grid with a token for each (max_img_size); visgraft's own tiles are others": (
            "max_img_size" in values or any(name != IMAGE_TOKEN for name in extra)
        ),
        "its encoder gives a class token alone (vit_cls_flag)": bool(values.get("vit_cls_flag")),
        "its language model takes tokens alone (lm_use_tokens)": bool(values.get("lm_use_tokens")),
        "its rotary embedding is scaled (lm_attn_scaling)": values.get("lm_attn_scaling", 1.0) != 1.0,
    }
    for reason, holds in reasons.items():
        if holds:
            raise CheckpointError(f"{source}: {reason}; not imported")
    return values


def _read_tensors(source: Path) -> Tensors:
    path = source / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download the checkpoint again") from error


def _load_tokenizer(source: Path, values: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """Load the tokenizer that the settings name, from the folder where it holds one, with its image token.

    Raises:
        CheckpointError: it is not there, and it is needed to tell where images stand in the text.
    """
    extra = values.get("vlm_extra_tokens") or {}
    here = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    name = str(source if here else values.get("lm_tokenizer", values.get("lm_model_type", "")))
    with quiet_transformers():
        try:
            return load_tokenizer(name, **({"extra_special_tokens": dict(extra)} if extra else {})), []
        except CheckpointError as error:
            if extra:
                raise CheckpointError(
                    f"{source}: its tokenizer {name} is needed, as the image stands inside the text: {error}"
                ) from error
            return None, [f"imported as a model alone: {error}"]


def _template_of(values: Mapping[str, Any], source: Path, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Write the checkpoint's chat template as a prompt template."""
    chat = values.get("lm_chat_template")
    if not values.get("vlm_extra_tokens") or tokenizer is None or chat is None:
        return FIRST_TEMPLATE
    message = {"role": "user", "content": f"{IMAGE_FIELD}{_MARK}"}
    try:
        text = str(
            tokenizer.apply_chat_template([message], chat_template=chat, tokenize=False, add_generation_prompt=True)
        )
    except (TemplateError, TypeError) as error:
        raise CheckpointError(f"{source}: its lm_chat_template cannot be used ({error}); give --template") from error
    return text.replace(_MARK, PROMPT_FIELD)


def _image_processor(values: Mapping[str, Any]) -> SiglipImageProcessorPil:
    """Make what nanoVLM does to an image: resized to a square, values from 0 to 1, not normalised."""
    side = int(values["vit_img_size"])
    return SiglipImageProcessorPil(size={"height": side, "width": side}, resample=_BILINEAR, do_normalize=False)
