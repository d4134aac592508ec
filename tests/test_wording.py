"""Numbers of things in sentences."""

from visgraft.wording import counted


def test_one_thing_is_one_and_thousands_are_marked() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 2000)] == [
        "0 images",
        "1 image",
        "2 images",
        "2,000 images",
    ]
