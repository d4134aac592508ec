"""What must hold for every language model behind CLIP and for every encoder in front of Llama."""

import pytest
import torch
from torch import Tensor

from tests.tiny import (
    LANGUAGES,
    OTHER_KERNELS,
    VISIONS,
    WINDOW,
    WINDOWED,
    P,
    V,
    assert_close,
    assert_same_gradients,
    bare,
    batch,
    fresh,
    gradients,
    joined,
    random_ids,
    random_pixels,
    sample,
    samples,
)
from visgraft.model.cache import CACHE_NAME
from visgraft.model.vlm import VisionLanguageModel

CROSS = [(language, "clip") for language in LANGUAGES + OTHER_KERNELS]
CROSS += [("llama", vision) for vision in VISIONS if vision != "clip"]
cross = pytest.mark.parametrize(("language", "vision"), CROSS)
every_language = pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS)
MOVED, STILL = 1e-4, 2e-5


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> object:
    with torch.set_grad_enabled("grad" in request.node.name):
        yield


def logits_of(model: VisionLanguageModel, ids: Tensor, pixels: Tensor | None = None, **kwargs: Tensor) -> Tensor:
    return model(input_ids=ids, pixel_values=pixels, **kwargs).logits


def assert_moved(change: Tensor, *, expected: Tensor) -> None:
    """Check that exactly the expected positions [..., S] of logits changes [..., S, V] are not zero."""
    amount = change.abs().amax(-1)
    assert (amount[expected] > MOVED).all(), amount
    assert (amount[~expected] < STILL).all(), amount


# --- 1. Text only


@every_language
def test_without_an_image_the_logits_are_those_of_the_bare_language_model(language: str) -> None:
    ids = random_ids(2, 9)
    assert_close(logits_of(joined(language), ids), bare(language)(input_ids=ids).logits, tolerance=3e-6)


@pytest.mark.parametrize("language", ["opt", "opt_post_norm", "llama", "gpt_neox", "gpt2", "qwen3", "phi3", "olmo2"])
def test_without_an_image_the_logits_are_exact_given_the_same_mask_and_positions(language: str) -> None:
    ids = random_ids(2, 9)
    mask = torch.ones(9, 9).tril().bool().expand(2, 1, 9, 9)
    theirs = bare(language)(input_ids=ids, attention_mask=mask, position_ids=torch.arange(9).expand(2, 9)).logits
    assert torch.equal(logits_of(joined(language), ids), theirs)


@every_language
def test_a_causal_prefix_computes_what_the_bare_model_computes_on_the_same_embeddings(language: str) -> None:
    model = fresh(language, image_attention="causal")
    ids, pixels = random_ids(2, 6), random_pixels(2)
    embeds = torch.cat([model.image_prefix(pixels)[0], bare(language).get_input_embeddings()(ids)], 1)
    theirs = bare(language)(inputs_embeds=embeds).logits
    assert_close(logits_of(model, ids, pixels), theirs)


# --- 2. Padding and batch size


def pad(length: int, *, where: str, to: int) -> tuple[Tensor, Tensor]:
    """Make ids of a real text with pads (id 0) before, in the middle of or behind it, and their mask."""
    share = {"left": (1, 0, 0), "right": (0, 0, 1), "middle": (0, 1, 0), "everywhere": (1, 1, 1)}[where]
    amounts = [(to - length) // sum(share) * part for part in share]
    amounts[share.index(1)] += to - length - sum(amounts)
    real, half = random_ids(length, seed=length), length // 2
    before, between, after = (torch.zeros(amount, dtype=torch.long) for amount in amounts)
    ids = torch.cat([before, real[:half], between, real[half:], after])
    ones = torch.ones_like(real)
    return ids, torch.cat([before, ones[:half], between, ones[half:], after])


@cross
def test_padding_and_batch_size_do_not_change_a_real_tokens_logits(language: str, vision: str) -> None:
    model, pixels = joined(language, vision), random_pixels(3, vision=vision)
    cases = [(row, where) for row in range(3) for where in ("left", "right", "middle", "everywhere")]
    lengths = (6, 3, 5)
    ids, mask = map(torch.stack, zip(*(pad(lengths[row], where=where, to=14) for row, where in cases), strict=True))
    together = logits_of(model, ids, pixels[[row for row, _ in cases]], attention_mask=mask)
    assert together.isfinite().all()
    num_image = together.shape[1] - 14
    for row, length in enumerate(lengths):
        alone = logits_of(model, random_ids(length, seed=length)[None], pixels[row : row + 1])[0]
        for index, (other, _) in enumerate(cases):
            if other == row:
                real = torch.cat([torch.ones(num_image), mask[index]]).bool()
                assert_close(together[index][real], alone)


@every_language
def test_padding_does_not_change_text_only_logits(language: str) -> None:
    ids = random_ids(1, 5)
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids, torch.zeros(1, 7, dtype=torch.long)], 1)
    mask = torch.zeros(1, 19, dtype=torch.long)
    mask[:, 7:12] = 1
    together = logits_of(joined(language), padded, attention_mask=mask)
    assert together.isfinite().all()
    assert_close(together[:, 7:12], bare(language)(input_ids=ids).logits)


