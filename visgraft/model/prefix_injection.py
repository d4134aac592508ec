"""Where the image prefix enters the language model.

In: token embeddings, image tokens and where they stand. Out: `inputs_embeds` and the positions the LM is given.

`embeddings`: image tokens stand among the token embeddings and take positions like any token. `first_layer`: the prefix
of GIT-LLM's OPT, which enters as the input of the first layer, in hidden_size: behind `project_in` (which narrow
embeddings have) and without a position; the text then counts its positions alone.

    prefix_injection = PrefixInjection(language, at="first_layer")
    inputs_embeds = prefix_injection.inject(embeds, image_tokens, is_image)
    position_ids = prefix_injection.positions(table)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visgraft.errors import ConfigError
from visgraft.model.language import embedding_width
from visgraft.model.sequence import SegmentTable, text_positions

PrefixPlace = Literal["embeddings", "first_layer"]
PREFIX_PLACES: tuple[PrefixPlace, ...] = ("embeddings", "first_layer")


class PrefixInjection:
    """Let image tokens enter one language model.

    Attributes:
        width: of an image token: D_lm, or the LM's hidden size for `first_layer`.
    """

    def __init__(self, language: PreTrainedModel, *, at: PrefixPlace) -> None:
        """Prepare the language model.

        Raises:
            ConfigError: `first_layer`, and the LM adds no learned positions in front of its layers.
        """
        self.at = at
        self.width = embedding_width(language)
        self._waiting: tuple[Tensor, Tensor] | None = None
        if at == "first_layer":
            table = getattr(language.get_decoder(), "embed_positions", None)
            if not isinstance(table, nn.Embedding):
                raise ConfigError(
                    f"model.prefix_at: got first_layer, which needs a language model with a table of positions in "
                    f"front of its layers (OPT), and {language.config.model_type} has none; need embeddings"
                )
            self.width = table.embedding_dim
            # The LM adds this module's output to its (projected) inputs, which are 0 where an image token stands: what
            # it gives there is the input of the first layer. A hook on the layer would be lost to checkpointing.
            table.register_forward_hook(self._replace_positions)

    def inject_prefix(self, prefix: Tensor | None, text: Tensor, *, is_image: Tensor, order: Tensor | None) -> Tensor:
        """Put a prefix in front of texts, as `inject` does, and reorder both as the rows are.

        Args:
            prefix: [B, P, width], or None.
            text: [B, T, D_lm] token embeddings.
            is_image: [B, S] bool, in the new order.
            order: [B, S] long, the old column of each new one; None = as they are.
        """
        num_image, num_text = 0 if prefix is None else prefix.shape[1], text.shape[1]
        embeds = _reorder(nn.functional.pad(text, (0, 0, num_image, 0)), order)
        if prefix is None or num_image == 0:
            return embeds
        return self.inject(embeds, _reorder(nn.functional.pad(prefix, (0, 0, 0, num_text)), order), is_image)

    def inject(self, embeds: Tensor, image_tokens: Tensor, is_image: Tensor) -> Tensor:
        """Put image tokens in; the LM must be run once on what comes back.

        Args:
            embeds: [B, S, D_lm] token embeddings; anything where an image token stands.
            image_tokens: [B, S, width]; anything where text stands.
            is_image: [B, S] bool, True = an image token stands here.

        Returns:
            `inputs_embeds` [B, S, D_lm].
        """
        if self.at == "embeddings":
            return torch.where(is_image[..., None], image_tokens.to(embeds.dtype), embeds)
        self._waiting = (image_tokens, is_image)
        return embeds.masked_fill(is_image[..., None], 0)

    def positions(self, table: SegmentTable) -> Tensor:
        """Give the positions that the LM is given, [B, S] long."""
        return table.position if self.at == "embeddings" else text_positions(table)

    def embed_tokens(self, language: PreTrainedModel, ids: Tensor) -> Tensor:
        """Give tokens as vectors of the space in which image tokens enter.

        This is what the embedding module gives (Gemma's scale is then in it), not the rows of its table and not the
        head's; for `first_layer` it is what stands behind `project_in`, before positions are added.

        Args:
            language: the language model that the prefix_injection was made for.
            ids: [n] long.

        Returns:
            [n, width].
        """
        entered: Tensor = language.get_input_embeddings()(ids)
        narrow = getattr(language.get_decoder(), "project_in", None) if self.at == "first_layer" else None
        return entered if narrow is None else narrow(entered)

    def _replace_positions(self, _: nn.Module, __: Any, positions: Tensor) -> Tensor:
        if self._waiting is None:
            return positions
        (image_tokens, is_image), self._waiting = self._waiting, None
        return torch.where(is_image[..., None], image_tokens.to(positions.dtype), positions)


def _reorder(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows.gather(1, order[..., None].expand_as(rows))
