"""Export M3IT from the Hub to the local form that visgraft reads, in an environment of its own.

M3IT is a loading script, which `datasets` 4 and later refuses; visgraft needs 4 or later. So, once:

    python -m venv m3it-env
    m3it-env/bin/pip install "datasets<4" pillow
    m3it-env/bin/python docs/export_m3it.py ~/m3it coco textcap viquae      # or: all

Each task becomes ~/m3it/TASK/train.jsonl, validation.jsonl, test.jsonl, as far as it has these splits. A file is
written under another name first, so a second call goes on with what is missing. All of it is of one revision of the
dataset: the commit that the first call finds is kept in ~/m3it/revision.txt, and every later call exports that one;
--revision names another for an empty folder. It imports nothing of visgraft.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import datasets
import huggingface_hub

REPOSITORY = "MMInstruction/M3IT"
FIELDS = ("instruction", "inputs", "image_base64_str", "outputs")


def pin(folder: Path, *, repository: str, revision: str | None) -> str | None:
    """Return the commit that a folder is exported from, and keep it there; None for a clone on this disk.

    Raises SystemExit where the folder holds another one.
    """
    if Path(repository).is_dir():
        return None
    kept = folder / "revision.txt"
    pinned = kept.read_text().strip() if kept.is_file() else None
    if pinned is not None and revision in (None, pinned):
        return pinned
    commit = str(huggingface_hub.HfApi().dataset_info(repository, revision=revision).sha)
    if pinned not in (None, commit):
        raise SystemExit(f"{kept}: is of {pinned}, not of {commit}; export another revision to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(commit + "\n")
    return commit


def export(task: str, folder: Path, *, repository: str, revision: str | None) -> None:
    """Write every split of a task that is not there yet."""
    hub = {"revision": revision, "trust_remote_code": True}
    for split in datasets.get_dataset_split_names(repository, task, **hub):
        path = folder / task / f"{split}.jsonl"
        if path.is_file():
            sys.stdout.write(f"{path}: is there\n")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        number = 0
        rows = datasets.load_dataset(repository, task, split=split, streaming=True, **hub)
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({field: row.get(field) for field in FIELDS}, ensure_ascii=False) + "\n")
                number += 1
        if number:
            part.replace(path)
        else:
            part.unlink()
        sys.stdout.write(f"{path}: {number:,} rows\n")


def main() -> None:
    """Export the tasks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="+", help="names of tasks, or: all")
    parser.add_argument("--repository", default=REPOSITORY, help="on the Hub, or a clone on this disk")
    parser.add_argument("--revision", help="commit, tag or branch; else that of the folder, else the newest")
    arguments = parser.parse_args()
    folder, repository = arguments.folder.expanduser(), arguments.repository
    revision = pin(folder, repository=repository, revision=arguments.revision)
    sys.stdout.write(f"{repository} at {revision or 'what lies there'}\n")
    tasks = arguments.tasks
    if tasks == ["all"]:
        tasks = datasets.get_dataset_config_names(repository, revision=revision, trust_remote_code=True)
    for task in tasks:
        export(task, folder, repository=repository, revision=revision)


if __name__ == "__main__":
    main()
