"""Import a checkpoint of another project, whichever it is: its config.json says which.

In: a folder or Hub name of LLaVA (transformers), nanoVLM, GIT-LLM or heron. Out: a model folder and a report.

    report = import_model("llava-hf/llava-1.5-7b-hf", "imported")
"""

from __future__ import annotations

from pathlib import Path

from visgraft.convert.architectures import ARCHITECTURES
from visgraft.convert.git_llm_checkpoint import read_config
from visgraft.convert.import_git_llm import ImportReport, import_git_llm
from visgraft.convert.import_llava import import_llava
from visgraft.convert.import_nanovlm import import_nanovlm, is_nanovlm
from visgraft.errors import CheckpointError, ConfigError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.storage.restoring import find_folder

# Relatives of LLaVA that do more than it does, and what that is.
NOT_JOINED = {
    "llava_next": "cuts images into tiles, whose number and rows of learned tokens depend on each image's size",
    "llava_next_video": "cuts images into tiles and pools the frames of videos",
    "llava_onevision": "cuts images into tiles, whose number and rows of learned tokens depend on each image's size",
    "video_llava": "has two encoders, one of them for videos",
    "vipllava": "reads five layers of its encoder at once, behind a LayerNorm of its own",
    **dict.fromkeys(
        ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen"),
        "is written in the form of LLaVA's own code: convert it first with transformers' "
        "convert_llava_weights_to_hf.py, and import what comes out",
    ),
}
_OWN_CODE = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaMptForCausalLM", "LlavaQwenForCausalLM")


def import_model(
    src: str | Path,
    dst: str | Path,
    *,
    lora_alpha: float | None = None,
    image_attention: str | None = None,
    template: str | None = None,
    vision_heads: int | None = None,
    replace: bool = False,
) -> ImportReport:
    """Read a checkpoint and write it as a model folder that computes the same.

    Args:
        src: folder or Hub name.
        dst: folder to write.
        lora_alpha, image_attention, vision_heads: of GIT-LLM and heron alone, see `import_git_llm`.
        template: prompt template of the processor; None = its authors'.
        replace: write over a model folder that is there.

    Raises:
        CheckpointError: it is none of these, or nearly one; with the reason.
        ConfigError: a setting that does not go with it.
    """
    source = find_folder(src)
    values = read_config(source)
    kind = values.get("model_type")
    if kind == "llava" and values.get("architectures", [None])[0] in _OWN_CODE:
        kind = "llava_llama"
    if kind in NOT_JOINED:
        raise CheckpointError(f"{src}: model_type {kind} {NOT_JOINED[kind]}; not imported")
    if kind == VisionLanguageConfig.model_type:
        raise CheckpointError(f"{src}: is a model folder of visgraft already; use it as it is, or `visgraft export` it")
    if kind != "llava" and not is_nanovlm(values):
        if kind not in ARCHITECTURES:
            raise CheckpointError(
                f"{src}: config.json: got model_type {kind!r}; allowed are llava, nanoVLM's (which has none), and of "
                f"GIT-LLM and heron {', '.join(ARCHITECTURES)}. Two models that are not yet joined are joined by a "
                "recipe (`visgraft init`)"
            )
        return import_git_llm(
            src,
            dst,
            lora_alpha=lora_alpha,
            image_attention=image_attention,
            template=template,
            vision_heads=vision_heads,
            replace=replace,
        )
    given = {"lora-alpha": lora_alpha, "image-attention": image_attention, "vision-heads": vision_heads}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name}: got {value!r}, but {src} says itself what it is; leave it out")
    read = import_llava if kind == "llava" else import_nanovlm
    return read(src, dst, template=template, replace=replace)
