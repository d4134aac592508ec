"""bf16 on a CPU bounds the caches of kernels, and leaves alone what somebody has set."""

import pytest
import torch

from visgraft.model.precision import KEPT_KERNELS, KERNEL_CACHES, computing_dtype


@pytest.mark.parametrize(("precision", "is_bounded"), [("bf16", True), ("fp32", False)])
def test_bf16_on_a_cpu_bounds_the_caches_of_kernels(
    monkeypatch: pytest.MonkeyPatch, precision: str, is_bounded: bool
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    computing_dtype(precision, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert environment == (dict.fromkeys(KERNEL_CACHES, str(KEPT_KERNELS)) if is_bounded else {})


def test_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict.fromkeys(KERNEL_CACHES, "7")
    monkeypatch.setattr("os.environ", environment)
    computing_dtype("bf16", device=torch.device("cpu"))
    computing_dtype("bf16", device=torch.device("meta"))
    assert set(environment.values()) == {"7"}
