"""Construction from parts, saving and loading: the methods of the model that touch names and folders.

In: names of parts, or a folder. Out: a model, or a folder. A slim folder holds what changed since it was
loaded and names the rest; a full folder holds everything. Either may hold LoRA.

    config.json                 the join, both parts' configs, what is stored of each and where the rest is from
    model.safetensors           the projection
    vision/  language/          a part of which any weight changed (or every part, in a full folder), as
                                `save_pretrained` writes it; only the changed weights, in a slim folder
    vision_lora/ language_lora/ adapters, as peft writes them; a second one in language_lora_2/, and so on

    model.save_pretrained(folder)                 # slim; full=True for a folder that needs nothing else
    model = VisionLanguageModel.from_pretrained(folder)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from visgraft.atomic import write_whole
from visgraft.errors import CheckpointError
from visgraft.model.checks.encoder import check_encoder
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.joined import JoinedModel
from visgraft.model.parts import input_embedding
from visgraft.model.storage.checksums import read_checksums
from visgraft.model.storage.model_card import model_card
from visgraft.model.storage.pretrained import load_language, load_vision
from visgraft.model.storage.restoring import find_folder, read_config, restore_part, restore_projection
from visgraft.model.storage.saving import GENERATION_CONFIG, STORED_PARTS, check_portable, save_folder
from visgraft.model.storage.weights import own_weights

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
AUTO_CLASS_ARGUMENTS = ("_from_auto", "adapter_kwargs", "trust_remote_code")  # what AutoModel adds; of no use here


class StorageMixin(JoinedModel):
    """How a model comes to be, from parts or from a folder, and how it is kept."""

    @classmethod
    def from_parts(
        cls,
        vision: str | Path | PreTrainedModel,
        language: str | Path | PreTrainedModel,
        *,
        image_attention: str = "bidirectional",
        image_size: int | None = None,
        feature_layer: int = -1,
        keep_class_token: bool = True,
        num_frames: int = 0,
        projection: Mapping[str, Any] | None = None,
        tiles: Mapping[str, Any] | None = None,
        language_init: str = "pretrained",
        dtype: torch.dtype = torch.float32,
        vision_revision: str | None = None,
        language_revision: str | None = None,
        **language_kwargs: Any,
    ) -> Self:
        """Join a vision encoder and a causal language model; everything is read at once.

        Args:
            vision: Hub name, local folder or loaded module of an encoder, or of a checkpoint with a vision tower.
            language: the same of any `AutoModelForCausalLM`.
            image_attention: `bidirectional` or `causal`.
            image_size: side of the square input image in pixels; None = the encoder's own.
            feature_layer: which hidden state of the encoder is read; -1 = the last.
            keep_class_token: keep the tokens in front of the patches.
            num_frames: frames with a learned temporal embedding.
            projection: {"type": "linear", "mlp" or "plain", "pool": 1, "pixel_shuffle": 1}.
            tiles: {"max": 6, "thumbnail": True, "separator": "learned"}: images are cut by the processor, which needs
                the same; None = they stay whole.
            language_init: `pretrained`, or `random` for a language model that starts from nothing.
            dtype: of the parts' weights; loaded modules keep their own.
            vision_revision: branch, tag or commit on the Hub.
            language_revision: the same for the language model.
            language_kwargs: for `AutoModelForCausalLM.from_pretrained` (`device_map`, `quantization_config`, ...).

        Raises:
            CheckpointError: a part cannot be loaded.
            UnsupportedModelError: the language model does not follow the mask it is given, or the encoder's features
                of an image are not the image's alone.
            ConfigError: a setting that the parts cannot take.
        """
        vision_module, vision_origin = load_vision(vision, revision=vision_revision, dtype=dtype)
        language_module, language_origin = load_language(
            language, revision=language_revision, dtype=dtype, init=language_init, **language_kwargs
        )
        config = VisionLanguageConfig(
            vision_config=vision_module.config,
            text_config=language_module.config,
            image_attention=image_attention,
            image_size=image_size,
            feature_layer=feature_layer,
            keep_class_token=keep_class_token,
            num_frames=num_frames,
            projection=dict(projection or {}),
            tiles=None if tiles is None else dict(tiles),
            parts={"vision": vision_origin, "language": language_origin},
        )
        config.image_by_image = check_encoder(vision_module, settings=config.vision_settings)
        model = cls(config, vision=vision_module, language=language_module)
        _gather_on_one_device(model)
        for part in STORED_PARTS:
            if config.parts[part]["name"] is not None:
                weights = own_weights(getattr(model, part))
                in_memory = {name: tensor for name, tensor in weights.items() if tensor.device.type != "meta"}
                model.loaded_checksums[part] = read_checksums(in_memory)
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: VisionLanguageConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        language_dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model folder, slim or full, and account for every weight.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, a run folder, or a name on the Hub.
            config: used instead of the folder's own.
            dtype: of the weights; default (and "auto") float32.
            torch_dtype: the older name of `dtype`.
            language_dtype: of the language model's own weights, where it is not `dtype`; its LoRA keeps `dtype`.
            kwargs: `revision`, `token` and so on, to fetch the folder itself; others are for the language model
                (`device_map`, `quantization_config`, `attn_implementation`). `output_loading_info` gives the model and
                an empty account beside it.

        Raises:
            CheckpointError: no such folder, a frozen part that is not the one trained with, or a weight that is
                unaccounted for.
        """
        wanted = _dtype(dtype if dtype is not None else torch_dtype)
        wants_info = kwargs.pop("output_loading_info", False)
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        for name in AUTO_CLASS_ARGUMENTS:
            kwargs.pop(name, None)
        folder = find_folder(pretrained_model_name_or_path, **hub)
        config = read_config(folder) if config is None else config
        vision = restore_part(folder, "vision", config=config, dtype=wanted)
        own = wanted if language_dtype is None else _dtype(language_dtype)
        language = restore_part(folder, "language", config=config, dtype=own, adapter_dtype=wanted, **kwargs)
        model = cls(config, vision=vision.module, language=language.module)
        restore_projection(model.projection, folder, dtype=wanted)
        _gather_on_one_device(model)
        for part, restored in zip(STORED_PARTS, (vision, language), strict=True):
            if restored.checksums is not None:
                model.loaded_checksums[part] = restored.checksums
        if (folder / GENERATION_CONFIG).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        if wants_info:  # whatever is missing or of no use was an error by now
            empty = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
            return model.eval(), {name: set() for name in empty}  # type: ignore[return-value]
        return model.eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        full: bool = False,
        max_shard_size: int | str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        **hub: Any,
    ) -> None:
        """Save a model folder: what was trained and the names of the rest, or (`full=True`) everything.

        Args:
            save_directory: made if it is not there.
            is_main_process: other processes write nothing.
            push_to_hub: upload it afterwards, under `repo_id` or the folder's name.
            full: write the frozen parts too.
            max_shard_size: of one file of a part, as "5GB".
            state_dict: what Hugging Face's trainer gives, the model's own; others are refused.
            hub: for `push_to_hub`.

        Raises:
            CheckpointError: the folder is one that a part is loaded from, no one else could load it from the Hub, or
                the weights given are not the model's.
        """
        if not is_main_process:
            return
        if state_dict is not None:
            own = self.state_dict()
            if any(name not in own or own[name].data_ptr() != given.data_ptr() for name, given in state_dict.items()):
                raise CheckpointError("save_pretrained: got a state_dict that is not the model's own; load it first")
        if hub and not push_to_hub:
            raise CheckpointError(f"save_pretrained takes no {', '.join(hub)} without push_to_hub=True")
        folder = Path(save_directory)
        save_folder(self, folder, full=full, max_shard_size=max_shard_size)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), full=full, max_shard_size=max_shard_size, **hub)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        full: bool = False,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        max_shard_size: int | str | None = None,
        run: str | Path | None = None,
        evaluation: str | Path | None = None,
    ) -> str:
        """Upload a model folder to the Hugging Face Hub, with a model card.

        Args:
            repo_id: `user/name`; made if it is not there.
            full: upload the frozen parts too.
            private: who may see it, if it is made.
            token: default that of `hf auth login`.
            revision: branch.
            commit_message: of the upload.
            max_shard_size: of one file of a part, as "5GB".
            run: the run folder that trained it, whose data and scores the card reports.
            evaluation: folder of `visgraft evaluate`, from which the card tells its limitations.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: a part is only named, and its name is a folder on this machine.
        """
        check_portable(self, full=full)
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, full=full, max_shard_size=max_shard_size)
            card = model_card(folder, repo_id=repo, run=run, evaluation=evaluation)
            write_whole(Path(folder) / "README.md", card)
            commit = api.upload_folder(
                folder_path=folder, repo_id=repo, revision=revision, commit_message=commit_message
            )
        return str(commit.commit_url)


def _gather_on_one_device(model: JoinedModel) -> None:
    """Bring encoder and projection to where `device_map` put the language model's embeddings."""
    device = input_embedding(model).device
    if device.type != "meta":
        model.vision.to(device)  # type: ignore[arg-type]  # the library's wrapper hides the signature
        model.projection.to(device)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(f"dtype: got {dtype!r}, need a floating-point format such as 'bfloat16'")
    return found
