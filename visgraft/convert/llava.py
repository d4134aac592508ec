"""Write a model as a plain LLaVA folder of transformers, or say exactly why its architecture does not allow it.

In: a model folder with an MLP projection and a causal image mask. Out: a folder that `LlavaForConditionalGeneration`
and `AutoProcessor` load without visgraft, whose logits were compared with ours.

    notes = export_llava("runs/my-run", "as-llava")

LLaVA puts image tokens in the place of `<image>` ids (Liu et al. 2023, arXiv:2310.03744); our prefix stands in front of
the whole text, so the exported chat template writes `<image>` first and the start token behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors as post_processors
from torch import Tensor
from transformers import (
    AddedToken,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from visgraft.atomic import whole_folder
from visgraft.convert.merge import check_target, fold_lora, trial_inputs
from visgraft.data.prompt import CHAT, NAMED_TEMPLATES, PromptTemplate
from visgraft.data.sample import Turn
from visgraft.errors import ModelError
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.lora import adapters_of
from visgraft.model.storage.restoring import find_folder
from visgraft.model.vision_inputs import native_image_size
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import find_model

IMAGE_TOKEN = "<image>"
TOLERANCE = 1e-4  # of the largest logit
_MARK = "<<prompt>>"  # stands for the prompt where a template's text is asked for


class ExportRefusedError(ModelError):
    """The model is none that the other format can hold; nothing was written."""


def export_llava(src: str | Path, dst: str | Path, *, replace: bool = False) -> list[str]:
    """Write a model folder in LLaVA's format.

    Args:
        src: model folder, run folder or Hub name; its LoRA is merged on the way.
        dst: folder to write.
        replace: write over a model folder that is there.

    Returns:
        Notes on what the folder lacks.

    Raises:
        ExportRefusedError: with every reason why LLaVA cannot compute what this model computes.
        CheckpointError: the source cannot be loaded, or `dst` is something else.
    """
    source, folder = find_folder(find_model(src)), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    model = load_merged(source, reasons_against=why_not, refusal=f"{src} cannot be a LLaVA folder")
    processor, notes = load_processor(source)
    llava = to_llava(model, image_token_id=image_token_id(model, processor))
    change = _compare(model, llava)
    if not change <= TOLERANCE:
        raise ExportRefusedError(
            f"{src} cannot be a LLaVA folder: its logits would move by {change:.1e} of the largest, as LLaVA leaves "
            f"out something that {type(model.language).__name__} or {type(model.vision).__name__} does"
        )
    with whole_folder(folder) as building:
        with quiet_transformers():
            llava.save_pretrained(building)
        if processor is not None:
            notes += _save_processor(processor, building, model=model, llava=llava)
    return notes


def load_merged(
    source: str | Path, *, reasons_against: Callable[[VisionLanguageModel], list[str]], refusal: str
) -> VisionLanguageModel:
    """Load the model that another format is to hold, its LoRA folded in; raises ExportRefusedError with the reasons."""
    model = VisionLanguageModel.from_pretrained(source)
    reasons = reasons_against(model)
    if reasons:
        raise ExportRefusedError(f"{refusal}: " + "; ".join(reasons))
    for part in (model.vision, model.language):
        if adapters_of(part):
            fold_lora(part)
    return model


def why_not(model: VisionLanguageModel) -> list[str]:
    """List what LLaVA has no place for; [] = nothing."""
    config, head = model.config, model.language.get_output_embeddings()
    vision_config, text_config = model.vision.config, model.language.config
    projection = config.projection_settings
    base = getattr(model.language, model.language.base_model_prefix, None)
    checks = {
        "its projection is a linear layer and a LayerNorm, LLaVA's is an MLP (projection.type mlp)": (
            projection.type != "mlp"
        ),
        "its image tokens see each other both ways, LLaVA's are causal (image_attention causal)": (
            config.image_attention != "causal"
        ),
        "it pools or shuffles image tokens, LLaVA does not": projection.pool * projection.pixel_shuffle != 1,
        "it has temporal embeddings for frames": config.num_frames > 0,
        "its prefix enters at the first layer": config.prefix_at != "embeddings",
        "its images are not of the encoder's own size": (
            config.image_size not in (None, native_image_size(vision_config))
        ),
        "its head has a bias": getattr(head, "bias", None) is not None,
        "its embeddings are narrower than its layers": model.prefix_injection.width != text_config.hidden_size,
        "its language model has no decoder that stands alone": base is None,
    }
    return [reason for reason, holds in checks.items() if holds]


@torch.no_grad()
def to_llava(model: VisionLanguageModel, *, image_token_id: int) -> LlavaForConditionalGeneration:
    """Make a LLaVA model of the same weights, with room for `<image>`."""
    language: Any = model.language
    if image_token_id >= language.get_input_embeddings().weight.shape[0]:
        language.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    config = LlavaConfig(
        vision_config=model.vision.config,
        text_config=language.config,
        image_token_index=image_token_id,
        image_seq_length=model.projection.num_tokens,
        vision_feature_layer=model.config.feature_layer,
        vision_feature_select_strategy="full" if model.config.keep_class_token else "default",
        projector_hidden_act="gelu",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        llava: Any = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = model.vision
    llava.model.language_model = getattr(language, language.base_model_prefix)
    llava.lm_head = language.get_output_embeddings()
    projector = llava.model.multi_modal_projector
    projector.linear_1, projector.linear_2 = model.projection.linear, model.projection.linear_2
    llava.generation_config = GenerationConfig.from_dict(
        {**model.generation_config.to_dict(), "suppress_tokens": [image_token_id]}  # never answered
    )
    return llava.eval()


@torch.no_grad()
def _compare(model: VisionLanguageModel, llava: Any) -> float:
    """Say how far logits are from ours, relative to the largest, on `trial_inputs`."""
    inputs = trial_inputs(model)
    ids: Tensor = inputs.pop("input_ids")
    ours = model(input_ids=ids, **inputs).logits.float()
    theirs = llava(input_ids=behind_image(model, ids, token_id=llava.config.image_token_index), **inputs).logits.float()
    return float((theirs[..., : ours.shape[-1]] - ours).abs().max() / ours.abs().max())


def behind_image(model: VisionLanguageModel, ids: Tensor, *, token_id: int) -> Tensor:
    """Put what stands for an image, and the model's own text before it, in front of ids [B, T]."""
    before = (model.config.text_before_images or {}).get("first", [])
    front = torch.tensor([*before, *[token_id] * model.projection.num_tokens], device=ids.device)
    return torch.cat([front.expand(len(ids), -1), ids], 1)


