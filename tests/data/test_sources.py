import json
import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest

from visgraft.config import SourceSettings
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import (
    READERS,
    BadSample,
    OpenSource,
    Quarantine,
    Sources,
    chunk_dialogs,
    epoch_order,
    open_sources,
)
from visgraft.errors import BadSampleError, ConfigError, DataError


def folder(path, *, num_samples, first=0):
    path.mkdir()
    rows = [{"file_name": f"{first + i}.png", "text": f"caption {first + i}"} for i in range(num_samples)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Numbers:
    """A source whose samples are numbers."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return Sample(images=[], dialogs=[[Turn("", str(index))]])

    def where(self, index):
        return f"number {index}"


def numbers(*entries):
    return Sources([OpenSource(f"s{i}", Numbers(n), n, weight) for i, (n, weight) in enumerate(entries)])


def test_every_reader_of_the_table_takes_a_path_and_a_split():
    from inspect import signature
    from pkgutil import resolve_name

    for name in READERS.values():
        parameters = [p for p in signature(resolve_name(name)).parameters.values() if p.name != "reader"]
        assert [p.name for p in parameters[:2]] == ["path", "split"]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
        assert all(p.default is not p.empty for p in parameters[2:])


def test_sources_lie_one_behind_the_other_with_unique_ids(tmp_path):
    settings = [
        SourceSettings("folder", path=folder(tmp_path / "a", num_samples=3)),
        SourceSettings("folder", path=folder(tmp_path / "b", num_samples=4), limit=2),
        SourceSettings("folder", path=folder(tmp_path / "c", num_samples=2), limit=9),
    ]
    sources = open_sources(settings)
    assert [sources[i].id for i in range(len(sources))] == [
        *("folder:0.png", "folder:1.png", "folder:2.png"),
        *("folder-2:0.png", "folder-2:1.png"),
        *("folder-3:0.png", "folder-3:1.png"),
    ]
    assert [sources[i].source for i in (2, 3, 6)] == ["folder", "folder-2", "folder-3"]
    assert sources[4].images == (tmp_path / "b" / "1.png",)
    for index in (-1, 7):
        with pytest.raises(IndexError, match="of 7"):
            sources[index]


def test_sources_travel_to_worker_processes(tmp_path):
    sources = open_sources([SourceSettings("folder", path=folder(tmp_path / "a", num_samples=2))])
    copy = pickle.loads(pickle.dumps(sources))
    assert [copy[i] for i in range(2)] == [sources[i] for i in range(2)]


def test_a_sample_without_an_id_is_called_by_its_number():
    assert numbers((3, 1.0))[2].id == "s0:2"


def test_no_sources_are_an_empty_list():
    sources = open_sources([])
    assert len(sources) == 0 and sources.order(seed=0, epoch=0).tolist() == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"source": "cocoo"}, r"data.train.0.source: no reader is named 'cocoo'; did you mean coco\?"),
        ({"source": "xyz"}, "no reader is named 'xyz'; there are coco, easy_vqa, folder"),
        ({"source": "coco", "options": {"promt": "x"}}, r"data.train.0.promt: unknown key; did you mean .*prompt\?"),
        ({"source": "coco", "options": {"splitt": "x"}}, r"data.train.0.splitt: .*did you mean data.train.0.split\?"),
        ({"source": "folder", "options": {"zzz": 1}}, "allowed here: source, path, split, limit, weight"),
        ({"source": "coco", "options": {"prompt": 3}}, "data.train.0.prompt: got .*3.*, need text"),
    ],
)
def test_what_a_reader_does_not_know_is_refused_before_anything_is_read(settings, message):
    with pytest.raises(ConfigError, match=message):
        open_sources([SourceSettings(**settings)])


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    orders = [epoch_order(50, seed=seed, epoch=epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert epoch_order(8, seed=3, epoch=2).tolist() == [1, 7, 4, 0, 2, 6, 3, 5]  # on every platform


def test_weights_say_how_often_a_source_comes_in_an_epoch():
    sources = numbers((10, 1.0), (8, 2.5), (12, 0.25))
    counts = Counter(sources.order(seed=0, epoch=0).tolist())
    assert [counts[i] for i in range(10)] == [1] * 10
    assert sorted(counts[i] for i in range(10, 18)) == [2] * 4 + [3] * 4
    assert sum(counts[i] for i in range(18, 30)) == 3
    four_epochs = Counter(np.concatenate([sources.order(seed=0, epoch=epoch) for epoch in range(4)]).tolist())
    assert [four_epochs[i] for i in range(18, 30)] == [1] * 12  # a quarter an epoch, each time another one


def test_without_weights_the_order_is_a_permutation_of_everything():
    sources = numbers((4, 1.0), (5, 1.0))
    assert sources.order(seed=5, epoch=1).tolist() == epoch_order(9, seed=5, epoch=1).tolist()


@pytest.mark.parametrize("num_dialogs, sizes", [(1, [1]), (4, [4]), (5, [3, 2]), (9, [3, 3, 3]), (13, [4, 3, 3, 3])])
def test_dialogs_are_dealt_evenly_and_all_are_kept(num_dialogs, sizes):
    sample = Sample(images=["a.png"], dialogs=[[Turn("", str(i))] for i in range(num_dialogs)], id="a", source="s")
    chunks = chunk_dialogs(sample, max_dialogs=4, rng=Random(0))
    assert [len(chunk.dialogs) for chunk in chunks] == sizes
    dealt = [dialog[0].answer for chunk in chunks for dialog in chunk.dialogs]
    assert sorted(dealt, key=int) == [str(i) for i in range(num_dialogs)]
    assert {(chunk.images, chunk.id, chunk.source) for chunk in chunks} == {(("a.png",), "a", "s")}


def test_dialogs_are_dealt_by_the_given_generator():
    sample = Sample(images=[], dialogs=[[Turn("", str(i))] for i in range(8)])
    one, same, other = (chunk_dialogs(sample, max_dialogs=4, rng=Random(seed)) for seed in (0, 0, 1))
    assert one == same and one != other


def test_a_bad_sample_is_named_by_source_number_and_place(tmp_path):
    path = folder(tmp_path / "a", num_samples=2)
    with (tmp_path / "a" / "metadata.jsonl").open("a") as file:
        file.write("\n{oops\n")
    sources = open_sources([SourceSettings("folder", path=path)])
    with pytest.raises(BadSampleError, match="line is not JSON") as caught:
        sources[2]
    assert sources.bad_sample(2, str(caught.value)) == BadSample(
        source="folder", index=2, where="metadata.jsonl line 4", reason="line is not JSON"
    )


def bad(index, *, reason="image is truncated", source="coco"):
    return BadSample(source=source, index=index, where=f"line {index}", reason=reason)


def test_the_budget_is_a_share_of_the_samples_but_never_fewer_than_five():
    assert Quarantine(num_samples=100, max_bad_fraction=0.01).budget == 5
    assert Quarantine(num_samples=2000, max_bad_fraction=0.01).budget == 20
    assert Quarantine(num_samples=10, max_bad_fraction=0.0).budget == 5


def test_past_the_budget_the_leading_source_and_its_three_leading_reasons_are_named():
    quarantine = Quarantine(num_samples=300, max_bad_fraction=0.03)
    for index, reason in enumerate(["image is truncated"] * 3 + ["answer is empty"] * 2 + ["not an image", "zzz"]):
        quarantine.add(bad(index, reason=reason))
    quarantine.add(bad(0, source="folder"))
    quarantine.add(bad(1, source="folder"))
    with pytest.raises(DataError) as caught:
        quarantine.add(bad(7, reason="not an image"))
    assert str(caught.value) == (
        "10 of 300 samples are bad and at most 9 are allowed; most are of source 'coco' (8; the first is line 0): "
        "image is truncated (3), answer is empty (2), not an image (2). Repair them, or raise data.max_bad_fraction"
    )
    assert len(quarantine) == 10 and quarantine.reasons("folder") == {"image is truncated": 2}
    assert quarantine.reasons()["image is truncated"] == 5


def test_a_bad_sample_that_comes_again_counts_and_is_written_once():
    lines = []
    quarantine = Quarantine(num_samples=10, max_bad_fraction=0.0, known=[bad(3)], write=lines.append)
    for _ in range(9):
        quarantine.add(bad(3))
        quarantine.add(bad(4))
    assert lines == [{"source": "coco", "index": 4, "where": "line 4", "reason": "image is truncated"}]
    assert len(quarantine) == 2
