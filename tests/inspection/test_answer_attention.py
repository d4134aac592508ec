"""Recorded attention beside the model's own: eager kernels' output, the library's mask, shares that sum to one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import ALIBI, LANGUAGE_CONFIGS, WINDOW, bare_language, fresh, joined, random_ids, random_pixels
from visgraft.errors import UnsupportedModelError
from visgraft.inspection.answer_attention import answer_attention
from visgraft.model.language import read_attention_spec
from visgraft.model.sequence import image_then_text

PROMPT, ANSWER = random_ids(4).tolist(), random_ids(3, seed=1).tolist()
P = 5  # image tokens behind CLIP


def recorded(model: Any) -> Tensor:
    prefix, _ = model.image_prefix(random_pixels(1))
    return answer_attention(model, prefix[0], prompt_ids=PROMPT, answer_ids=ANSWER)


@pytest.mark.parametrize("name", [name for name in LANGUAGE_CONFIGS if name not in ALIBI])
def test_recorded_attention_is_what_the_eager_kernel_gives(name: str) -> None:
    model = joined(name)
    prefix, _ = model.image_prefix(random_pixels(1))
    language = bare_language(name, _attn_implementation="eager")
    ids = torch.tensor([[*PROMPT, *ANSWER[:-1]]])
    table = image_then_text(torch.ones(1, P, dtype=torch.bool), torch.ones_like(ids).bool())
    embeds = torch.cat([prefix, language.get_input_embeddings()(ids)], 1)
    arguments = read_attention_spec(language).arguments(table, dtype=embeds.dtype)
    with torch.no_grad():
        theirs = language(inputs_embeds=embeds, output_attentions=True, use_cache=False, **arguments).attentions
    expected = torch.stack([layer[0].mean(0)[-len(ANSWER) :] for layer in theirs])
    torch.testing.assert_close(recorded(model), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_of_text_alone_it_is_what_the_untouched_family_gives(name: str) -> None:
    ours = answer_attention(joined(name), torch.zeros(0, 32), prompt_ids=PROMPT, answer_ids=ANSWER)
    untouched = bare_language(name, _attn_implementation="eager")
    with torch.no_grad():
        theirs = untouched(torch.tensor([[*PROMPT, *ANSWER[:-1]]]), output_attentions=True, use_cache=False).attentions
    expected = torch.stack([layer[0].mean(0)[-len(ANSWER) :] for layer in theirs])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "falcon", *ALIBI[::2]])  # shared keys, one key for all, ALiBi
def test_it_is_what_the_fused_kernel_itself_gives_to_values_that_tell_positions_apart(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel run on the identity as its values gives its weights (falcon's eager kernel adds its ALiBi twice)."""
    fused, seen = nn.functional.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        identity = torch.eye(key.shape[-2]).expand(*key.shape[:-1], key.shape[-2])
        seen.append(fused(query, key, identity, **settings)[0].mean(0)[-len(ANSWER) :])
        return fused(query, key, value, **settings)

    model = joined(name)
    ours = recorded(model)
    prefix, mask = model.image_prefix(random_pixels(1))
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad():
        model(input_ids=torch.tensor([[*PROMPT, *ANSWER[:-1]]]), image_embeds=prefix, image_token_mask=mask)
    torch.testing.assert_close(ours, torch.stack(seen), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LANGUAGE_CONFIGS)
def test_every_row_sums_to_one_and_sees_nothing_behind_itself(name: str) -> None:
    shares = recorded(joined(name))
    assert shares.shape == (2, len(ANSWER), P + len(PROMPT) + len(ANSWER) - 1)
    torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:2]))
    for place in range(len(ANSWER)):
        assert (shares[:, place, P + len(PROMPT) + place :] == 0).all()


def test_attention_follows_the_window_of_each_layer() -> None:
    sliding, whole = recorded(joined("gemma3"))
    assert (sliding > 0).sum(-1).tolist() == [WINDOW] * len(ANSWER)
    assert (whole > 0).sum(-1).tolist() == [P + len(PROMPT) + place for place in range(len(ANSWER))]


def test_recording_changes_no_logits_and_ends_with_its_context() -> None:
    model = joined("llama")
    inputs = {"input_ids": random_ids(1, 4), "pixel_values": random_pixels(1)}
    before = model(**inputs).logits
    recorded(model)
    assert torch.equal(model(**inputs).logits, before)


def test_a_kernel_that_shows_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("llama")
    monkeypatch.setattr("visgraft.inspection.answer_attention.AttentionRecorder._keep", lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="llama has 2 layers, of which 0 show their attention"):
        recorded(model)
