"""Read M3IT: rows of instruction, inputs, outputs and images in base64, a folder per task.

In:  a folder with TASK/train.jsonl, TASK/validation.jsonl (or val), ... or the same as .parquet, of rows
     {"instruction": "Answer the question.", "inputs": "What is it?", "image_base64_str": ["..."], "outputs": "A cat."}
     or no path: the Hub's own parquet conversion, task by task where it is whole. (The dataset itself is a loading
     script, which `datasets` 4 and later refuses; docs/data.md says how to export it.)
     Or a parquet mirror of all tasks in one, data/train-*.parquet, in a folder or on the Hub (`repository`), whose
     columns fit: `image` may stand in the place of `image_base64_str`. As its rows do not name their task, `tasks` is
     refused.
Out: one sample per image, known by what it holds; instruction and inputs stay apart for the prompt template.

tasks: a task, a list of tasks, or a set: all-english-images, git-llm, article (see m3it_tasks.py).

    {source: m3it, path: ~/m3it, tasks: git-llm, split: train}                      in a recipe
    {source: m3it, repository: HuggingFaceM4/M3IT}
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from visgraft.data.grouping import RowSource
from visgraft.data.readers.files import find_split, open_files
from visgraft.data.readers.m3it_tasks import NAMED_SETS, TASKS, expected_in, tasks_of
from visgraft.data.readers.row_formats import Content, content_of_row
from visgraft.data.readers.rows import Row, Rows, join_rows
from visgraft.data.readers.splits import parse_split, rows_of_split, synonyms
from visgraft.data.readers.tables import ParquetRows
from visgraft.data.sample import Source
from visgraft.errors import ConfigError, DataError, MissingAssetError

REPOSITORY, BRANCH = "MMInstruction/M3IT", "refs/convert/parquet"
_NEEDED, _IMAGES = ("instruction", "inputs", "outputs"), ("image_base64_str", "image", "images")


def read(
    path: Path | None,
    *,
    split: str,
    tasks: str | list[str] | None = None,
    allow_partial: bool = False,
    repository: str | None = None,
    revision: str | None = None,
    encoding: str | None = None,
) -> Source:
    """Return the rows of some tasks one behind the other; tasks without the split are left out and noted.

    tasks: None = all that the folder holds, or from the Hub all-english-images. allow_partial: read what the Hub's
    conversion holds of a task even where it is not whole. repository, revision: a parquet mirror on the Hub, and its
    branch or commit. A slice of a split is taken of each task.
    Raises MissingAssetError without any files, DataError where nothing can be read or a mirror has other columns,
    ConfigError for an unknown task, and for tasks of a mirror.
    """
    if (revision is not None and repository is None) or (path is not None and repository is not None):
        raise ConfigError(
            "m3it: repository names a parquet mirror on the Hub, and revision its commit; leave out path, or both"
        )
    if repository is not None or (path is not None and _is_mirror(path)):
        return _read_mirror(path, split=split, tasks=tasks, repository=repository, revision=revision)
    if path is None:
        chosen = tasks_of("all-english-images" if tasks is None else tasks)
        files_of = partial(_fetch, allow_partial=allow_partial)
    else:
        chosen = _tasks_there(path) if tasks is None else tasks_of(tasks)
        files_of = partial(_local_files, path)
    parts: list[Rows] = []
    found: dict[str, int] = {}
    notes: list[str] = []
    is_whole = all(part.is_whole for part in parse_split(split, reader="m3it"))
    for task in chosen:
        there: list[Path] = []

        def open_named(name: str, task: str = task, there: list[Path] = there) -> Rows:
            there += (files := files_of(task, split=name))
            return open_files(files, encoding=encoding) if files else join_rows([])

        rows = rows_of_split(split, reader="m3it", open_named=open_named)
        if len(rows):
            parts.append(rows)
        found[task] = len(rows)
        counted = split if is_whole else None
        notes.append(_note(task, split=split, counted=counted, num_found=len(rows), has_files=bool(there)))
    if not parts:
        raise DataError(f"m3it: no rows of split {split!r}: {'; '.join(notes)}")
    sets = [] if tasks is None or not is_whole else [tasks] if isinstance(tasks, str) else tasks
    notes += [_note_of_set(name, split=split, found=found) for name in sets if name in NAMED_SETS]
    return M3it(join_rows(parts), notes=notes)


class M3it(RowSource):
    """Hold the rows of some tasks; notes say what was found beside what the card counts. See Source."""

    def __init__(self, rows: Rows, *, notes: list[str]) -> None:
        super().__init__(rows, read_row=_content)
        self.notes = notes


def _content(row: Row, *, texts: bool = True) -> Content:
    found = content_of_row(row, row_format="m3it", texts=texts)
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

    try:
        there = huggingface_hub.list_repo_files(REPOSITORY, repo_type="dataset", revision=BRANCH)
        names = synonyms(split)
        whole = sorted(file for file in there if file.startswith(tuple(f"{task}/{name}/" for name in names)))
        part = sorted(file for file in there if file.startswith(tuple(f"{task}/partial-{name}/" for name in names)))
        if part and not whole and not allow_partial:
            raise DataError(
                f"m3it: of {task} {split} the Hub's parquet conversion holds only the first part; export it once as "
                "docs/data.md says and set path, set allow_partial: true to take what there is, or read a parquet "
                "mirror of all tasks (repository: HuggingFaceM4/M3IT)"
            )
        download = huggingface_hub.hf_hub_download
        return [Path(download(REPOSITORY, file, repo_type="dataset", revision=BRANCH)) for file in whole or part]
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingAssetError(
            f"m3it: {task} cannot be fetched from the Hub ({reason}); set path to a folder with {task}/{split}.jsonl"
        ) from error


def _note(task: str, *, split: str, counted: str | None, num_found: int, has_files: bool) -> str:
    """Say what was found of a task, beside what the card counts in a split (None: in a part of it, nothing)."""
    if counted is None:
        return f"{task}: {num_found:,} rows of {split} found"
    expected = TASKS[task].expected(counted) if task in TASKS else None
    if not has_files:
        usual = "" if expected else ", which the card does not count either" if expected == 0 else ""
        return f"{task}: has no {split} split{usual}"
    card = "the card's count is not known" if expected is None else f"the card counts {expected:,}"
    return f"{task}: {num_found:,} rows of {split} found, {card}"


def _note_of_set(name: str, *, split: str, found: dict[str, int]) -> str:
    """Say how many rows a set has, beside what is counted in it."""
    number, expected = sum(found[task] for task in NAMED_SETS[name]), expected_in(name, split)
    who = "the article and the card count" if name == "article" else "the card counts"
    card = "the card's count is not known" if expected is None else f"{who} {expected:,}"
    return f"{name}: {number:,} rows of {split} found in its {len(NAMED_SETS[name])} tasks, {card}"


# --- A parquet mirror


def _is_mirror(path: Path) -> bool:
    """Say whether a folder holds the tasks in one: data/SPLIT-*.parquet or SPLIT-*.parquet, and no task's folder."""
    has_tasks = any(folder.name.replace("_", "-") in TASKS for folder in _task_folders(path))
    return not has_tasks and any(any(folder.glob("*.parquet")) for folder in (path, path / "data"))


