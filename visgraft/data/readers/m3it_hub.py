"""Fetch M3IT from the Hub's own parquet conversion, and say plainly where that is not whole.

In:  a task and a split. Out: parquet files on this disk; none where the task has no such split.

    files = fetch_task("viquae", split="train", allow_partial=False)

The dataset itself is a loading script, which `datasets` 4 and later refuses. The conversion on the branch
refs/convert/parquet holds a folder TASK/SPLIT, but of large splits only the first gigabytes, as TASK/partial-SPLIT.
"""

from __future__ import annotations

from pathlib import Path

from visgraft.errors import DataError, MissingAssetError

REPOSITORY, BRANCH = "MMInstruction/M3IT", "refs/convert/parquet"


def fetch_task(task: str, *, split: str, allow_partial: bool) -> list[Path]:
    """Download the parquet files of a task's split, those that are not in the cache yet.

    Raises MissingAssetError where the Hub cannot be reached, DataError where the conversion holds only a part.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    name = "validation" if split == "val" else split
    try:
        there = huggingface_hub.list_repo_files(REPOSITORY, repo_type="dataset", revision=BRANCH)
        whole = sorted(file for file in there if file.startswith(f"{task}/{name}/"))
        part = sorted(file for file in there if file.startswith(f"{task}/partial-{name}/"))
        if part and not whole and not allow_partial:
            raise DataError(
                f"m3it: of {task} {name} the Hub's parquet conversion holds only the first part; export it once as "
                "docs/data.md says and set path, or set allow_partial: true to take what there is"
            )
        download = huggingface_hub.hf_hub_download
        return [Path(download(REPOSITORY, file, repo_type="dataset", revision=BRANCH)) for file in whole or part]
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingAssetError(
            f"m3it: {task} cannot be fetched from the Hub ({reason}); set path to a folder with {task}/{split}.jsonl"
        ) from error
