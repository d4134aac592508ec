"""Where an answer looks: the attention of each answer token over everything in front of it, layer by layer.

In: a model, an image prefix, a prompt's and an answer's ids. Out: shares of attention [layers, answer tokens, S].

    shares = answer_attention(model, prefix, prompt_ids=prompt, answer_ids=answer)

    row that predicts   image ... image | prompt ... prompt | answer ...
    answer token 1         .1  ...  .02 |   .3 ...     .2   |             the prompt's last position
    answer token 2         .1  ...  .05 |   .2 ...     .1   |  .2         the first answer token's position

A token is chosen by the position in front of it, so that position's attention is what is shown. Whatever the family,
attention ends in one of two functions of PyTorch: the fused kernel, whose weights are made here once more from the
queries, keys and mask that it gets (keys that several queries share are repeated), or a softmax over the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visgraft.errors import UnsupportedModelError
from visgraft.model.vlm import VisionLanguageModel

SOFTMAX: tuple[Callable[..., Any], ...] = (nn.functional.softmax, torch.softmax, Tensor.softmax)


@torch.no_grad()
def answer_attention(
    model: VisionLanguageModel, prefix: Tensor, *, prompt_ids: Sequence[int], answer_ids: Sequence[int]
) -> Tensor:
    """Run a prompt with its answer once and give the attention of the positions that chose the answer's tokens.

    Args:
        model: in eval mode.
        prefix: image tokens [P, width].
        prompt_ids: T ids, at least one.
        answer_ids: A ids, at least one.

    Returns:
        [L, A, S] float32, S = P + T + A - 1: mean over the heads of each layer; each row sums to 1, or to less where a
        head may attend to nothing (attention sinks).

    Raises:
        UnsupportedModelError: the layers' attention passes neither function.
    """
    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]], device=prefix.device)
    num_rows = len(answer_ids)
    recorder = AttentionRecorder(num_rows=num_rows, length=prefix.shape[0] + ids.shape[1])
    image_token_mask = torch.ones(1, prefix.shape[0], dtype=torch.bool, device=prefix.device)
    with recorder:
        model(input_ids=ids, image_embeds=prefix[None], image_token_mask=image_token_mask, logits_to_keep=1)
    config = model.language.config.get_text_config(decoder=True)
    if len(recorder.layers) != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{config.model_type} has {config.num_hidden_layers} layers, of which {len(recorder.layers)} show their "
            f"attention with the kernel {config._attn_implementation!r}; set model.attention to sdpa or eager"
        )
    return torch.stack(recorder.layers)


class AttentionRecorder(TorchFunctionMode):
    """While entered, keep what the last rows of each layer attend to.

    Attributes:
        layers: [num_rows, length] float32 each, in the order in which layers ran.
    """

    def __init__(self, *, num_rows: int, length: int) -> None:
        """Keep the last rows of rows of this length."""
        super().__init__()
        self.num_rows, self.length = num_rows, length
        self.layers: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let a function do what it does, and look at attention."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            with torch.autocast(result.device.type, enabled=False):  # float32, in whatever format the model computes
                self._keep(_fused_weights(*args, num_rows=self.num_rows, **kwargs))
        elif func in SOFTMAX and self._is_attention(result):
            self._keep(result)
        return result

    def _is_attention(self, weights: Tensor) -> bool:
        """Tell scores [1, H, S, S], with a sink [1, H, S, S + 1], from other softmaxes (those of a router, say)."""
        return (
            weights.ndim == 4 and weights.shape[2] == self.length and self.length <= weights.shape[3] <= self.length + 1
        )

    def _keep(self, weights: Tensor) -> None:
        rows = weights[0, :, -self.num_rows :, : self.length]
        self.layers.append(rows.float().mean(0))


def _fused_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    num_rows: int,
) -> Tensor:
    """Make the weights of the last rows as PyTorch's `scaled_dot_product_attention` does: [B, H, num_rows, S]."""
    num_queries, num_keys = query.shape[-2], key.shape[-2]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query[..., -num_rows:, :].float() @ key.float().transpose(-1, -2) * scale
    if is_causal:
        attn_mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        mask = attn_mask.expand(*attn_mask.shape[:-2], num_queries, num_keys)[..., -num_rows:, :]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