def load_processor(source: Path) -> tuple[Processor | None, list[str]]:
    """Load the source's processor and teach its tokenizer an image token, where it has none."""
    if not (source / "processor_config.json").is_file():
        return None, ["the source has no processor: exported as a model alone"]
    processor = Processor.from_pretrained(source)
    if getattr(processor.tokenizer, "image_token", None) is None:
        processor.tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)])
    return processor, []


def image_token_of(processor: Processor) -> str:
    """Give the token that stands for an image in a text."""
    return str(getattr(processor.tokenizer, "image_token", None) or IMAGE_TOKEN)


def image_token_id(model: VisionLanguageModel, processor: Processor | None) -> int:
    """Give its id; without a processor, the first one that the language model has no row for."""
    if processor is not None:
        return int(processor.tokenizer.convert_tokens_to_ids(image_token_of(processor)))
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def frame_chat(processor: Processor) -> tuple[str | None, list[str]]:
    """Write a processor's template as a chat template that places images, and let the tokenizer add no start token.

    Returns:
        The chat template (None = it has to be written by hand), and what is left to be done by hand.
    """
    tokenizer, notes = processor.tokenizer, []
    own = tokenizer.chat_template
    start = tokenizer.bos_token if _starts_with_bos(tokenizer) else ""
    if start and not _without_bos(tokenizer):
        notes.append(f"the tokenizer puts {start} in front of {IMAGE_TOKEN}: remove it from the ids before generating")
    # a chat template writes its own start token
    template = chat_template(
        processor.template,
        start="" if processor.template == CHAT else str(start or ""),
        end=str(tokenizer.eos_token or ""),
        image=image_token_of(processor),
        own=own if isinstance(own, str) else None,
    )
    if template is None:
        notes.append("the chat template of the tokenizer does not place images: write <image> in front of its text")
    return template, notes


