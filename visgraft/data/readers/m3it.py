"""Read M3IT: rows of instruction, inputs, outputs and images in base64, a folder per task.

In:  a folder with TASK/train.jsonl, TASK/validation.jsonl (or val), ... or the same as .parquet, of rows
     {"instruction": "Answer the question.", "inputs": "What is it?", "image_base64_str": ["..."], "outputs": "A cat."}
     or no path: the Hub's own parquet conversion, task by task where it is whole. (The dataset itself is a loading
     script, which `datasets` 4 and later refuses; docs/data.md says how to export it.)
Out: one sample per image, known by what it holds; instruction and inputs stay apart for the prompt template.

tasks: a task, a list of tasks, or a set: all-english-images, git-llm (see m3it_tasks.py).

    {source: m3it, path: ~/m3it, tasks: git-llm, split: train}                      in a recipe
"""

from __future__ import annotations

from pathlib import Path

from visgraft.data.grouping import RowSource
from visgraft.data.readers.files import find_split, open_files
from visgraft.data.readers.m3it_tasks import TASKS, tasks_of
from visgraft.data.readers.row_formats import Content, content_of_row
from visgraft.data.readers.rows import Row, Rows, join_rows
from visgraft.data.sample import Source
from visgraft.errors import DataError, MissingAssetError

REPOSITORY, BRANCH = "MMInstruction/M3IT", "refs/convert/parquet"


def read(
    path: Path | None,
    *,
    split: str,
    tasks: str | list[str] | None = None,
    allow_partial: bool = False,
) -> Source:
    """Return the rows of some tasks one behind the other; tasks without the split are left out and noted.

    tasks: None = all that the folder holds, or from the Hub all-english-images. allow_partial: read what the Hub's
    conversion holds of a task even where it is not whole.
    Raises MissingAssetError without any files, DataError where nothing can be read, ConfigError for an unknown task.
    """
    if path is None:
        chosen = tasks_of("all-english-images" if tasks is None else tasks)
        files = {task: _fetch(task, split=split, allow_partial=allow_partial) for task in chosen}
    else:
        chosen = _tasks_there(path) if tasks is None else tasks_of(tasks)
        files = {task: _local_files(path, task, split=split) for task in chosen}
    parts: list[Rows] = []
    notes: list[str] = []
    for task, found in files.items():
        rows = open_files(found) if found else None
        if rows is not None and len(rows):
            parts.append(rows)
        notes.append(_note(task, split=split, num_found=len(rows or ()), has_files=bool(found)))
    if not parts:
        raise DataError(f"m3it: no rows of split {split!r}: {'; '.join(notes)}")
    return M3it(join_rows(parts), notes=notes)


class M3it(RowSource):
    """Hold the rows of some tasks; notes say what was found beside what the card counts. See Source."""

    def __init__(self, rows: Rows, *, notes: list[str]) -> None:
        super().__init__(rows, read_row=_content)
        self.notes = notes


def _content(row: Row) -> Content:
    found = content_of_row({**row, "images": row.get("image_base64_str")}, row_format="m3it")
    images = [{"base64": image} if isinstance(image, str) else image for image in found.images]
    return Content(images, found.dialogs, found.id)


def _tasks_there(path: Path) -> list[str]:
    there = sorted(folder.name for folder in _task_folders(path) if folder.is_dir())
    if not there:
        raise MissingAssetError(
            f"m3it: {path} holds no folder per task; it should hold coco/train.jsonl and the like, "
            "which docs/data.md says how to export"
        )
    return there


def _task_folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []


def _local_files(path: Path, task: str, *, split: str) -> list[Path]:
    for name in (task, task.replace("-", "_")):
        if (path / name).is_dir():
            try:
                return find_split(path / name, split=split, reader="m3it")
            except MissingAssetError:
                return []
    raise MissingAssetError(f"m3it: {path} has no folder {task}; export that task too, or leave it out of tasks")


def _fetch(task: str, *, split: str, allow_partial: bool) -> list[Path]:
    """Download the parquet files of a task's split, those that are not in the cache yet; none where there is no split.

    The conversion holds a folder TASK/SPLIT, but of large splits only the first gigabytes, as TASK/partial-SPLIT.
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


def _note(task: str, *, split: str, num_found: int, has_files: bool) -> str:
    expected = TASKS[task].expected(split) if task in TASKS else None
    if not has_files:
        usual = "" if expected else ", which the card does not count either" if expected == 0 else ""
        return f"{task}: has no {split} split{usual}"
    card = "the card's count is not known" if expected is None else f"the card counts {expected:,}"
    return f"{task}: {num_found:,} rows of {split} found, {card}"
