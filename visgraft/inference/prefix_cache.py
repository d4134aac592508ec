"""Images as a language model has read them: keys and values computed once, kept for any number of questions.

In: images. Out: a `Prefix` for each group of images, its keys and values from the cache where they are known. The key
is the pixels' own checksum, so it does not matter how an image came; a cache belongs to one model, and forgets
everything when a weight or the number format changes, so what comes out is always what computing again would give.

    cache = PrefixCache(max_bytes=2**30)
    texts = answer(model, processor, samples, prefix_cache=cache)       # and again, for other questions
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visgraft.data.images.opening import open_image
from visgraft.data.images.pixels import stack_frames
from visgraft.data.sample import ImageRef
from visgraft.errors import ConfigError
from visgraft.model.cache import KeptStates, rows_of
from visgraft.model.configuration import Begins
from visgraft.model.sequence import empty_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

DEFAULT_MAX_BYTES = 512 * 2**20  # 120 images of ViT-B/16 for SmolLM2-135M in bf16, 5 for Llama-2-7b


class PrefixCache:
    """Keys and values of the images that were asked about last, up to a number of bytes.

    Attributes:
        max_bytes: what is kept at most; 0 keeps nothing.
        size_bytes: what is kept.
        num_hits: images that were found.
        num_misses: images that had to be computed.
    """

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Make an empty one.

        Raises:
            ConfigError: a negative number of bytes.
        """
        if max_bytes < 0:
            raise ConfigError(f"max_bytes: got {max_bytes}, need 0 (keep nothing) or more")
        self.max_bytes = max_bytes
        self.size_bytes = self.num_hits = self.num_misses = 0
        self._kept: OrderedDict[str, KeptStates] = OrderedDict()
        self._model: weakref.ref[VisionLanguageModel] | None = None
        self._state: Hashable = None

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.size_bytes = 0

    def belong_to(self, model: VisionLanguageModel) -> None:
        """Forget what another model, or the same one before a weight or the number format changed, has computed."""
        state = _state_of(model)
        if self._model is None or self._model() is not model or self._state != state:
            self.clear()
        self._model, self._state = weakref.ref(model), state

    def get(self, key: str) -> KeptStates | None:
        """Look up what an image became, which then counts as used last."""
        found = self._kept.get(key)
        if found is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: str, states: KeptStates) -> None:
        """Keep what an image became; what was used longest ago goes, until it fits."""
        if states.size_bytes > self.max_bytes or key in self._kept:
            return
        self._kept[key] = states
        self.size_bytes += states.size_bytes
        while self.size_bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.size_bytes -= oldest.size_bytes


@dataclass
class Prefix:
    """What a group of images is to the language model.

    Attributes:
        num_tokens: image tokens, P.
        key: of the pixels.
        tokens: [P, width], until the language model has read them.
        states: its keys and values, once it has.
    """

    num_tokens: int
    key: str = ""
    tokens: Tensor | None = None
    states: KeptStates | None = None

    @property
    def is_read(self) -> bool:
        """Whether the language model has read it."""
        return self.states is not None


Pixels = Mapping[str, Tensor]  # of one group of images, each [F, ...]


def open_pixels(processor: Processor, images: Sequence[ImageRef]) -> Pixels:
    """Open a group of images and make its pixels, as training does.

    Raises:
        BadSampleError: an image cannot be used.
    """
    return processor.make_pixels(images, [open_image(image) for image in images])


def encode_prefixes(
    model: VisionLanguageModel,
    groups: Sequence[Pixels],
    *,
    cache: PrefixCache,
    batch_size: int,
    owners: Sequence[str] = (),
    begins: Sequence[Begins] = (),
) -> list[Prefix]:
    """Make the prefix of each group, one for all groups that are equal: from the cache, or its image tokens.

    Args:
        model: in `eval_mode`.
        groups: pixels of each group.
        cache: what is known.
        batch_size: groups that are encoded at once.
        owners: one for each group: what one of them has computed is not known to another. Default: all are one.
        begins: what each group stands behind, as `image_prefix` takes it. Default: nothing.
    """
    none, prefixes, waiting = Prefix(0), [], []
    by_key: dict[str, Prefix] = {}
    places = begins or ["first"] * len(groups)
    for pixels, owner, place in zip(groups, owners or [""] * len(groups), places, strict=True):
        behind = "" if place == "first" or not model.image_sees_before else place
        key = f"{owner}{behind}{_key(pixels)}" if pixels else ""
        prefix = by_key.get(key) if pixels else none
        if prefix is None:
            states = cache.get(key)
            prefix = by_key[key] = Prefix(states.num_positions if states else 0, key=key, states=states)
            if states is None:
                waiting.append((prefix, pixels, place))
        prefixes.append(prefix)
    by_place = [[entry for entry in waiting if entry[2] == place] for place in dict.fromkeys(e[2] for e in waiting)]
    batches = [same[at : at + batch_size] for same in by_place for at in range(0, len(same), batch_size)]
    for batch in batches:
        stacked = stack_frames([dict(pixels) for _, pixels, _ in batch])
        inputs = {name: tensor.to(model.device) for name, tensor in stacked.items()}
        tokens, is_real = model.image_prefix(**inputs, begins=batch[0][2])
        for row, (prefix, _, _) in enumerate(batch):
            prefix.tokens = tokens[row][is_real[row]]
            prefix.num_tokens = prefix.tokens.shape[0]
    return prefixes


def read_prefixes(model: VisionLanguageModel, prefixes: Sequence[Prefix], *, cache: PrefixCache) -> None:
    """Let the language model read, in one go, the prefixes that it has not read."""
    unread = list({id(prefix): prefix for prefix in prefixes if prefix.tokens is not None}.values())
    if not unread:
        return
    counts = torch.tensor([prefix.num_tokens for prefix in unread], device=model.device)
    length = int(counts.max())
    tokens = torch.nn.utils.rnn.pad_sequence([p.tokens for p in unread if p.tokens is not None], batch_first=True)
    mask = torch.arange(length, device=model.device) < counts[:, None]
    read = model.make_reading_cache(capacity=length)
    model.read_image(tokens, image_token_mask=mask, context=empty_table(len(unread), device=model.device), cache=read)
    for prefix, states in zip(unread, rows_of(read, counts.tolist()), strict=True):
        prefix.states, prefix.tokens = states, None
        cache.put(prefix.key, states)


def _key(pixels: Pixels) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(pixels.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state_of(model: VisionLanguageModel) -> Hashable:
    """Say in what state a model is: a weight that is written or replaced, or another number format, gives another."""
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    weights = tuple(
        (tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version) for tensor in tensors
    )
    kind = model.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return hash((weights, autocast, model.config.image_attention))
