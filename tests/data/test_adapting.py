import json

import pytest
from PIL import Image

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.images.remote import RemoteImage
from visgraft.data.sample import Turn
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, ConfigError, DataError


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