@every_language
def test_a_row_without_images_in_a_batch_with_images_is_text_only(language: str) -> None:
    model, ids = joined(language), random_ids(3, 6)
    image_mask = torch.tensor([[True, True], [False, False], [False, True]])
    together = logits_of(model, ids, random_pixels(3, 2), image_mask=image_mask)
    assert_close(together[1, 2 * P :], bare(language)(input_ids=ids[1:2]).logits[0])
    one = logits_of(model, ids[2:], random_pixels(3, 2)[2, 1:])
    assert_close(together[2, P:], one[0])


# --- 3. Perturbations


@every_language
def test_a_changed_token_moves_the_logits_from_there_on_and_no_others(language: str) -> None:
    model, ids, pixels = joined(language), random_ids(1, 6).repeat(6, 1), random_pixels(1).repeat(6, 1, 1, 1)
    other = (ids + 17 * torch.eye(6, dtype=torch.long)) % V  # row t has another token t
    change = logits_of(model, other, pixels) - logits_of(model, ids, pixels)
    expected = torch.cat([torch.zeros(6, P), torch.ones(6, 6).triu()], 1).bool()
    assert_moved(change, expected=expected)


@cross
def test_one_changed_patch_moves_every_text_logit_within_reach(language: str, vision: str) -> None:
    model, ids, pixels = joined(language, vision), random_ids(1, 12), random_pixels(1, vision=vision)
    other = pixels.clone()
    side = pixels.shape[-1] // 2
    other[..., :side, side:] += 2 * torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(9))
    change = logits_of(model, ids, other) - logits_of(model, ids, pixels)
    num_image = change.shape[1] - 12
    # Two sliding layers carry an image token 2 (W - 1) positions on; a family that mixes kinds of layers sees all.
    reach = 2 * (WINDOW - 1) if language == "mistral" else 12
    expected = torch.arange(12) < reach
    assert_moved(change[:, num_image:], expected=expected[None])


@every_language
def test_image_states_never_move_with_text(language: str) -> None:
    model, pixels = joined(language), random_pixels(1)
    first = logits_of(model, random_ids(1, 6, seed=1), pixels)
    second = logits_of(model, random_ids(1, 6, seed=2), pixels)
    assert torch.equal(first[:, :P], second[:, :P])


@every_language
def test_image_tokens_see_each_other_in_both_directions(language: str) -> None:
    model, ids = joined(language), random_ids(1, 2)
    embeds = model.image_prefix(random_pixels(1))[0]
    other = embeds.clone()
    other[:, -1] += torch.randn(embeds.shape[-1], generator=torch.Generator().manual_seed(9)) * embeds.std()
    change = model(input_ids=ids, image_embeds=other).logits - model(input_ids=ids, image_embeds=embeds).logits
    assert_moved(change, expected=torch.ones(1, P + 2, dtype=torch.bool))


@every_language
def test_a_changed_token_in_training_moves_only_later_targets_of_its_own_dialog(language: str) -> None:
    model = joined(language)
    plain = batch([sample(6, 4, 5, images=1), sample(5, images=1)])
    changed = batch([sample(6, 4, 5, images=1), sample(5, images=1)])
    column = P + 6 + 2  # the third token of the second dialog
    changed["input_ids"][0, column] = (changed["input_ids"][0, column] + 17) % V
    moved = (model.loss(changed).target_losses - model.loss(plain).target_losses).abs()
    later = (plain.target_dialog == 1) & (plain.source[:, 1] >= column)
    assert (moved[later] > MOVED).all()
    assert later.any()
    assert (moved[~later] < STILL).all()


@every_language
def test_a_changed_image_in_training_moves_the_targets_of_its_own_sample(language: str) -> None:
    model = joined(language)
    plain, changed = (batch([sample(4, 3, images=1), sample(5, images=1), sample(4, images=0)]) for _ in range(2))
    pixels = changed["vision_inputs"]["pixel_values"]
    pixels[0] += 2 * torch.randn(pixels[0].shape, generator=torch.Generator().manual_seed(9))
    moved = (model.loss(changed).target_losses - model.loss(plain).target_losses).abs()
    own = plain.target_dialog < 2
    assert (moved[own] > MOVED).all()
    assert (moved[~own] < STILL).all()


