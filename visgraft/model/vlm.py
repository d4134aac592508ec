"""The model: a vision encoder, a projection and a causal language model, joined as in GIT. Read this first.

In: tensors (a batch from `Processor.collate`, or ids and pixels). Out: a loss over the supervised tokens, logits, or
generated ids. The projected image tokens are a prefix that every text token sees; text stays causal.

    model = VisionLanguageModel.from_parts("openai/clip-vit-base-patch16", "facebook/opt-350m")
    out = model.loss(batch)                                          # out.loss, out.loss_sum, out.num_supervised
    logits = model(input_ids=ids, pixel_values=pixels).logits        # [B, P + T, V]
    ids = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=32)

Axis letters: B rows of a batch, F images or frames of one sample, P image tokens, T text tokens, S = P + T positions of
a row, V vocabulary, D_vision and D_lm widths, D the width of what the head takes, N images in a batch, M supervised
tokens, Q positions that are run behind a cache. `width`, that of an image token, is D_lm (for `first_layer` of
prefix_injection.py the LM's hidden size).

    pixels [N, 3, H, W] -> vision -> features [N, P, D_vision] -> projection -> image tokens [N, P, width]
    ids [B, T] -> token embeddings [B, T, D_lm] -> prefix injection, which puts the image tokens in -> [B, S, D_lm]
    -> language, with the mask and positions that the attention spec makes of a segment table [B, S] -> [B, S, V]
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from visgraft.errors import ModelError
from visgraft.model.attention_kernel import showing_attention
from visgraft.model.cache import as_argument
from visgraft.model.checks.compatibility import check_language
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.generation import PADS_BEHIND_CACHE, PrefixGenerationMixin
from visgraft.model.image_prefix import ImagePrefixMixin
from visgraft.model.language import embedding_scale
from visgraft.model.layer_outputs import LayerOutputs, Selection
from visgraft.model.loss import VisionLanguageOutput, gathered_head, labels_loss, loss_output, supervised_losses
from visgraft.model.parts import part_module, part_parameters
from visgraft.model.passes import losses_in_passes, read
from visgraft.model.piece_by_piece import PieceByPieceMixin
from visgraft.model.precision import float32_under_autocast, let_layer_norms_take_float32
from visgraft.model.prefix_injection import PrefixInjection
from visgraft.model.projection import Projection
from visgraft.model.sequence import SegmentTable, image_then_text, pads_first
from visgraft.model.storage.load_and_save import StorageMixin
from visgraft.model.tower import build_tower
from visgraft.model.vision import measure
from visgraft.model.vision_inputs import (
    check_rows,
    dummy_inputs,
)
from visgraft.notebook import table_html
from visgraft.segments import IMAGE
from visgraft.wording import counted


class VisionLanguageModel(ImagePrefixMixin, StorageMixin, PieceByPieceMixin, PrefixGenerationMixin):
    """Any vision encoder joined to any causal language model; the parts are `vision`, `projection`, `language`."""

    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (the base class's form)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: VisionLanguageConfig,
        vision: PreTrainedModel | None = None,
        language: PreTrainedModel | None = None,
    ) -> None:
        """Join two parts; without modules, random ones are made from their configs (`from_parts` loads real ones)."""
        assert config.vision_config is not None, "only an empty config, which the library makes, has none"
        vision = build_tower(config.vision_config) if vision is None else vision
        language = AutoModelForCausalLM.from_config(config.text_config) if language is None else language
        super().__init__(config)
        config.vision_config, config.text_config = vision.config, language.config
        self.vision = vision
        self.language = language
        self.prefix_injection = PrefixInjection(language, at=config.prefix_at)
        self.projection = Projection(
            measure(vision.config, settings=config.vision_settings),
            width=self.prefix_injection.width,
            settings=config.projection_settings,
            num_frames=config.num_frames,
            has_row_separator=config.has_row_separator,
            scale=1.0 if language.device.type == "meta" else embedding_scale(language),
        )
        self.attention_spec = check_language(language, causal_image=config.image_attention == "causal")
        let_layer_norms_take_float32(language)
        self.loaded_checksums = {}
        self.new_token_ids: tuple[int, ...] = ()  # whose rows train, whatever else does
        self.generation_config = language.generation_config
        self.logits_bytes = 256 * 2**20  # beyond this, logits are made and forgotten in checkpointed chunks
        self.loss_type = "ForCausalLM"  # by which the library's trainer knows that the first label is never a target
        self.post_init()

    def init_weights(self) -> None:
        """Leave the weights alone: the parts come initialised, the projection initialises itself."""

    def get_input_embeddings(self) -> nn.Module:
        """Give the language model's token embeddings."""
        return self.language.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Give the language model's head."""
        return self.language.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the language model's token embeddings."""
        self.language.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Set the language model's head."""
        self.language.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Give the language model's tables another number of tokens, as its own method does; they stay tied or untied.

        Args:
            new_num_tokens: rows of the tables; None = as many as there are.
            pad_to_multiple_of: the number is rounded up to a multiple of this.
            mean_resizing: draw new rows about the mean of the old; False = as fresh weights are drawn.
        """
        table = self.language.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.vocab_size = table.weight.shape[0]
        return table

    def train(self, mode: bool = True) -> VisionLanguageModel:
        """Set training mode; parts with nothing to train and every BatchNorm stay in eval mode."""
        super().train(mode)
        for part in (self.vision, self.projection, self.language):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    # --- Loss

    def loss(self, batch: Mapping[str, Any]) -> VisionLanguageOutput:
        """Compute the loss over a batch's supervised tokens; see `forward`, which it calls so that hooks run."""
        output: VisionLanguageOutput = self(batch=batch, return_dict=True)
        return output

    def _batch_loss(self, batch: Mapping[str, Any]) -> VisionLanguageOutput:
        """Run whole rows of a batch [B, S] and give the loss of its supervised tokens."""
        table = SegmentTable(batch["kind"], batch["group"], batch["segment"], batch["position"], batch["sees"])
        self._check_length(table)
        embeds = self.get_input_embeddings()(batch["input_ids"])  # [B, S, D_lm]
        embeds = float32_under_autocast(embeds) if self.attention_spec.wide_states else embeds
        vision_inputs = batch["vision_inputs"]
        if vision_inputs:
            tokens = self.encode_images(vision_inputs, frame_index=batch["frame_index"])  # [N, P, width]
            counts = batch["num_image_tokens"]  # [N]
            if not torch.equal(counts, self._count_image_tokens(vision_inputs, tokens, batch["frame_index"])):
                raise ModelError(
                    f"the batch counts {counts.unique().tolist()} image tokens an image, the model makes "
                    f"{tokens.shape[1]}: make the Processor with the model's image_size, feature_layer, "
                    "keep_class_token, tiles and, where the projection pools, num_image_tokens"
                )
            real = torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]  # [N, P]
            is_image = table.kind == IMAGE  # [B, S], as many True as in `real`, in the same order
            placed = tokens.new_zeros(*is_image.shape, tokens.shape[-1])  # [B, S, width]
            placed = placed.index_put((is_image,), tokens[real])
            embeds = self.prefix_injection.inject(embeds, placed, is_image)  # [B, S, D_lm]
        if self._needs_black_image(vision_inputs):
            black = dummy_inputs(self.vision.config, image_size=self.config.image_size, device=embeds.device)
            tokens = self.encode_images(black, frame_index=torch.zeros(1, dtype=torch.long, device=embeds.device))
            embeds = embeds + tokens[:, :0].sum().to(embeds.dtype)  # nothing, with a gradient of zero
        pairs = {"source": batch["source"], "target": batch["target"]}
        as_distinct = batch.get("as_distinct")  # a token that several dialogs share is computed once
        if as_distinct is not None:
            pairs = {name: tensor[batch["distinct"]] for name, tensor in pairs.items()}
        if self.attention_spec.sharing == "mask":
            arguments = self._mask_and_positions(embeds, table)
            run = functools.partial(self.attention_spec.call, self.language, embeds, arguments)
            losses = supervised_losses(self.language, run, **pairs, logits_bytes=self.logits_bytes)
        else:
            losses = losses_in_passes(
                self.language,
                self.attention_spec,
                embeds,
                table,
                by_state=batch["layout"] == "shared" and self._can_share_states(),
                causal_image=self.config.image_attention == "causal",
                logits_bytes=self.logits_bytes,
                **pairs,
            )
        return loss_output(losses if as_distinct is None else losses[as_distinct])  # and counts for each of them

    def _can_share_states(self) -> bool:
        """Say whether texts may read on from their image's states.

        Checkpointing of the library's own kind drops what a layer hands over, and processes that share the weights out
        must make equally many passes.
        """
        drops = self.language.training and any(
            getattr(module, "gradient_checkpointing", False) for module in self.language.modules()
        )
        return self.attention_spec.sharing == "state" and not drops and not self._is_sharded

    @property
    def _is_sharded(self) -> bool:
        """Whether processes share the weights out; who does that has imported what takes long to import."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        return fsdp is not None and isinstance(self, fsdp.FSDPModule)

    def _needs_black_image(self, vision_inputs: Mapping[str, Tensor]) -> bool:
        """Say whether a batch runs the vision part for the other processes alone, which wait for it.

        They wait for its gradients, so a batch without images runs it in training. Processes that share the weights out
        wait for its weights too, whatever it is run for, so there a batch of ready features runs it as well.
        """
        if self._is_sharded:
            return not vision_inputs or "features" in vision_inputs
        return not vision_inputs and self.training

    # --- Logits

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        context: SegmentTable | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        batch: Mapping[str, Any] | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: Selection = None,
        return_dict: bool | None = None,
        **vision_inputs: Tensor | None,
    ) -> VisionLanguageOutput | tuple[Any, ...]:
        """Run the model on a batch (for its loss) or on ids and pixels (for logits).

        Args:
            input_ids: [B, T] long text tokens.
            pixel_values: [B, 3, H, W] or [B, F, 3, H, W] float, normalised by the encoder's own mean and std; None =
                text only, P = 0.
            attention_mask: [B, T], 1 = a real text token (the cached text included when there is a cache); the image
                is implicit. None = all real.
            labels: [B, T] long, -100 = ignored. Shifted inside the text: CE(logits[:, P:-1], labels[:, 1:]).
            image_mask: [B, F] bool, True = a real image.
            image_embeds: [B, P, width], a prefix that is ready, instead of pixels; with `image_token_mask` [B, P] bool.
            image_token_mask: see `image_embeds`.
            past_key_values: a cache, in which rows are packed as [pads][image][text]; later calls give the
                `image_token_mask` again.
            cache: the same, by the name that transformers gives it from 5.24 on.
            context: what the cache holds in front of the text, instead of an `image_token_mask`; see `read_text`.
            use_cache: make a cache where none is given.
            logits_to_keep: only the last n positions' logits (with a cache, of the packed rows); 0 = all.
            batch: from `Processor.collate`; everything else is then ignored and only the loss fields are filled.
            inputs_embeds: [B, T, D_lm], as the token embeddings make them, instead of `input_ids`.
            num_items_in_batch: what the sum of the losses is divided by, instead of the targets that are here: those of
                the whole step, as Hugging Face's trainer counts them.
            output_attentions: give `attentions`, computed with the plain kernel (eager); default as the config says.
            output_hidden_states: give `hidden_states`; default as the config says.
            return_dict: False = a tuple of the fields that are there, in their order; default as the config says.
            vision_inputs: what else the encoder takes.

        Raises:
            ModelError: not just one of ids, embeddings and a batch is given, an argument is unknown, the row is longer
                than the language model's positions, an image is given behind a cache that holds something, pads stand
                behind what is in the cache, or the language model does not show what is asked for.
        """
        given = {name: value for name, value in vision_inputs.items() if value is not None}
        self._check_inputs(given)
        if batch is None and (input_ids is None) == (inputs_embeds is None):
            raise ModelError(
                "forward needs input_ids, or inputs_embeds in their place, or batch= from Processor.collate"
            )
        cache = past_key_values if cache is None else cache
        if batch is not None:
            result = self._batch_loss(batch)
        elif context is not None and input_ids is not None:
            result = self.read_text(
                input_ids,
                context=context,
                cache=cache,
                attention_mask=attention_mask,
                logits_to_keep=logits_to_keep,
            )
        else:
            embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            check_rows(pixel_values if image_embeds is None else image_embeds, embeds)
            if image_embeds is None and pixel_values is not None:
                image_embeds, image_token_mask = self.image_prefix(
                    pixel_values, image_mask=image_mask, begins="first", **given
                )
            states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            attentions = self.config.output_attentions if output_attentions is None else output_attentions
            result = self._read_rows_whole(
                embeds,
                image_embeds,
                image_token_mask,
                attention_mask,
                cache=self.make_cache() if cache is None and use_cache else cache,
                logits_to_keep=logits_to_keep,
                shown=LayerOutputs(hidden_states=states, attentions=attentions),
            )
            if labels is not None:
                assert result.logits is not None
                losses = labels_loss(result.logits, labels, num_items_in_batch=num_items_in_batch)
                result = VisionLanguageOutput(
                    **losses, **result
                )  # in the order of the fields, as a tuple is made of them
        wants_object = self.config.return_dict if return_dict is None else return_dict
        return result if wants_object else result.to_tuple()

    def _read_rows_whole(
        self,
        embeds: Tensor,
        image_embeds: Tensor | None,
        image_token_mask: Tensor | None,
        attention_mask: Tensor | None,
        *,
        cache: Cache | None,
        logits_to_keep: int,
        shown: LayerOutputs,
    ) -> VisionLanguageOutput:
        """Run texts [B, T, D_lm] behind their images, or [B, Q, D_lm] behind what is in the cache; see `forward`."""
        num_rows, num_text = embeds.shape[:2]
        if image_token_mask is None:
            num_image = 0 if image_embeds is None else image_embeds.shape[1]
            image_token_mask = torch.ones(num_rows, num_image, dtype=torch.bool, device=embeds.device)
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        if num_cached and image_embeds is not None:
            raise ModelError(
                f"an image was given beside a cache that holds {num_cached} positions, behind which it cannot stand: "
                "give the image with an empty cache, or read_image (peft's prefix tuning fills the cache first: take "
                "prompt tuning or LoRA)"
            )
        table, order = self._rows(embeds, image_token_mask, attention_mask, cache, num_cached)
        if num_cached == 0:
            is_image = table.kind == IMAGE  # [B, S]
            embeds = self.prefix_injection.inject_prefix(image_embeds, embeds, is_image=is_image, order=order)
        with showing_attention(self) if "output_attentions" in shown.arguments else contextlib.nullcontext():
            logits, states = self._decode(embeds, table, cache, logits_to_keep, shown)  # [B, S or n, V], [B, S, D]
        shown.give_back(order, length=table.length, num_cached=num_cached)
        if order is not None and num_cached == 0 and not logits_to_keep:  # back to the order in which they were given
            logits = logits.gather(1, order.argsort(1)[..., None].expand_as(logits))
        return VisionLanguageOutput(
            logits=logits,
            **as_argument(cache),
            hidden_states=shown.hidden_states,
            attentions=shown.attentions,
            last_hidden_state=states[:, -num_text:] if cache is None else None,  # [B, T, D]
        )

    def _decode(
        self,
        embeds: Tensor,
        table: SegmentTable,
        cache: Cache | None,
        logits_to_keep: int,
        shown: LayerOutputs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the language model on the last Q of the table's positions.

        Args:
            embeds: [B, Q, D_lm].
            table: the rows, S positions with the cached ones.
            cache: holds the S - Q positions before; it is written to.
            logits_to_keep: only the last n positions' logits; 0 = all.
            shown: takes in what the layers are to show.

        Returns:
            Logits [B, Q or n, V], and what comes to the head, [B, Q, D].
        """
        if self.attention_spec.sharing != "mask":
            is_causal = self.config.image_attention == "causal"
            return read(
                self.language,
                self.attention_spec,
                embeds,
                table,
                cache=cache,
                causal_image=is_causal,
                logits_to_keep=logits_to_keep,
                shown=shown,
            )
        arguments = self._mask_and_positions(embeds, table, cache)
        asked = {} if shown is None else shown.arguments
        with gathered_head(self.language, slice(-logits_to_keep, None) if logits_to_keep else None) as states:
            output = self.attention_spec.call(self.language, embeds, {**arguments, **asked}, cache=cache)
        if shown is not None:
            shown.take(output)
        return output.logits, states[-1]

    def _mask_and_positions(self, embeds: Tensor, table: SegmentTable, cache: Cache | None = None) -> dict[str, Any]:
        """Make `attention_mask` and `position_ids` for the last Q of the table's positions, embeds [B, Q, D_lm]."""
        return self.attention_spec.arguments(
            table,
            dtype=embeds.dtype,
            num_queries=embeds.shape[1],
            cache=cache,
            causal_image=self.config.image_attention == "causal",
            positions=self.prefix_injection.positions(table),
        )

    def _rows(
        self,
        embeds: Tensor,
        image_token_mask: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        num_cached: int,
    ) -> tuple[SegmentTable, Tensor | None]:
        """Describe the rows, cached positions included; with a cache they are packed as [pads][image][text].

        Returns:
            The table of S positions, and [B, S] long, the old column of each new one (None = as they were).
        """
        num_image = image_token_mask.shape[1]
        num_text = embeds.shape[1] if num_cached == 0 else num_cached - num_image + embeds.shape[1]
        if attention_mask is None:  # `generate` drops a mask that is all ones
            attention_mask = torch.ones(embeds.shape[0], num_text, dtype=torch.bool, device=embeds.device)
        if attention_mask.shape[1] != num_text:
            raise ModelError(
                f"attention_mask covers {attention_mask.shape[1]} text tokens, there are {num_text} "
                "(cached ones included, image tokens not)"
            )
        if num_cached and not attention_mask[:, -embeds.shape[1] :].all():
            raise ModelError(PADS_BEHIND_CACHE)
        table = image_then_text(image_token_mask, attention_mask.bool())
        self._check_length(table)
        return (table, None) if cache is None else pads_first(table)

    def _repr_html_(self) -> str:
        """Show the model in a notebook: its parts, their sizes, and what of each trains."""
        rows = []
        for part, own in part_parameters(self).items():
            trained = sum(p.numel() for p in own.values() if p.requires_grad)
            kind = type(part_module(self, part)).__name__
            rows.append([part, kind, f"{sum(p.numel() for p in own.values()):,}", f"{trained:,}"])
        title = f"{type(self).__name__}, {counted(self.projection.num_tokens, 'image token')} a picture"
        return table_html(title, ["part", "class", "parameters", "trainable"], rows)

    def _check_length(self, table: SegmentTable) -> None:
        limit = self.attention_spec.max_positions
        if limit is None or table.length <= limit:
            return
        length = int(self.prefix_injection.positions(table).max()) + 1
        if length > limit:
            reason = f" ({self.attention_spec.why_max})" if self.attention_spec.why_max else ""
            raise ModelError(
                f"a row of {length} positions (image and text tokens) is longer than the {limit} positions of "
                f"{self.attention_spec.name}{reason}: shorten the text, or make fewer image tokens (model.image_size, "
                "model.projection.pool)"
            )


AutoConfig.register(VisionLanguageConfig.model_type, VisionLanguageConfig, exist_ok=True)
AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel, exist_ok=True)
