"""Export M3IT from the Hub to the local form that visgraft reads, in an environment of its own.

M3IT is a loading script, which `datasets` 4 and later refuses; visgraft needs 4 or later. So, once:

    python -m venv m3it-env
    m3it-env/bin/pip install "datasets<4" pillow
    m3it-env/bin/python docs/export_m3it.py ~/m3it coco textcap viquae      # or: all

Each task becomes ~/m3it/TASK/train.jsonl, validation.jsonl, test.jsonl, as far as it has these splits. A file is
written under another name first, so a second call goes on with what is missing. It imports nothing of visgraft.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import datasets

REPOSITORY = "MMInstruction/M3IT"
FIELDS = ("instruction", "inputs", "image_base64_str", "outputs")


def export(task: str, folder: Path, *, repository: str) -> None:
    """Write every split of a task that is not there yet."""
    for split in datasets.get_dataset_split_names(repository, task, trust_remote_code=True):
        path = folder / task / f"{split}.jsonl"
        if path.is_file():
            sys.stdout.write(f"{path}: is there\n")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        number = 0
        rows = datasets.load_dataset(repository, task, split=split, streaming=True, trust_remote_code=True)
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
    arguments = parser.parse_args()
    tasks = arguments.tasks
    if tasks == ["all"]:
        tasks = datasets.get_dataset_config_names(arguments.repository, trust_remote_code=True)
    for task in tasks:
        export(task, arguments.folder.expanduser(), repository=arguments.repository)


if __name__ == "__main__":
    main()