@every_language
def test_decoding_with_a_cache_moves_as_decoding_without_one(language: str) -> None:
    model, pixels, mask = joined(language), random_pixels(2), torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    first, second = random_ids(2, 7, seed=1), random_ids(2, 7, seed=1)
    second[:, 4] = (second[:, 4] + 17) % V

    def decode(ids: Tensor) -> Tensor:
        prefix = {"pixel_values": pixels}
        start = model(input_ids=ids[:, :3], attention_mask=mask[:, :3], use_cache=True, **prefix)
        image_token_mask = torch.ones(2, P, dtype=torch.bool)
        steps = [start.logits[:, -1]]
        for column in range(3, 7):
            step = model(
                input_ids=ids[:, column : column + 1],
                attention_mask=mask[:, : column + 1],
                past_key_values=start[CACHE_NAME],
                image_token_mask=image_token_mask,
            )
            steps.append(step.logits[:, -1])
        return torch.stack(steps, 1)

    whole = logits_of(model, first, pixels, attention_mask=mask)[:, P + 2 :]
    assert_close(decode(first), whole)
    expected = (torch.arange(5) >= 2).expand(2, 5)
    assert_moved(decode(second) - decode(first), expected=expected)


# --- 4. One shared prefix is K rows


@pytest.mark.parametrize(
    ("language", "vision", "image_attention"),
    [(*pair, "bidirectional") for pair in CROSS] + [("llama", "clip", "causal"), ("bloom", "clip", "causal")],
)
def test_shared_equals_rows_in_loss_and_every_gradient(language: str, vision: str, image_attention: str) -> None:
    model = fresh(language, vision, image_attention=image_attention, num_frames=3)
    of = [*samples(vision, images=(2, 1, 0)), sample(4, 6, images=3, vision=vision)]
    shared, rows = (model.loss(batch(of, layout=layout)) for layout in ("shared", "rows"))
    assert_close(shared.target_losses, rows.target_losses)
    assert_close(shared.loss, rows.loss)
    first, second = gradients(model, shared.loss), gradients(model, rows.loss)
    assert {name.split(".")[0] for name in first} == {"vision", "projection", "language"}
    assert_same_gradients(first, second)


@pytest.mark.parametrize("language", ["llama", "bloom", *WINDOWED])
def test_shared_equals_rows_for_texts_and_prefixes_longer_than_any_window_in_gradients(language: str) -> None:
    model = fresh(language)
    of = [sample(14, 3, 11, images=3), sample(16, images=0), sample(3, 12, images=1)]
    shared, rows = (model.loss(batch(of, layout=layout)) for layout in ("shared", "rows"))
    assert_close(shared.target_losses, rows.target_losses)
    assert_same_gradients(gradients(model, shared.loss), gradients(model, rows.loss))


# --- 4. Several samples in one row are as many rows


@pytest.mark.parametrize(
    ("language", "vision", "image_attention"),
    [(*pair, "bidirectional") for pair in CROSS] + [("llama", "clip", "causal"), ("bloom", "clip", "causal")],
)
def test_filled_rows_equal_rows_in_loss_and_every_gradient(language: str, vision: str, image_attention: str) -> None:
    model = fresh(language, vision, image_attention=image_attention, num_frames=3)
    of = [*samples(vision, images=(2, 1, 0)), sample(4, 6, images=3, vision=vision)]
    filled = batch(of, rows=[[3, 0], [2, 1]])
    assert filled.group.max() == 1
    ordered = [of[index] for index in (3, 0, 2, 1)]
    results = [model.loss(one) for one in (filled, batch(ordered), batch(ordered, layout="rows"))]
    grads = [gradients(model, out.loss) for out in results]
    for out, grad in zip(results[1:], grads[1:], strict=True):
        assert_close(results[0].target_losses, out.target_losses)
        assert_close(results[0].loss, out.loss)
        assert_same_gradients(grads[0], grad)


@pytest.mark.parametrize("language", ["llama", "bloom", *WINDOWED])
def test_filled_rows_equal_rows_beyond_any_window_in_gradients(language: str) -> None:
    model = fresh(language)
    of = [sample(14, 3, images=2), sample(9, images=0), sample(3, 12, images=1)]
    filled, rows = (model.loss(batch(of, rows=[[0, 1, 2]])), model.loss(batch(of, layout="rows")))
    assert_close(filled.target_losses, rows.target_losses)
    assert_same_gradients(gradients(model, filled.loss), gradients(model, rows.loss))


@every_language
def test_a_changed_sample_moves_nothing_of_the_others_in_its_row(language: str) -> None:
    model = joined(language)
    rows = [[0, 1, 2]]
    plain, changed = (batch([sample(4, 3), sample(5), sample(4, images=0)], rows=rows) for _ in range(2))
    pixels = changed["vision_inputs"]["pixel_values"]
    pixels[0] += 2 * torch.randn(pixels[0].shape, generator=torch.Generator().manual_seed(9))
    changed["input_ids"][0, P + 1] = (changed["input_ids"][0, P + 1] + 17) % V
    moved = (model.loss(changed).target_losses - model.loss(plain).target_losses).abs()
    assert (moved[plain.target_sample == 0] > MOVED).all()
    assert (moved[plain.target_sample != 0] < STILL).all()
