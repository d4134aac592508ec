"""The composite configuration: two parts' own configs, and how they are joined.

In: a vision config, a text config and the settings of the join. Out: `config.json` of a model folder.

    config = VisionLanguageConfig(vision_config=clip, text_config=opt, image_attention="bidirectional")
"""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from visgraft.errors import ConfigError
from visgraft.model.japanese_stablelm import JapaneseStableLMConfig as JapaneseStableLMConfig  # AutoConfig now knows it
from visgraft.model.language import max_positions_of
from visgraft.model.prefix_injection import PREFIX_PLACES, PrefixPlace
from visgraft.model.projection import ProjectionSettings, num_image_tokens
from visgraft.model.vision import VisionSettings, measure

IMAGE_ATTENTION = ("bidirectional", "causal")
Begins = Literal["first", "later", "next"]  # what an image stands behind: nothing, an earlier turn, another image


class VisionLanguageConfig(PreTrainedConfig):
    """Configuration of a `VisionLanguageModel`.

    Attributes:
        vision_config: the encoder's own config.
        text_config: the language model's own config.
        image_attention: `bidirectional` (GIT's mask) or `causal` (the ablation) inside an image.
        image_size: side of the square input image in pixels; None = the encoder's own.
        feature_layer: which hidden state of the encoder is read; -1 = the last.
        keep_class_token: keep the tokens in front of the patches.
        image_by_image: run the encoder on one image at a time (`check_encoder` finds whether that must be).
        num_frames: frames with a learned temporal embedding; 0 = none.
        projection: `ProjectionSettings` as a dict.
        tiles: how images are cut into tiles, `TileSettings` as a dict; None = they stay whole.
        text_before_images: ids of text that stands in front of images as part of their prefix, as LLaVA's start of a
            turn does: {"first": of a sample's first image, "later": of the first image of a later turn, "next": of
            every other image}; None = no text. Needs `causal` images, which then see the text before them as text does.
        prefix_at: where the prefix enters: `embeddings`, or `first_layer` (the OPT checkpoints of GIT-LLM).
        parts: where each part came from: {part: {"name", "revision"}}, and in a folder's config.json what it holds of
            the part: {"stored": "none", "some" or "all", "adapters": their number, "checksum": of the weights that
            are not stored, "dtype" and "other_dtypes": the formats that those were trained with}.
    """

    model_type = "visgraft"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 (the base class's form)
    has_no_defaults_at_init = True
    # what a trainer's evaluation leaves out of its predictions, which are the logits
    keys_to_ignore_at_inference = [  # noqa: RUF012 (the base class's form)
        "past_key_values", "last_hidden_state", "loss_sum", "num_supervised", "target_losses",
    ]  # fmt: skip

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        image_attention: str = "bidirectional",
        image_size: int | None = None,
        feature_layer: int = -1,
        keep_class_token: bool = True,
        image_by_image: bool = False,
        num_frames: int = 0,
        projection: dict[str, Any] | None = None,
        tiles: dict[str, Any] | None = None,
        text_before_images: dict[str, list[int]] | None = None,
        prefix_at: PrefixPlace = "embeddings",
        parts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the parts' configs as objects or as the dicts that `config.json` holds."""
        for key, got, allowed in (
            ("image_attention", image_attention, IMAGE_ATTENTION),
            ("prefix_at", prefix_at, PREFIX_PLACES),
        ):
            if got not in allowed:
                raise ConfigError(f"model.{key}: got {got!r}, allowed are {', '.join(allowed)}")
        self.vision_config = _sub_config(vision_config)
        self.text_config = _sub_config(text_config)
        self.image_attention = image_attention
        self.image_size = image_size
        self.feature_layer = feature_layer
        self.keep_class_token = keep_class_token
        self.image_by_image = image_by_image
        self.num_frames = num_frames
        self.projection = dict(projection or {})
        self.tiles = None if tiles is None else dict(tiles)
        self.text_before_images = None if text_before_images is None else dict(text_before_images)
        self.prefix_at = prefix_at
        if self.text_before_images is not None:
            self._check_text_before_images()
        self.parts = dict(parts or {})
        kernels = [getattr(part, "_attn_implementation", None) for part in (self.vision_config, self.text_config)]
        super().__init__(**kwargs)
        for part, kernel in zip((self.vision_config, self.text_config), kernels, strict=True):
            if part is not None:  # the base class resets which attention kernel each part chose
                part._attn_implementation_internal = kernel

    def _check_text_before_images(self) -> None:
        for key, got, needed in (
            ("image_attention", self.image_attention, "causal"),
            ("prefix_at", self.prefix_at, "embeddings"),
            ("tiles", self.tiles, None),
        ):
            if got != needed:
                raise ConfigError(
                    f"model.{key}: got {got!r}, but this model was trained with text in front of its images, which "
                    f"needs {needed!r}"
                )

    @property
    def vision_settings(self) -> VisionSettings:
        """How the encoder is read."""
        return VisionSettings(self.image_size, self.feature_layer, self.keep_class_token, self.image_by_image)

    @property
    def has_row_separator(self) -> bool:
        """Whether a learned image token stands behind each row of tiles."""
        return self.tiles is not None and self.tiles.get("separator", "learned") == "learned"

    @property
    def projection_settings(self) -> ProjectionSettings:
        """What the projection is made of.

        Raises:
            ConfigError: an unknown key.
        """
        try:
            return ProjectionSettings(**self.projection)
        except TypeError as error:
            allowed = ", ".join(ProjectionSettings.__dataclass_fields__)
            raise ConfigError(f"model.projection: got {self.projection}, allowed keys are {allowed}") from error


def _sub_config(config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig | None:
    if not isinstance(config, dict):
        return config
    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def positions_of(config: PreTrainedConfig) -> tuple[int | None, bool]:
    """Return how many positions a language model has, alone or joined, and whether image tokens take any of them.

    None: no limit is known.
    """
    if not isinstance(config, VisionLanguageConfig):
        return max_positions_of(config), True
    limit = None if config.text_config is None else max_positions_of(config.text_config)
    return limit, config.prefix_at == "embeddings"


def image_tokens_per_image(config: PreTrainedConfig | None, *, join: VisionLanguageConfig) -> int:
    """Count what an image becomes behind the projection, without any weights.

    Args:
        config: the encoder's; None where only its image processor is there.
        join: how the encoder is read, and the projection.

    Raises:
        ConfigError: there is no config.
    """
    if config is None:
        raise ConfigError(
            "an image processor alone does not say how many image tokens its encoder makes; "
            "give num_image_tokens, or the encoder's name or folder"
        )
    return num_image_tokens(measure(config, settings=join.vision_settings), join.projection_settings)
