"""Define the operators of torchvision, whose compiled part does not load beside a PyTorch for the CPU.

In: nothing. Out: `import torchvision` works; what it compiles (nms, roi_align) is there in name only. Test-only.
Usage: `import tests.timm_encoders.torchvision_operators` before anything that imports torchvision
"""

from __future__ import annotations

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
OTHERS = (
    "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_pool",
    "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip

library = torch.library.Library("torchvision", "FRAGMENT")
for schema in (*SCHEMAS, *(f"{name}(Tensor input) -> Tensor" for name in OTHERS)):
    library.define(schema)
