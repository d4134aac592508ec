import base64
import os
import pickle
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from visgraft.config import DataSettings
from visgraft.data.images.feature_cache import image_version
from visgraft.data.images.notes import without_notes
from visgraft.data.images.opening import (
    DEFAULT_MAX_PIXELS,
    FilePart,
    image_key,
    image_ref,
    image_refs,
    open_image,
)
from visgraft.data.images.video import frames_of
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
def test_the_limit_is_that_of_a_recipe_and_pillow_warns_of_nothing_that_is_allowed():
    assert bad_reason(huge_png(10_001)) == "image has too many pixels"
    assert DEFAULT_MAX_PIXELS == DataSettings().max_pixels == 100_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bad_reason(huge_png(9_999)) == "image is truncated"
        assert bad_reason(huge_png(20_000), max_pixels=500_000_000) == "image is truncated"


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


def test_a_stretch_of_a_file_is_an_image(tmp_path):
    whole = tmp_path / "shard.tar"
    part = encode(Image.new("RGB", (3, 2), "red"))
    whole.write_bytes(b"before" + part + b"behind")
    named = {"bytes": None, "path": "shard.tar", "offset": 6, "size_bytes": len(part)}
    ref = image_ref(named, folder=tmp_path)
    assert open_image(ref).getpixel((2, 1)) == (255, 0, 0)
    assert image_ref({**named, "offset": None, "size_bytes": None}, folder=tmp_path) == whole


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


# --- What stands beside the pixels

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_png_chunk(data, name, body):
    return data[:33] + chunk(name, body) + data[33:]  # behind the header


