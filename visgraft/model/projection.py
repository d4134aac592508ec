"""The projection: patch features in, image tokens of the language model's width out.

In: features [N, P, D_vision]. Out: image tokens [N, P', D_lm], P' = P unless pooling or pixel shuffle makes fewer.

    projection = Projection(shape, width=512, settings=ProjectionSettings())

GIT's own is one linear layer and a LayerNorm (Wang et al. 2022, arXiv:2205.14100, section 3.1; as in GIT-LLM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from visgraft.errors import ConfigError, ModelError
from visgraft.model.vision import VisionShape


@dataclass(frozen=True)
class ProjectionSettings:
    """What the projection is made of.

    Attributes:
        type: `linear` = linear + LayerNorm (GIT); `mlp` = linear, GELU, linear (LLaVA 1.5, arXiv:2310.03744); `plain` =
            linear alone (nanoVLM).
        pool: average squares of pool x pool patches into one image token.
        pixel_shuffle: concatenate squares of k x k patches into one, k * k times as wide (InternVL, arXiv:2404.16821).
        norm_eps: epsilon of the LayerNorm.

    Pooling and pixel shuffle drop the class and register tokens, which belong to no square.
    """

    type: Literal["linear", "mlp", "plain"] = "linear"
    pool: int = 1
    pixel_shuffle: int = 1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.type not in ("linear", "mlp", "plain"):
            raise ConfigError(f"model.projection.type: got {self.type!r}, allowed are linear, mlp, plain")
        for key in ("pool", "pixel_shuffle"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.projection.{key}: got {getattr(self, key)}, must be at least 1 (1 = none)")


def reduced_grid(shape: VisionShape, settings: ProjectionSettings) -> tuple[int, int]:
    """Give the (rows, columns) of image tokens after pooling or pixel shuffle.

    Raises:
        ConfigError: both are asked for, or the factor does not divide the grid.
    """
    if settings.pool > 1 and settings.pixel_shuffle > 1:
        raise ConfigError("model.projection: give pool or pixel_shuffle, not both")
    factor = settings.pool * settings.pixel_shuffle
    rows, columns = shape.grid
    if rows % factor or columns % factor:
        key = "pool" if settings.pool > 1 else "pixel_shuffle"
        allowed = [k for k in range(1, min(shape.grid) + 1) if rows % k == 0 and columns % k == 0]
        raise ConfigError(f"model.projection.{key}: got {factor}, a grid of {rows} x {columns} patches takes {allowed}")
    return rows // factor, columns // factor


def num_image_tokens(shape: VisionShape, settings: ProjectionSettings) -> int:
    """Count the image tokens of one image that leave the projection, P'."""
    rows, columns = reduced_grid(shape, settings)
    return shape.num_tokens if settings.pool * settings.pixel_shuffle == 1 else rows * columns


class Projection(nn.Module):
    """Make image tokens of patch features, with a learned embedding for each frame where a sample has several."""

    def __init__(
        self,
        shape: VisionShape,
        *,
        width: int,
        settings: ProjectionSettings,
        num_frames: int = 0,
        has_row_separator: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Build the layers.

        Args:
            shape: what the encoder makes of one image.
            width: D_lm, the width of the language model's input embeddings.
            settings: the kind of layers, and pooling.
            num_frames: frames with a learned temporal embedding; 0 = none.
            has_row_separator: whether a learned image token stands behind each row of tiles.
            scale: standard deviation of the language model's input embeddings, at which image tokens start.
        """
        super().__init__()
        self.settings = settings
        self.grid = shape.grid
        self.num_leading = shape.num_leading
        self.extent_per_token = shape.extent_per_token
        reduced_grid(shape, settings)  # raises on a factor that does not divide the grid
        self.num_tokens = num_image_tokens(shape, settings)
        width_in = shape.width * settings.pixel_shuffle**2
        self.temporal_embedding = nn.Parameter(torch.zeros(num_frames, shape.width)) if num_frames else None
        self.row_separator = nn.Parameter(torch.zeros(width)) if has_row_separator else None
        self.linear = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width) if settings.type == "mlp" else None
        self.norm = nn.LayerNorm(width, eps=settings.norm_eps) if settings.type == "linear" else None
        self.reset_parameters(scale)

    def reset_parameters(self, scale: float) -> None:
        """Start at random: weights N(0, 0.02), biases 0, image tokens at the standard deviation `scale`."""
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        if self.norm is not None:
            nn.init.constant_(self.norm.weight, scale)
            nn.init.zeros_(self.norm.bias)
        if self.linear_2 is not None:
            # The GELU's output has about the variance of half its input's: both layers keep the signal near `scale`.
            nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
            nn.init.normal_(self.linear_2.weight, std=scale * (2 / self.linear_2.in_features) ** 0.5)
            nn.init.zeros_(self.linear_2.bias)
        if self.settings.type == "plain":
            nn.init.normal_(self.linear.weight, std=scale * self.linear.in_features**-0.5)
        if self.temporal_embedding is not None:
            nn.init.zeros_(self.temporal_embedding)
        if self.row_separator is not None:
            nn.init.normal_(self.row_separator, std=scale)

    def forward(self, features: Tensor, *, frame_index: Tensor | None = None) -> Tensor:
        """Project.

        Args:
            features: [N, P, D_vision] float.
            frame_index: [N] long, the frame of its sample that each image is; -1 = the sample's only image, which
                takes no temporal embedding.

        Returns:
            Image tokens [N, P', D_lm]; with tiles [N, P' + 1, D_lm], the last of them a row separator, which is real
            only where a row of tiles ends.

        Raises:
            ModelError: a frame lies beyond the temporal embedding.
        """
        features = features.to(self.linear.weight.dtype)
        if self.temporal_embedding is not None and frame_index is not None:
            num_frames = self.temporal_embedding.shape[0]
            if frame_index.numel() and int(frame_index.max()) >= num_frames:
                raise ModelError(
                    f"a sample has {int(frame_index.max()) + 1} images, the model has temporal embeddings for "
                    f"{num_frames}: set model.num_frames higher, or give fewer images"
                )
            added = self.temporal_embedding[frame_index.clamp(min=0)] * (frame_index >= 0)[:, None]
            features = features + added[:, None]
        features = self._reduce(features)
        hidden = self.linear(features)
        if self.linear_2 is not None:
            hidden = self.linear_2(nn.functional.gelu(hidden))
        tokens = hidden if self.norm is None else self.norm(hidden.to(self.norm.weight.dtype))
        if self.row_separator is None:
            return tokens
        behind = self.row_separator.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([tokens, behind], dim=1)

    def _reduce(self, features: Tensor) -> Tensor:
        factor = self.settings.pool * self.settings.pixel_shuffle
        if factor == 1:
            return features
        patches = features[:, self.num_leading :]
        rows, columns = self.grid
        if patches.shape[1] != rows * columns:  # images of another size than the encoder's own
            rows = columns = math.isqrt(patches.shape[1])
        if rows * columns != patches.shape[1] or rows % factor or columns % factor:
            raise ModelError(
                f"{patches.shape[1]} patches are no grid that squares of {factor} x {factor} divide: "
                "set model.image_size to the size of the images, or another pool or pixel_shuffle"
            )
        squares = patches.unflatten(1, (rows // factor, factor, columns // factor, factor)).transpose(2, 3)
        if self.settings.pool > 1:
            return squares.mean(dim=(3, 4)).flatten(1, 2)
        return squares.flatten(3).flatten(1, 2)
