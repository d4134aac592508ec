"""How a number of things is written in a sentence.

In: a number and what is counted. Out: words. Usage: `counted(2000, "image")`, which is "2,000 images"
"""


def counted(number: float, noun: str) -> str:
    """Write a number of things, one of them or many, with the thousands marked."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"
