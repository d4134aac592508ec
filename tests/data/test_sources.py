import json
import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.dealing import chunk_dialogs
from visgraft.data.images.remote import RemoteImage
from visgraft.data.readers.row_formats import ROW_FORMATS
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import (
    READERS,
    BadSample,
    OpenSource,
    Quarantine,
    Sources,
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


def test_every_row_format_names_a_reader_that_exists():
    assert {row_format.reader for row_format in ROW_FORMATS.values()} <= set(READERS)


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


def test_a_list_that_names_no_data_is_refused_with_a_way_to_name_some():
    with pytest.raises(ConfigError, match=r"data\.validation: names no data; give it a source .*visgraft init"):
        open_sources([], key="data.validation")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"source": "cocoo"}, r"data.train.0.source: no reader is named 'cocoo'; did you mean coco\?"),
        ({"source": "xyz"}, "no reader is named 'xyz'; there are coco, easy_vqa, folder"),
        ({"source": "coco", "options": {"promt": "x"}}, r"data.train.0.promt: unknown key; did you mean .*prompt\?"),
        ({"source": "coco", "options": {"splitt": "x"}}, r"data.train.0.splitt: .*did you mean data.train.0.split\?"),
        (
            {"source": "folder", "options": {"zzz": 1}},
            "allowed here: columns, encoding, separator, source, path, split",
        ),
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
        "data.train: 10 of 300 samples are bad and at most 9 are allowed; most are of source 'coco' (8; the first is "
        "line 0): image is truncated (3), answer is empty (2), not an image (2). Repair them, or raise "
        "data.max_bad_fraction"
    )
    assert len(quarantine) == 10 and quarantine.reasons("folder") == {"image is truncated": 2}
    assert quarantine.reasons()["image is truncated"] == 5


def test_a_bad_sample_that_comes_again_counts_and_is_written_once():
    lines = []
    quarantine = Quarantine(num_samples=10, max_bad_fraction=0.0, known=[bad(3)], write=lines.append)
    for _ in range(9):
        quarantine.add(bad(3))
        quarantine.add(bad(4))
    reason = "image is truncated"
    assert lines == [{"source": "coco", "index": 4, "where": "line 4", "reason": reason, "part": "train"}]
    assert len(quarantine) == 2


# --- One source, seen as its entry says


