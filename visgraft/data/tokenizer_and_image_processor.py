"""Load what prepares a part's inputs: an encoder's image processor, a language model's tokenizer.

In: a Hub name, a folder, a `starter:` name, or a module that was loaded from one. Out: the object of transformers, or
an error that says which file is missing.

    image_processor = load_image_processor("openai/clip-vit-base-patch16")
    tokenizer = load_tokenizer("facebook/opt-350m")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    ImageProcessingMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from visgraft.errors import CheckpointError
from visgraft.starter import resolve

# Else transformers asks on the terminal whether to run code that lies beside the files.
OWN_CODE_ONLY: dict[str, Any] = {"trust_remote_code": False}
CODE_BESIDE = "it needs code that lies beside its files (auto_map), which is never run from here"


def load_image_processor(source: str | Path | PreTrainedModel, **hub: Any) -> BaseImageProcessor:
    """Load the image processor of an encoder.

    Args:
        source: Hub name, local folder, `starter:` name, or an encoder loaded from one.
        **hub: where to look on the Hub (`revision`, `cache_dir`, `token`, ...).

    Raises:
        CheckpointError: there is none, or it needs a package that is not installed.
    """
    name = _name_of(source, needs="image processor")
    try:
        try:
            return AutoImageProcessor.from_pretrained(name, **{**OWN_CODE_ONLY, **hub})
        except ImportError:  # transformers 5.17 without torchvision: the Auto class does not even look
            return _load_pil_class(name, **hub)
        except TypeError:  # that of timm does not take what it writes
            return _load_of_timm(name, **hub)
    except OSError as error:
        if not Path(name).is_dir():
            raise CheckpointError(f"{name}: found no image processor there: {_one_line(error)}") from error
        raise CheckpointError(
            f"{name} has no preprocessor_config.json, so no one knows how its images are prepared; copy "
            "that file from the encoder it came from, or save an image processor into the folder (save_pretrained)"
        ) from error
    except (ImportError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: its image processor cannot be loaded: {_one_line(error)}. "
            "If it needs a package, install that; else give an image processor of another encoder of its kind"
        ) from error


def load_tokenizer(
    source: str | Path | PreTrainedModel | PreTrainedTokenizerBase, **hub: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a language model.

    Args:
        source: Hub name, local folder, `starter:` name, or a language model loaded from one; a tokenizer is given
            back as it is.
        **hub: where to look on the Hub (`revision`, `cache_dir`, `token`, ...).

    Raises:
        CheckpointError: there is none, or only an empty shell of one.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    name = _name_of(source, needs="tokenizer")
    reason = "it knows no token but special ones"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **{**OWN_CODE_ONLY, **hub})
        # Where the files are missing, some classes (GPT-2, OPT, Qwen) come up empty instead of failing.
        if len(tokenizer) > len(tokenizer.added_tokens_decoder):
            return tokenizer
    except (OSError, ValueError, ImportError, RecursionError) as error:
        if not Path(name).expanduser().is_dir():
            raise CheckpointError(f"{name}: found no tokenizer there: {_one_line(error)}") from error
        reason = _one_line(error) if _may_have_tokenizer(Path(name).expanduser()) else "none of its files is there"
    raise CheckpointError(
        f"{name} has no tokenizer that can be loaded: {reason}. Copy the tokenizer's files (tokenizer.json, "
        "tokenizer_config.json) of the language model into it, or give a loaded tokenizer"
    )


def _may_have_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds files of a tokenizer."""
    kinds = ("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
    return any(any(folder.glob(kind)) for kind in kinds)


def _load_pil_class(checkpoint: str, **hub: Any) -> BaseImageProcessor:
    """Load the PIL version of an image processor: the one place that knows how such classes are named."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint, **hub)
    old_name = settings.get("feature_extractor_type", "").replace("FeatureExtractor", "ImageProcessor")
    name = settings.get("image_processor_type", old_name).removesuffix("Fast").removesuffix("Pil")
    pil_class = getattr(transformers, f"{name}Pil", None) if name else None
    if pil_class is None and "AutoImageProcessor" in settings.get("auto_map", {}):
        raise ValueError(CODE_BESIDE)
    if pil_class is None:
        raise ValueError(f"{name or 'its unnamed class'} needs torchvision, which is not installed")
    return pil_class.from_pretrained(checkpoint, **hub)


def _load_of_timm(checkpoint: str, **hub: Any) -> BaseImageProcessor:
    """Load an image processor of timm that was saved with its `data_config`, from which it is made."""
    settings, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint, **hub)
    if "data_config" not in settings:
        raise ValueError(f"{settings.get('image_processor_type')} does not take the settings that are there")
    made = getattr(transformers, settings["image_processor_type"])
    loaded: BaseImageProcessor = made(settings["data_config"], architecture=settings.get("architecture"))
    return loaded


def _name_of(source: str | Path | PreTrainedModel, *, needs: str) -> str:
    if not isinstance(source, PreTrainedModel):
        return resolve(str(source))
    if not source.name_or_path:
        raise CheckpointError(
            f"a {type(source).__name__} that was not loaded from a folder or the Hub has no {needs}; "
            f"give the {needs} itself"
        )
    return str(source.name_or_path)


def _one_line(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return CODE_BESIDE
    return " ".join(str(error).split())[:300]


def vocabulary_of(tokenizer: Any) -> str:
    """Write down how a tokenizer makes ids of texts, so that another one can be told from it."""
    if not tokenizer.is_fast:
        return repr(sorted(tokenizer.get_vocab().items()))
    # What stands in front is truncation and padding, which every call sets anew.
    whole: str = tokenizer.backend_tokenizer.to_str()
    return whole.partition('"added_tokens":')[2]
