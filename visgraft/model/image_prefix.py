"""From pixels to the prefix: the encoder, the projection, text in front of images, and which of it is real.

In: pixels as the encoder's image processor makes them. Out: image tokens, and a mask of the real ones.

    prefix, prefix_mask = model.image_prefix(pixels)              # [B, P, width], [B, P]
    tokens = model.encode_images({"pixel_values": pixels})        # [N, P, width]

Axis letters as in vlm.py; p image tokens of one image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visgraft.errors import ModelError
from visgraft.model.configuration import Begins
from visgraft.model.joined import JoinedModel
from visgraft.model.vision import encode
from visgraft.model.vision_inputs import ENDS_ROW, check_inputs, count_tokens, flatten_images


class ImagePrefixMixin(JoinedModel):
    """Images, read into the tokens that stand in front of texts."""

    def encode_images(
        self, vision_inputs: Mapping[str, Tensor], *, frame_index: Tensor | None = None, begins: Begins = "first"
    ) -> Tensor:
        """Make image tokens [N, P, width] of N images, or of their `features`, if those are given.

        Where the model has text in front of its images (`text_before_images`), P counts it; `begins` says which of it
        stands before each sample's first image.
        """
        features = vision_inputs.get("features")
        if features is None:
            features = self.image_features(vision_inputs)  # [N, P, D_vision]
        tokens: Tensor = self.projection(features, frame_index=frame_index)
        texts = self._texts_before(len(tokens), frame_index, begins)
        if texts is None:
            return tokens
        embed = functools.partial(self.prefix_injection.embed_tokens, self.language)
        known = {text: embed(torch.tensor(text, dtype=torch.long, device=tokens.device)) for text in set(texts)}
        rows = [torch.cat([known[text].to(row.dtype), row]) for text, row in zip(texts, tokens, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _texts_before(self, number: int, frame_index: Tensor | None, begins: Begins) -> list[tuple[int, ...]] | None:
        """Give the ids that stand in front of each of N images; None = this model has none."""
        texts = self.config.text_before_images
        if texts is None:
            return None
        frames = [0] * number if frame_index is None else frame_index.tolist()
        return [tuple(texts[begins if frame <= 0 else "next"]) for frame in frames]

    def image_features(self, vision_inputs: Mapping[str, Tensor]) -> Tensor:
        """Run the encoder on N images: [N, P, D_vision], what the projection takes; frozen, it has no gradients."""
        is_trained = any(parameter.requires_grad for parameter in self.vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained):
            return encode(self.vision, vision_inputs, settings=self.config.vision_settings)

    def image_prefix(
        self,
        pixel_values: Tensor,
        *,
        image_mask: Tensor | None = None,
        begins: Begins = "first",
        **vision_inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Make the prefix of each sample.

        Args:
            pixel_values: [B, 3, H, W], or [B, F, 3, H, W] float, normalised by the encoder's own mean and std.
            image_mask: [B, F] bool, True = a real image; default all.
            begins: what the images stand behind, where the model has text in front of images: nothing (`first`), an
                earlier turn (`later`), or another image (`next`).
            vision_inputs: what else the encoder takes, with the same leading axes.

        Returns:
            Image tokens [B, P, width] and [B, P] bool, True = real; P of all F images.

        Raises:
            ModelError: the encoder does not take an input, or the mask has another shape.
        """
        self._check_inputs(vision_inputs)
        inputs = {"pixel_values": pixel_values, **vision_inputs}
        flat, mask = flatten_images(inputs, image_mask=image_mask)  # each [N, ...], [B, F]
        num_rows, num_images = mask.shape
        if image_mask is None:  # nothing here depends on what a tensor holds, so that it can be exported
            order = torch.arange(num_images, device=mask.device).repeat(num_rows)
            tokens, real = self._encode_real(flat, order if num_images > 1 else torch.full_like(order, -1), begins)
            return tokens.reshape(num_rows, -1, tokens.shape[-1]), real.reshape(num_rows, -1)
        if not mask.any():
            empty = torch.zeros(num_rows, 0, self.prefix_injection.width, device=mask.device)
            return empty, empty[..., 0].bool()
        order = (mask.long().cumsum(1) - 1)[mask]  # [N], which image of its sample each is
        is_single = (mask.sum(1) == 1).repeat_interleave(mask.sum(1))  # [N]
        tokens, real = self._encode_real(flat, torch.where(is_single, -1, order), begins)
        prefix = tokens.new_zeros(*mask.shape, *tokens.shape[1:])  # [B, F, p, width]
        prefix[mask] = tokens
        prefix_mask = torch.zeros(prefix.shape[:3], dtype=torch.bool, device=mask.device)  # [B, F, p]
        prefix_mask[mask] = real
        return prefix.flatten(1, 2), prefix_mask.flatten(1, 2)  # [B, F * p, width], [B, F * p]

    def _encode_real(
        self, vision_inputs: Mapping[str, Tensor], frame_index: Tensor, begins: Begins
    ) -> tuple[Tensor, Tensor]:
        """Encode N real images: image tokens [N, p, width], and which of them are real, [N, p] bool."""
        tokens = self.encode_images(vision_inputs, frame_index=frame_index, begins=begins)
        counts = self._count_image_tokens(vision_inputs, tokens, frame_index, begins)  # [N]
        return tokens, torch.arange(tokens.shape[1], device=tokens.device)[None] < counts[:, None]

    def _check_inputs(self, vision_inputs: Mapping[str, Tensor]) -> None:
        if ENDS_ROW in vision_inputs and self.projection.row_separator is None:
            raise ModelError(
                "got row separators between tiles, which the model was not joined with: give it tiles=, too"
            )
        check_inputs(self.vision, (name for name in vision_inputs if name != ENDS_ROW))

    def _count_image_tokens(
        self, vision_inputs: Mapping[str, Tensor], tokens: Tensor, frame_index: Tensor, begins: Begins = "first"
    ) -> Tensor:
        """Count the real image tokens of each image, text before it included, [N] long; tokens: [N, P, width]."""
        has_separator = self.projection.row_separator is not None
        texts = self._texts_before(len(tokens), frame_index, begins)
        lengths = [0] * len(tokens) if texts is None else [*map(len, texts)]
        before = torch.tensor(lengths, device=tokens.device)
        number = tokens.shape[1] - has_separator - max(lengths, default=0)
        counts = torch.full((tokens.shape[0],), number, device=tokens.device)
        if self.projection.settings.pool * self.projection.settings.pixel_shuffle == 1:
            counts = count_tokens(vision_inputs, number, extent_per_token=self.projection.extent_per_token)
        return (counts + vision_inputs.get(ENDS_ROW, 0) if has_separator else counts) + before
