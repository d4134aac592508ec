import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from visgraft.config import SourceSettings
from visgraft.data.images.opening import open_image
from visgraft.data.readers import webdataset
from visgraft.data.readers.tars import expand_paths
from visgraft.data.sample import Turn
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, DataError, MissingAssetError


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            data = json.dumps(data).encode() if isinstance(data, dict) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    write_tar(
        tmp_path / "a-000.tar",
        [
            ("x/000.png", png(0)),
            ("x/000.txt", b"a cat"),
            ("x/001.seg.png", png(1)),
            ("x/001.json", {"question": "Q", "answer": "A"}),
            ("x/002.jpg", b"no image"),
            ("x/002.txt", b""),
            ("README", b"not a sample"),
        ],
    )
    write_tar(tmp_path / "a-001.tar", [("000.json", {"caption": "a dog", "width": 4}), ("000.png", png(3))])
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "a-*.tar", "a-{000..001}.tar", "a-{000,001}.tar", "a-00{0..1}.tar"])
def test_shards_are_named_by_a_folder_a_glob_or_braces(shards, pattern):
    found = expand_paths(str(shards / pattern))
    assert found == [shards / "a-000.tar", shards / "a-001.tar"]


def test_samples_are_gathered_by_name_and_images_stay_in_the_tar(shards):
    sources = open_sources([SourceSettings("webdataset", path=str(shards / "a-{000..001}.tar"))])
    sources = pickle.loads(pickle.dumps(sources))
    assert len(sources) == 4
    assert [sources[i].dialogs for i in (0, 1, 3)] == [
        ((Turn("", "a cat"),),),
        ((Turn("Q", "A"),),),
        ((Turn("", "a dog"),),),
    ]
    assert [open_image(sources[i].images[0]).getpixel((0, 0))[0] for i in (0, 1, 3)] == [0, 1, 3]
    assert sources[0].id == "webdataset:x/000" and sources.where(3) == "a-001.tar sample 000"
    with pytest.raises(BadSampleError, match="answer is empty"):
        sources[2]


def test_a_split_may_stand_in_the_path(shards):
    (shards / "a-000.tar").rename(shards / "train.tar")
    assert len(webdataset.read(Path(shards / "{split}.tar"), split="train")) == 3


def test_bad_members_are_bad_samples(tmp_path):
    members = [("0.png", png(0)), ("0.json", b"{oops"), ("1.txt", b"alone"), ("2.png", png(0)), ("2.txt", b"\xff")]
    write_tar(tmp_path / "a.tar", [*members, ("3.png", png(0)), ("3.json", {"width": 3})])
    source = webdataset.read(tmp_path / "a.tar", split="train")
    reasons = []
    for index in range(len(source)):
        with pytest.raises(BadSampleError) as caught:
            source[index]
        reasons.append(str(caught.value))
    assert reasons == [
        "json member is not JSON",
        "sample has no image member (members: txt)",
        "text member is not UTF-8; set the source's encoding (encoding: cp1252, say)",
        "row has no text, question and answer, dialogs or messages (columns: width, images)",
    ]


def test_what_is_no_shard_is_refused(tmp_path, shards):
    with pytest.raises(MissingAssetError, match="webdataset: path: not set"):
        webdataset.read(None, split="train")
    with pytest.raises(MissingAssetError, match=r"a-002.tar is missing"):
        webdataset.read(shards / "a-{000..002}.tar", split="train")
    with pytest.raises(MissingAssetError, match="nothing matches"):
        webdataset.read(shards / "b-*.tar", split="train")
    write_tar(tmp_path / "c.tar", [("0.png", png(0))], mode="w:gz")
    with pytest.raises(DataError, match=r"c.tar is no whole, plain tar .* or unpack a compressed one"):
        webdataset.read(tmp_path / "c.tar", split="train")
    write_tar(tmp_path / "d.tar", [])
    with pytest.raises(DataError, match="holds no samples"):
        webdataset.read(tmp_path / "d.tar", split="train")
    whole = (shards / "a-000.tar").read_bytes()
    (shards / "a-000.tar").write_bytes(whole[: 512 + 100])
    with pytest.raises(DataError, match="is no whole, plain tar"):
        webdataset.read(shards / "a-000.tar", split="train")


def test_a_tar_that_was_not_fetched_to_its_end_is_refused(shards):
    whole = (shards / "a-000.tar").read_bytes()
    for length in (2500, 1800):  # inside a header, inside an image
        (shards / "a-000.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a-000\.tar is no whole, plain tar \(.*\); fetch it again"):
            webdataset.read(shards / "a-000.tar", split="train")


@pytest.fixture
def with_masks(tmp_path):
    members = [("0.thumb.jpg", png(3)), ("0.mask.png", png(2)), ("0.jpg", png(1)), ("0.txt", b"a cat")]
    write_tar(tmp_path / "a.tar", [*members, ("1.png", png(4)), ("1.txt", b"a dog")])
    return tmp_path / "a.tar"


def opened(path, **options):
    return open_sources([SourceSettings("webdataset", path=str(path), options=options)])


def test_a_sample_gives_one_image_and_that_it_has_several_is_said_once(with_masks):
    sources = opened(with_masks)
    assert [[open_image(image).getpixel((0, 0))[0] for image in sources[i].images] for i in (0, 1)] == [[1], [4]]
    [note] = sources.opened[0].notes
    assert note == (
        "samples have several images (thumb.jpg, mask.png, jpg); jpg is used where a sample has it; "
        "name others with members: [...]"
    )
    stream = webdataset.read(with_masks, split="train", streaming=True)
    assert list(stream.notes) == [note]


def test_other_members_are_taken_where_they_are_named(with_masks):
    sources = opened(with_masks, members=["jpg", "mask.png"])
    assert [open_image(image).getpixel((0, 0))[0] for image in sources[0].images] == [1, 2]
    assert list(sources.opened[0].notes) == []
    with pytest.raises(BadSampleError, match=r"sample has no member jpg"):
        sources[1]


def test_names_with_more_dots_say_how_tars_are_read(tmp_path):
    names = [f"img.v1.{number}.{suffix}" for number in range(3) for suffix in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", [(name, png(0) if name.endswith("jpg") else b"a cat") for name in names])
    sources = opened(tmp_path / "a.tar")
    with pytest.raises(BadSampleError, match=r"no text member \(members: v1.0.jpg, .* first dot of a name is the s"):
        sources[0]
    write_tar(tmp_path / "b.tar", [("0.v2.jpg", png(0)), ("0.v2.txt", b"a cat")])  # dots or not
    assert opened(tmp_path / "b.tar")[0].dialogs == ((Turn("", "a cat"),),)


def test_texts_of_another_encoding_are_read_where_it_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.txt", "Café".encode("cp1252"))])
    assert opened(tmp_path / "a.tar", encoding="cp1252")[0].dialogs == ((Turn("", "Café"),),)
    stream = webdataset.read(tmp_path / "a.tar", split="train", streaming=True, encoding="cp1252")
    [row] = stream.rows.read(seed=0, epoch=0, place=None)
    assert stream.sample(row).dialogs == ((Turn("", "Café"),),)
