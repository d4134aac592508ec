"""A joined model in the form of the field's own: image tokens stand in the text as placeholders.

In: ids in which every image is a run of `image_token_id`, and pixels. Out: logits, as the prefix form gives them. This
file and what it needs are copied into exported folders, where transformers and the servers on top of it find what they
ask of a vision model: nested configs, `get_image_features`, a processor that counts and writes the placeholders.

    model = AutoModelForImageTextToText.from_pretrained("exported", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("exported", trust_remote_code=True)

    ids      i i i i a b c      i = image_token_id
    prefix   [image ] a b c     the same positions, the same mask: image tokens see each other, text its own past
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BaseImageProcessor,
    BatchFeature,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from visgraft.errors import ConfigError, MissingNameError, ModelError, names_needed_for
from visgraft.model.language import AttentionSpec, read_attention_spec
from visgraft.model.projection import Projection, ProjectionSettings
from visgraft.model.sequence import SegmentTable
from visgraft.model.tower import build_tower
from visgraft.model.vision import VisionSettings, encode, measure
from visgraft.segments import IMAGE, TEXT


class PlaceholderConfig(PreTrainedConfig):
    """Configuration of a model with image placeholders.

    Attributes:
        vision_config: the encoder's own config.
        text_config: the language model's own config.
        image_token_id: what stands in the text for every image token.
        image_seq_length: image tokens of one image.
        is_mm_prefix_lm: whether the tokens of an image see each other (the name that servers read).
        image_size, feature_layer, keep_class_token: how the encoder is read.
        projection: `ProjectionSettings` as a dict.
    """

    model_type = "visgraft_placeholders"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 (the base class's form)
    attribute_map = {"image_token_index": "image_token_id"}  # noqa: RUF012 (the same)
    has_no_defaults_at_init = True

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        image_token_id: int = 0,
        image_seq_length: int = 0,
        is_mm_prefix_lm: bool = True,
        image_size: int | None = None,
        feature_layer: int = -1,
        keep_class_token: bool = True,
        projection: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the parts' configs as objects or as the dicts that `config.json` holds."""
        self.vision_config = _config(vision_config)
        self.text_config = _config(text_config)
        self.image_token_id = image_token_id
        self.image_seq_length = image_seq_length
        self.is_mm_prefix_lm = is_mm_prefix_lm
        self.image_size = image_size
        self.feature_layer = feature_layer
        self.keep_class_token = keep_class_token
        self.projection = dict(projection or {})
        super().__init__(**kwargs)

    @property
    def vision_settings(self) -> VisionSettings:
        """How the encoder is read."""
        return VisionSettings(self.image_size, self.feature_layer, self.keep_class_token)


