"""Models that are loaded when they are first asked, and the language models that they were made of.

In: names. Out: `Lazy`, which knows of the model what its folder tells, and loads it at the first `get()`.

    lazy = Lazy("runs/my-run", device=None, precision="auto")
    lazy.checksum                   # nothing is loaded for it
    lazy.get().model
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from visgraft.config import load_recipe
from visgraft.errors import ConfigError
from visgraft.evaluation.asking import Loaded
from visgraft.inference import load
from visgraft.inference.identity import model_checksum
from visgraft.model.precision import Precision, computing_dtype, pick_device
from visgraft.model.storage.restoring import find_folder, read_config
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.runs import find_model


class Lazy:
    """A model by its name.

    Attributes:
        name: as it was given.
        precision: of its frozen weights.
        device: on which it is asked; None: the accelerator that is there.
    """

    def __init__(self, name: str, *, device: str | None, precision: Precision) -> None:
        self.name, self.device, self.precision = name, device, precision
        self._loaded: Loaded | None = None

    @cached_property
    def folder(self) -> Path:
        """Where it lies. Raises CheckpointError."""
        return find_folder(find_model(self.name))

    @cached_property
    def checksum(self) -> str:
        """Differs wherever its answers may. Raises CheckpointError."""
        return model_checksum(self.folder)

    @property
    def dtype(self) -> str:
        """The number format of its frozen weights, without loading them."""
        return str(computing_dtype(self.precision, device=pick_device(self.device)))

    def get(self) -> Loaded:
        """Load it, once."""
        if self._loaded is None:
            self._loaded = Loaded(self.name, *load(self.name, device=self.device, precision=self.precision))
        return self._loaded

    def forget(self) -> None:
        """Free its memory."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class LazyBare(Lazy):
    """The language model as it was before it learned to see: its own weights, no LoRA, nothing in front of the text.

    It is asked through the same prompt template as the model that it became.
    """

    def __init__(self, seeing: Lazy) -> None:
        super().__init__(seeing.name, device=seeing.device, precision=seeing.precision)
        self.seeing = seeing

    @cached_property
    def language(self) -> dict[str, Any]:
        """Name and revision of the language model.

        Raises:
            ConfigError: the model's folder does not name it.
        """
        described = dict(read_config(self.folder).parts["language"])
        recipe_path = self.folder.parent / "recipe.yaml"
        if not described.get("name") and self.folder.name == "model" and recipe_path.is_file():
            described = self._of_recipe(recipe_path)  # all of it trained: the folder has its own weights
        if not described.get("name"):
            raise ConfigError(
                f"{self.name}: its folder does not say which language model it was made of, so the untouched one "
                "cannot be asked; leave --bare and --text out"
            )
        return described

    def _of_recipe(self, path: Path) -> dict[str, Any]:
        """Say what a run began with; where that was another model, what that one was made of."""
        model = load_recipe(path).model
        if model.language is not None:
            has_weights = model.language.init == "pretrained"
            return {"name": model.language.name if has_weights else None, "revision": model.language_revision}
        assert model.start_from is not None
        return LazyBare(Lazy(model.start_from, device=self.device, precision=self.precision)).language

    @cached_property
    def checksum(self) -> str:
        """Differs wherever its answers may."""
        return f"bare language model {self.language['name']} {self.language.get('revision')} of {self.seeing.checksum}"

    def get(self) -> Loaded:
        """Load it, once; the vision part is that of the model, and is not asked."""
        if self._loaded is None:
            seeing = self.seeing.get()
            bare = VisionLanguageModel.from_parts(
                seeing.model.vision, self.language["name"], language_revision=self.language.get("revision")
            )
            device = pick_device(self.device)
            set_trainable(bare, modes={}, frozen_dtype=computing_dtype(self.precision, device=device))
            bare.to(device)  # type: ignore[arg-type]  # transformers wraps the method untyped
            self._loaded = Loaded(self.name, bare.eval(), seeing.processor)
        return self._loaded