def rows_file(tmp_path, rows, *, name="a.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / name)


def everything(sources):
    return [sources[i] for i in range(len(sources))]


def test_dialogs_become_one_conversation_or_independent_ones(tmp_path):
    turns = [{"prompt": "Q", "answer": "A"}, {"prompt": "R", "answer": "B"}]
    path = rows_file(tmp_path, [{"image": "a", "dialogs": [turns]}, {"image": "a", "text": "c"}])
    made = {}
    for mode in ("as_given", "conversation", "independent"):
        sources = open_sources([SourceSettings("parquet", path=path, dialogs=mode)])
        made[mode] = [[turn.answer for turn in dialog] for dialog in sources[0].dialogs]
        assert sources.num_dialogs.tolist() == [len(made[mode])]
    assert made == {
        "as_given": [["A", "B"], ["c"]],
        "conversation": [["A", "B", "c"]],
        "independent": [["A"], ["B"], ["c"]],
    }


def test_rows_may_stay_apart(tmp_path):
    path = rows_file(tmp_path, [{"image": "a", "text": "1"}, {"image": "a", "text": "2"}])
    assert [len(open_sources([SourceSettings("parquet", path=path, group=g)])) for g in ("auto", "none", "path")] == [
        1,
        2,
        1,
    ]


def test_texts_stay_apart_where_a_format_gathers_them_itself(tmp_path):
    lines = [{"file_name": f"{i // 3}.png", "text": str(i)} for i in range(6)] + [{"file_name": "x.png", "text": ""}]
    rows_file(tmp_path, lines, name="metadata.jsonl")
    apart = open_sources([SourceSettings("folder", path=str(tmp_path), group="none")])
    assert len(apart) == 7 and apart.num_dialogs.tolist() == [1] * 6 + [0]
    assert [apart[i].dialogs[0][0].answer for i in range(6)] == [str(i) for i in range(6)]
    assert len({apart[i].id for i in range(6)}) == 6 and apart[4].images == (tmp_path / "1.png",)
    with pytest.raises(BadSampleError, match="answer is empty"):
        apart[6]
    halves = [
        {apart[i].images for i in range(len(apart)) if apart.num_dialogs[i]}
        for key in ("data.train", "data.validation")
        for entry in [SourceSettings("folder", path=str(tmp_path), group="none", split={"validation": 0.5})]
        for apart in [open_sources([entry], key=key)]
    ]
    assert halves[0] and halves[1] and not halves[0] & halves[1]  # one image is on one side with all its texts


def test_web_addresses_are_images_only_where_the_recipe_allows_it(tmp_path):
    path = rows_file(tmp_path, [{"image": "https://example.org/a.jpg", "text": "1"}])
    entry = SourceSettings("parquet", path=path)
    assert open_sources([entry])[0].images == ("https://example.org/a.jpg",)
    allowed = open_sources([entry], settings=DataSettings(allow_remote_images=True))
    assert allowed[0].images == (RemoteImage("https://example.org/a.jpg"),)


@pytest.mark.parametrize("share, number", [("2%", 4), (0.1, 20), ("0.5", 100)])
def test_what_is_held_out_validates_and_never_trains(tmp_path, share, number):
    path = rows_file(tmp_path, [{"image": str(i), "text": str(i)} for i in range(200)] + [{"image": "x", "text": ""}])
    data = DataSettings(train=(SourceSettings("parquet", path=path, split={"validation": share}, weight=2.0),))
    assert [entry.weight for entry in data.validation] == [1.0]
    train = open_sources(data.train, key="data.train", settings=data)
    held_out = open_sources(data.validation, key="data.validation", settings=data)
    assert len(held_out) == number and len(train) == 201 - number  # the bad one counts as training
    sides = [{str(sources[i].images[0]) for i in range(number)} for sources in (train, held_out)]
    assert not sides[0] & sides[1]
    assert DataSettings(train=data.train, validation=data.validation) == data


def test_shares_that_are_none_and_sources_too_small_to_divide_are_refused(tmp_path):
    for share in ("2", 0, "x%", "100%"):
        with pytest.raises(
            ConfigError, match=r"split.validation: got .*, need a share between 0 and 1, such as 0.02 or 2%"
        ):
            SourceSettings("parquet", split={"validation": share})
    path = rows_file(tmp_path, [{"image": "a", "text": "1"}])
    entry = SourceSettings("parquet", path=path, split={"validation": "2%"})
    with pytest.raises(DataError, match="leaves nothing on one side"):
        open_sources([entry], key="data.validation")


def test_groups_cross_sources_only_when_asked(tmp_path):
    entries = [
        SourceSettings("parquet", path=rows_file(tmp_path, [{"image": i, "text": i + n} for i in names], name=n))
        for n, names in (("1.jsonl", "ab"), ("2.jsonl", "bc"))
    ]
    apart = open_sources(entries)
    assert [len(sample.dialogs) for sample in everything(apart)] == [1, 1, 1, 1]
    together = open_sources(entries, settings=DataSettings(group_across_sources=True))
    samples = everything(together)
    assert [[d[0].answer for d in sample.dialogs] for sample in samples] == [
        ["a1.jsonl"],
        ["b1.jsonl", "b2.jsonl"],
        ["c2.jsonl"],
    ]
    assert [sample.source for sample in samples] == ["parquet", "parquet", "parquet-2"]
    assert together.where(1) == "1.jsonl line 2, 2.jsonl line 1" and together.num_dialogs.tolist() == [1, 2, 1]
    with pytest.raises(ConfigError, match=r"data.group_across_sources: is true, but sources have weights"):
        open_sources(entries, settings=DataSettings(group_across_sources=True, mixing_temperature=2.0))


def test_mixing_temperature_changes_training_and_not_validation(tmp_path):
    entries = [
        SourceSettings(
            "parquet", path=rows_file(tmp_path, [{"image": str(i), "text": "x"} for i in range(k)], name=f"{k}.jsonl")
        )
        for k in (90, 10)
    ]
    settings = DataSettings(mixing_temperature=2.0)
    assert open_sources(entries, settings=settings).weights == pytest.approx([75 / 90, 2.5])
    order = open_sources(entries, settings=settings).order(seed=0, epoch=0)
    assert (order < 90).sum() == 75 and (order >= 90).sum() == 25
    assert open_sources(entries, settings=settings, key="data.validation").weights == [1.0, 1.0]


def test_a_folder_of_frames_is_a_sample_of_several_images(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(12):
        Image.new("RGB", (2, 2), (i, 0, 0)).save(tmp_path / "clip" / f"frame{i}.png")
    (tmp_path / "none").mkdir()
    path = rows_file(tmp_path, [{"video": "clip", "text": "a"}, {"video": "none", "text": "b"}])

    def names(**settings):
        return [p.name for p in open_sources([SourceSettings("parquet", path=path, **settings)])[0].images]

    assert names(num_frames=4) == ["frame1.png", "frame4.png", "frame7.png", "frame10.png"]
    assert len(names(num_frames=99)) == 12
    assert names(num_frames=3, frame_spacing_s=5) == ["frame0.png", "frame5.png", "frame10.png"]
    with pytest.raises(BadSampleError, match="folder of frames is empty"):
        open_sources([SourceSettings("parquet", path=path)])[1]


def test_turns_are_kept_as_they_are(tmp_path):
    path = rows_file(tmp_path, [{"image": "a", "question": "Q", "answer": "A", "references": ["B"]}])
    assert open_sources([SourceSettings("parquet", path=path)])[0].dialogs == ((Turn("Q", "A", ("B",)),),)
