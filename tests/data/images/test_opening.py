import base64
import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from visgraft.data.images.opening import FilePart, image_key, image_ref, image_refs, open_image
from visgraft.errors import BadSampleError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encode(image, *, kind="PNG", **settings):
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def noise(width=64, height=48):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_png(side):
    """Write the header of a PNG that claims side x side pixels and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, body, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_an_image_is_the_same_from_a_path_bytes_a_dict_or_pil(tmp_path, kind):
    image = noise()
    data = encode(image, kind=kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "image.bin"
    path.write_bytes(data)
    refs = [path, str(path), data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, image]
    for ref in refs:
        opened = open_image(ref)
        assert opened.mode == "RGB" and np.array_equal(opened, image)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise
    data = encode(image, exif=exif)
    upright = open_image(data)
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == RED
    assert open_image(Image.open(BytesIO(data))).size == (2, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    opened = open_image(image.convert(mode))
    assert opened.getpixel((0, 0)) == BLACK and opened.getpixel((1, 0)) == WHITE
    half = open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert half.getpixel((0, 0)) == (127, 127, 127)


def test_a_palette_with_a_transparent_entry_is_laid_on_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image, transparency=0))
    assert opened.getpixel((0, 0)) == WHITE and opened.getpixel((1, 0)) == RED
    assert open_image(encode(image)).getpixel((0, 0)) == BLACK
    assert open_image(encode(image, transparency=b"\x00\xff")).getpixel((0, 0)) == WHITE


def test_a_colour_key_is_laid_on_white():
    assert open_image(encode(Image.new("RGB", (1, 1), RED), transparency=RED)).getpixel((0, 0)) == WHITE
    assert open_image(encode(Image.new("L", (1, 1), 7), transparency=7)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    image = Image.fromarray(np.array([[0, 255, 257 * 100, 65535]], dtype=np.uint16))
    opened = open_image(encode(image, kind=kind))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 100, 255)]


def test_cmyk_grey_and_one_bit_become_rgb():
    assert open_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == RED
    jpeg = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind="JPEG", quality=100)
    assert max(abs(a - b) for a, b in zip(open_image(jpeg).getpixel((4, 4)), RED, strict=True)) < 4
    assert open_image(Image.new("L", (1, 1), 9)).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(encode(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == WHITE


def test_a_phones_photograph_with_a_preview_behind_it_is_one_image():
    data = encode(noise(), kind="MPO", save_all=True, append_images=[noise(8, 8)])
    assert open_image(data).size == (64, 48)


def bad_reason(ref, **settings):
    with pytest.raises(BadSampleError) as caught:
        open_image(ref, **settings)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_refused(kind, share):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = encode(noise(), kind=kind)
    assert bad_reason(data[: int(len(data) * share)]) in {"image is truncated", "image is broken", "not an image"}


def test_a_truncated_jpeg_says_so():
    data = encode(noise(), kind="JPEG")
    assert bad_reason(data[: len(data) // 2]) == "image is truncated"


@pytest.mark.filterwarnings("ignore:::PIL")
def test_flipped_bytes_never_escape_as_another_error():
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        data = np.frombuffer(encode(noise(16, 16), kind=kind), dtype=np.uint8)
        for _ in range(30):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 8)] = random.integers(0, 256, 8)
            try:
                assert open_image(damaged.tobytes(), max_pixels=10**6).mode == "RGB"
            except BadSampleError as error:
                assert str(error)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animated_or_multi_page_file_is_refused(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], kind=kind, save_all=True, append_images=frames[1:])
    assert bad_reason(data) == "image is animated or has several pages"
    assert open_image(encode(frames[0], kind=kind)).size == (8, 8)


def test_a_bomb_is_refused_before_it_is_decoded():
    assert bad_reason(huge_png(60_000)) == "image has too many pixels"  # Pillow's own limit
    assert bad_reason(huge_png(2_000), max_pixels=1_000_000) == "image has too many pixels"
    assert bad_reason(huge_png(500), max_pixels=1_000_000) in {"image is truncated", "image is broken"}
    assert bad_reason(noise(), max_pixels=10) == "image has too many pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_default_limit_lies_where_pillow_starts_to_warn():
    assert bad_reason(huge_png(9_460)) == "image has too many pixels"


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    assert bad_reason(tmp_path / "empty.png") == bad_reason(b"") == "image file is empty"
    assert bad_reason(tmp_path / "page.jpg") == bad_reason(tmp_path / "vector.eps") == "not an image"
    assert bad_reason(tmp_path) == "image path is no file"
    assert bad_reason(tmp_path / "nothing.png") == bad_reason("nul\0.png") == "image file is missing"
    assert bad_reason(Path("x" * 5000)) == "image file is missing"
    assert bad_reason({"bytes": None}) == "image has neither bytes nor path"
    assert bad_reason(3) == "image is given as int"


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked.png").write_bytes(encode(noise()))

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Image, "open", refuse)
    assert bad_reason(tmp_path / "locked.png") == "image file may not be read"


@pytest.mark.parametrize("values", [np.float32([[0.5]]), np.int32([[70_000]]), np.int32([[-1]])])
def test_a_32_bit_image_is_refused_because_nobody_says_where_white_is(values):
    assert bad_reason(encode(Image.fromarray(values), kind="TIFF")) == "image has 32 bits a pixel"


def test_every_way_to_hold_an_image_opens_to_the_same_pixels(tmp_path):
    image = noise(8, 6)
    png = encode(image)
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


def test_images_are_the_same_by_path_or_by_content_and_inlined_ones_by_content_alone(tmp_path):
    png = encode(noise(8, 6))
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
