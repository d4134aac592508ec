"""Import a plain LLaVA folder of transformers as a visgraft model folder that computes the same.

In: a folder that `LlavaForConditionalGeneration` loads (LLaVA 1.5, BakLLaVA, ...), or its Hub name. Out: a full model
folder, whose logits were compared with those of transformers' class, and a report.

    report = import_llava("llava-hf/llava-1.5-7b-hf", "imported")

LLaVA's images stand inside the text (Liu et al. 2023, arXiv:2310.03744, figure 1): the text in front of an image
becomes part of its prefix, which is causal throughout; all behind it is a prompt of visgraft, so that texts can share
the image:

    USER: <image>\\nWhat is it? ASSISTANT:      prefix  <s>USER: iiii     prompt  \\nWhat is it? ASSISTANT:
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from visgraft.atomic import whole_folder, write_json
from visgraft.convert.import_git_llm import REPORT_FILE, ImportReport
from visgraft.convert.llava import behind_image
from visgraft.convert.merge import ALLOWED, check_target, trial_inputs
from visgraft.data.images.pixels import made_image_size
from visgraft.data.prompt import IMAGE_FIELD, PROMPT_FIELD, PromptTemplate, end_token_id, text_before_images
from visgraft.data.sample import Turn
from visgraft.data.tokenizer_and_image_processor import load_image_processor, load_tokenizer
from visgraft.errors import CheckpointError, ConfigError, VisgraftError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.storage.restoring import find_folder
from visgraft.model.storage.saving import GENERATION_CONFIG
from visgraft.model.vlm import VisionLanguageModel
from visgraft.parsing import parse_json
from visgraft.processor import Processor

PUBLISHED_TEMPLATE = "USER: {image}\n{prompt} ASSISTANT:"  # of LLaVA 1.5
_MARK = "<<prompt>>"  # stands for the prompt where a chat template's text is asked for


def import_llava(
    src: str | Path, dst: str | Path, *, template: str | None = None, replace: bool = False
) -> ImportReport:
    """Read a LLaVA folder of transformers and write it as a model folder.

    Args:
        src: folder or Hub name.
        dst: folder to write.
        template: prompt template of the processor; {image} says where images stand, and without it they stand in front
            of the text. None = as the folder's own chat template frames one user message.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: the folder is no such model, a tensor is missing or too many, or logits would differ.
        ConfigError: `template` is none.
    """
    source, folder = find_folder(src), Path(dst).expanduser()
    check_target(folder, source=source, replace=replace)
    llava = _load(source)
    refuse_where_not_plain(llava.config, source)
    parts, notes = _load_processor_parts(source, llava.config)
    if template is None:
        template, more = (PUBLISHED_TEMPLATE, []) if parts is None else find_template(source, parts[1])
        notes += more
    before = None if parts is None else text_before_images(parts[1], PromptTemplate(template))
    model = to_visgraft(llava, text_before=before)
    change = compare(model, llava)
    allowed = ALLOWED.get(next(model.language.parameters()).dtype, ALLOWED[torch.float32])
    if not change <= allowed:
        raise CheckpointError(
            f"{src}: joined here, its logits would move by {change:.1e} of the largest, {allowed:.0e} is allowed: its "
            f"{type(model.vision).__name__} or {type(model.language).__name__} is read otherwise by LLaVA; not imported"
        )
    with whole_folder(folder) as building:
        model.save_pretrained(building, full=True)
        if parts is not None:
            save_processor(building, model, *parts, template=template)
        report = ImportReport(
            folder=str(folder),
            model_type="llava",
            image_attention=model.config.image_attention,
            num_image_tokens=model.projection.num_tokens,
            num_frames=0,
            notes=tuple(notes),
            source=str(src),
        )
        write_json(building / REPORT_FILE, asdict(report))
    return report


def refuse_where_not_plain(config: LlavaConfig, source: Path) -> None:
    """Refuse a LLaVA whose form is not the plain one.

    Raises:
        CheckpointError: with the reason.
    """
    if not isinstance(config.vision_feature_layer, int):
        raise CheckpointError(
            f"{source}: vision_feature_layer is {config.vision_feature_layer}: it joins several layers of the encoder, "
            "visgraft reads one"
        )
    if config.projector_hidden_act != "gelu":
        raise CheckpointError(
            f"{source}: projector_hidden_act is {config.projector_hidden_act!r}, visgraft's MLP projection has gelu"
        )


@torch.no_grad()
def to_visgraft(llava: Any, *, text_before: dict[str, list[int]] | None) -> VisionLanguageModel:
    """Join the parts of a LLaVA model, which share their weights with it."""
    config, body = llava.config, llava.model
    layer = config.vision_feature_layer
    with torch.device("meta"):
        language: Any = AutoModelForCausalLM.from_config(config.text_config)
    setattr(language, language.base_model_prefix, body.language_model)
    language.set_output_embeddings(llava.lm_head)
    language.config.tie_word_embeddings = config.tie_word_embeddings
    language.generation_config = llava.generation_config
    joined = VisionLanguageConfig(
        vision_config=body.vision_tower.config,
        text_config=language.config,
        image_attention="causal",
        # -1 is the last hidden state here, to LLaVA the state behind the last layer, which has no norm behind it
        feature_layer=body.vision_tower.config.num_hidden_layers if layer == -1 else layer,
        keep_class_token=config.vision_feature_select_strategy == "full",
        projection={"type": "mlp"},
        text_before_images=text_before,
        parts={"vision": {"name": None, "revision": None}, "language": {"name": None, "revision": None}},
    )
    model = VisionLanguageModel(joined, vision=body.vision_tower, language=language)
    projector = body.multi_modal_projector
    for own, theirs in (
        (model.projection.linear, projector.linear_1),
        (model.projection.linear_2, projector.linear_2),
    ):
        assert own is not None and own.weight.shape == theirs.weight.shape, "both go from D_vision to D_lm"
        own.to(theirs.weight.dtype).weight.copy_(theirs.weight)
        own.bias.zero_() if theirs.bias is None else own.bias.copy_(theirs.bias)
    return model.eval()


@torch.no_grad()
def compare(model: VisionLanguageModel, llava: Any) -> float:
    """Say how far logits are from LLaVA's own, relative to the largest, on `trial_inputs`."""
    inputs = trial_inputs(model)
    ids: Tensor = inputs.pop("input_ids")
    ids[ids == llava.config.image_token_id] = 0  # no text
    theirs = llava(input_ids=behind_image(model, ids, token_id=llava.config.image_token_id), **inputs).logits.float()
    ours = model(input_ids=ids, **inputs).logits.float()
    return float((theirs - ours).abs().max() / theirs.abs().max())


