"""What stands in front of the model: an encoder's image processor, a language model's tokenizer, a prompt template.

In: samples (images and dialogs), or images and prompts. Out: batches to train on, or the inputs of `generate`. Training
and serving come through the same lines: a training prompt cut before its answer is the serving prompt.

    processor = Processor.from_parts("openai/clip-vit-base-patch16", "facebook/opt-350m")
    batch = processor.collate([Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "A cat.")]])])
    ids = model.generate(**processor(images="cat.jpg", text="What is it?"), max_new_tokens=20)

Axis letters: B samples, F images of one sample, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    BaseImageProcessor,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from visgraft.config import TileSettings
from visgraft.data.batch import Batch, EncodedSample, Layout, RowPlan, collate
from visgraft.data.images.opening import DEFAULT_MAX_PIXELS, open_image
from visgraft.data.images.pixels import (
    check_shapes,
    finish_pixels,
    for_tiles,
    made_image_size,
    make_pixels,
    with_image_size,
)
from visgraft.data.images.tiles import CutImage, cut_image, most_tokens
from visgraft.data.images.video import is_frame, join_frames
from visgraft.data.prompt import EncodedDialog, PromptTemplate, encode_dialog, text_before_images
from visgraft.data.sample import ImageRef, Sample
from visgraft.data.tokenizer_and_image_processor import load_image_processor, load_tokenizer
from visgraft.errors import BadSampleError, CheckpointError, ConfigError
from visgraft.model.configuration import VisionLanguageConfig, image_tokens_per_image
from visgraft.model.storage.pretrained import known_positions, load_config
from visgraft.model.vision import measure
from visgraft.model.vision_inputs import count_tokens
from visgraft.serving_inputs import ServingInputs

_SETTINGS = (
    "num_image_tokens", "image_size", "template", "max_text_tokens", "max_positions", "images_take_positions",
    "extent_per_token", "tiles",
)  # fmt: skip


class Processor(ServingInputs):
    """Turn samples into batches, and prompts with images into the inputs of `generate`.

    Attributes:
        image_processor: the encoder's own.
        tokenizer: the language model's own, padding on the left.
        num_image_tokens: image tokens that one image becomes behind the projection; with tiles, one picture.
        extent_per_token: how many patches or pixels become one token, where encoders take images in their own size.
        tiles: settings of the tiles that images are cut into, as a recipe writes them; None = images stay whole.
        image_size: side of the pixels; None where the encoder takes images in their own resolution.
        template: name or text of the prompt template, as a recipe writes it.
        prompt_template: that template.
        max_text_tokens: longest text of one dialog; what is longer is cut. None = no limit.
        max_positions: of the language model, for images and one dialog together; a dialog that needs more is bad. None:
            not known.
        images_take_positions: False where the text counts its positions alone (GIT-LLM's OPT).
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_image_tokens: int,
        image_size: int | None = None,
        template: str = "question",
        max_text_tokens: int | None = None,
        max_positions: int | None = None,
        images_take_positions: bool = True,
        extent_per_token: int = 0,
        tiles: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=tokenizer.chat_template)
        self.num_image_tokens = num_image_tokens
        self.image_size = image_size
        self.template = template
        self.max_text_tokens = max_text_tokens
        self.max_positions = max_positions
        self.images_take_positions = images_take_positions
        self.extent_per_token = extent_per_token
        self.tiles = None if tiles is None else dict(tiles)
        self.tile_settings = None if tiles is None else TileSettings(**tiles)
        self.picture_processor = image_processor  # of what is shown to the encoder: whole images, or tiles
        if tiles is not None:
            if image_size is None:
                raise ConfigError("model.tiles: this encoder takes images in their own resolution: leave tiles out")
            self.picture_processor = for_tiles(image_processor, side=image_size)
        self.prompt_template = PromptTemplate(template)
        tokenizer.padding_side = "left"  # not saved with every tokenizer, so set it wherever one is taken in
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # pads are masked by place, so any id will do

    @classmethod
    def from_parts(
        cls,
        vision: str | Path | PreTrainedModel | BaseImageProcessor,
        language: str | Path | PreTrainedModel | PreTrainedTokenizerBase,
        *,
        image_size: int | None = None,
        template: str = "question",
        max_text_tokens: int | None = None,
        max_positions: int | None = None,
        num_image_tokens: int | None = None,
        feature_layer: int = -1,
        keep_class_token: bool = True,
        projection: Mapping[str, Any] | None = None,
        tiles: Mapping[str, Any] | None = None,
        vision_revision: str | None = None,
        language_revision: str | None = None,
    ) -> Processor:
        """Join the image processor of an encoder and the tokenizer of a language model.

        Args:
            vision: Hub name, folder or loaded encoder; or its image processor (then `num_image_tokens` is needed).
            language: Hub name, folder or loaded language model; or its tokenizer.
            image_size: side of the pixels; None = as the image processor makes them.
            template: plain, question, chat, or a text with {prompt}.
            max_text_tokens: longest text of one dialog, prompt and answer; the rest is cut off.
            max_positions: of the language model; None = as its config says, where that is there.
            num_image_tokens: image tokens of one image; None = found from the encoder's config and the next three,
                which are those of `VisionLanguageModel.from_parts`.
            feature_layer: which hidden state of the encoder is read.
            keep_class_token: whether the encoder's class token becomes an image token.
            projection: its settings; pooling and pixel shuffle make fewer image tokens.
            tiles: {"max": 6, "thumbnail": True, "separator": "learned"}: images are cut; None = they stay whole.
            vision_revision: branch, tag or commit of the encoder on the Hub.
            language_revision: the same of the language model.

        Raises:
            CheckpointError: an image processor, a config or a tokenizer is missing.
            ConfigError: the image size is impossible, or the number of image tokens unknown.
        """
        image_processor, config = _load_vision(vision, revision=vision_revision)
        if image_size is not None:
            image_processor = with_image_size(image_processor, image_size=image_size)
        image_size = made_image_size(image_processor)
        reading: dict[str, Any] = {"feature_layer": feature_layer, "keep_class_token": keep_class_token}
        join = VisionLanguageConfig(image_size=image_size, projection=dict(projection or {}), **reading)
        if num_image_tokens is None:
            num_image_tokens = image_tokens_per_image(config, join=join)
        return cls(
            image_processor,
            load_tokenizer(language, revision=language_revision),
            max_positions=max_positions or known_positions(language, revision=language_revision)[0],
            num_image_tokens=num_image_tokens,
            image_size=image_size,
            template=template,
            max_text_tokens=max_text_tokens,
            extent_per_token=measure(config, settings=join.vision_settings).extent_per_token
            if config and image_size is None
            else 0,
            tiles=tiles,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> Processor:  # type: ignore[override]
        """Load a processor from where `save_pretrained` put it.

        Args:
            pretrained_model_name_or_path: folder or Hub name.
            **hub: where to look on the Hub (`revision`, `cache_dir`, `token`, ...).

        Raises:
            CheckpointError: there is no processor of this kind, or a file of it is missing.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: value for key, value in hub.items() if value is not None and key != "_from_auto"}
        settings, _ = cls.get_processor_dict(name, **hub)
        if "num_image_tokens" not in settings:
            raise CheckpointError(
                f"{name} holds no visgraft processor (its processor_config.json is missing or of another kind); "
                "make one with Processor.from_parts and save it there"
            )
        if "max_positions" not in settings:  # it was saved before that was known
            known = known_positions(name, revision=hub.get("revision"))
            settings = {**settings, **dict(zip(("max_positions", "images_take_positions"), known, strict=True))}
        return cls(
            load_image_processor(name, **hub),
            load_tokenizer(name, **hub),
            **{key: settings[key] for key in _SETTINGS if key in settings},
        )

    @property
    def most_image_tokens(self) -> int:
        """Image tokens that one image becomes at most, where its size does not tell."""
        most_before = max(map(len, (self.text_before_images or {"": []}).values()))
        return most_tokens(self.tile_settings, of_picture=self.num_image_tokens) + most_before

    @cached_property
    def text_before_images(self) -> dict[str, list[int]] | None:
        """What stands in front of images, where the template holds {image}; the model's config says the same."""
        return text_before_images(self.tokenizer, self.prompt_template)

    def _before(self, index: int) -> int:
        """Count the tokens of text in front of one of a sample's images."""
        texts = self.text_before_images
        return 0 if texts is None else len(texts["first" if index == 0 else "next"])

    def make_pixels(
        self, refs: Sequence[ImageRef], opened: Sequence[Image.Image], *, exact: bool = True, as_bytes: bool = False
    ) -> dict[str, Tensor]:
        """Make what the encoder takes of images, as `data.images.pixels.make_pixels` does.

        Args:
            refs: F images, as a sample names them; frames of a video are not cut into tiles, and lie together in the
                patches of a tower that sees several at once.
            opened: the same, RGB. exact, as_bytes: see there.

        Returns:
            Tensors [pictures, ...], of an image one picture or several tiles; `ends_row` [pictures] bool says behind
            which of them a row separator stands.

        Raises:
            BadSampleError: an image is too narrow.
        """
        if self.tile_settings is None or self.image_size is None:
            pixels = make_pixels(self.image_processor, opened, exact=exact, as_bytes=as_bytes)
            depth = getattr(self.image_processor, "temporal_patch_size", 1)
            return join_frames(pixels, [is_frame(ref) for ref in refs], depth=depth)
        check_shapes(opened)
        cuts = [self.cut(ref, image) for ref, image in zip(refs, opened, strict=True)]
        pictures = [picture for cut in cuts for picture in cut.pictures]
        made = make_pixels(self.picture_processor, pictures, exact=exact, as_bytes=as_bytes)
        if made and self.tile_settings.separator == "learned":
            made["ends_row"] = torch.tensor([ends for cut in cuts for ends in cut.ends_row])
        return made

    def cut(self, ref: ImageRef, opened: Image.Image) -> CutImage:
        """Cut an image into tiles, where tiles are on."""
        assert self.tile_settings is not None and self.image_size is not None, "tiles are on"
        return cut_image(opened, side=self.image_size, settings=self.tile_settings, is_whole=is_frame(ref))

    def count_image_tokens(self, vision_inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Count the image tokens of each picture of a sample, before the model runs."""
        if not vision_inputs:
            return ()
        counts = count_tokens(vision_inputs, self.num_image_tokens, extent_per_token=self.extent_per_token)
        counts = counts + vision_inputs.get("ends_row", 0)
        return tuple(count + self._before(index) for index, count in enumerate(counts.tolist()))

    # --- Training

    def encode_text(self, sample: Sample, *, bad: list[str] | None = None) -> tuple[EncodedDialog, ...]:
        """Encode the dialogs of a sample; no image is touched.

        Args:
            sample: with one dialog or several.
            bad: a list to fill: why dialogs cannot be used, which are then left out.

        Raises:
            BadSampleError: no dialog can be used, or one cannot and there is no `bad`: its answer is empty, its prompt
                leaves no room for the answer, or the language model has not as many positions.
        """
        if not sample.dialogs:
            raise BadSampleError("no dialog")
        outcomes = self.encode_each(sample)
        reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if reasons and (bad is None or len(reasons) == len(outcomes)):
            raise BadSampleError(reasons[0])
        if bad is not None:
            bad += reasons
        return tuple(outcome for outcome in outcomes if not isinstance(outcome, str))

    def encode_each(self, sample: Sample) -> tuple[EncodedDialog | str, ...]:
        """Encode each dialog of a sample by itself: its ids, or in words why it cannot be used."""
        num_image_tokens = len(sample.images) * self.num_image_tokens if self.image_size is not None else 0
        num_image_tokens += sum(map(self._before, range(len(sample.images))))
        image_turns = (0,) if sample.images else ()
        outcomes: list[EncodedDialog | str] = []
        for dialog in sample.dialogs:
            try:
                limits: dict[str, Any] = {"max_text_tokens": self.max_text_tokens, "image_turns": image_turns}
                encoded = encode_dialog(self.tokenizer, self.prompt_template, dialog, **limits)
                self._check_positions(encoded, num_image_tokens=num_image_tokens)
            except BadSampleError as error:
                outcomes.append(str(error))
            else:
                outcomes.append(encoded)
        return tuple(outcomes)

    def _check_positions(self, dialog: EncodedDialog, *, num_image_tokens: int) -> None:
        """Raise BadSampleError where a dialog behind its images is longer than the language model's positions."""
        length = len(dialog.input_ids) + (num_image_tokens if self.images_take_positions else 0)
        if self.max_positions is not None and length > self.max_positions:
            raise BadSampleError(f"too long for the language model: {length} positions, {self.max_positions} allowed")

    def encode(
        self,
        sample: Sample,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        exact_pixels: bool = True,
        as_bytes: bool = False,
        bad: list[str] | None = None,
    ) -> EncodedSample:
        """Encode a sample, its dialogs as token ids and its images as pixels.

        Args:
            sample: images not yet opened.
            max_pixels: larger images are refused. exact_pixels: False is quicker and changes some bytes by 1 of 255.
            as_bytes: pixels stay bytes where that can be, until `finish`.
            bad: a list to fill: why dialogs cannot be used, which are then left out.

        Raises:
            BadSampleError: an image cannot be used, or a dialog, as `encode_text` says.
        """
        dialogs = self.encode_text(sample, bad=bad)
        return self.encode_images(sample, dialogs, max_pixels=max_pixels, exact_pixels=exact_pixels, as_bytes=as_bytes)

    def encode_images(
        self,
        sample: Sample,
        dialogs: tuple[EncodedDialog, ...],
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        exact_pixels: bool = True,
        as_bytes: bool = False,
    ) -> EncodedSample:
        """Encode a sample whose dialogs are encoded already; see `encode`.

        Raises:
            BadSampleError: an image cannot be used.
        """
        opened = [open_image(ref, max_pixels=max_pixels) for ref in sample.images]
        vision_inputs = self.make_pixels(sample.images, opened, exact=exact_pixels, as_bytes=as_bytes)
        counts = self.count_image_tokens(vision_inputs)
        for dialog in dialogs:  # only now each image's own number is known
            self._check_positions(dialog, num_image_tokens=sum(counts))
        return EncodedSample(dialogs, vision_inputs, counts, id=sample.id, source=sample.source)

    def collate(
        self, samples: Sequence[Sample | EncodedSample], *, layout: Layout = "shared", rows: RowPlan | None = None
    ) -> Batch:
        """Make one batch of at least one sample, encoding those that are not yet encoded.

        Args:
            samples, layout, rows: see `data.batch.collate`; `data.packing.fill_rows` plans which samples share a row.

        Raises:
            DataError: a sample cannot be used (BadSampleError), or the samples do not fit into one batch.
        """
        encoded = [self.encode(sample) if isinstance(sample, Sample) else sample for sample in samples]
        if len({"pixel_bytes" in s.vision_inputs for s in encoded if s.vision_inputs}) > 1:
            encoded = [
                replace(s, vision_inputs=finish_pixels(self.picture_processor, s.vision_inputs)) for s in encoded
            ]
        return collate(encoded, layout=layout, pad_token_id=self._pad_token_id, rows=rows)

    def finish(self, batch: Batch) -> Batch:
        """Make a batch's pixels of its bytes, on the device where it is; without bytes it stays as it is."""
        return Batch({**batch, "vision_inputs": finish_pixels(self.picture_processor, batch.vision_inputs)})


def _load_vision(
    vision: str | Path | PreTrainedModel | BaseImageProcessor, *, revision: str | None
) -> tuple[BaseImageProcessor, PreTrainedConfig | None]:
    if isinstance(vision, ImageProcessingMixin):
        return vision, None
    config = vision.config if isinstance(vision, PreTrainedModel) else load_config(vision, revision=revision)
    return load_image_processor(vision, revision=revision), config


AutoProcessor.register(VisionLanguageConfig, Processor, exist_ok=True)
