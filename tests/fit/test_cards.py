import pytest
import torch

from visgraft.errors import ConfigError
from visgraft.fit.cards import CARDS, GIB, card_here, find_card


@pytest.mark.parametrize("text", ["24GB", "24 gb", "24GiB", "24g"])
def test_an_amount_of_memory_is_a_card_without_a_rate(text: str) -> None:
    card = find_card(text)
    assert card.tflops is None
    assert 23 * GIB < card.memory_bytes < 24 * GIB


@pytest.mark.parametrize("text", ["rtx4090", "RTX 4090", "rtx-4090"])
def test_a_card_is_found_however_it_is_written(text: str) -> None:
    assert find_card(text) is CARDS["rtx4090"]


def test_old_cards_train_in_fp16() -> None:
    assert find_card("t4").dtype is torch.float16
    assert find_card("h100").dtype is torch.bfloat16


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
        find_card(text)


def test_every_card_leaves_programs_less_than_its_name_says() -> None:
    for key, card in CARDS.items():
        promised = key.rpartition("-")[2].removesuffix("gb")
        assert card.tflops is not None
        if promised.isdigit():
            assert 0.9 * int(promised) * GIB < card.memory_bytes < int(promised) * GIB


def test_without_a_gpu_the_computer_is_the_card() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    card = card_here()
    assert not card.is_gpu
    assert card.memory_bytes > GIB
