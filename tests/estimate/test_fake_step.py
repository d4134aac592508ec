from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from tests.tiny import V, batch, fresh, samples, tree
from visgraft.data.batch import collate
from visgraft.errors import UnsupportedModelError
from visgraft.estimate.fake_step import run_fake_step, size_of
from visgraft.estimate.memory_tracker import MemoryTracker
from visgraft.model.activation_checkpointing import checkpoint_activations
from visgraft.model.trainable import set_trainable

pytestmark = pytest.mark.slow

MODES = {"projection": {}, "lora": {"language": "lora"}, "full": {"language": "full", "head": "full"}}
LAYOUTS = ("shared", "rows")


def prepared(language: str = "llama", vision: str = "clip", *, mode: str = "lora") -> nn.Module:
    model = fresh(language, vision)
    set_trainable(model, modes={"projection": "full", **MODES[mode]}, frozen_dtype=torch.bfloat16)  # type: ignore[dict-item]
    return model.train()


def peak_of_a_real_step(model: nn.Module, given: object) -> dict[str, int]:
    """Keep the books of the same step with real numbers."""
    memory_tracker = MemoryTracker(vocabulary=V)
    for tensor in (*model.parameters(), *model.buffers()):
        memory_tracker.enter(tensor, "weights")
    with memory_tracker:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(given).loss_sum  # type: ignore[operator]
        loss.backward()
    memory_tracker.rename([p.grad for p in model.parameters() if p.grad is not None], "gradients")
    return dict(memory_tracker.peak().sizes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("language", ["opt", "llama", "gpt_neox", "mpt", "bloom", "gemma2"])
def test_a_step_without_numbers_holds_what_the_real_step_holds(language: str, mode: str) -> None:
    given = batch(samples())
    real = peak_of_a_real_step(prepared(language, mode=mode), given)
    done = run_fake_step(prepared(language, mode=mode), given, dtype=torch.bfloat16)
    assert done.sizes["weights"] == real["weights"]
    without = sum(size for kind, size in done.sizes.items() if kind != "batch")
    assert without == pytest.approx(sum(real.values()), rel=0.02)


@pytest.mark.parametrize("language", ["gpt2", "qwen3", "gemma3", "falcon_alibi", "llama_eager"])
def test_other_families_run_without_numbers(language: str) -> None:
    done = run_fake_step(prepared(language), batch(samples()), dtype=torch.bfloat16)
    assert done.sizes["activations"] > 0
    assert done.num_flops > 0


@pytest.mark.parametrize("vision", ["efficientnet", "convnext", "beit", "swin"])
def test_encoders_that_make_maps_or_remember_positions_run_without_numbers(vision: str) -> None:
    model = fresh("llama", vision)
    set_trainable(model, modes={"vision": "full", "projection": "full"}, frozen_dtype=None)
    tokens = model.projection.num_tokens
    of = [replace(sample, num_image_tokens=(tokens,) * len(sample.num_image_tokens)) for sample in samples(vision)]
    done = run_fake_step(model, batch(of), dtype=None)
    assert done.weights["vision"] > 0
    assert done.optimizer > 8 * sum(p.numel() for p in model.projection.parameters())


def test_real_models_of_the_same_process_run_after_a_rehearsal() -> None:
    of = samples("beit")
    expected = fresh("llama", "beit").loss(batch(of)).loss
    model = fresh("llama", "beit")
    caches = [cell.cell_contents for cell in BeitRelativePositionBias.generate_relative_position_index.__closure__]
    for cache in caches:
        getattr(cache, "cache_clear", lambda: None)()
    run_fake_step(fresh("llama", "beit"), batch(of), dtype=None)
    assert torch.equal(model.loss(batch(of)).loss, expected)


def test_activations_at_the_end_of_the_forward_are_what_autograd_keeps() -> None:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    model, given = prepared(mode="full"), batch(samples())
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(given).loss_sum
    saved = sum(size for key, size in kept.items() if key not in weights)
    assert loss is not None
    done = run_fake_step(prepared(mode="full"), given, dtype=torch.bfloat16)
    held = sum(done.sizes.get(kind, 0) for kind in ("activations", "logits", "gradients", "batch"))
    assert held >= saved


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_rows_take_more(layout: str) -> None:
    few, many = samples()[:1], [*samples(), *samples()]
    small, large = (run_fake_step(prepared(), batch(of, layout=layout), dtype=None) for of in (few, many))  # type: ignore[arg-type]
    assert large.sizes["activations"] > small.sizes["activations"]
    assert large.num_flops > small.num_flops
    assert large.sizes["weights"] == small.sizes["weights"]


def test_adamw_keeps_two_fp32_moments_of_what_trains() -> None:
    model = prepared(mode="lora")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert run_fake_step(model, batch(samples()), dtype=torch.bfloat16).optimizer == 8 * trained


def test_checkpointing_forgets_activations_and_computes_more() -> None:
    given = batch([*samples()] * 8)
    kept, forgotten = prepared(), prepared()
    checkpoint_activations(forgotten.language)
    first, second = (run_fake_step(model, given, dtype=torch.bfloat16) for model in (kept, forgotten))
    assert second.sizes["activations"] < first.sizes["activations"]
    assert second.num_flops > first.num_flops


def test_gradients_of_an_earlier_micro_batch_are_there_from_the_start() -> None:
    given = batch(samples())
    alone = run_fake_step(prepared(mode="full"), given, dtype=torch.bfloat16)
    behind = run_fake_step(prepared(mode="full"), given, dtype=torch.bfloat16, holds_gradients=True)
    assert sum(behind.sizes.values()) > sum(alone.sizes.values())


def test_on_a_gpu_norms_give_fp32() -> None:
    given = batch(samples())
    cpu, gpu = (run_fake_step(prepared("opt"), given, dtype=torch.bfloat16, on_gpu=on_gpu) for on_gpu in (False, True))
    assert gpu.sizes["activations"] > cpu.sizes["activations"]


def test_pixels_may_be_on_the_meta_device() -> None:
    given, hollow = batch(samples()), batch(samples())
    hollow["vision_inputs"] = {name: value.to("meta") for name, value in hollow.vision_inputs.items()}
    assert run_fake_step(prepared(), given, dtype=None) == run_fake_step(prepared(), hollow, dtype=None)
    assert size_of(given) == size_of(hollow)


def test_what_is_decided_by_numbers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared()
    forward = model.projection.forward

    def reads_numbers(features: Tensor, **more: object) -> Tensor:
        return forward(features, **more) * (2.0 if float(features.sum()) > 0 else 1.0)

    monkeypatch.setattr(model.projection, "forward", reads_numbers)
    with pytest.raises(UnsupportedModelError, match=r"decides by computed numbers.*--measure"):
        run_fake_step(model, batch(samples()), dtype=None)


def test_block_masks_are_not_kept_and_only_pairs_of_a_group_are_computed() -> None:
    of = [*samples()] * 8
    rows = collate(of, layout="shared", pad_token_id=0, rows=[list(range(len(of)))])
    dense, blocks = (
        run_fake_step(prepared(), rows, dtype=torch.bfloat16, has_block_masks=has_block_masks)
        for has_block_masks in (False, True)
    )
    assert sum(blocks.sizes.values()) < sum(dense.sizes.values())
    within = sum(sample.num_positions**2 for sample in of)
    heads, width, layers = 4, 8, 2
    pairs_left_out = rows.kind.shape[1] ** 2 - within
    assert dense.num_flops - blocks.num_flops == pytest.approx(
        layers * 7 * 2 * heads * width * pairs_left_out, rel=1e-6
    )


def test_recomputed_layers_are_treated_as_on_a_gpu_too() -> None:
    model = prepared("opt")
    checkpoint_activations(model.language)
    done = run_fake_step(model, batch(samples()), dtype=torch.bfloat16, on_gpu=True, has_block_masks=True)
    assert done.sizes["activations"] > 0
    assert nn.functional.layer_norm.__module__ == "torch.nn.functional"


@pytest.mark.parametrize("language", ["llama", "lfm2"])
def test_dialogs_that_begin_alike_are_rehearsed_as_they_are_computed(language: str) -> None:
    given = batch([tree()])
    rehearsed = run_fake_step(prepared(language), given, dtype=None)
    apart = run_fake_step(prepared(language), batch([tree()], layout="rows"), dtype=None)
    assert given.as_distinct is not None
    assert 0 < sum(rehearsed.sizes.values()) < sum(apart.sizes.values())
