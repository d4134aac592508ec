from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from visgraft.data.images.opening import open_image
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
