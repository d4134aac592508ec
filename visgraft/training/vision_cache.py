"""Run the frozen encoder once per image and run: fill the cache on disk before the first step.

In: a prepared model, the planners of a run and its recipe. Out: a full `FeatureCache`, or None with the reason said.

    cache = fill_vision_cache(recipe, model, planners, accelerator=accelerator, progress=progress)

The folder is named after all that features depend on: the encoder's weights and config, how it is read, the image
processor's settings, the number format, the kind of device and the versions. Runs that share these share the features.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
import transformers
from accelerate import Accelerator, PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visgraft.config import Recipe
from visgraft.data.images.feature_cache import FeatureCache, image_version, picture_version
from visgraft.data.images.opening import open_image
from visgraft.data.images.tiles import most_pictures
from visgraft.data.sample import ImageRef, Sample
from visgraft.disk_cache import cache_folder
from visgraft.errors import BadSampleError, ConfigError
from visgraft.model.storage.checksums import read_checksums
from visgraft.model.vision_inputs import dummy_inputs
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.reporting.progress import Display
from visgraft.training.plan import Planner

BATCH = 32  # pictures that are encoded at once: images, or the tiles that they were cut into
GB = 10**9


def fill_vision_cache(
    recipe: Recipe,
    model: VisionLanguageModel,
    planners: Sequence[Planner],
    *,
    accelerator: Accelerator,
    progress: Display,
) -> FeatureCache | None:
    """Encode every image of a run that is not yet in the cache; where it cannot be used, do nothing.

    Args:
        recipe: says how much the cache may hold.
        model: on its device, cast and set to train as the run will.
        planners: of the training data and, if there are any, of the validation data.
        accelerator: its autocast, and which of the processes of this machine this is.
        progress: shows what is estimated, how far it is, and why the cache is off.

    Returns:
        The cache; None = encode in every step.

    Raises:
        ConfigError: the features would be larger than `train.cache_vision_max_gb`, or than the disk.
    """
    reason = why_off(recipe, model)
    if not all(planner.has_known_length for planner in planners):
        reason = "the data are streams, whose images cannot be listed first"
    if reason is not None:
        progress.say(f"train.cache_vision is OFF: {reason}; the encoder runs in every step")
        return None
    processor = planners[0].processor
    example = _encode(model, dummy_inputs(model.vision.config, image_size=model.config.image_size, device="cpu"),
                      accelerator=accelerator)  # fmt: skip
    folder = cache_folder() / "vision" / cache_name(recipe, model, processor, example=example)
    shape = (example.shape[1], example.shape[2])
    cache = FeatureCache(folder, shape=shape, dtype=example.dtype, tiles=processor.tile_settings)
    missing = find_missing(cache, planners, progress=progress, is_shown=accelerator.is_main_process)
    if accelerator.is_main_process:
        progress.say(check_size(recipe, cache, num_missing=len(missing)))
    accelerator.wait_for_everyone()
    state = PartialState()
    mine = list(missing.items())[state.local_process_index :: _processes_here(accelerator)]
    _fill(recipe, model, processor, cache, mine, accelerator=accelerator, progress=progress)
    accelerator.wait_for_everyone()
    cache.refresh()
    return cache


def why_off(recipe: Recipe, model: VisionLanguageModel) -> str | None:
    """Say what makes the features of an image change from step to step, or of different size; None: nothing."""
    if any(parameter.requires_grad for parameter in model.vision.parameters()):
        return f"the encoder trains (train.vision: {recipe.train.vision})"
    if recipe.data.augment.is_on:
        return "data.augment changes the images"
    if model.projection.extent_per_token:
        return f"{type(model.vision).__name__} takes images in their own resolution"
    return None


def cache_name(recipe: Recipe, model: VisionLanguageModel, processor: Processor, *, example: Tensor) -> str:
    """Name the folder after all that the features of an image depend on."""
    checksums = read_checksums(dict(model.vision.state_dict(keep_vars=True)))
    facts = {
        "weights": {name: checksum.sums[checksum.dtype] for name, checksum in sorted(checksums.items())},
        "encoder": model.vision.config.to_dict(),
        "attention": model.vision.config._attn_implementation,
        "reading": str(model.config.vision_settings),
        "pixels": processor.image_processor.to_dict(),
        "exact_pixels": recipe.data.exact_pixels,
        "max_pixels": recipe.data.max_pixels,
        "format": str(example.dtype),
        "shape": list(example.shape[1:]),
        "device": example.device.type,
        **({} if processor.tiles is None else {"tiles": processor.tiles}),
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def find_missing(
    cache: FeatureCache, planners: Sequence[Planner], *, progress: Display, is_shown: bool = True
) -> dict[bytes, ImageRef]:
    """List the images of a run whose features are not there or damaged, each once."""
    missing: dict[bytes, ImageRef] = {}
    whole: set[bytes] = set()
    num_damaged = 0
    with progress.work("vision cache: looking for features", total=None, unit="images", is_shown=is_shown) as advance:
        for image in _images(planners):
            advance(1)
            version = _version(image)
            if version is None or version in whole or version in missing:
                continue
            if cache.find_pictures(version) is not None:
                whole.add(version)
            else:
                missing[version] = image
                num_damaged += cache.has_pictures(version)
    if num_damaged:
        progress.say(f"vision cache: {num_damaged:,} features in {cache.folder} are damaged and are computed again")
    return missing


def check_size(recipe: Recipe, cache: FeatureCache, *, num_missing: int) -> str:
    """Say how large the cache becomes.

    Raises:
        ConfigError: larger than allowed, or than the disk.
    """
    pictures = most_pictures(cache.tiles)
    new, there = num_missing * pictures * cache.record_bytes, cache.size_bytes
    place = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
    free, limit = shutil.disk_usage(place).free, recipe.train.cache_vision_max_gb * GB
    tokens, width = cache.shape
    each = f"at most {pictures} pictures x " if pictures > 1 else ""
    text = (
        f"{num_missing:,} images x {each}{tokens} x {width} numbers in {str(cache.dtype).removeprefix('torch.')} = "
        f"{new / GB:.2f} GB beside {there / GB:.2f} GB that are there"
    )
    if new + there > limit:
        raise ConfigError(
            f"train.cache_vision: {text}, which is above train.cache_vision_max_gb ({limit / GB:g}); raise it, remove "
            f"train.cache_vision, or remove what other runs left in {cache.folder}"
        )
    if new > free:
        raise ConfigError(
            f"train.cache_vision: {text}, but {place} has {free / GB:.2f} GB free; set VISGRAFT_CACHE to a larger "
            "disk, or remove train.cache_vision"
        )
    return f"vision cache: {text}, in {cache.folder}"


def _fill(
    recipe: Recipe,
    model: VisionLanguageModel,
    processor: Processor,
    cache: FeatureCache,
    missing: list[tuple[bytes, ImageRef]],
    *,
    accelerator: Accelerator,
    progress: Display,
) -> None:
    """Encode images and write their features; bad ones are left out, and the step that meets them says so."""
    if not missing:
        return
    loader = DataLoader(
        _Pixels(missing, processor, recipe),
        batch_size=BATCH,
        collate_fn=list,
        num_workers=recipe.train.num_workers,
        generator=torch.Generator(),
    )
    is_main = accelerator.is_main_process
    with (
        cache.writer() as add,
        progress.work("vision cache: encoding", total=len(missing), unit="images", is_shown=is_main) as advance,
    ):
        for loaded in loader:
            made = [(versions, pixels) for versions, pixels in loaded if pixels is not None]
            if made:
                inputs = {name: torch.cat([pixels[name] for _, pixels in made]) for name in made[0][1]}
                names = list(chain.from_iterable(names for names, _ in made))
                for start in range(0, len(names), BATCH):
                    some = {name: value[start : start + BATCH] for name, value in inputs.items()}
                    features = _encode(model, some, accelerator=accelerator).cpu()
                    for version, own in zip(names[start : start + BATCH], features, strict=True):
                        add(version, own)
            advance(len(loaded))


class _Pixels(Dataset[tuple[list[bytes], dict[str, Tensor] | None]]):
    """The pixels of images, decoded in worker processes, with a name for each picture; None for a bad image."""

    def __init__(self, missing: list[tuple[bytes, ImageRef]], processor: Processor, recipe: Recipe) -> None:
        self.missing = missing
        self.processor = processor
        self.settings = recipe.data

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, index: int) -> tuple[list[bytes], dict[str, Tensor] | None]:
        version, image = self.missing[index]
        try:
            opened = open_image(image, max_pixels=self.settings.max_pixels)
            pixels = self.processor.make_pixels([image], [opened], exact=self.settings.exact_pixels)
        except BadSampleError:
            return [version], None
        if self.processor.tile_settings is None:
            return [version], pixels
        cut = self.processor.cut(image, opened)
        return [picture_version(version, cut.grid, number) for number in range(len(cut.pictures))], pixels


@torch.no_grad()
def _encode(model: VisionLanguageModel, inputs: dict[str, Tensor], *, accelerator: Accelerator) -> Tensor:
    autocast: AbstractContextManager[Any] = accelerator.autocast()
    with autocast:
        return model.image_features({name: value.to(accelerator.device) for name, value in inputs.items()})


def _images(planners: Sequence[Planner]) -> Iterator[ImageRef]:
    for planner in planners:
        for index in range(len(planner.sources)):
            try:
                sample: Sample = planner.sources[index]
            except BadSampleError:
                continue  # the step that meets it says so
            yield from sample.images


def _version(image: ImageRef) -> bytes | None:
    try:
        return image_version(image)
    except BadSampleError:
        return None


def _processes_here(accelerator: Accelerator) -> int:
    """Count the processes on this machine: each machine has a cache of its own."""
    own = torch.tensor([PartialState().local_process_index], device=accelerator.device)
    return int(accelerator.gather(own).max()) + 1
