"""Turn videos and folders of frames into samples of several images.

In:  a path to a video file (read with PyAV: pip install "visgraft[video]") or to a folder of images.
Out: so many frames of it as images that are decoded when they are opened.

    images = frames_of(Path("cat.mp4"), num_frames=8, spacing_s=None)
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from visgraft.data.images.opening import file_state, is_data_url
from visgraft.data.sample import ImageRef, unwrapped
from visgraft.errors import BadSampleError, MissingAssetError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """A frame of a video file, at a place from 0 (begin) to 1 (end) or at a time; see StoredImage."""

    path: Path
    place: float | None = None
    time_s: float | None = None

    def read(self) -> Image.Image:
        """Decode the frame; raises BadSampleError."""
        import av

        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                wanted = _duration_s(container) * (self.place or 0.0) if self.time_s is None else self.time_s
                start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
                container.seek(int((start + wanted) * av.time_base))  # to the last whole frame before it
                found = None
                for frame in container.decode(stream):
                    if found is not None and frame.time is not None and frame.time > start + wanted + 1e-6:
                        break
                    found = frame
                if found is None:
                    raise BadSampleError("video has no frame")
                return found.to_image()
        except BadSampleError:
            raise
        except (av.FFmpegError, OSError, IndexError, ValueError):
            raise BadSampleError("video is broken") from None


class FrameFile(type(Path())):  # type: ignore[misc]
    """The path of a frame in a folder of frames: a path, of which `is_frame` knows what it is."""


def is_frame(image: ImageRef) -> bool:
    """Say whether an image is one of several that show the same scene: of a video, or of a folder of frames."""
    return isinstance(unwrapped(image), (VideoFrame, FrameFile))


def frames_of(image: ImageRef, *, num_frames: int, spacing_s: float | None) -> list[ImageRef]:
    """Return the frames of a video or of a folder of frames; any other image is given back alone.

    num_frames: at most so many. spacing_s: seconds between them (of a folder: frames between them); None = spread
    evenly over all of it, each in the middle of its share.
    Raises MissingAssetError without PyAV, BadSampleError for a video that cannot be read.
    """
    if not isinstance(image, (str, Path)) or is_data_url(image):
        return [image]
    path = Path(image)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return list(_video_frames(path, num_frames=num_frames, spacing_s=spacing_s))
    state = None if path.suffix else file_state(path)
    if state is None or not stat.S_ISDIR(state.st_mode):
        return [image]
    try:
        found = [FrameFile(f) for f in path.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES]
    except OSError:
        raise BadSampleError("folder of frames may not be read") from None
    if not found:
        raise BadSampleError("folder of frames is empty")
    files = sorted(found, key=_by_number)
    if spacing_s is not None:
        return list(files[:: max(1, round(spacing_s))][:num_frames])
    number = min(num_frames, len(files))
    return [files[int((place + 0.5) * len(files) / number)] for place in range(number)]


def _video_frames(path: Path, *, num_frames: int, spacing_s: float | None) -> list[VideoFrame]:
    if find_spec("av") is None:
        raise MissingAssetError(f'{path.name} is a video, which PyAV reads; run `pip install "visgraft[video]"`')
    state = file_state(path)
    if state is None or not stat.S_ISREG(state.st_mode):
        raise BadSampleError("video file is missing" if state is None else "video path is no file")
    if spacing_s is None:
        return [VideoFrame(path, place=(place + 0.5) / num_frames) for place in range(num_frames)]
    import av

    try:
        with av.open(str(path)) as container:
            duration_s = _duration_s(container)
    except (av.FFmpegError, OSError, IndexError, ValueError):
        raise BadSampleError("video is broken") from None
    number = min(num_frames, max(1, int(duration_s / spacing_s + 1e-6)))
    return [VideoFrame(path, time_s=spacing_s * place) for place in range(number)]


def _duration_s(container: "av.container.InputContainer") -> float:  # type: ignore[name-defined]  # noqa: F821, UP037
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def _by_number(file: Path) -> tuple[list[int], str]:
    """Sort frame 10 behind frame 9."""
    return [int(digits) for digits in re.findall(r"\d+", file.stem)], file.name
