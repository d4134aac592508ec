"""Take the tokenizer and image processor of a git_llm checkpoint along, where its folder has them.

In: the source folder and the imported model. Out: a `Processor` saved beside the model, or a note on what is missing.

    notes = import_processor(source, folder, model=model, template="git-llm")
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from visgraft.data.images.pixels import made_image_size
from visgraft.data.prompt import PromptTemplate, end_token_id
from visgraft.data.tokenizer_and_image_processor import load_image_processor, load_tokenizer
from visgraft.errors import ConfigError, VisgraftError
from visgraft.model.storage.saving import GENERATION_CONFIG
from visgraft.model.vision_inputs import native_image_size
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def import_processor(source: Path, folder: Path, *, model: VisionLanguageModel, template: str) -> list[str]:
    """Save a processor into an imported folder, or say why there is none.

    Args:
        source: the checkpoint's folder.
        folder: the imported model folder.
        model: the imported model.
        template: of the prompts that it was trained with.

    Returns:
        Sentences for the report: what is missing, what does not fit.

    Raises:
        ConfigError: no such template.
    """
    PromptTemplate(template)
    missing = []
    if not (source / "preprocessor_config.json").is_file():
        missing.append("no image processor (preprocessor_config.json)")
    if not any((source / name).is_file() for name in _VOCABULARIES):
        missing.append("no tokenizer")
    if missing:
        return [
            f"the source has {' and '.join(missing)}: imported as a model alone. Make a processor with "
            "Processor(image_processor, tokenizer, num_image_tokens=...) and save it into the folder"
        ]
    try:
        image_processor = load_image_processor(source)
        tokenizer = _load_tokenizer(source, language=folder / "language")
        size = made_image_size(image_processor)
    except VisgraftError as error:
        return [f"imported as a model alone, as the processor of the source cannot be used: {error}"]
    processor = Processor(
        image_processor,
        tokenizer,
        num_image_tokens=model.projection.num_tokens,
        image_size=size,
        template=template,
        max_positions=model.attention_spec.max_positions,
        images_take_positions=model.prefix_injection.at == "embeddings",
    )
    processor.save_pretrained(folder)
    with suppress(ConfigError):  # a tokenizer without an end-of-text token: answering will say so
        model.stop_also_at(end_token_id(tokenizer, processor.prompt_template))
    model.generation_config.to_json_file(folder / GENERATION_CONFIG)
    native = native_image_size(model.vision.config)
    return [] if size == native else [f"the image processor makes images of {size} pixels, the encoder takes {native}"]


def _load_tokenizer(source: Path, *, language: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the plain language model's config: transformers knows no model_type git_..."""
    with tempfile.TemporaryDirectory() as name:
        for path in [source / file for file in _TOKENIZER_FILES] + [language / "config.json"]:
            if path.is_file():
                shutil.copy(path, name)
        return load_tokenizer(name)
