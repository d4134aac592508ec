"""Write a model with image placeholders in its text, as servers of the field want vision models; or say why not.

In: a model folder. Out: a folder with weights and code that `AutoModelForImageTextToText` and `AutoProcessor` load with
`trust_remote_code=True`, and `transformers serve` serves, without visgraft; its logits were compared with ours.

    notes = export_placeholders("runs/my-run", "for-servers")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from visgraft.atomic import whole_folder
from visgraft.convert.llava import (
    ExportRefusedError,
    behind_image,
    frame_chat,
    image_token_id,
    image_token_of,
    load_merged,
    load_processor,
)
from visgraft.convert.merge import check_target, trial_inputs
from visgraft.convert.placeholder_model import (
    PlaceholderConfig,
    PlaceholderForConditionalGeneration,
    PlaceholderProcessor,
)
from visgraft.convert.portable import put_code
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.storage.restoring import find_folder
from visgraft.model.vision import measure
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import find_model

TOLERANCE = 1e-5  # of the largest logit
_CODE = "visgraft.convert.placeholder_model."
AUTO_MAP = {
    "config.json": {
        "AutoConfig": f"{_CODE}PlaceholderConfig",
        "AutoModel": f"{_CODE}PlaceholderModel",
        "AutoModelForImageTextToText": f"{_CODE}PlaceholderForConditionalGeneration",
        "AutoModelForMultimodalLM": f"{_CODE}PlaceholderForConditionalGeneration",
    },
    "processor_config.json": {"AutoProcessor": f"{_CODE}PlaceholderProcessor"},
}


def export_placeholders(src: str | Path, dst: str | Path, *, replace: bool = False) -> list[str]:
    """Write a model folder with image placeholders, code beside the weights.

    Args:
        src: model folder, run folder or Hub name; its LoRA is merged on the way.
        dst: folder to write.
        replace: write over a model folder that is there.

    Returns:
        Notes on what the folder lacks.

    Raises:
        ExportRefusedError: with every reason why placeholders cannot say what this model says.
        CheckpointError: the source cannot be loaded, or `dst` is something else.
    """
    source, folder = find_folder(find_model(src)), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    model = load_merged(source, reasons_against=why_no_placeholders, refusal=f"{src} cannot have image placeholders")
    processor, notes = load_processor(source)
    exported = to_placeholders(model, token_id=image_token_id(model, processor))
    change = _compare(model, exported)
    dtype = next(model.language.parameters()).dtype
    allowed = TOLERANCE if dtype == torch.float32 else 100 * torch.finfo(dtype).eps
    if not change <= allowed:
        raise ExportRefusedError(
            f"{src} cannot have image placeholders: its logits would move by {change:.1e} of the largest, as the "
            f"decoder and the head alone leave out something that {type(model.language).__name__} does"
        )
    with whole_folder(folder) as building:
        with quiet_transformers():
            exported.save_pretrained(building)
        if processor is not None:
            notes += _save_processor(processor, building, model)
        put_code(building, AUTO_MAP)
    return notes


def why_no_placeholders(model: VisionLanguageModel) -> list[str]:
    """List what placeholders in the text cannot say; [] = nothing."""
    config, spec = model.config, model.attention_spec
    head = model.language.get_output_embeddings()
    shape = measure(model.vision.config, settings=config.vision_settings)
    base = getattr(model.language, model.language.base_model_prefix, None)
    checks = {
        "its image tokens take no positions (prefix_at first_layer), placeholders do": config.prefix_at != "embeddings",
        f"{spec.name} has ALiBi, whose bias servers make of the distance in the row": spec.alibi is not None,
        f"{spec.name} carries states from token to token, which no mask governs": spec.sharing != "mask",
        "it has temporal embeddings, which depend on the number of images": config.num_frames > 0,
        "it cuts images into tiles, so that each image has another number of tokens": config.tiles is not None,
        "its encoder takes images in their own size, so that each has another number of tokens": (
            shape.extent_per_token > 0
        ),
        "its images are read one at a time (image_by_image)": config.image_by_image,
        "its head has a bias": getattr(head, "bias", None) is not None,
        "its embeddings are narrower than its layers": (
            model.prefix_injection.width != model.language.config.get_text_config(decoder=True).hidden_size
        ),
        "its language model has no decoder that stands alone": base is None,
    }
    return [reason for reason, holds in checks.items() if holds]


@torch.no_grad()
def to_placeholders(model: VisionLanguageModel, *, token_id: int) -> PlaceholderForConditionalGeneration:
    """Make a model with placeholders of the same weights, with room for the image token."""
    language: Any = model.language
    if token_id >= language.get_input_embeddings().weight.shape[0]:
        language.resize_token_embeddings(token_id + 1, mean_resizing=False)
    joined = model.config
    config = PlaceholderConfig(
        vision_config=model.vision.config,
        text_config=language.config,
        image_token_id=token_id,
        image_seq_length=model.projection.num_tokens,
        is_mm_prefix_lm=joined.image_attention == "bidirectional",
        image_size=joined.image_size,
        feature_layer=joined.feature_layer,
        keep_class_token=joined.keep_class_token,
        projection=joined.projection,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    kernels = [part.config._attn_implementation for part in (model.vision, language)]
    with torch.device("meta"):
        exported: Any = PlaceholderForConditionalGeneration(config)
    exported.model.vision_tower = model.vision
    exported.model.language_model = getattr(language, language.base_model_prefix)
    exported.model.multi_modal_projector = model.projection
    exported.lm_head = language.get_output_embeddings()
    for part, kernel in zip((model.vision, language), kernels, strict=True):  # making another model had reset them
        part.config._attn_implementation = kernel
    exported.generation_config = GenerationConfig.from_dict(
        {**model.generation_config.to_dict(), "suppress_tokens": [token_id]}  # never answered
    )
    made: PlaceholderForConditionalGeneration = exported.eval()
    return made


@torch.no_grad()
def _compare(model: VisionLanguageModel, exported: Any) -> float:
    """Say how far logits are from ours, relative to the largest, on `trial_inputs`."""
    inputs = trial_inputs(model)
    ids: Tensor = inputs.pop("input_ids")
    ours = model(input_ids=ids, **inputs).logits.float()
    theirs = exported(input_ids=behind_image(model, ids, token_id=exported.config.image_token_id), **inputs)
    logits = theirs.logits.float()
    return float((logits[..., : ours.shape[-1]] - ours).abs().max() / ours.abs().max())


def _save_processor(processor: Processor, folder: Path, model: VisionLanguageModel) -> list[str]:
    template, notes = frame_chat(processor)
    PlaceholderProcessor(
        processor.image_processor,
        processor.tokenizer,
        chat_template=template,
        image_token=image_token_of(processor),
        image_seq_length=model.projection.num_tokens,
    ).save_pretrained(folder)
    return notes
