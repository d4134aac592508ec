"""Nearest words: the space is the one in which text tokens enter, and the numbers are those of plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import V, assert_close, bare_language, joined, random_ids
from visgraft.inspection.nearest_tokens import find_nearest
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.vlm import VisionLanguageModel

SPACES = ["opt", "opt_post_norm", "llama", "gemma2", "gemma3", "granite", "gpt2", "bloom", "mpt", "gpt_neox", "cohere"]


def at_first_layer(name: str) -> VisionLanguageModel:
    vision, language = joined("llama").vision, bare_language(name)
    config = VisionLanguageConfig(vision.config, language.config, prefix_at="first_layer")
    return VisionLanguageModel(config, vision=vision, language=language).eval()


def entered(name: str, model: Any) -> np.ndarray:
    """Write down anew, for a few families, the vectors of all tokens where image tokens enter."""
    weight = model.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    if name == "gemma3":  # its embedding module multiplies by the root of its width
        weight = weight * math.sqrt(32)
    if name == "first_layer":
        weight = weight @ model.language.get_decoder().project_in.weight.detach().numpy().astype(np.float64).T
    return weight


@pytest.mark.parametrize("name", SPACES)
def test_an_image_token_that_is_a_word_acts_as_the_word(name: str) -> None:
    """The space is right if a prefix of one token's vector gives the logits of the text with that token."""
    model = joined(name)
    ids = random_ids(1, 5)
    prefix = model.prefix_injection.embed_tokens(model.language, ids[0, :1])[None]
    with torch.no_grad():
        as_image = model(input_ids=ids[:, 1:], image_embeds=prefix).logits
        as_text = model(input_ids=ids).logits
    assert_close(as_image, as_text)


@pytest.mark.parametrize("name", ["opt", "opt_post_norm", "first_layer", "llama", "gemma3", "granite", "gpt2"])
def test_numbers_are_those_of_plain_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visgraft.inspection.nearest_tokens.CHUNK", 7)
    model = at_first_layer("opt_post_norm") if name == "first_layer" else joined(name)
    image = torch.randn(4, model.prefix_injection.width, generator=torch.Generator().manual_seed(5))
    found = find_nearest(model, image, range(3, V), number=3)
    words = entered(name, model)
    for row, vector in enumerate(image.numpy().astype(np.float64)):
        dots = {token: float(vector @ words[token]) for token in range(3, V)}
        cosines = {token: dots[token] / (np.linalg.norm(vector) * np.linalg.norm(words[token])) for token in dots}
        best_dot = sorted(dots, key=lambda token: -dots[token])[:3]
        best_cosine = sorted(cosines, key=lambda token: -cosines[token])[:3]
        assert found.by_dot.ids[row].tolist() == best_dot
        assert found.by_cosine.ids[row].tolist() == best_cosine
        assert found.by_dot.dot[row].tolist() == pytest.approx([dots[token] for token in best_dot], abs=1e-5)
        assert found.by_dot.cosine[row].tolist() == pytest.approx([cosines[token] for token in best_dot], abs=1e-5)
        assert found.by_cosine.cosine[row].tolist() == pytest.approx([cosines[t] for t in best_cosine], abs=1e-5)
        assert float(found.image_norms[row]) == pytest.approx(float(np.linalg.norm(vector)), rel=1e-5)
    assert found.text_norms.tolist() == pytest.approx(np.linalg.norm(words[3:], axis=1).tolist(), rel=1e-5)
    unit = words[3:] / np.linalg.norm(words[3:], axis=1, keepdims=True)
    among = unit @ unit.T
    np.fill_diagonal(among, -1)
    best = np.sort(among.max(1))
    assert found.text_cosine == pytest.approx(best[(len(best) - 1) // 2], abs=1e-5)


def test_words_are_those_of_the_embeddings_where_the_head_is_not_tied() -> None:
    model = joined("llama")
    head = model.get_output_embeddings().weight
    assert not torch.equal(head, model.get_input_embeddings().weight)
    image = model.get_input_embeddings().weight[[17, 42]].detach()
    found = find_nearest(model, image, range(V), number=1)
    assert found.by_cosine.ids[:, 0].tolist() == [17, 42]
    assert found.by_cosine.cosine[:, 0].tolist() == pytest.approx([1.0, 1.0])
    assert (image @ head.T).argmax(1).tolist() != [17, 42]


def test_a_scaled_familys_own_word_is_found_at_its_own_length() -> None:
    model = joined("gemma3")
    image = model.prefix_injection.embed_tokens(model.language, torch.tensor([17])).detach()
    found = find_nearest(model, image, range(V), number=1)
    assert found.by_cosine.ids.tolist() == [[17]]
    assert float(found.image_norms[0]) == pytest.approx(float(found.text_norms[17]))
    assert float(found.image_norms[0]) == pytest.approx(
        float(model.get_input_embeddings().weight[17].detach().norm()) * math.sqrt(32), rel=1e-5
    )


def test_only_tokens_that_the_tokenizer_has_are_found_and_counted() -> None:
    model = joined("llama")
    image = model.get_input_embeddings().weight[[17, 17, 42, 80]].detach()
    found = find_nearest(model, image, [*range(60), 5_000], number=V)
    assert found.by_cosine.ids.shape == (4, 60)
    assert found.by_cosine.ids.max() < 60
    assert found.by_cosine.frequency()[0] == (17, 2)
    assert sum(count for _, count in found.by_dot.frequency()) == 4


def test_a_pads_row_of_zeros_is_near_nothing() -> None:
    language = bare_language("llama")
    with torch.no_grad():
        language.get_input_embeddings().weight[0] = 0
    model = VisionLanguageModel.from_parts(joined("llama").vision, language)
    found = find_nearest(model, torch.randn(3, 32), range(V), number=V)
    cosines: Tensor = found.by_cosine.cosine[found.by_cosine.ids == 0]
    assert cosines.tolist() == [0.0] * 3
