import pytest
import torch

from visgraft.errors import ConfigError
from visgraft.estimate.gpus import GIB, GPUS, find_gpu, local_gpu


@pytest.mark.parametrize("text", ["24GB", "24 gb", "24GiB", "24g"])
def test_an_amount_of_memory_is_a_card_without_a_rate(text: str) -> None:
    gpu = find_gpu(text)
    assert gpu.tflops is None
    assert 23 * GIB < gpu.memory_bytes < 24 * GIB


@pytest.mark.parametrize("text", ["rtx4090", "RTX 4090", "rtx-4090"])
def test_a_card_is_found_however_it_is_written(text: str) -> None:
    assert find_gpu(text) is GPUS["rtx4090"]


def test_old_cards_train_in_fp16() -> None:
    assert find_gpu("t4").dtype is torch.float16
    assert find_gpu("h100").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a100", "did you mean a100-40gb or a100-80gb"),
        ("rtx4091", "did you mean rtx4090"),
        ("0GB", "need memory above 0"),
        ("", "give its memory, such as 24GB, or one of t4, "),
        ("lots", "got 'lots'"),
    ],
)
def test_what_is_no_card_is_refused(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        find_gpu(text)


def test_every_gpu_leaves_programs_less_than_its_name_says() -> None:
    for key, gpu in GPUS.items():
        promised = key.rpartition("-")[2].removesuffix("gb")
        assert gpu.tflops is not None
        if promised.isdigit():
            assert 0.9 * int(promised) * GIB < gpu.memory_bytes < int(promised) * GIB


def test_without_a_gpu_the_computer_takes_its_place() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    gpu = local_gpu()
    assert not gpu.is_gpu
    assert gpu.memory_bytes > GIB