def _config(config: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig | None:
    if not isinstance(config, dict):
        return config
    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


class PlaceholderPreTrainedModel(PreTrainedModel):
    """What both models below have in common."""

    config_class = PlaceholderConfig
    config: PlaceholderConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012 (the base class's form)
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights alone: all of them come from the folder."""


class PlaceholderModel(PlaceholderPreTrainedModel):
    """Encoder, projection and decoder, without a head."""

    def __init__(self, config: PlaceholderConfig) -> None:
        """Make the parts from their configs."""
        super().__init__(config)
        assert config.vision_config is not None and config.text_config is not None, "a saved config has both"
        self.vision_tower = build_tower(config.vision_config)
        self.language_model: Any = AutoModel.from_config(config.text_config)
        embedding = self.language_model.get_input_embeddings()
        self.multi_modal_projector = Projection(
            measure(config.vision_config, settings=config.vision_settings),
            width=embedding.weight.shape[1],
            settings=ProjectionSettings(**config.projection),
        )
        self._spec: AttentionSpec | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Give the decoder's token embeddings."""
        module: nn.Module = self.language_model.get_input_embeddings()
        return module

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Make the image tokens of N images.

        Args:
            pixel_values: [N, 3, H, W] float, normalised by the encoder's own mean and std.

        Returns:
            `last_hidden_state` [N, P', D_vision] of the encoder, `pooler_output` the N images' tokens [P, D_lm].
        """
        features = encode(self.vision_tower, {"pixel_values": pixel_values}, settings=self.config.vision_settings)
        tokens = tuple(self.multi_modal_projector(features))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=tokens)  # type: ignore[arg-type]

    def get_placeholder_mask(self, input_ids: Tensor, num_image_tokens: int) -> Tensor:
        """Say where placeholders stand, [B, T] bool.

        Raises:
            ModelError: there are more or fewer than image tokens.
        """
        mask = input_ids == self.config.image_token_id
        if int(mask.sum()) != num_image_tokens:
            raise ModelError(
                f"the text has {int(mask.sum())} placeholders, the images {num_image_tokens} tokens: write "
                f"{self.config.image_seq_length} for each image, as the processor does"
            )
        return mask

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: [B, T] long, with the cache only those that are not in it.
            pixel_values: [N, 3, H, W] float, the images in the order of their placeholders.
            attention_mask: [B, S], 1 = real, cached positions included; None = all.
            position_ids: [B, T] long; with `inputs_embeds` alone they are taken as they are.
            past_key_values: a cache.
            inputs_embeds: [B, T, D_lm] instead of ids, placeholders filled in (what a server of its own attention
                gives): positions, mask and the rest go to the decoder as they are.
            use_cache: make a cache where none is given.
            kwargs: go to the decoder.

        Raises:
            ModelError: neither ids nor embeddings, or the number of placeholders is wrong.
        """
        if input_ids is None:
            if inputs_embeds is None:
                raise ModelError("forward needs input_ids or inputs_embeds")
            return self._decode(inputs_embeds, past_key_values, use_cache, {
                "attention_mask": attention_mask, "position_ids": position_ids, **kwargs
            })  # fmt: skip
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        is_image = input_ids == self.config.image_token_id
        if pixel_values is not None:
            tokens = torch.cat([*self.get_image_features(pixel_values).pooler_output])  # type: ignore[misc]
            is_image = self.get_placeholder_mask(input_ids, len(tokens))
            embeds = embeds.masked_scatter(is_image[..., None], tokens.to(embeds.dtype))
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config.text_config)
        arguments = self._arguments(is_image, attention_mask, past_key_values, embeds.dtype)
        return self._decode(embeds, past_key_values, use_cache, {**arguments, **kwargs})

    def _decode(
        self, embeds: Tensor, cache: Cache | None, use_cache: bool | None, arguments: dict[str, Any]
    ) -> BaseModelOutputWithPast:
        output: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=bool(use_cache) or cache is not None, **arguments
        )
        return output

    def _arguments(
        self, is_image: Tensor, attention_mask: Tensor | None, cache: Cache | None, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Make the decoder's mask and positions for the last T positions; is_image: [B, T]."""
        if self._spec is None:
            self._spec = read_attention_spec(self.language_model)
        num_rows, num_new = is_image.shape
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if attention_mask is None or attention_mask.ndim != 2:
            attention_mask = is_image.new_ones(num_rows, num_cached + num_new)
        is_real = attention_mask.bool()
        all_images = torch.cat([is_image.new_zeros(num_rows, num_cached), is_image], 1)
        kind = torch.where(all_images, IMAGE, TEXT) * is_real
        begins = torch.nn.functional.pad(kind[:, 1:] != kind[:, :-1], (1, 0))
        run = begins.long().cumsum(1)  # every image, and every text between two, is a segment
        earlier = torch.ones(int(run.max()) + 1, int(run.max()) + 1, dtype=torch.bool, device=run.device).tril(-1)
        table = SegmentTable(
            kind=kind,
            group=torch.zeros_like(kind),
            segment=torch.where(is_real, run, -1),
            position=(is_real.long().cumsum(1) - 1).clamp(min=0),
            sees=earlier.expand(num_rows, -1, -1),
        )
        return self._spec.arguments(
            table, dtype=dtype, num_queries=num_new, cache=cache, causal_image=not self.config.is_mm_prefix_lm
        )


class PlaceholderForConditionalGeneration(PlaceholderPreTrainedModel, GenerationMixin):
    """The model with its head, for `generate` and for servers."""

    def __init__(self, config: PlaceholderConfig) -> None:
        """Make the parts from their configs."""
        super().__init__(config)
        self.model = PlaceholderModel(config)
        embedding: Any = self.model.get_input_embeddings()
        self.lm_head = nn.Linear(embedding.weight.shape[1], embedding.weight.shape[0], bias=False)
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Give the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Make the image tokens of N images; see `PlaceholderModel`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model for logits [B, T, V], or of the last n positions; see `PlaceholderModel.forward`.

        `mm_token_type_ids` says what the ids themselves say here; `labels` [B, T] are shifted inside, -100 = ignored.
        """
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{key: value for key, value in kwargs.items() if key != "return_dict"},
        )
        states = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.lm_head(states[:, kept if isinstance(logits_to_keep, int) else logits_to_keep])
        loss = None
        if labels is not None:
            targets = labels[:, 1:].flatten().to(logits.device)
            loss = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets, ignore_index=-100)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Give pixels to the first step alone: later ones have them in the cache."""
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        prepared: dict[str, Any] = prepare(input_ids, *args, **kwargs)
        cache = prepared.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()):
            prepared["pixel_values"] = None
        return prepared


class PlaceholderProcessor(ProcessorMixin):
    """Write a placeholder for every image token, and make the pixels.

    Attributes:
        image_token: what stands for an image in a text; it is written `image_seq_length` times.
        image_token_id: its id.
        image_seq_length: image tokens of one image.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_seq_length: int = 1,
        **_: Any,
    ) -> None:
        self.image_token = image_token
        self.image_seq_length = image_seq_length
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)  # type: ignore[assignment]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        tokenizer.padding_side = "left"

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        return_mm_token_type_ids: bool = False,
        **settings: Any,
    ) -> BatchFeature:
        """Make the inputs of the model.

        Args:
            images: one image, or a list in the order in which `image_token` stands in the texts; lists of lists too.
            text: one text or several.
            return_tensors: "pt", or None = lists.
            return_mm_token_type_ids: also give 1 where a placeholder stands and 0 elsewhere.
            settings: go to the tokenizer (`padding`, ...).

        Raises:
            ConfigError: there are more images than `image_token` in the texts, or fewer.
        """
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        pictures = _flat(images)
        written = sum(each.count(self.image_token) for each in texts)
        if texts and written != len(pictures):
            raise ConfigError(
                f"got {len(pictures)} images and {written} times {self.image_token!r} in the text; need as many of each"
            )
        expanded = [each.replace(self.image_token, self.image_token * self.image_seq_length) for each in texts]
        known = {"padding", "truncation", "max_length", "add_special_tokens", "padding_side", "return_attention_mask"}
        given = {key: value for key, value in {**settings, **settings.get("text_kwargs", {})}.items() if key in known}
        if return_tensors is not None and len(texts) > 1:
            given.setdefault("padding", True)
        data: dict[str, Any] = dict(self.tokenizer(expanded, **given)) if expanded else {}
        data.pop("token_type_ids", None)
        if return_mm_token_type_ids and expanded:
            data["mm_token_type_ids"] = [[int(i == self.image_token_id) for i in ids] for ids in data["input_ids"]]
        if pictures:
            data.update(self.image_processor(pictures, return_tensors=return_tensors))
        return BatchFeature(data, tensor_type=return_tensors)

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Sequence[int]] | None = None, **_: Any) -> Any:
        """Count the placeholders of images, [(height, width), ...]; each has as many, whatever its size."""
        with names_needed_for("counting placeholders without images"):
            from transformers.processing_utils import MultiModalData
        if image_sizes is None:
            return MultiModalData()
        number = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * number, num_image_patches=[1] * number)

    @property
    def model_input_names(self) -> list[str]:
        """Name what `__call__` makes."""
        return ["input_ids", "attention_mask", "pixel_values"]


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        return [images]
    return [picture for each in images for picture in _flat(each)]


def _enter_tables() -> None:
    """Let `transformers serve` know that the class sees: it asks these tables, which know no code in folders."""
    with names_needed_for("`transformers serve`"):
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEEING
        from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as SEEING_OR_HEARING
    for table in (SEEING, SEEING_OR_HEARING):
        table.setdefault(PlaceholderConfig.model_type, PlaceholderForConditionalGeneration.__name__)


with suppress(MissingNameError):  # everything else does without
    _enter_tables()
