"""Language models with recurrent, linear or convolutional layers hold every invariant that applies to them.

An image is read from left to right in such layers; everything else is as for the others. In order: text only, padding,
perturbations, shared prefixes, generation, LoRA, folders.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import (
    BY_STATE,
    HYBRIDS,
    P,
    V,
    assert_close,
    assert_same_gradients,
    bare,
    bare_language,
    bare_vision,
    batch,
    fresh,
    gradients,
    joined,
    random_ids,
    random_pixels,
    sample,
    samples,
)
from tests.versions import since
from visgraft.config import LoraSettings
from visgraft.convert.merge import merge_model
from visgraft.errors import ModelError
from visgraft.model.activation_checkpointing import checkpoint_activations
from visgraft.model.cache import CACHE_NAME
from visgraft.model.checks.preflight import preflight
from visgraft.model.state_cache import StateCache
from visgraft.model.trainable import parts_table, set_trainable
from visgraft.model.vlm import VisionLanguageModel

# Before, layers read their states elsewhere than in the cache: found by trying, hybrids train in rows, and read anew.
states_in_cache = since("transformers", "5.21", "hybrid models do not ask a cache for their states")
every_hybrid = pytest.mark.parametrize("language", HYBRIDS)
MOVED, STILL = 1e-4, 2e-5
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def logits_of(model: VisionLanguageModel, ids: Tensor, pixels: Tensor | None = None, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels, **kwargs).logits


# --- What trying finds


@states_in_cache
@every_hybrid
def test_trying_finds_how_texts_share_an_image(language: str) -> None:
    spec = joined(language).attention_spec
    assert spec.sharing == ("state" if language in BY_STATE else "rows")
    # Jamba's scan begins with an empty state for more than one token; RWKV's state is not in a cache.
    assert spec.behind_cache == {"jamba": "single", "rwkv": "nothing"}.get(language, "several")
    assert spec.image_is_causal == ("all" if language in ("mamba2", "rwkv") else "some")


@states_in_cache
def test_what_a_user_should_know_is_said_with_the_parts() -> None:
    assert joined("llama").attention_spec.notes == ()
    model = fresh("jamba")
    report = set_trainable(model, modes={"language": "lora", "projection": "full"})
    notes = next(row.notes for row in parts_table(model, report) if row.part == "language")
    assert notes[0].startswith("LoRA on ")
    assert "in JambaMambaMixer" in notes[0]
    assert "q_proj, k_proj, v_proj, o_proj in JambaAttention" in notes[0]
    assert "each text reads its image in a row of its own, in the layout shared too" in notes
    assert "images are read from left to right (causal) in its recurrent layers" in notes
    assert "behind a cache, prompts are read token by token" in notes


def test_rwkv_computes_the_same_in_eval_and_training_mode_without_touching_its_weights() -> None:
    language, ids = bare_language("rwkv"), random_ids(1, 6)
    untouched = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    language.config.rescale_every = 1
    with torch.no_grad():
        plain = language(input_ids=ids).logits  # which has divided weights of its second layer by two
        model = VisionLanguageModel.from_parts(bare_vision("clip"), language)
        assert all(torch.equal(untouched[name], tensor) for name, tensor in language.state_dict().items())
        assert_close(logits_of(model, ids), plain, tolerance=1e-3)
        assert_close(logits_of(model.train(), ids), plain, tolerance=1e-3)
        assert_close(language(input_ids=ids).logits, plain, tolerance=1e-3)
    assert all(torch.equal(untouched[name], tensor) for name, tensor in language.state_dict().items())


# --- Text only, padding


@every_hybrid
def test_without_an_image_the_logits_are_those_of_the_bare_language_model(language: str) -> None:
    ids = random_ids(2, 9)
    assert_close(logits_of(joined(language), ids), bare(language)(input_ids=ids).logits, tolerance=3e-6)


@every_hybrid
def test_padding_and_batch_size_do_not_change_a_real_tokens_logits(language: str) -> None:
    model, pixels, lengths = joined(language), random_pixels(3), (6, 3, 5)
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, start in enumerate((0, 4, 2)):  # pads behind, in front, on both sides
        ids[row, start : start + lengths[row]] = random_ids(lengths[row], seed=row)
        mask[row, start : start + lengths[row]] = 1
    together = logits_of(model, ids, pixels, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = logits_of(model, random_ids(length, seed=row)[None], pixels[row : row + 1])[0]
        assert_close(together[row][torch.cat([torch.ones(P), mask[row]]).bool()], alone)


@every_hybrid
def test_a_row_without_images_in_a_batch_with_images_is_text_only(language: str) -> None:
    image_mask = torch.tensor([[True, True], [False, False], [False, True]])
    ids, pixels = random_ids(3, 6), random_pixels(3, 2)
    together = logits_of(joined(language), ids, pixels, image_mask=image_mask)
    assert_close(together[1, 2 * P :], bare(language)(input_ids=ids[1:2]).logits[0])
    assert_close(together[2, P:], logits_of(joined(language), ids[2:], pixels[2, 1:])[0])


# --- Perturbations


@every_hybrid
def test_later_text_moves_nothing_earlier_and_a_patch_moves_every_text(language: str) -> None:
    model, ids, pixels = joined(language), random_ids(1, 6).repeat(6, 1), random_pixels(1).repeat(6, 1, 1, 1)
    plain = logits_of(model, ids, pixels)
    moved = (logits_of(model, (ids + 17 * torch.eye(6, dtype=torch.long)) % V, pixels) - plain).abs().amax(-1)
    expected = torch.cat([torch.zeros(6, P), torch.ones(6, 6).triu()], 1).bool()
    assert (moved[expected] > MOVED).all()
    assert (moved[~expected] < STILL).all()
    other = pixels[:1].clone()
    other[..., 16:, 16:] += 2
    assert ((logits_of(model, ids[:1], other) - plain[:1]).abs().amax(-1)[:, P:] > MOVED).all()


@every_hybrid
def test_the_check_before_training_passes(language: str) -> None:
    model = joined(language)
    assert preflight(model, batch([sample(6, 4, 5), sample(5)])).num_supervised > 10


# --- One shared prefix is K rows


OF = [*samples(images=(2, 1, 0)), sample(4, 6, images=3), sample(3, 5, 4)]


@every_hybrid
def test_shared_and_filled_rows_equal_rows_in_loss_and_every_gradient(language: str) -> None:
    model = fresh(language, num_frames=3)
    plans = [batch(OF), batch(OF, layout="rows"), batch(OF, rows=[[3, 0], [2, 1], [4]])]
    results = [model.loss(one) for one in plans]
    grads = [gradients(model, out.loss) for out in results]
    assert_close(results[0].target_losses, results[1].target_losses)
    for out, grad in zip(results[:1] + results[2:], grads[:1] + grads[2:], strict=True):
        assert_close(out.loss, results[1].loss)
        assert_same_gradients(grad, grads[1])


@states_in_cache
@pytest.mark.parametrize("language", BY_STATE)
def test_an_image_is_read_once_for_its_texts_and_again_in_rows(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = joined(language), []
    forward = model.language.forward

    def count(*arguments: Any, **named: Any) -> Any:
        lengths.append(tuple(named["inputs_embeds"].shape[:2]))
        return forward(*arguments, **named)

    monkeypatch.setattr(model.language, "forward", count)
    of = [sample(6, 4, 5), sample(4, 4)]
    with torch.no_grad():
        model.loss(batch(of))
        assert lengths == [(2, P), (5, 6)]
        lengths.clear()
        model.loss(batch(of, layout="rows"))
        assert lengths == [(5, P + 6)]


@pytest.mark.parametrize("language", ["qwen3_5", "falcon_h1", "mamba2"])
@pytest.mark.parametrize("whose", ["ours", "library's"])
def test_recomputed_layers_give_the_same_gradients(language: str, whose: str) -> None:
    plain, recomputing = fresh(language), fresh(language)
    if whose == "ours":
        checkpoint_activations(recomputing.language)
    else:
        recomputing.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        recomputing.train()
    of = batch([sample(6, 4, 5), sample(4, 4)])
    first, second = plain.loss(of), recomputing.loss(of)
    assert_close(first.target_losses, second.target_losses)
    assert_same_gradients(gradients(plain, first.loss), gradients(recomputing, second.loss))


def test_logits_in_chunks_give_the_same_loss() -> None:
    model, of = fresh("mamba2"), batch([sample(6, 4, 5)])
    whole = model.loss(of).target_losses
    model.logits_bytes = 4 * V * 3
    assert_close(model.loss(of).target_losses, whole)


def test_a_batch_without_targets_has_a_loss_of_nothing() -> None:
    model, of = fresh("lfm2"), batch([sample(6, 4)])
    of["source"], of["target"] = of["source"][:0], of["target"][:0]
    out = model.loss(of)
    assert (float(out.loss), int(out.num_supervised)) == (0.0, 0)
    out.loss.backward()


# --- Generation


def greedy(model: VisionLanguageModel, ids: Tensor, pixels: Tensor, *, steps: int) -> Tensor:
    """Choose the likeliest token again and again, everything read anew each time."""
    for _ in range(steps):
        ids = torch.cat([ids, logits_of(model, ids, pixels)[:, -1:].argmax(-1)], 1)
    return ids


@every_hybrid
def test_generation_is_right_alone_and_among_neighbours(language: str) -> None:
    model, pixels, lengths = joined(language), random_pixels(3), (6, 3, 5)
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = random_ids(length, seed=row), 1
    together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=5, **GREEDY)
    for row, length in enumerate(lengths):
        own, image = random_ids(length, seed=row)[None], pixels[row : row + 1]
        wanted = greedy(model, own, image, steps=5)[0, length:]
        assert together[row, 6:].tolist() == wanted.tolist()
        alone = model.generate(input_ids=own, pixel_values=image, max_new_tokens=5, **GREEDY)
        assert alone[0, length:].tolist() == wanted.tolist()


@pytest.mark.parametrize("language", ["qwen3_5", "jamba", "mamba2", "rwkv"])
def test_beams_are_those_of_generation_without_a_cache(language: str) -> None:
    model, ids, pixels = joined(language), random_ids(2, 4), random_pixels(2)
    settings = {**GREEDY, "num_beams": 3, "max_new_tokens": 4}
    cached, uncached = (
        model.generate(input_ids=ids, pixel_values=pixels, use_cache=use_cache, **settings)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)


def test_another_kind_of_cache_is_refused() -> None:
    model, ids = joined("lfm2"), random_ids(1, 4)
    with pytest.raises(ModelError, match=r"cache_implementation: got 'static', but lfm2 carries states"):
        model.generate(input_ids=ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ModelError, match=rf"{CACHE_NAME}: got DynamicCache, but lfm2 carries states"):
        model(input_ids=ids, past_key_values=joined("llama").make_cache())


# --- LoRA, folders


MIXERS = {
    "qwen3_5": {"linear_attn", "self_attn"},
    "qwen3_next": {"linear_attn", "self_attn"},
    "lfm2": {"conv", "self_attn"},
    "granite_4_h": {"mamba", "self_attn"},
    "nemotron_h": {"mixer"},
    "falcon_h1": {"mamba", "self_attn"},
    "bamba": {"mamba", "self_attn"},
    "olmo_hybrid": {"linear_attn", "self_attn"},
    "jamba": {"mamba", "self_attn"},
    "mamba2": {"mixer"},
    "rwkv": {"attention"},
}


@pytest.mark.parametrize(
    "language",
    [name if name in ("qwen3_5", "mamba2") else pytest.param(name, marks=pytest.mark.slow) for name in HYBRIDS],
)
def test_lora_takes_the_mixers_of_every_kind_of_layer_and_survives_folder_and_merge(
    language: str, tmp_path: Path
) -> None:
    model, of = fresh(language), batch([sample(6, 4, 5), sample(4)])
    report = set_trainable(
        model, modes={"projection": "full", "language": "lora"}, lora={"language": LoraSettings(r=2)}
    )
    targets = report.lora_targets["language"]
    assert {path.split(".")[-2] for path in targets} == MIXERS[language]
    assert not any("experts" in path or "mlp" in path for path in targets)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    grads = gradients(model, model.loss(of).loss)
    assert grads.keys() == trained.keys()  # each of them is called, and none is read past its LoRA
    before = model.loss(of).target_losses
    model.save_pretrained(tmp_path / "model")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.loss(of).target_losses, before)
    merge_model(tmp_path / "model", tmp_path / "merged")
    assert_close(VisionLanguageModel.from_pretrained(tmp_path / "merged").loss(of).target_losses, before)


# --- The cache


def test_a_pass_leaves_the_base_of_a_cache_as_it_found_it() -> None:
    base = {("keys", 0, 0): torch.ones(1, 1, 2, 3), ("values", 0, 0): torch.ones(1, 1, 2, 3),
            ("conv", 1, 0): torch.ones(1, 2, 4), ("recurrent", 1, 0): torch.ones(1, 2)}  # fmt: skip
    cache = StateCache(base, num_positions=2)
    for _ in range(2):  # a layer that is computed again gives what it gave
        keys, _values = cache.update(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), 0)
        assert keys.shape == (1, 1, 3, 3)
        assert cache.update_conv_state(torch.zeros(1, 2, 3), 1).shape == (1, 2, 7)
        state = cache.get_recurrent_state(1)
        assert state is not None
        state.zero_()
    assert all((tensor == 1).all() for tensor in cache.base.values())
    assert (cache.get_seq_length(), cache.get_mask_sizes(3, 0)) == (2, (5, 0))
    cache.advance(1)
    assert (cache.get_seq_length(), cache.get_mask_sizes(3, 0)) == (3, (6, 0))
    assert not cache.base["recurrent", 1, 0].any()


def test_rows_that_were_kept_end_together_where_they_are_put() -> None:
    cache = StateCache(
        {("keys", 0, 0): torch.arange(12.0).view(2, 1, 3, 2), ("conv", 0, 0): torch.arange(4.0).view(2, 1, 2)},
        num_positions=3,
    )
    short, long = cache.keep(0, columns=torch.tensor([1, 2])), cache.keep(1)
    assert (short.num_positions, long.num_positions, long.size_bytes) == (2, 3, 4 * 8)
    filled = StateCache()
    filled.put([short, long])
    assert filled.base["keys", 0, 0][0, 0].tolist() == [[0, 0], [2, 3], [4, 5]]
    assert torch.equal(filled.base["keys", 0, 0][1], cache.base["keys", 0, 0][1])
    assert torch.equal(filled.base["conv", 0, 0], cache.base["conv", 0, 0])


def test_a_state_cannot_be_taken_back() -> None:
    cache = StateCache({("recurrent", 0, 0): torch.ones(1, 2)}, num_positions=3)
    cache.cut(3)
    with pytest.raises(ModelError, match=r"a recurrent state cannot go back from position 3 to 2"):
        cache.cut(2)
    cache.cut(0)
    assert not cache.is_initialized
