"""The joined model: losses by hand, frames, image masks, what trains, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
)

from tests.tiny import (
    SQUARE,
    VISIONS,
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
from visgraft.data.batch import EncodedSample
from visgraft.errors import ConfigError, ModelError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.vlm import VisionLanguageModel

some_languages = pytest.mark.parametrize("language", ["llama", "opt", "gpt2", "bloom", "gemma3", "mistral"])


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    """Compute -log softmax(logits)[target] in words of its own."""
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[target]


# --- labels=


@pytest.mark.parametrize("with_image", [True, False])
def test_labels_shift_inside_the_text_and_the_first_is_never_a_target(with_image: bool) -> None:
    model, ids = joined(), random_ids(2, 6)
    labels = ids.clone()
    labels[0, 3], labels[1, 4:] = -100, -100
    out = model(input_ids=ids, pixel_values=random_pixels(2) if with_image else None, labels=labels)
    num_image = P if with_image else 0
    assert out.logits.shape == (2, num_image + 6, V)
    losses = [
        cross_entropy(out.logits[row, num_image + column - 1], int(labels[row, column]))
        for row in range(2)
        for column in range(1, 6)  # labels[:, 0] would be predicted by the last image token
        if labels[row, column] != -100
    ]
    assert_close(out.target_losses, torch.stack(losses))
    assert_close(out.loss, sum(losses) / len(losses))
    assert int(out.num_supervised) == len(losses) == 7


def test_labels_on_rows_give_the_loss_of_the_batch() -> None:
    model, of = joined(), samples(images=(1, 1, 1))
    expected = model.loss(batch(of))
    loss_sum, count = torch.zeros(()), 0
    for one in of:
        for dialog in one.dialogs:
            ids = torch.tensor([dialog.input_ids])
            labels = torch.where(torch.tensor([dialog.supervised]), ids, -100)
            out = model(input_ids=ids, pixel_values=one.vision_inputs["pixel_values"], labels=labels)
            assert out.loss_sum is not None and out.num_supervised is not None
            loss_sum, count = loss_sum + out.loss_sum, count + int(out.num_supervised)
    assert_close(expected.loss_sum, loss_sum)
    assert int(expected.num_supervised) == count
    assert_close(expected.loss, loss_sum / count)


@pytest.mark.parametrize("use_cache", [None, True])
def test_logits_and_labels_stay_in_the_given_order_whatever_the_padding(use_cache: bool | None) -> None:
    model, ids, pixels = joined(num_frames=2), random_ids(3, 6), random_pixels(3, 2)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    image_mask = torch.tensor([[True, False], [True, True], [False, False]])
    labels = torch.where(mask.bool(), ids, -100)
    labels[1, 2] = -100  # behind a pad
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_mask": image_mask}
    out = model(**given, labels=labels, use_cache=use_cache)
    plain = model(**given, labels=labels)
    real = torch.cat([image_mask.repeat_interleave(P, 1), mask.bool()], 1)
    assert_close(out.logits[real], plain.logits[real])
    assert_close(out.loss, plain.loss)
    alone = model(input_ids=ids[:1, :4], pixel_values=pixels[:1, 0], labels=ids[:1, :4])
    assert_close(out.target_losses[:3], alone.target_losses)


def test_only_the_last_logits_are_made_where_only_they_are_asked_for() -> None:
    model, ids, pixels = joined(), random_ids(2, 6), random_pixels(2)
    whole = model(input_ids=ids, pixel_values=pixels).logits
    assert_close(model(input_ids=ids, pixel_values=pixels, logits_to_keep=2).logits, whole[:, -2:])


def test_loss_calls_forward_so_that_hooks_run() -> None:
    model, calls = fresh(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.loss(batch(samples()))
    assert calls == [1]


# --- Frames and images


def test_a_sample_of_several_images_is_one_prefix_with_temporal_embeddings() -> None:
    model, ids, pixels = joined(num_frames=3), random_ids(1, 5), random_pixels(1, 3)
    prefix, prefix_mask = model.image_prefix(pixels)
    assert prefix.shape == (1, 3 * P, 32)
    assert prefix_mask.all()
    features = model.vision(pixels[0]).last_hidden_state
    assert model.projection.temporal_embedding is not None
    frames = [model.projection(features[f] + model.projection.temporal_embedding[f]) for f in range(3)]
    assert_close(prefix[0], torch.cat(frames))
    made = model(input_ids=ids, pixel_values=pixels).logits
    assert_close(made, model(input_ids=ids, image_embeds=prefix).logits)


def test_one_image_takes_no_temporal_embedding_in_any_shape() -> None:
    model, pixels = joined(num_frames=3), random_pixels(2, 1)
    plain = model.projection(model.vision(pixels[:, 0]).last_hidden_state)
    assert_close(model.image_prefix(pixels[:, 0])[0], plain)
    assert_close(model.image_prefix(pixels)[0], plain)
    two = torch.cat([pixels, random_pixels(2, 1, seed=5)], 1)
    prefix, prefix_mask = model.image_prefix(two, image_mask=torch.tensor([[True, False], [False, True]]))
    assert prefix_mask.tolist() == [[True] * P + [False] * P, [False] * P + [True] * P]
    assert_close(prefix[0, :P], plain[0])


@pytest.mark.parametrize("num_frames", [0, 3])
def test_a_batch_of_frames_computes_what_rank_5_pixels_compute(num_frames: int) -> None:
    model = joined(num_frames=num_frames)
    for count in (1, 2, 3):
        one = sample(5, images=count)
        ids = torch.tensor([one.dialogs[0].input_ids])
        labels = torch.where(torch.tensor([one.dialogs[0].supervised]), ids, -100)
        out = model(input_ids=ids, pixel_values=one.vision_inputs["pixel_values"][None], labels=labels)
        assert_close(model.loss(batch([one])).target_losses, out.target_losses)


def test_the_order_of_frames_matters_only_with_temporal_embeddings_or_positions() -> None:
    ids, pixels = random_ids(1, 4), random_pixels(1, 2)
    swapped = pixels.flip(1)
    for model in (joined(), joined(num_frames=2)):
        first = model(input_ids=ids, pixel_values=pixels).logits[:, -4:]
        assert (first - model(input_ids=ids, pixel_values=swapped).logits[:, -4:]).abs().max() > 1e-3


def test_temporal_embeddings_are_trained() -> None:
    model = fresh(num_frames=3)
    grads = gradients(model, model.loss(batch([sample(4, images=2), sample(3, images=1)])).loss)
    grad = grads["projection.temporal_embedding"]
    assert grad[:2].abs().amax(1).min() > 0
    assert not grad[2].any()  # no sample has a third frame


def test_more_frames_than_temporal_embeddings_are_an_error() -> None:
    with pytest.raises(ModelError, match="a sample has 3 images, the model has temporal embeddings for 2"):
        joined(num_frames=2).loss(batch([sample(4, images=3)]))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_image_a_row_can_be_masked(shape: tuple[int, ...]) -> None:
    model, ids, pixels = joined(), random_ids(2, 5), random_pixels(2)
    image_mask = torch.tensor([True, False]).view(shape)
    logits = model(input_ids=ids, pixel_values=pixels, image_mask=image_mask).logits
    assert_close(logits[1, P:], bare("llama")(input_ids=ids[1:]).logits[0])
    assert_close(logits[0], model(input_ids=ids[:1], pixel_values=pixels[:1]).logits[0])


def test_a_batch_whose_images_are_all_masked_is_text_only() -> None:
    model, ids = joined(), random_ids(2, 5)
    image_mask = torch.zeros(2, 2, dtype=torch.bool)
    logits = model(input_ids=ids, pixel_values=random_pixels(2, 2), image_mask=image_mask).logits
    assert_close(logits[:, -5:], bare("llama")(input_ids=ids).logits)


def test_an_image_mask_of_another_shape_is_an_error() -> None:
    message = r"image_mask has shape \[2, 3\], pixel_values \[2, 2, 3, 32, 32\]: need one value an image, \[2, 2\]"
    with pytest.raises(ModelError, match=message):
        joined().image_prefix(random_pixels(2, 2), image_mask=torch.ones(2, 3))


# --- What the encoder and the projection may be


@pytest.mark.parametrize("projection", [{"type": "mlp"}, {"pool": 2}, {"type": "mlp", "pixel_shuffle": 2}], ids=str)
def test_every_projection_trains_alike_in_both_layouts(projection: dict[str, Any]) -> None:
    model = fresh(projection=projection)
    num_tokens = model.image_prefix(random_pixels(1))[0].shape[1]
    assert num_tokens == (1 if len(projection) == 2 or "pool" in projection else P)
    of = [
        sample(4, 3, images=1, num_tokens=num_tokens),
        sample(3, images=2, num_tokens=num_tokens),
        sample(4, images=0),
    ]
    shared, rows = (model.loss(batch(of, layout=layout)) for layout in ("shared", "rows"))
    assert_close(shared.target_losses, rows.target_losses)
    assert_same_gradients(gradients(model, shared.loss), gradients(model, rows.loss))


@pytest.mark.parametrize(
    ("settings", "num_tokens"),
    [
        ({"image_size": 64}, 17),
        ({"keep_class_token": False}, 4),
        ({"feature_layer": -2}, 5),
        ({"image_size": 64, "keep_class_token": False, "projection": {"pool": 2}}, 4),
    ],
    ids=str,
)
def test_an_encoder_read_otherwise_makes_other_image_tokens(settings: dict[str, Any], num_tokens: int) -> None:
    model = fresh(**settings)
    side = settings.get("image_size", 32)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert model.image_prefix(pixels)[0].shape == (2, num_tokens, 32)
    one = sample(4, 3, images=1, num_tokens=num_tokens)
    of = batch([EncodedSample(one.dialogs, {"pixel_values": pixels[:1]}, (num_tokens,))])
    ids = torch.tensor([one.dialogs[0].input_ids])
    labels = torch.where(torch.tensor([one.dialogs[0].supervised]), ids, -100)
    alone = model(input_ids=ids, pixel_values=pixels[:1], labels=labels).target_losses
    assert_close(model.loss(of).target_losses[: len(alone)], alone)


@pytest.mark.parametrize("counted", [4, 6])
def test_a_batch_that_counts_other_image_tokens_than_the_model_makes_is_an_error(counted: int) -> None:
    message = rf"the batch counts \[{counted}\] image tokens an image, the model makes 5: make the Processor with"
    with pytest.raises(ModelError, match=message):
        joined().loss(batch([sample(4, images=1, num_tokens=counted)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CLIPModel(CLIPConfig(vision_config=SQUARE, text_config=CLIPTextConfig(**SMALL_TEXT).to_dict())),
        lambda: SiglipModel(SiglipConfig(vision_config=SQUARE, text_config={**SMALL_TEXT, "vocab_size": 64})),
    ],
    ids=["clip", "siglip"],
)
def test_a_two_tower_model_gives_its_vision_tower(make: Callable[[], Any]) -> None:
    whole = make().eval()
    model = VisionLanguageModel.from_parts(whole, bare_language("llama"))
    pixels = random_pixels(2)
    with torch.no_grad():
        expected = whole.vision_model(pixels).last_hidden_state
        assert_close(model.vision(pixels).last_hidden_state, expected)
    assert not any("text_model" in name for name, _ in model.named_parameters())


SMALL_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


# --- Training


def test_batch_norm_stays_in_eval_mode_and_keeps_its_statistics() -> None:
    model = fresh("llama", "efficientnet").train()
    norms = [module for module in model.vision.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    out = model.loss(batch(samples("efficientnet")))
    assert norms and not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))  # type: ignore[arg-type]
    shared = gradients(model, out.loss)
    rows = gradients(model, model.loss(batch(samples("efficientnet"), layout="rows")).loss)
    assert_same_gradients(shared, rows)


def test_frozen_parts_stay_in_eval_mode_in_training() -> None:
    model = fresh("gpt2")
    model.vision.requires_grad_(False)
    model.language.requires_grad_(False)
    model.train()
    assert (model.training, model.projection.training) == (True, True)
    assert not any(module.training for part in (model.vision, model.language) for module in part.modules())
    assert torch.equal(model.loss(batch(samples())).loss, model.loss(batch(samples())).loss)  # no dropout
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("vision", VISIONS)
def test_a_frozen_encoder_runs_without_gradients_and_the_projection_gets_them(vision: str) -> None:
    model, seen = fresh("llama", vision), []
    model.vision.requires_grad_(False)
    model.language.requires_grad_(False)
    model.projection.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].requires_grad))
    grads = gradients(model.train(), model.loss(batch(samples(vision))).loss)
    assert seen == [False]
    assert {name.split(".")[0] for name in grads} == {"projection"}
    assert all(grad.any() for grad in grads.values())


def test_a_frozen_language_model_still_carries_gradients_to_the_projection() -> None:
    whole, frozen = fresh(), fresh()
    frozen.language.requires_grad_(False)
    of = batch(samples())
    expected = {n: g for n, g in gradients(whole, whole.loss(of).loss).items() if not n.startswith("language")}
    assert_same_gradients(gradients(frozen, frozen.loss(of).loss), expected)


@pytest.mark.parametrize("num_frames", [0, 2])
def test_a_training_batch_without_images_gives_the_vision_path_gradients_of_zero(num_frames: int) -> None:
    model = fresh(num_frames=num_frames)
    of = batch([sample(4, images=0), sample(3, 5, images=0)])
    expected = model.loss(of).loss
    assert not any(name.startswith("projection") for name in gradients(model, expected))
    out = model.train().loss(of)
    assert torch.equal(out.loss, expected)
    grads = gradients(model, out.loss)
    assert {name for name, _ in model.named_parameters() if name.startswith("projection")} <= grads.keys()
    assert not any(grad.any() for name, grad in grads.items() if not name.startswith("language"))


@pytest.mark.parametrize("language", ["llama", "opt", "bloom", "mpt", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(language: str) -> None:
    plain, saving = fresh(language), fresh(language)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, saving):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.train()
    assert saving.is_gradient_checkpointing
    of = batch(samples())
    runs: list[int] = []
    layer = next(m for m in saving.language.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[0]
    next(iter(layer.children())).register_forward_pre_hook(lambda *_: runs.append(1))
    first, second = (model.loss(of) for model in (plain, saving))
    assert_close(second.target_losses, first.target_losses)
    assert_same_gradients(gradients(saving, second.loss), gradients(plain, first.loss))
    assert len(runs) == 2  # once forward, once more backward


@some_languages
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_finite_losses_near_those_of_float32(language: str, dtype: torch.dtype) -> None:
    model, of = fresh(language), batch(samples(images=(2, 1, 0)))
    expected = model.loss(of).target_losses
    with torch.autocast("cpu", dtype=dtype):
        out = model.loss(of)
    assert out.loss.dtype == torch.float32
    grads = gradients(model, out.loss)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert_close(out.target_losses, expected, tolerance=0.1)


def test_frozen_parts_may_be_bfloat16_beside_a_float32_projection() -> None:
    model, of = fresh(), batch(samples())
    expected = model.loss(of).target_losses
    for part in (model.vision, model.language):
        part.to(torch.bfloat16).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.loss(of)
    grads = gradients(model, out.loss)
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())
    assert_close(out.target_losses, expected, tolerance=0.1)


@some_languages
def test_states_between_layers_stay_float32_behind_bfloat16_weights(language: str) -> None:
    """Rounded to bfloat16 at every layer, training has spikes: a frozen part's number format is that of its weights."""
    model, of = fresh(language), batch(samples())
    model.language.to(torch.bfloat16).requires_grad_(False)
    formats: list[torch.dtype] = []
    layers = next(m for m in model.language.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, given: formats.append(given[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.loss(of)
    assert formats == [torch.float32] * len(layers)


# --- The join


def test_each_part_keeps_the_attention_kernel_it_chose() -> None:
    for language, vision_kernel in (("llama", "eager"), ("llama_eager", "sdpa"), ("gemma2", "sdpa"), ("mpt", "eager")):
        vision, own = bare_vision("clip"), bare_language(language)
        vision.set_attn_implementation(vision_kernel)
        chosen = own.config._attn_implementation
        model = VisionLanguageModel.from_parts(vision, own)
        assert model.language.config._attn_implementation == chosen
        assert model.config.text_config._attn_implementation == chosen
        assert model.vision.config._attn_implementation == vision_kernel
        layers = [module for module in model.language.modules() if hasattr(module, "config")]
        assert {module.config._attn_implementation for module in layers} == {chosen}


def test_the_language_model_is_the_module_that_was_given() -> None:
    language = bare_language("opt")
    weights = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    model = VisionLanguageModel.from_parts(bare_vision("clip"), language)
    assert model.language is language
    assert model.get_input_embeddings() is language.get_input_embeddings()
    assert model.get_output_embeddings() is language.get_output_embeddings()
    assert all(torch.equal(weights[name], tensor) for name, tensor in language.state_dict().items())


def test_the_model_is_known_to_the_librarys_auto_classes() -> None:
    config = AutoConfig.for_model(
        "visgraft", vision_config=bare_vision("clip").config, text_config=bare("llama").config
    )
    assert isinstance(config, VisionLanguageConfig)
    model = AutoModelForImageTextToText.from_config(config)
    assert type(model) is VisionLanguageModel
    assert isinstance(model.vision, CLIPVisionModel)
    assert model.config.get_text_config() is model.language.config


def test_narrow_embeddings_get_narrow_image_tokens() -> None:
    model = joined("opt_post_norm")
    assert model.image_prefix(random_pixels(1))[0].shape == (1, P, 16)


def test_an_unknown_image_attention_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model.image_attention: got 'both', allowed are bidirectional, causal"):
        fresh(image_attention="both")


# --- Refusals


def test_a_row_longer_than_the_positions_is_an_error() -> None:
    model = joined("gpt2")
    message = rf"a row of {P + 60} positions \(image and text tokens\) is longer than the 64 positions of gpt2: shorten"
    with pytest.raises(ModelError, match=message):
        model(input_ids=random_ids(1, 60), pixel_values=random_pixels(1))
    with pytest.raises(ModelError, match=message):
        model.loss(batch([sample(60, images=1)]))


def test_a_shared_row_may_be_longer_than_the_positions_as_long_as_no_text_is() -> None:
    of = [sample(40, 41, images=1)]
    model = joined("gpt2")
    assert_close(model.loss(batch(of)).target_losses, model.loss(batch(of, layout="rows")).target_losses)


def test_forward_without_ids_or_batch_is_an_error() -> None:
    with pytest.raises(
        ModelError, match=r"forward needs input_ids, or inputs_embeds in their place, or batch= from Processor\.collate"
    ):
        joined()(pixel_values=random_pixels(1))


def test_a_mask_of_another_length_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"attention_mask covers 10 text tokens, there are 5 \(cached ones included"):
        joined()(input_ids=random_ids(1, 5), pixel_values=random_pixels(1), attention_mask=torch.ones(1, 10))


@pytest.mark.parametrize("name", ["position_ids", "pixel_valeus", "token_type_ids"])
def test_an_argument_that_no_part_takes_is_an_error(name: str) -> None:
    with pytest.raises(
        ModelError, match=f"got an argument '{name}', which neither the model nor CLIPVisionModel takes"
    ):
        joined()(input_ids=random_ids(1, 5), **{name: torch.zeros(1, 5)})


@pytest.mark.parametrize("number", [1, 2])
def test_as_many_images_as_prompts_are_needed(number: int) -> None:
    model, ids = joined(), random_ids(3, 4)
    message = f"got images for {number} samples and 3 prompts: give as many of each"
    for run in (model, model.generate):
        with pytest.raises(ModelError, match=message):
            run(input_ids=ids, pixel_values=random_pixels(number))
        with pytest.raises(ModelError, match=message):
            run(input_ids=ids, pixel_values=random_pixels(number, 2))
        with pytest.raises(ModelError, match=r"pixel_values has shape \[3, 32, 32\]: need an axis of samples"):
            run(input_ids=ids, pixel_values=random_pixels())
