import base64
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visgraft.data.images.opening import open_image
from visgraft.data.images.references import FilePart, image_key, image_ref, image_refs
from visgraft.data.images.remote import RemoteImage
from visgraft.errors import BadSampleError


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))


@pytest.fixture
def png(image):
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_every_way_to_hold_an_image_opens_to_the_same_pixels(tmp_path, image, png):
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "shard.tar").write_bytes(b"before" + png + b"behind")
    text = base64.b64encode(png).decode()
    values = [
        png,
        image,
        "a.png",
        text,
        "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        f"data:image/png;base64,{text}",
        {"bytes": png, "path": None},
        {"bytes": None, "path": "a.png"},
        {"base64": text},
        {"url": f"data:image/png;base64,{text}"},
        FilePart(tmp_path / "shard.tar", offset=6, size_bytes=len(png)),
    ]
    for value in values:
        ref = pickle.loads(pickle.dumps(image_ref(value, folder=tmp_path)))
        assert np.array_equal(open_image(ref), image), value


@pytest.mark.parametrize(
    "value, reason",
    [
        ({"base64": "@@@@"}, "image is not valid base64"),
        ({"base64": 3}, "image base64 is given as int"),
        ("data:image/png;base64,abc", "image is not valid base64"),
        ("data:image/svg+xml,<svg/>", "image data: URL is not in base64"),
        ("/9j/" + "A" * 63, "image is not valid base64"),
        ("https://example.org/a.png", "image is a web address and data.allow_remote_images is false"),
        ({}, "image has neither bytes nor path"),
        ("", "image is empty"),
        (None, "image is empty"),
        (float("nan"), "image is given as float"),
        (FilePart(Path("nowhere.tar"), 0, 3), "image file is missing"),
    ],
)
def test_what_is_no_image_is_refused_with_a_stable_reason(value, reason):
    with pytest.raises(BadSampleError) as caught:
        open_image(image_ref(value))
    assert str(caught.value) == reason


def test_one_image_many_or_none_become_a_list(tmp_path):
    assert image_refs(None) == []
    assert image_refs("a.png", folder=tmp_path) == [tmp_path / "a.png"]
    assert image_refs(["a.png", "/b.png"], folder=tmp_path) == [tmp_path / "a.png", Path("/b.png")]


def test_images_are_the_same_by_path_or_by_content_and_inlined_ones_by_content_alone(tmp_path, png):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png)
    a, b = tmp_path / "a.png", str(tmp_path / "b.png")
    assert image_key(a, by_content=False) != image_key(b, by_content=False)
    assert image_key(a, by_content=False) == image_key(str(a), by_content=False)
    inlined = [png, {"bytes": png, "path": "x"}, {"base64": base64.b64encode(png).decode()}]
    inlined += [f"data:image/png;base64,{base64.b64encode(png).decode()}"]
    keys = {image_key(ref, by_content=True) for ref in [a, b, *inlined]}
    assert len(keys) == 1 and {image_key(ref, by_content=False) for ref in inlined} == keys
    with pytest.raises(BadSampleError, match="image file is missing"):
        image_key(tmp_path / "nowhere.png", by_content=True)


def test_an_image_of_the_web_is_downloaded_once(tmp_path, image, png, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))
    asked = []

    def answer(request, timeout):
        asked.append(request.full_url)
        return BytesIO(png)

    monkeypatch.setattr("urllib.request.urlopen", answer)
    for _ in range(2):
        assert np.array_equal(open_image(RemoteImage("https://example.org/a.png")), image)
    assert asked == ["https://example.org/a.png"]


def test_an_image_that_cannot_be_downloaded_is_bad(tmp_path, monkeypatch):
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path))

    def refuse(request, timeout):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(BadSampleError, match="image could not be downloaded"):
        open_image(RemoteImage("https://example.org/a.png"))
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: BytesIO(b"123456"))
    monkeypatch.setattr("visgraft.data.images.remote._MAX_BYTES", 5)
    with pytest.raises(BadSampleError, match="image file is too large"):
        open_image(RemoteImage("https://example.org/a.png"))
