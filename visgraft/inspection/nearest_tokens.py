"""The vocabulary's tokens nearest to each image token: the "visual words".

In: image tokens and a language model. Out: for each the nearest tokens by dot product and by cosine, and norms.

    found = find_nearest(model, image_tokens, token_ids, number=5)
    found.by_cosine.ids[0]           # [5] of the first image token

An image token stands where a text token would, so words are looked for among what text tokens are there: the language
model's *input* embeddings as they enter it, scaled where the family scales them (`PrefixInjection.vocabulary`). The
head's rows are another space wherever head and embeddings are not tied. A position or a norm that the language model
adds later, it adds to both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgraft.model.parts import input_embedding
from visgraft.model.vlm import VisionLanguageModel

CHUNK = 8_192  # tokens of the vocabulary compared at once
NUM_REFERENCES = 256  # text tokens and random directions that say how near is near


@dataclass(frozen=True)
class Neighbours:
    """The nearest tokens of each of P vectors by one measure, nearest first: [P, k] each."""

    ids: Tensor
    dot: Tensor
    cosine: Tensor

    def frequency(self) -> list[tuple[int, int]]:
        """Count how many vectors each token is the nearest of: (id, count), most frequent first."""
        return sorted(Counter(self.ids[:, 0].tolist()).items(), key=lambda entry: (-entry[1], entry[0]))


@dataclass(frozen=True)
class Nearest:
    """What is near the image tokens.

    Attributes:
        by_dot: nearest by dot product, which favours long vectors.
        by_cosine: nearest by direction.
        image_norms: [P], lengths of the image tokens.
        text_norms: [n], lengths of the vocabulary's tokens.
        text_cosine: median cosine of a text token to the nearest other one.
        random_cosine: the same of random directions: what chance alone finds in a vocabulary of this size.
    """

    by_dot: Neighbours
    by_cosine: Neighbours
    image_norms: Tensor
    text_norms: Tensor
    text_cosine: float
    random_cosine: float


@torch.no_grad()
def find_nearest(model: VisionLanguageModel, image_tokens: Tensor, token_ids: Sequence[int], *, number: int) -> Nearest:
    """Compare image tokens with a vocabulary.

    Args:
        model: whose language model has the vocabulary.
        image_tokens: [P, width], as they enter the language model.
        token_ids: ids of the tokens to look among; those beyond the embeddings are left out.
        number: neighbours to find of each image token.
    """
    with torch.autocast(image_tokens.device.type, enabled=False):  # float32, in whatever format the model computes
        return _find_nearest(model, image_tokens.float(), token_ids, number=number)


def _find_nearest(model: VisionLanguageModel, tokens: Tensor, token_ids: Sequence[int], *, number: int) -> Nearest:
    num_rows = input_embedding(model).shape[0]
    ids = torch.tensor([token for token in token_ids if token < num_rows], device=tokens.device)
    picked = torch.linspace(0, len(ids) - 1, min(NUM_REFERENCES, len(ids)), device=ids.device).long()
    texts = model.prefix_injection.embed_tokens(model.language, ids[picked]).float()
    generator = torch.Generator().manual_seed(0)
    chance = torch.randn(NUM_REFERENCES, tokens.shape[1], generator=generator).to(tokens)
    rows = torch.cat([tokens, texts, chance])
    lengths = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    dots, norms = torch.empty(len(rows), len(ids), device=rows.device), torch.empty(len(ids), device=rows.device)
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        words = model.prefix_injection.embed_tokens(model.language, ids[part]).float()
        norms[part] = words.norm(dim=1)
        dots[:, part] = rows @ words.T
    cosines = dots / (lengths * norms.clamp(min=1e-12))  # a pad's row of zeros is near nothing
    num_image, num_known = len(tokens), len(tokens) + len(texts)
    cosines[torch.arange(num_image, num_known), picked] = -1.0  # not to itself
    best = cosines.max(dim=1).values

    def nearest_by(score: Tensor) -> Neighbours:
        columns = score[:num_image].topk(min(number, len(ids)), dim=1).indices
        return Neighbours(ids[columns].cpu(), dots.gather(1, columns).cpu(), cosines.gather(1, columns).cpu())

    return Nearest(
        by_dot=nearest_by(dots),
        by_cosine=nearest_by(cosines),
        image_norms=lengths[:num_image, 0].cpu(),
        text_norms=norms.cpu(),
        text_cosine=float(best[num_image:num_known].median()),
        random_cosine=float(best[num_known:].median()),
    )