def _save_processor(processor: Processor, folder: Path, *, model: VisionLanguageModel, llava: Any) -> list[str]:
    template, notes = frame_chat(processor)
    grid = model.projection.grid
    LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=native_image_size(model.vision.config) // grid[0],
        vision_feature_select_strategy="full",  # counts as they are; what is dropped, the model drops
        num_additional_image_tokens=model.projection.num_tokens - grid[0] * grid[1],
        chat_template=template or processor.tokenizer.chat_template,
        image_token=image_token_of(processor),
    ).save_pretrained(folder)
    return notes


def chat_template(
    template: str, *, start: str, end: str, image: str = IMAGE_TOKEN, own: str | None = None
) -> str | None:
    """Write a prompt template as a chat template: images first, or where it holds {image}; start token; turns.

    Args:
        template: as a recipe writes it.
        start: what stands in front of a text, and end: what closes an answer.
        end: see start.
        image: the image token.
        own: the tokenizer's own chat template, of which the template `chat` is made.

    Returns:
        The chat template; None = there is nothing to make it of.
    """
    if template == CHAT:
        return None if own is None else _OF_EACH_IMAGE.replace("IMAGE", repr_literal(image)) + _AS_PLAIN_TEXT + own
    placed = PromptTemplate(template).places_images
    filled = PromptTemplate(template).fill(Turn(_MARK, ""), image=_IMAGE_MARK, num_images=1)
    front, _, after = filled.partition(_MARK)
    before, _, between = front.partition(_IMAGE_MARK) if placed else (front, "", "")
    unit = image + ("\n" if placed and between.startswith("\n") else "")
    images = _OF_ONE_MESSAGE.replace("IMAGE", repr_literal(unit)) if placed else ""
    text = "{{ text | trim }}" if template in NAMED_TEMPLATES else "{{ text }}"
    return (
        ("" if placed else _OF_EACH_IMAGE.replace("IMAGE", repr_literal(image)))
        + repr_literal(start)
        + "{%- for m in messages %}"
        "{%- if m['content'] is string %}{% set text = m['content'] %}{% else %}"
        "{% set text = m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
        "{% endif %}"
        "{%- if m['role'] == 'assistant' %}{{ ' ' + text }}" + repr_literal(end)
        + "{%- else %}" + repr_literal(before) + images + repr_literal(between.removeprefix("\n") if placed else "")
        + text + repr_literal(after)
        + "{%- endif %}{%- endfor %}"
    )  # fmt: skip


_IMAGE_MARK = "<<image>>"
_OF_ONE_MESSAGE = (
    "{%- if m['content'] is not string %}{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% endif %}{% endfor %}{% endif %}"
)
_OF_EACH_IMAGE = "{%- for m in messages %}" + _OF_ONE_MESSAGE + "{% endfor %}"
_AS_PLAIN_TEXT = (  # what the tokenizer's own chat template reads: texts, without images
    "{%- set plain = namespace(messages=[]) %}{%- for m in messages %}"
    "{%- if m['content'] is string %}{% set text = m['content'] %}{% else %}"
    "{% set text = m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% endif %}"
    "{%- set plain.messages = plain.messages + [{'role': m['role'], 'content': text}] %}{%- endfor %}"
    "{%- set messages = plain.messages %}"
)


def repr_literal(text: str) -> str:
    """Write text as a Jinja expression, so that no sign in it means anything."""
    return "{{ " + repr(text) + " }}" if text else ""


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _without_bos(tokenizer: Any) -> bool:
    """Let a tokenizer add no start token of its own; say whether that worked."""
    tokenizer.add_bos_token = False
    if _starts_with_bos(tokenizer) and getattr(tokenizer, "is_fast", False):
        tokenizer.backend_tokenizer.post_processor = post_processors.Sequence([])
    return not _starts_with_bos(tokenizer)
