"""One folder with everything that can be wrong: every bad thing is set aside with its reason, and all else is read."""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
import transformers
from PIL import Image

from tests.data.images.test_opening import huge_png
from tests.data.made_tokenizers import TOKENIZERS
from visgraft.config import DataSettings, SourceSettings
from visgraft.data.check import check_sources
from visgraft.data.sources import open_sources
from visgraft.processor import Processor


def encoded(kind, image=None, **settings):
    buffer = BytesIO()
    image = image or Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def frames():
    return {"save_all": True, "append_images": [Image.new("RGB", (9, 9), (i, 9, 9)) for i in range(1, 4)]}


BAD_FILES = {
    "empty.jpg": (b"", "image file is empty"),
    "cut.jpg": (encoded("JPEG")[:600], "image is truncated"),
    "text.jpg": (b"<html>404</html>", "not an image"),
    "bomb.png": (huge_png(30_000), "image has too many pixels"),
    "moving.gif": (encoded("GIF", Image.new("RGB", (9, 9)), **frames()), "image is animated or has several pages"),
    "pages.tiff": (encoded("TIFF", Image.new("RGB", (9, 9)), **frames()), "image is animated or has several pages"),
    "line.png": (encoded("PNG", Image.new("RGB", (1000, 2))), "image is too narrow"),
}
USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
BAD_ROWS = {
    '{"image": "good.png", "text": ': "line is not JSON",
    '{"image": "good.png"}': "row has no text, question and answer, dialogs or messages (columns: image)",
    '{"image": "gone.png", "text": "a"}': "image file is missing",
    '{"image": "good.png", "text": ""}': "answer is empty",
    '{"image": "good.png", "text": 7}': "answer is not a string",
    '{"image": "good.png", "text": NaN}': (
        "row has no text, question and answer, dialogs or messages (columns: image, text (null))"
    ),
    '{"image": NaN, "text": "a"}': "caption has no image (columns: image (null), text)",
    '{"image": {"base64": "a*"}, "text": "a"}': "image is not valid base64",
    '{"image": "https://example.org/a.png", "text": "a"}': (
        "image is a web address and data.allow_remote_images is false"
    ),
    json.dumps({"images": ["good.png"], "messages": [ANSWER, USER]}): "roles are not user and assistant in turn",
    json.dumps({"image": "good.png", "question": "why " * 60, "answer": "a"}): (
        "prompt leaves no room for the answer (max_text_tokens 40)"
    ),
}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_bad_thing_is_set_aside_with_its_reason_and_all_else_is_read(tmp_path, num_workers):
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    (tmp_path / "really a jpeg.png").write_bytes(encoded("JPEG"))
    for name, (data, _) in BAD_FILES.items():
        (tmp_path / name).write_bytes(data)
    good = [{"image": name, "text": "a cat"} for name in ("good.png", "really a jpeg.png")]
    good += [
        {"image": base64.b64encode(encoded("PNG")).decode(), "text": "a cat"},
        {"question": "Q", "answer": "no image"},
    ]
    lines = [json.dumps(row) for row in good] + [json.dumps({"image": name, "text": "x"}) for name in BAD_FILES]
    (tmp_path / "rows.jsonl").write_text("\n\n".join([*lines, *BAD_ROWS, " "]))

    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = Processor.from_parts(images, TOKENIZERS["gpt2"](), num_image_tokens=4, max_text_tokens=40)
    entry = SourceSettings("parquet", path=str(tmp_path / "rows.jsonl"), group="none")
    sources = open_sources([entry], settings=DataSettings(max_pixels=1_000_000))
    [report] = check_sources(sources, processor, num_workers=num_workers)
    assert report.samples == 4 + len(BAD_FILES) + len(BAD_ROWS) and (report.images, report.texts) == (3, 4)
    expected = [reason for _, reason in BAD_FILES.values()] + list(BAD_ROWS.values())
    assert sorted(report.reasons.elements()) == sorted(expected)
