"""The mask of a segment table in blocks, for FlexAttention: no S x S tensor is made where a GPU computes.

In: a `SegmentTable`. Out: a `BlockMask`, which an LM with the kernel flex_attention takes as its `attention_mask`.

    mask = block_mask(table, window=4096)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from visgraft.model.sequence import SegmentTable, may_attend


def block_mask(
    table: SegmentTable, *, causal_image: bool = False, window: int | None = None, chunk: int | None = None
) -> BlockMask:
    """Make FlexAttention's mask of `may_attend`: which blocks of 128 x 128 positions are seen in whole or in part.

    On a GPU it is made by a compiled kernel, so that no S x S tensor ever is. The arguments are those of `may_attend`.
    """

    def mask_mod(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        places = table.at(row, query), table.at(row, key)
        return may_attend(*places, sees=table.sees, causal_image=causal_image, window=window, chunk=chunk)

    num_rows, length = table.kind.shape
    device = table.kind.device
    return create_block_mask(mask_mod, num_rows, None, length, length, device, _compile=device.type == "cuda")
