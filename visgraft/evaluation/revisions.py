"""Which commit of a data set on the Hub is asked, so that a figure can be measured again on the same data.

In: the sources of a benchmark or a recipe. Out: the same, a branch or tag replaced by the commit that it names today,
and a `LoadedDataset` for each data set. Where the Hub does not answer, an earlier download is read, and that is said.

    entries, loaded = pin_revisions(benchmark.data, say=print)
    loaded[0].commit            # None: it is not known
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visgraft.config import SourceSettings

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class LoadedDataset:
    """A data set of the Hub, as it was loaded.

    Attributes:
        path: its name.
        revision: as the source gives it; `main` where it gives none.
        commit: that it was then; None where the Hub did not answer.
    """

    path: str
    revision: str
    commit: str | None


def pin_revisions(
    entries: Sequence[SourceSettings], *, say: Callable[[str], None]
) -> tuple[tuple[SourceSettings, ...], list[LoadedDataset]]:
    """Replace branches and tags by commits; sources that are no data set of the Hub stay as they are."""
    loaded: dict[tuple[str, str], LoadedDataset] = {}
    pinned: list[SourceSettings] = []
    for entry in entries:
        if entry.source != "hf" or entry.path is None or Path(entry.path).expanduser().exists():
            pinned.append(entry)
            continue
        key = (str(entry.path), str(entry.options.get("revision") or "main"))
        if key not in loaded:
            loaded[key] = LoadedDataset(*key, _commit_of(*key, say=say))
        commit = loaded[key].commit
        pinned.append(entry if commit is None else replace(entry, options={**entry.options, "revision": commit}))
    return tuple(pinned), [*loaded.values()]


def _commit_of(path: str, revision: str, *, say: Callable[[str], None]) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(path, revision=revision, timeout=_PATIENCE_S).sha
    except Exception as error:  # no network, no such name, a token that is refused: reading it says what is wrong
        reason = " ".join(str(error).split())[:160].rstrip(".")
        say(
            f"{path}: the Hub does not say which commit {revision} is ({reason}): what is read may be an earlier "
            "download, so name a commit (revision) before you publish a figure"
        )
        return None
