"""Needed operations equal what PyTorch counts where nothing is needless, and nothing needless is counted."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import batch, fresh, sample
from visgraft.data.batch import Batch, EncodedSample
from visgraft.model.attention_kernel import set_attention
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("arithmetic")


def model_of(family: str, *, encoder: str = "clip", **modes: str) -> VisionLanguageModel:
    """Both parts with the plain kernel, whose products PyTorch sees."""
    model = fresh(family, encoder)
    model.vision.set_attn_implementation("eager")
    set_attention(model, "eager")
    set_trainable(model, modes={"projection": "full", "language": "lora", **modes})  # type: ignore[dict-item]
    return model.train()


def counted_by_torch(model: VisionLanguageModel, made: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        loss = model.loss(made).loss
        assert loss is not None
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("family", "modes"),
    [
        ("opt", {}),
        ("llama_eager", {}),  # keys and values of fewer heads
        ("gpt2_eager", {}),  # another class of linears
        ("opt", {"language": "full"}),
        ("llama_eager", {"language": "frozen"}),
        ("llama_eager", {"head": "full"}),
    ],
)
def test_a_full_row_needs_what_torch_counts(arithmetic: ModuleType, family: str, modes: dict[str, str]) -> None:
    model, made = model_of(family, **modes), batch([sample(6, 3, 5)])
    assert (made.kind != 0).all() and len(made.kind) == 1
    config = model.language.config
    forbidden = made.kind.numel() ** 2 - arithmetic.count_pairs(made)
    assert forbidden > 0
    in_vain = 12 * forbidden * config.num_hidden_layers * config.hidden_size  # the plain kernel computes all pairs
    assert arithmetic.needed_operations(model, made).total == counted_by_torch(model, made) - in_vain


@pytest.mark.parametrize(
    ("encoder", "unread"), [("siglip", "SiglipVisionModel.head"), ("dinov2", None), ("vit", "ViTModel.pooler")]
)
def test_encoders_of_that_form_need_what_torch_counts(arithmetic: ModuleType, encoder: str, unread: str | None) -> None:
    model, made = model_of("llama_eager", encoder=encoder), batch([sample(4, vision=encoder)])
    with FlopCounterMode(display=False) as counter:
        model.image_features(made.vision_inputs)
    in_vain = sum(counter.get_flop_counts()[unread].values()) if unread else 0  # runs, and nobody reads what it makes
    assert (in_vain > 0) is (unread is not None)
    assert arithmetic.needed_operations(model, made).vision == counter.get_total_flops() - in_vain


def test_pairs_are_those_of_the_drawing(arithmetic: ModuleType) -> None:
    drawn = 2 * 2 + (3 + 4) + (3 + 4)  # two image tokens, two texts of two tokens
    assert arithmetic.count_pairs(batch([sample(2, 2, num_tokens=2)])) == drawn


def test_padding_and_neighbours_in_a_row_need_nothing(arithmetic: ModuleType) -> None:
    model = model_of("opt")
    samples = [sample(6, 3, 5), sample(4), sample(9, 2)]
    alone = sum(arithmetic.needed_operations(model, batch([own])).total for own in samples)
    padded, filled = batch(samples), batch(samples, rows=[[0, 2], [1]])
    assert (padded.kind == 0).any() and (filled.kind == 0).any()
    for made in (padded, filled):
        assert arithmetic.needed_operations(model, made).total == alone


def test_given_features_need_no_encoder_and_all_else(arithmetic: ModuleType) -> None:
    model, own = model_of("opt"), sample(6, 3)
    features = model.image_features(own.vision_inputs)
    given = EncodedSample(own.dialogs, {"features": features}, own.num_image_tokens)
    needed, cached = (arithmetic.needed_operations(model, batch([one])) for one in (own, given))
    assert (needed.vision > 0, cached.vision) == (True, 0)
    assert needed.total - needed.vision == cached.total


def test_what_is_not_counted_is_refused(arithmetic: ModuleType) -> None:
    made = batch([sample(4)])
    with pytest.raises(ValueError, match="got the layout 'rows', in which an image comes once a text; allowed"):
        arithmetic.needed_operations(model_of("opt"), batch([sample(4)], layout="rows"))
    with pytest.raises(ValueError, match="the encoder trains, whose backward pass is not counted here; freeze it"):
        arithmetic.needed_operations(model_of("opt", vision="full"), made)
    with pytest.raises(ValueError, match=r"the projection is frozen: how far gradients flow .* train it"):
        arithmetic.needed_operations(model_of("opt", projection="frozen"), made)
    with pytest.raises(ValueError, match="mistral has a sliding window, whose pairs are not counted here"):
        arithmetic.needed_operations(model_of("mistral"), made)


def test_the_matrix_rate_is_the_best_of_all_sizes_and_rounds(
    arithmetic: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = arithmetic.MatrixRate(torch.device("cpu"), sizes=(4, 8))
    took = iter([9.0, 2.0, 9.0, 9.0, 9.0, 4.0] + [9.0] * 6)  # of every product: two rounds, two sizes, three repeats
    now = 0.0

    def clock() -> float:
        nonlocal now
        return now

    def product(*_: object, **__: object) -> None:
        nonlocal now
        now += next(took)

    monkeypatch.setattr(arithmetic.time, "perf_counter", clock)
    monkeypatch.setattr(arithmetic.torch, "mm", product)
    rate()
    rate()
    assert rate.by_size == {4: 2 * 4**3 / 2.0, 8: 2 * 8**3 / 4.0}
    assert rate.per_second == 256.0