def _read_mirror(
    path: Path | None, *, split: str, tasks: str | list[str] | None, repository: str | None, revision: str | None
) -> Source:
    if tasks is not None:
        raise ConfigError(
            f"m3it: tasks: got {tasks!r}, but the rows of a mirror do not say of which task they are; leave tasks out, "
            "or export the tasks as docs/data.md says"
        )

    def open_named(name: str) -> Rows:
        if path is None:
            files = _fetch_mirror(str(repository), name, revision=revision)
        else:
            files = find_split(path, split=name, reader="m3it", suffixes=(".parquet",))
        rows = ParquetRows(files)
        lacks = [key for key in _NEEDED if key not in rows.columns]
        lacks += [] if any(key in rows.columns for key in _IMAGES) else [" or ".join(_IMAGES)]
        if lacks:
            raise DataError(
                f"m3it: {files[0]} is no mirror of M3IT: it lacks the columns {', '.join(lacks)} and has "
                f"{', '.join(rows.columns)}; read it with source: parquet and columns, which says what each column is"
            )
        return rows

    rows = rows_of_split(split, reader="m3it", open_named=open_named)
    if not len(rows):
        raise DataError(f"m3it: {path or repository} holds no rows of split {split!r}")
    return M3it(
        rows, notes=[f"{path or repository}: {len(rows):,} rows of {split}, of tasks that the rows do not name"]
    )


def _fetch_mirror(repository: str, split: str, *, revision: str | None) -> list[Path]:
    """Download a mirror's files of a split, the first one alone until its columns are known to fit."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        there = sorted(huggingface_hub.list_repo_files(repository, repo_type="dataset", revision=revision))
        starts = tuple(f"{folder}{name}-" for folder in ("data/", "") for name in synonyms(split))
        files = [file for file in there if file.startswith(starts) and file.endswith(".parquet")]
        if not files:
            raise MissingAssetError(
                f"m3it: {repository} has no data/{split}-*.parquet; it holds {', '.join(there[:8]) or 'nothing'}"
            )
        download = partial(huggingface_hub.hf_hub_download, repository, repo_type="dataset", revision=revision)
        first = Path(download(files[0]))
        columns = set(ParquetRows([first]).columns)
        if not {*_NEEDED} <= columns or not columns & {*_IMAGES}:
            return [first]
        return [first, *(Path(download(file)) for file in files[1:])]
    except (OSError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingAssetError(f"m3it: {repository} cannot be fetched from the Hub ({reason})") from error
