from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visgraft.data.images import video
from visgraft.data.images.opening import open_image
from visgraft.data.images.video import frames_of
from visgraft.errors import BadSampleError, MissingAssetError

NUM_FRAMES, RATE = 20, 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds that grow brighter frame by frame."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(NUM_FRAMES):
            picture = Image.new("RGB", (32, 32), (12 * number,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def numbers(frames):
    """Tell from their brightness which frames they are."""
    return [round(float(np.asarray(open_image(frame)).mean()) / 12) for frame in frames]


def test_frames_are_spread_over_a_video_or_lie_so_many_seconds_apart(clip):
    assert numbers(frames_of(clip, num_frames=4, spacing_s=None)) == [2, 7, 12, 17]
    assert numbers(frames_of(str(clip), num_frames=8, spacing_s=0.5)) == [0, 5, 10, 15]
    assert numbers(frames_of(clip, num_frames=2, spacing_s=0.5)) == [0, 5]


def test_other_images_stay_alone(tmp_path):
    for image in (b"x", tmp_path / "a.jpg", "a.png", "data:image/png;base64,AAAA"):
        assert frames_of(image, num_frames=3, spacing_s=None) == [image]


def test_videos_that_are_missing_or_broken_are_bad_samples(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(BadSampleError, match="video file is missing"):
        frames_of(tmp_path / "a.mp4", num_frames=2, spacing_s=None)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(BadSampleError, match="video is broken"):
        open_image(frames_of(tmp_path / "a.mp4", num_frames=2, spacing_s=None)[0])
    with pytest.raises(BadSampleError, match="video is broken"):
        frames_of(tmp_path / "a.mp4", num_frames=2, spacing_s=1.0)


def test_without_pyav_a_video_says_what_to_install(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(MissingAssetError, match=r'run `pip install "visgraft\[video\]"`'):
        frames_of(Path("a.mp4"), num_frames=2, spacing_s=None)
