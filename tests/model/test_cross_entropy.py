"""The loss of narrow logits equals PyTorch's own on widened ones, in value, gradient and what is kept for it."""

import pytest
import torch
from torch import Tensor, nn

from visgraft.model import cross_entropy as module
from visgraft.model.cross_entropy import cross_entropy

NUM_ROWS, VOCABULARY = 7, 50


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
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * VOCABULARY * rows_at_once)
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
