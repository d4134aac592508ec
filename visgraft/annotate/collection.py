"""What is to be labelled: a folder of images, any source of a recipe, or shards by a pattern; as rows by their number.

In: what the user calls the data. Out: a `Collection` of input shards, each opened when a row of it is wanted.

    collection = open_collection("shards/train-{0000..0331}.tar", with_texts=False)
    shard = collection.shards[0]
    sample = shard.open()[17]

Every row is one sample: an image file of a folder, a member name of a tar, a row of a table (rows about one image are
not gathered: that would take reading all of them first), an entry of an annotation file. A tar is indexed when a row
of it is first wanted, so how many rows it has is not known before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from visgraft.config import DataSettings, SourceSettings, find_recipe, load_data
from visgraft.data.fingerprint import stamp
from visgraft.data.grouping import RowSource
from visgraft.data.readers.detect import detect
from visgraft.data.readers.files import ALL_SUFFIXES, open_files
from visgraft.data.readers.folder import IMAGE_SUFFIXES
from visgraft.data.readers.rows import ROW_SUFFIXES
from visgraft.data.readers.splits import parse_split
from visgraft.data.readers.tars import TarRows, expand_paths, tars_of_split
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import Sample, Source
from visgraft.data.sources import READERS, OpenSource, adapt, name_sources, open_sources, reader_of
from visgraft.errors import ConfigError, DataError, MissingAssetError
from visgraft.starter import resolve

RECIPE_SUFFIXES = (".yaml", ".yml")
_LOOKED_AT = 100_000  # names of a folder, to see what is in it
_NEED = (
    "a folder of images, a recipe, a source such as coco:~/coco, or shards such as 'shards/*.tar' or "
    "'train-{000..127}.tar'"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shard:
    """Some rows that are opened together: a tar, or a whole source.

    Attributes:
        name: of the shard among the others, for the user.
        source: which kind it is, as a recipe names its sources.
        described: differs wherever its rows may differ; what its image files hold, each row tells.
        read: opens it.
        num_rows: how many there are; None: opening it tells.
    """

    name: str
    source: str
    described: str
    read: Callable[[], Source]
    num_rows: int | None = None

    def open(self) -> Source:
        """Open it. Raises DataError where it is damaged."""
        return self.read()


@dataclass(frozen=True)
class Collection:
    """All that is to be labelled.

    Attributes:
        name: as the user calls it.
        shards: in their order.
    """

    name: str
    shards: Sequence[Shard]

    @property
    def num_rows(self) -> int | None:
        """How many rows there are; None where only opening all of it would tell."""
        counts = [shard.num_rows for shard in self.shards]
        return None if None in counts else sum(count or 0 for count in counts)


def open_collection(
    data: str,
    *,
    with_texts: bool,
    part: str = "train",
    split: str | None = None,
    limit: int | None = None,
    say: Say = lambda text: None,
) -> Collection:
    """Find out what the data are.

    Args:
        data: a folder, a recipe, READER:PATH, a file, or shards by a pattern.
        with_texts: whether their dialogs are wanted, or their images alone.
        part: of a recipe, which list of sources.
        split: of a source that is no recipe's; None = as it is found, else train.
        limit: the first so many rows of each source.
        say: is told what takes a while.

    Raises:
        MissingAssetError: nothing is there.
        DataError: nothing in it can be labelled, or it asks nothing and texts are wanted.
        ConfigError: a recipe that is none, a source that is read as a stream.
    """
    settings, found = _find(data, with_texts=with_texts, part=part, split=split, say=say)
    if isinstance(found, Shard):
        shards = [_limited(found, limit)]
    else:
        local = [resolve(entry, say=say) for entry in found]
        local = [entry if limit is None else replace(entry, limit=min(limit, entry.limit or limit)) for entry in local]
        key = f"data.{part}"
        shards = [
            shard
            for number, (name, entry) in enumerate(zip(name_sources(local), local, strict=True))
            for shard in _shards(name, entry, key=f"{key}.{number}", settings=settings, with_texts=with_texts)
        ]
    collection = Collection(data, shards)
    if not shards or collection.num_rows == 0:
        raise DataError(f"{data}: holds nothing to label; need {_NEED}")
    return collection


# --- What the user means


def _find(
    data: str, *, with_texts: bool, part: str, split: str | None, say: Say
) -> tuple[DataSettings, Sequence[SourceSettings] | Shard]:
    """Find the sources that are meant, or the files that are one shard."""
    reader, colon, path = data.partition(":")
    if colon and reader in READERS:
        return DataSettings(), [SourceSettings(reader, path=path or None, split=split or "train")]
    there = Path(data).expanduser()
    recipe = find_recipe(data)
    if recipe.suffix.lower() in RECIPE_SUFFIXES or (recipe / "recipe.yaml").is_file():
        settings, _ = load_data(data)
        entries = getattr(settings, part)
        if not entries:
            raise ConfigError(f"{data}: data.{part}: missing; name another list with --part, or add sources there")
        if split is not None:
            raise ConfigError(f"--split: got {split!r} for a recipe, whose sources name their own; leave it out")
        return settings, entries
    if not there.exists():
        if not set(data) & set("*?[{"):
            raise MissingAssetError(f"{data}: no such file or folder; need {_NEED}")
        return DataSettings(), _of_files(data, expand_paths(data), with_texts=with_texts)
    if there.is_dir() and not with_texts:
        return DataSettings(), _of_folder(there, data, split=split)
    if there.is_file() and there.suffix.lower() in IMAGE_SUFFIXES:
        return DataSettings(), _of_files(data, [there], with_texts=with_texts)
    return DataSettings(), _detected(there, data, with_texts=with_texts, split=split)


def _of_folder(folder: Path, data: str, *, split: str | None) -> Sequence[SourceSettings] | Shard:
    """Take a folder for its images alone: image files, else tars, else tables, else whatever `init` finds."""
    files = list(islice(_walk(folder), _LOOKED_AT))
    suffixes = {os.path.splitext(name)[1].lower() for name in files}  # noqa: PTH122  # there are many
    if suffixes & set(IMAGE_SUFFIXES):
        return _images(folder, _walk(folder))
    if not files:
        raise DataError(f"{data}: the folder is empty; need {_NEED}")
    if ".tar" in suffixes or ".parquet" not in suffixes:
        return _detected(folder, data, with_texts=False, split=split)
    try:
        return _detected(folder, data, with_texts=True, split=split)
    except DataError:  # no texts in it, so no format that is known
        tables = [folder / name for name in files if name.lower().endswith(".parquet")]
        return _of_files(data, tables, with_texts=False)


def _detected(path: Path, data: str, *, with_texts: bool, split: str | None) -> Sequence[SourceSettings] | Shard:
    """Take what `visgraft init` would train on."""
    try:
        found = detect(path)
    except DataError:
        if path.is_file() and path.suffix.lower() in ALL_SUFFIXES and not with_texts:
            return _of_files(data, [path], with_texts=with_texts)
        if path.is_dir() and not any(_walk(path)):
            raise DataError(f"{data}: the folder is empty; need {_NEED}") from None
        if path.is_dir() and with_texts and _has_images(path):
            raise _asks_nothing(data) from None
        raise
    if found.captions is not None:
        raise _asks_nothing(data)
    return [found.train if split is None else replace(found.train, split=split)]


def _asks_nothing(data: str) -> DataError:
    return DataError(
        f'{data}: holds images and no dialogs, so nothing is asked about them; give --prompt "What is in it?", '
        'or --prompt "" for the caption that the model was trained to write'
    )


def _of_files(data: str, files: Sequence[Path], *, with_texts: bool) -> Sequence[SourceSettings] | Shard:
    """Take files that are named themselves: images, tars, or tables of rows."""
    kinds = {file.suffix.lower() for file in files}
    if kinds <= set(IMAGE_SUFFIXES):
        if with_texts:
            raise _asks_nothing(data)
        folder = Path(os.path.commonpath([file.absolute().parent for file in files]))
        return _images(folder, iter(str(file.absolute().relative_to(folder)) for file in files))
    if kinds == {".tar"}:
        return [SourceSettings("webdataset", path=data)]
    if kinds <= {".parquet", *ROW_SUFFIXES}:
        rows = open_files(files)
        source = RowSource(rows, folder=files[0].parent)
        samples = source if with_texts else source.without_texts()
        return Shard(data, "parquet", _sum(rows.fingerprint.described()), lambda: samples, len(rows))
    named = next(file for file in files if file.suffix.lower() not in (".tar", ".parquet"))
    raise DataError(f"{data}: {named} is of another kind than can be labelled; need {_NEED}")


# --- One source, as shards


def _shards(name: str, entry: SourceSettings, *, key: str, settings: DataSettings, with_texts: bool) -> Iterator[Shard]:
    """List the shards of a source: each tar of a WebDataset, else the whole of it, opened here."""
    if entry.options.get("streaming") and "take" not in entry.options:
        raise ConfigError(
            f"{key}.streaming: true, but rows are labelled by their number, so that any process can take some; leave "
            "streaming out (tars are read one by one in any case)"
        )
    if entry.source == "webdataset" and entry.path is not None and isinstance(entry.split, str):
        parts = parse_split(entry.split, reader="webdataset")
        if all(part.is_whole for part in parts) and entry.limit is None:
            reader_of(entry, key=key)  # refuses an option that does not exist
            for tar in [tar for part in parts for tar in tars_of_split(entry.path, split=part.name)]:
                one = replace(entry, path=str(tar))
                read = partial(_read_tar, tar, one, key=key, settings=settings, with_texts=with_texts)
                yield Shard(tar.name, name, _sum(stamp([tar]).described()), read)
            return
    samples = _read(entry, key=key, settings=settings, with_texts=with_texts)
    length = len(samples) if entry.limit is None else min(entry.limit, len(samples))
    described = OpenSource(name, samples, length).described()
    described.pop("images", None)  # a broken one may be mended, and its rows tried again
    yield Shard(entry.path or name, name, _sum(described), lambda: samples, length)


def _read_tar(tar: Path, entry: SourceSettings, *, key: str, settings: DataSettings, with_texts: bool) -> Source:
    return _read(entry, key=key, settings=settings, with_texts=with_texts) if len(TarRows([tar])) else _Nothing()


def _read(entry: SourceSettings, *, key: str, settings: DataSettings, with_texts: bool) -> Source:
    """Open a source, its rows as they stand; where a share is held out, as training does, without that share."""
    if entry.held_out:
        return open_sources([replace(entry, limit=None)], key=key, settings=settings).opened[0].samples
    path = None if entry.path is None else Path(entry.path).expanduser()
    source = reader_of(entry, key=key)(path, split=entry.split)
    if isinstance(source, SampleStream):
        raise ConfigError(f"{key}: is read as a stream, and rows are labelled by their number; leave streaming out")
    if isinstance(source, RowSource) and not with_texts:
        source = source.without_texts()
    return adapt(source, entry=entry, settings=settings)


class _Nothing:
    """A tar without a sample; see Source."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)

    def where(self, index: int) -> str:
        """Say nothing."""
        raise IndexError(index)


def _limited(shard: Shard, limit: int | None) -> Shard:
    return shard if limit is None or shard.num_rows is None else replace(shard, num_rows=min(limit, shard.num_rows))


def _sum(described: dict[str, str]) -> str:
    return blake2b(repr(sorted(described.items())).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


# --- Image files


class ImageFiles:
    """Make a sample of every image file; see Source."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return Sample(images=[self.folder / self.names[index]], dialogs=[], id=self.names[index])

    def where(self, index: int) -> str:
        """Say which file it is."""
        return self.names[index]


def _images(folder: Path, names: Iterator[str]) -> Shard:
    """Take all image files, in the order of their names."""
    listed = sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    digest = blake2b("\0".join(listed).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    samples = ImageFiles(folder, listed)
    return Shard(folder.name or str(folder), "images", digest, lambda: samples, len(listed))


def _walk(folder: Path) -> Iterator[str]:
    """Go through the names of all files in a folder and those in it, hidden ones apart."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder)
        for name in sorted(names):
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}"


def _has_images(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in islice(_walk(folder), _LOOKED_AT))