def _load(source: Path) -> LlavaForConditionalGeneration:
    """Load transformers' own class, every tensor accounted for."""
    try:
        with quiet_transformers():
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{source}: transformers cannot load it: {' '.join(str(error).split())[:300]}") from error
    llava, info = loaded
    for what, key in (("too many", "unexpected"), ("missing", "missing"), ("of another shape", "mismatched")):
        found = sorted(str(name) for name in info[f"{key}_keys"])
        if found:
            raise CheckpointError(f"{source}: {len(found)} tensors are {what}: {', '.join(found[:5])}")
    model: LlavaForConditionalGeneration = llava.eval()
    return model


def _load_processor_parts(
    source: Path, config: LlavaConfig
) -> tuple[tuple[Any, PreTrainedTokenizerBase] | None, list[str]]:
    """Load image processor and tokenizer, which names the image token; or say why there are none."""
    try:
        image_processor, tokenizer = load_image_processor(source), load_tokenizer(source)
        if getattr(tokenizer, "image_token", None) is None:
            token = tokenizer.convert_ids_to_tokens(config.image_token_id)
            tokenizer = load_tokenizer(source, extra_special_tokens={"image_token": token})
        made_image_size(image_processor)
    except VisgraftError as error:
        return None, [f"imported as a model alone, without the text in front of its images: {error}"]
    return (image_processor, tokenizer), []


def find_template(source: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[str]]:
    """Write a folder's chat template as a prompt template with {image}, by rendering one user message.

    Returns:
        The template, and what does not come along.

    Raises:
        CheckpointError: the chat template does not place an image in front of a user's text.
    """
    chat = _chat_template(source, tokenizer)
    if chat is None:
        return PUBLISHED_TEMPLATE, [f"it has no chat template: framed as LLaVA 1.5, {PUBLISHED_TEMPLATE!r}"]
    image, text = {"type": "image"}, {"type": "text", "text": _MARK}
    shown, told = (_render(tokenizer, chat, [{"role": "user", "content": c}]) for c in ([image, text], [text]))
    template = shown.replace(str(tokenizer.image_token), IMAGE_FIELD).replace(_MARK, PROMPT_FIELD)
    bos = tokenizer.bos_token
    if bos and template.startswith(str(bos)) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        template, told = template.removeprefix(str(bos)), told.removeprefix(str(bos))  # the tokenizer adds it itself
    try:
        made = PromptTemplate(template)
        if not made.places_images:
            raise ConfigError(f"template: got {template!r}, without {IMAGE_FIELD}")
    except ConfigError as error:
        raise CheckpointError(
            f"{source}: its chat template cannot become a prompt template ({error}); give one as --template, such as "
            f"{PUBLISHED_TEMPLATE!r}"
        ) from error
    notes = ["in a chat, answers are closed by the end-of-text token, where its chat template may write something else"]
    if made.fill(Turn(_MARK, "")) != told:
        notes.append(
            f"prompts without an image are framed {made.fill(Turn('...', ''))!r}, its own chat template differs"
        )
    return template, notes


def _chat_template(source: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    for name in ("chat_template.json", "processor_config.json"):
        path = source / name
        if path.is_file():
            try:
                found = parse_json(path.read_bytes()).get("chat_template")
            except ValueError as error:
                raise CheckpointError(f"{path}: is not JSON ({error}); download the checkpoint again") from error
            if found:
                return str(found)
    path = source / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else tokenizer.chat_template


def _render(tokenizer: PreTrainedTokenizerBase, chat: str, messages: list[dict[str, Any]]) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=chat, tokenize=False, add_generation_prompt=True)
        )
    except (TemplateError, TypeError) as error:
        raise CheckpointError(
            f"its chat template refuses a message with an image ({error}); give --template, such as "
            f"{PUBLISHED_TEMPLATE!r}"
        ) from error


def save_processor(
    folder: Path, model: VisionLanguageModel, image_processor: Any, tokenizer: PreTrainedTokenizerBase, *, template: str
) -> None:
    """Save a processor into an imported folder, and the token at which answers end."""
    processor = Processor(
        image_processor,
        tokenizer,
        num_image_tokens=model.projection.num_tokens,
        image_size=made_image_size(image_processor),
        template=template,
        max_positions=model.attention_spec.max_positions,
    )
    processor.save_pretrained(folder)
    model.stop_also_at(end_token_id(tokenizer, processor.prompt_template))
    model.generation_config.to_json_file(folder / GENERATION_CONFIG)
