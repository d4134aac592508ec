"""Logits at supervised positions only are the whole logits there, chunked or not, in loss and gradients.

The cross-entropy of narrow logits equals PyTorch's own on widened ones, in value, gradient and what is kept for it.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as real_checkpoint

from tests.tiny import (
    LANGUAGE_CONFIGS,
    V,
    assert_close,
    assert_same_gradients,
    bare_language,
    batch,
    fresh,
    gradients,
    joined,
    random_ids,
    samples,
)
from visgraft.errors import UnsupportedModelError
from visgraft.model import loss as loss_module
from visgraft.model.loss import cross_entropy, gathered_head, supervised_losses
from visgraft.model.vlm import VisionLanguageModel

# Families that scale or cap their logits behind the head, project before it, or bias it.
SPECIAL = ["llama", "opt_post_norm", "gptj", "mpt", "gemma2", "cohere", "granite"]
NUM_ROWS, VOCABULARY = 7, 50  # of the cross-entropy alone


def whole_logits(model: VisionLanguageModel, of: Any) -> Tensor:
    """Give the logits [B, S, V] of a batch: run the rows of its loss again, with the head whole."""
    rows: dict[str, Any] = {}
    handle = model.language.register_forward_pre_hook(lambda _, __, given: rows.update(given), with_kwargs=True)
    model.loss(of)
    handle.remove()
    logits: Tensor = model.language(**rows).logits
    return logits


@pytest.mark.parametrize("language", list(LANGUAGE_CONFIGS))
def test_losses_at_supervised_positions_are_those_of_the_whole_logits(language: str) -> None:
    model, of = joined(language), batch(samples())
    logits = whole_logits(model, of).float()
    assert logits.shape == (3, of.kind.shape[1], V)
    picked = torch.stack([logits[row, column] for row, column in of.source.tolist()])
    expected = torch.stack([line.logsumexp(0) - line[token] for line, token in zip(picked, of.target, strict=True)])
    out = model.loss(of)
    assert_close(out.target_losses, expected)
    assert_close(out.loss_sum, expected.sum())
    assert_close(out.loss, expected.mean())
    assert int(out.num_supervised) == len(of.target)


@pytest.mark.parametrize("language", SPECIAL)
def test_what_follows_the_head_stays_in_force(language: str) -> None:
    model, of = joined(language), batch(samples())
    weight = model.language.get_output_embeddings().weight
    with torch.no_grad():
        logits = whole_logits(model, of)
        hidden = _last_hidden(model, of)
        bias = getattr(model.language.get_output_embeddings(), "bias", None)
        plain = hidden @ weight.T + (0 if bias is None else bias)
        config = model.language.config
        expected = {
            "gemma2": lambda: torch.tanh(plain / 3.0) * 3.0,
            "cohere": lambda: plain * 0.25,
            "granite": lambda: plain / 4.0,
        }.get(language, lambda: plain)()
    assert config.vocab_size == V
    assert_close(logits, expected)


def _last_hidden(model: VisionLanguageModel, of: Any) -> Tensor:
    caught: list[Tensor] = []
    output_head = model.language.get_output_embeddings()
    handle = output_head.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    whole_logits(model, of)
    handle.remove()
    return caught[-1]


@pytest.mark.parametrize("language", ["opt", *SPECIAL, "bloom", "gemma3", "falcon", "phi3"])
@pytest.mark.parametrize("rows_at_once", [1, 4])
def test_chunked_logits_give_the_same_loss_and_gradients(language: str, rows_at_once: int) -> None:
    model, of = fresh(language), batch(samples())
    whole = model.loss(of)
    expected = gradients(model, whole.loss)
    model.logits_bytes = rows_at_once * 4 * V
    chunked = model.loss(of)
    assert_close(chunked.target_losses, whole.target_losses)
    assert_same_gradients(gradients(model, chunked.loss), expected)


def test_a_chunk_is_no_larger_than_the_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def spy(function: Any, language: Any, hidden: Tensor, target: Tensor, **kwargs: Any) -> Any:
        sizes.append(hidden.shape[0])
        return real_checkpoint(function, language, hidden, target, **kwargs)

    monkeypatch.setattr(loss_module, "checkpoint", spy)
    model, of = fresh(), batch(samples())
    model.logits_bytes = 5 * 4 * V + 3
    model.loss(of)
    assert max(sizes) == 5
    assert sum(sizes) == len(of.target)


def test_chunks_do_not_run_the_decoder_again() -> None:
    model, of = fresh(), batch(samples())
    runs: list[int] = []
    model.language.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    model.logits_bytes = 4 * V
    model.loss(of).loss.backward()
    assert len(runs) == 1


def test_no_supervised_token_gives_a_loss_of_zero_that_can_go_backward() -> None:
    model, of = fresh(), batch(samples())
    of["source"], of["target"] = of.source[:0], of.target[:0]
    out = model.loss(of)
    assert (float(out.loss), float(out.loss_sum), int(out.num_supervised)) == (0.0, 0.0, 0)
    out.loss.backward()


def test_the_head_is_whole_again_after_the_context_and_after_an_error() -> None:
    model = bare_language("llama")
    ids = random_ids(2, 5)
    index = (torch.tensor([0, 1]), torch.tensor([3, 4]))
    with gathered_head(model, index):
        assert model(input_ids=ids).logits.shape == (1, 2, V)
    with gathered_head(model, slice(-2, None)):
        assert model(input_ids=ids).logits.shape == (2, 2, V)
    assert model(input_ids=ids).logits.shape == (2, 5, V)
    with pytest.raises(ZeroDivisionError), gathered_head(model, index):
        raise ZeroDivisionError
    assert model(input_ids=ids).logits.shape == (2, 5, V)


def test_logits_that_do_not_come_from_the_head_alone_are_refused() -> None:
    class TwoHeads(type(bare_language("llama"))):  # type: ignore[misc]
        def forward(self, **kwargs: Any) -> Any:
            output = super().forward(**kwargs)
            output.logits = output.logits.repeat(2, 1, 1)
            return output

    model = TwoHeads(bare_language("llama").config).eval()
    ids, source = random_ids(1, 5), torch.tensor([[0, 2], [0, 3]])
    with pytest.raises(UnsupportedModelError, match=r"TwoHeads gave logits of shape \[2, 2, 96\] for 2 supervised pos"):
        supervised_losses(
            model, lambda: model(input_ids=ids), source=source, target=torch.tensor([4, 5]), logits_bytes=2**20
        )


def test_losses_are_float32_whatever_the_model_is() -> None:
    model = fresh().to(torch.bfloat16)
    out = model.loss(batch(samples()))
    assert {out.loss.dtype, out.loss_sum.dtype, out.target_losses.dtype} == {torch.float32}
    assert_close(out.loss, joined().loss(batch(samples())).loss, tolerance=0.05)


def loss_and_gradient(logits: Tensor, target: Tensor, *, own: bool) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    losses = (
        cross_entropy(logits, target) if own else nn.functional.cross_entropy(logits.float(), target, reduction="none")
    )
    (losses * torch.arange(1.0, len(target) + 1)).sum().backward()
    assert logits.grad is not None and logits.grad.dtype == logits.dtype
    return losses.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_narrow_logits_give_pytorchs_loss_and_gradient(
    dtype: torch.dtype, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 4 * VOCABULARY * rows_at_once)
    logits = (torch.randn(NUM_ROWS, VOCABULARY) * 5).to(dtype)
    target = torch.randint(VOCABULARY, (NUM_ROWS,))
    own, gradient = loss_and_gradient(logits, target, own=True)
    expected, expected_gradient = loss_and_gradient(logits, target, own=False)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_wide_logits_are_left_to_pytorch() -> None:
    logits, target = torch.randn(NUM_ROWS, VOCABULARY), torch.randint(VOCABULARY, (NUM_ROWS,))
    for own, expected in zip(
        loss_and_gradient(logits, target, own=True), loss_and_gradient(logits, target, own=False), strict=True
    ):
        assert torch.equal(own, expected)


def test_no_rows_give_no_losses() -> None:
    logits = torch.zeros(0, VOCABULARY, dtype=torch.bfloat16, requires_grad=True)
    losses = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,) and losses.dtype == torch.float32 and logits.grad is not None


def test_what_is_not_finite_stays_not_finite() -> None:
    logits = torch.zeros(2, VOCABULARY, dtype=torch.bfloat16)
    logits[1, 3] = float("nan")
    losses = cross_entropy(logits, torch.tensor([0, 0]))
    assert losses.isfinite().tolist() == [True, False]


def test_only_narrow_logits_and_a_number_a_row_are_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    logits = torch.zeros(NUM_ROWS, VOCABULARY, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        cross_entropy(logits, torch.zeros(NUM_ROWS, dtype=torch.long))
    assert sum(tensor.numel() for tensor in kept) == NUM_ROWS * (VOCABULARY + 2)
    assert [tensor.dtype for tensor in kept if tensor.dim() == 2] == [torch.bfloat16]
