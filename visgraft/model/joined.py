"""What the joined model has, declared and no more: the class that storage, attention and generation are written for.

In: nothing. Out: `JoinedModel`, the abstract class under the `VisionLanguageModel` of vlm.py, whose mixins and helpers
know the model by it, so that none of them imports vlm.py.

    def set_attention(model: JoinedModel, kernel: str | None) -> None: ...
"""

from __future__ import annotations

import abc

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from visgraft.model.configuration import Begins, VisionLanguageConfig
from visgraft.model.language import AttentionSpec
from visgraft.model.prefix_injection import PrefixInjection
from visgraft.model.projection import Projection
from visgraft.model.storage.checksums import Checksum


class JoinedModel(PreTrainedModel, metaclass=abc.ABCMeta):
    """A vision encoder and a causal language model, joined by a projection.

    Attributes:
        config: both parts' configs, how they are joined, and where each part came from.
        vision: the encoder, unmodified.
        projection: patch features -> image tokens.
        language: the causal LM, unmodified.
        prefix_injection: where image tokens enter the LM, and which positions it is given.
        attention_spec: how the LM takes masks and positions.
        loaded_checksums: part -> checksums of its weights as they were loaded, by which a slim folder leaves them out;
            a part that has none is saved whole.
        generation_config: the LM's own.
    """

    config_class = VisionLanguageConfig
    config: VisionLanguageConfig
    vision: PreTrainedModel
    projection: Projection
    language: PreTrainedModel
    prefix_injection: PrefixInjection
    attention_spec: AttentionSpec
    loaded_checksums: dict[str, dict[str, Checksum]]
    generation_config: GenerationConfig

    @abc.abstractmethod
    def __init__(
        self,
        config: VisionLanguageConfig,
        vision: PreTrainedModel | None = None,
        language: PreTrainedModel | None = None,
    ) -> None:
        """Join two parts; without modules, random ones are made from their configs."""
        super().__init__(config)

    @abc.abstractmethod
    def image_prefix(
        self,
        pixel_values: Tensor,
        *,
        image_mask: Tensor | None = None,
        begins: Begins = "first",
        **vision_inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Make the prefix of each sample: image tokens [B, P, width] and [B, P] bool, True = real."""
