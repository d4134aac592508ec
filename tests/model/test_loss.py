"""Logits at supervised positions only are the whole logits there, chunked or not, in loss and gradients."""

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
from visgraft.model import loss as head
from visgraft.model.loss import gathered_head, supervised_losses
from visgraft.model.vlm import VisionLanguageModel

# Families that scale or cap their logits behind the head, project before it, or bias it.
SPECIAL = ["llama", "opt_post_norm", "gptj", "mpt", "gemma2", "cohere", "granite"]


def whole_logits(model: VisionLanguageModel, of: Any) -> Tensor:
    """Give the logits [B, S, V] of a batch by running its rows without a gathered head."""
    caught: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        caught.append(output.logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "gathered_head", lambda *_: torch.enable_grad())
        patch.setattr(head, "_check_gathered", lambda *_: None)
        handle = model.language.register_forward_hook(keep)
        patch.setattr(nn.functional, "cross_entropy", lambda logits, target, **_: target.float())
        model.loss(of)
        handle.remove()
    return caught[0]


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
    return caught[0]


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

    monkeypatch.setattr(head, "checkpoint", spy)
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