def exif_of(*entries):
    """Write EXIF with the tags (tag, type, count, value) as they are, right or wrong."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
WRONG_TYPE = (0x010E, 13, 2, b"\xff\xff\xff\x7f")
NO_NUMBER = (0x011A, 5, 1, b"\xff\xff\xff\x7f")  # a ratio beyond the end of the file


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("tag", [WRONG_TYPE, NO_NUMBER, (0x0131, 2, 10**6, b"\x08\0\0\0")])
def test_an_image_beside_broken_notes_is_used_and_turned_where_that_can_be_read(kind, tag):
    data = encode(noise(), kind=kind, exif=b"Exif\0\0" + exif_of(TURNED, tag))
    assert open_image(data).size == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0no tiff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + exif_of(TURNED)[:14]]
)
def test_an_image_beside_notes_that_are_none_is_used_as_it_lies(kind, exif):
    expected = open_image(encode(noise(), kind=kind))
    assert np.array_equal(open_image(encode(noise(), kind=kind, exif=exif)), expected)


@pytest.mark.parametrize(
    "name, body",
    [
        (b"eXIf", b"no tiff"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"iTXt", b""),
        (b"iCCP", b"sRGB\0\0" + zlib.compress(b"x" * 3_000_000)),
        (b"pHYs", b"\0"),
        (b"gAMA", b""),
        (b"cHRM", b"\0"),
    ],
)
def test_no_note_of_a_png_spoils_its_pixels(tmp_path, name, body):
    (tmp_path / "a.png").write_bytes(with_png_chunk(encode(noise()), name, body))
    for ref in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(open_image(ref), noise())


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_notes_never_spoil_the_pixels(kind):
    notes = {"exif": b"Exif\0\0" + exif_of(TURNED), "xmp": b"<x/>" * 40, "icc_profile": b"\1" * 200}
    whole = encode(noise(), kind=kind, **notes)
    first = whole.index(b"\1" * 200)
    pixels = np.asarray(open_image(encode(noise(), kind=kind)))
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = [*range(first, first + 200), *range(whole.index(b"II*\0"), whole.index(b"II*\0") + 20)]
        damaged[random.choice(places, 6)] = random.integers(0, 256, 6)
        opened = np.asarray(open_image(damaged.tobytes()))
        assert any(np.array_equal(np.rot90(pixels, turns), opened) for turns in range(4)) or opened.shape[2] == 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_no_note_of_a_tiff_spoils_its_pixels(order):
    data = bytearray(encode(noise(), kind="TIFF", tiffinfo={270: "a description of it", 274: 1}, big_tiff=False))
    start = struct.unpack_from("<I", data, 4)[0] + 2
    places = range(start, start + 12 * struct.unpack_from("<H", data, start - 2)[0], 12)
    [place] = [at for at in places if struct.unpack_from("<H", data, at)[0] == 270]
    data[place + 2 : place + 8] = b"\x0c\0\xff\xff\xff\x7f" if order == "<" else b"\x01\0\xff\xff\xff\xff"
    assert np.array_equal(open_image(bytes(data)), noise())
    data = data[: data.index(b"a description")]
    assert bad_reason(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_how_the_camera_was_held_is_kept_beside_other_notes_that_are_broken(kind):
    noted = encode(noise(), kind=kind, exif=b"Exif\0\0" + exif_of(TURNED), icc_profile=b"\1" * 200)
    kept = without_notes(noted, keep_exif=True)
    assert len(kept) < len(noted) - 20 and open_image(kept).size == (48, 64)
    assert open_image(without_notes(noted, keep_exif=False)).size == (64, 48)
    if kind == "PNG":
        text = b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)
        assert open_image(with_png_chunk(noted, b"zTXt", text)).size == (48, 64)


def test_notes_are_taken_off_and_pixels_stay():
    for kind in ("PNG", "JPEG", "WEBP"):
        bare = encode(noise(), kind=kind)
        noted = encode(noise(), kind=kind, exif=exif_of(TURNED), icc_profile=b"\0" * 200)
        kept = without_notes(noted, keep_exif=False)
        assert len(kept) < len(noted) - 60 and b"II*" not in kept
        assert np.array_equal(open_image(kept), open_image(bare))
    assert without_notes(encode(noise()), keep_exif=False) is None
    assert without_notes(b"GIF89a", keep_exif=True) is None


# --- Formats, and what a text means


KINDS = ["AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI"]
KINDS += ["SPIDER", "TGA", "TIFF", "WEBP"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in (Image.init(), Image.SAVE)[1]])
def test_every_format_that_pillow_opens_is_one_in_a_file_in_bytes_and_in_base64(tmp_path, kind):
    image = noise(8, 8).resize((128, 128), Image.Resampling.NEAREST).convert("F" if kind == "SPIDER" else "RGB")
    data = encode(image, kind=kind)
    if kind == "SPIDER":
        assert bad_reason(data) == "image has 32 bits a pixel"
        return
    (tmp_path / "image").write_bytes(data)
    text = base64.b64encode(data).decode()
    opened = [open_image(image_ref(value, folder=tmp_path)) for value in ("image", data, text, {"base64": text})]
    assert opened[0].size == ((1024, 1024) if kind == "ICNS" else (128, 128))  # an icon is as large as it can be
    assert all(each.mode == "RGB" for each in opened)
    assert all(np.array_equal(each, opened[0]) for each in opened)


def test_a_picture_with_layers_is_one_image():
    layers = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 1, 1, 8, 3) + bytes(4) + bytes(4) + bytes(4)
    assert open_image(layers + b"\0\0" + bytes([255, 0, 0])).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    "name", ["x" * 256, "x" * 256 + ".jpg", "nul\0.png", "a/" + "y" * 300 + "/b.png", "A" * 70, "d/" * 40, "\ud83d.png"]
)
@pytest.mark.parametrize("folder", [None, Path("photos")])
def test_a_name_that_no_file_has_or_can_have_is_a_missing_image(name, folder):
    assert bad_reason(name) == "image file is missing"
    for ref in (Path(name), folder / name if folder else Path(name)):
        assert bad_reason(ref) == "image file is missing"
        assert frames_of(ref, num_frames=2, spacing_s=None) == [ref]
        assert image_key(ref, by_content=False)
        for read in (image_version, lambda ref: image_key(ref, by_content=True)):
            with pytest.raises(BadSampleError, match="image file is missing"):
                read(ref)
    if "\0" in name or "\ud83d" in name:
        with pytest.raises(BadSampleError, match="image file is missing"):
            image_ref(name, folder=folder)


def test_a_long_text_in_base64_that_is_no_image_is_no_path_either():
    assert bad_reason(image_ref(base64.b64encode(bytes(9000)).decode())) == "not an image"
    assert isinstance(image_ref("images/" + "folder/" * 20 + "a.jpg"), Path)
    assert isinstance(image_ref("3f2a" * 16), Path)  # a name by content


@pytest.mark.parametrize("form", ["file://{}", "file:{}", "FILE://localhost{}"])
def test_a_file_address_is_a_path(tmp_path, form):
    (tmp_path / "my photo.png").write_bytes(encode(noise(8, 6)))
    for path in (tmp_path / "my photo.png", str(tmp_path / "my%20photo.png")):
        assert open_image(form.format(path)).size == open_image(image_ref(form.format(path))).size == (8, 6)


def test_home_and_backslashes_mean_what_they_mean_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(encode(noise(8, 6)))
    (tmp_path / "odd\\name.png").write_bytes(encode(noise(4, 4)))
    for name in ("~/photos/cat.png", "photos\\cat.png", ".\\photos\\cat.png", "~\\photos\\cat.png"):
        assert open_image(image_ref(name, folder=tmp_path)).size == (8, 6)
    assert open_image("~/photos/cat.png").size == (8, 6)
    assert open_image(image_ref("odd\\name.png", folder=tmp_path)).size == (4, 4)
    assert image_key(image_ref("photos\\cat.png", folder=tmp_path), by_content=False) == image_key(
        image_ref("photos/cat.png", folder=tmp_path), by_content=False
    )


def test_an_address_that_is_not_read_is_named():
    for address in ("s3://bucket/a.png", "gs://bucket/a.png", "hf://datasets/x/a.png"):
        with pytest.raises(BadSampleError, match=r"image is an address of a kind that is not read \((s3|gs|hf)://\)"):
            image_ref(address)


@pytest.mark.parametrize("by_content", [True, False])
def test_only_regular_files_are_opened_wherever_an_image_is_read(tmp_path, by_content):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, reason in (("pipe.png", "image path is no file"), ("link.png", "image path is no file")):
        assert bad_reason(tmp_path / name) == reason
        if by_content:
            with pytest.raises(BadSampleError, match=reason):
                image_key(tmp_path / name, by_content=True)
    assert bad_reason(tmp_path / "loop.png") == "image file is missing"
    assert bad_reason(Path("/dev/zero")) == "image path is no file"


# --- Arrays


def test_arrays_and_tensors_of_bytes_are_images():
    image = noise(8, 6)
    pixels = np.array(image)  # [6, 8, 3]
    grey = pixels[:, :, 0]
    for array in (
        pixels,
        torch.from_numpy(pixels),
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1),
    ):
        assert np.array_equal(open_image(array), image)
        assert np.array_equal(open_image(image_ref(array)), image)
        assert image_key(array, by_content=False) == image_key(image, by_content=False)
    for array in (grey, grey[None], grey[:, :, None]):
        assert np.array_equal(open_image(array), Image.fromarray(grey).convert("RGB"))
    clear = np.zeros((2, 2, 4), np.uint8)
    assert open_image(clear).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.zeros((3, 4, 4), np.float32), "image is an array of float32: give uint8, 0 is black and 255 white"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "image is an array of bfloat16: give uint8"),
        (np.zeros((5, 6, 7), np.uint8), r"image is an array of shape \[5, 6, 7\]: give \[H, W, 3\], \[3, H, W\]"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"image is an array of shape \[2, 3, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"image is an array of shape \[0, 4, 3\]"),
        (np.zeros(3, np.uint8), r"image is an array of shape \[3\]"),
    ],
)
def test_other_arrays_are_refused_with_the_way_to_convert_them(array, reason):
    with pytest.raises(BadSampleError, match=reason):
        open_image(array)
    with pytest.raises(BadSampleError, match=reason):
        image_ref(array)


def test_an_image_without_pixels_is_refused():
    assert bad_reason(Image.new("RGB", (0, 4))) == "image has no pixels"
