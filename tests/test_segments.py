"""The drawing that explains the kinds of a position is what `collate` writes."""

import re

import torch

from visgraft import segments
from visgraft.data.batch import EncodedSample, collate
from visgraft.data.prompt import EncodedDialog


def sample(*text_lengths: int) -> EncodedSample:
    dialogs = tuple(EncodedDialog((7,) * length, (False,) * length, 0, False) for length in text_lengths)
    return EncodedSample(dialogs, {"pixel_values": torch.zeros(1, 3, 4, 4)}, num_image_tokens=(2,))


def test_the_drawing_is_the_table_of_such_a_row() -> None:
    drawn = dict(re.findall(r"^    (\w+) +((?:[-\d] ){13}[-\d])", segments.__doc__ or "", re.MULTILINE))
    filled = collate([sample(3, 2), sample(3), sample(12)], layout="shared", pad_token_id=0, rows=[[0, 1], [2]])
    assert {name: [int(value.replace("-", "-1")) for value in values.split()] for name, values in drawn.items()} == {
        name: filled[name][0].tolist() for name in drawn
    }
    assert set(drawn) == {"kind", "group", "segment", "position"}
