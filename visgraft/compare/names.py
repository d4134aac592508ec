"""The names of variants: an experiment's, a recipe's, a folder's; where they are the same, with what differs.

In: groups of runs, each a variant. Out: a name for each, all different.

    variant_names(groups)        # ["coco (learning_rate 0.0001)", "coco (learning_rate 0.001)", "easy-vqa"]
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from visgraft.compare.differences import as_text, different_settings, without_seed
from visgraft.compare.variants import RunData

Group = Sequence[RunData]
MAX_SETTINGS = 2  # that name a variant; where more differ, its folder does
MAX_VALUE_LENGTH = 24  # characters of a value that still reads as part of a name


def variant_names(groups: Sequence[Group]) -> list[str]:
    """Name every group of runs; those of one name are told apart by what differs."""
    own = [_name_of(group[0]) for group in groups]
    names = list(own)
    for name in dict.fromkeys(own):
        places = [place for place, other in enumerate(own) if other == name]
        if len(places) > 1:
            same = [groups[place] for place in places]
            for place, what in zip(places, _by_settings(same) or _by_folders(same, name=name), strict=True):
                names[place] = f"{name} ({what})"
    return _all_different(names)


def _name_of(run: RunData) -> str:
    """Name a run as its experiment does, else as its recipe does, else as its folder without date and seed."""
    if run.variant or run.recipe.name:
        return run.variant or str(run.recipe.name)
    return without_seed_ending(re.sub(r"^\d{8}-\d{6}-", "", run.folder.name)) or run.folder.name


def without_seed_ending(name: str) -> str:
    """Cut `-seed0` off a folder's name."""
    return re.sub(r"[-_.]?seed[-_]?\d+$", "", name)


def _by_settings(groups: Sequence[Group]) -> list[str]:
    """Tell groups apart by their settings; an empty list where too many differ, none does, or one is long."""
    settings = [without_seed(group[0].settings) for group in groups]
    found = different_settings(settings)
    if not 1 <= len(found) <= MAX_SETTINGS:
        return []
    short = {key: key.partition(".")[2] or key for key in found}
    titles = short if len(set(short.values())) == len(short) else {key: key for key in found}
    values = [[(titles[key], as_text(value[place])) for key, value in found.items()] for place in range(len(groups))]
    if any(len(value) > MAX_VALUE_LENGTH for row in values for _, value in row):
        return []
    texts = [", ".join(f"{title} {value}" for title, value in row) for row in values]
    return texts if len(set(texts)) == len(texts) else []


def _by_folders(groups: Sequence[Group], *, name: str) -> list[str]:
    """Tell groups apart by the folder of their first run, with as many of the folders around it as it takes."""
    folders = [group[0].folder for group in groups]
    texts: list[str] = []
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        texts = ["/".join(folder.parts[-depth:]) for folder in folders]
        bare = [without_seed_ending(text).removesuffix(f"-{name}") for text in texts]
        for names in (bare, texts):
            if len(set(names)) == len(names) and all(names):
                return names
    return texts


def _all_different(names: Sequence[str]) -> list[str]:
    """Number the names that are the same still: a recipe may happen to be called as what tells others apart."""
    different: list[str] = []
    for name in names:
        number = 1
        while (numbered := name if number == 1 else f"{name} ({number})") in different:
            number += 1
        different.append(numbered)
    return different
