"""Users' images: every mode and depth by hand, and every kind of broken file as one line."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from etude.core.errors import UserError
from etude.data.images import EXTENSIONS, ImageError, in_threads, read_image, to_square
from etude.data.inventory import list_images

FUZZ = settings(max_examples=150, deadline=None, derandomize=True)
SIDES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


def save(path: Path, image: np.ndarray | Image.Image, mode: str | None = None, **options: object) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    assert mode is None or image.mode == mode
    image.save(path, **options)
    return path


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that declares a size, with any chunks for pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def refused(path: Path, *parts: str, mode: str = "L") -> str:
    """The one line that a file is refused with: it names the file, the fault and the fix."""
    with pytest.raises(UserError) as caught:
        read_image(path, mode)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(str(path)), text
    assert ": " in text.removeprefix(str(path))
    for part in parts:
        assert part in text
    return text


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the examples of a property."""
    return tmp_path_factory.mktemp("images")


# --- modes and depths ---


@FUZZ
@given(arrays.arrays(np.uint8, SIDES))
def test_grey_comes_back_as_it_was(scratch: Path, grey: np.ndarray) -> None:
    path = save(scratch / "grey.png", grey, "L")
    np.testing.assert_array_equal(read_image(path, "L"), grey)
    np.testing.assert_array_equal(read_image(path, "RGB"), np.stack([grey] * 3, -1))


@FUZZ
@given(arrays.arrays(bool, SIDES))
def test_one_bit_becomes_black_and_white(scratch: Path, bits: np.ndarray) -> None:
    path = save(scratch / "bits.png", Image.fromarray(bits), "1")
    np.testing.assert_array_equal(read_image(path, "L"), bits * np.uint8(255))
    np.testing.assert_array_equal(read_image(path, "RGB"), np.stack([bits * np.uint8(255)] * 3, -1))


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2."""
    return rgb.astype(np.float64) @ (0.299, 0.587, 0.114)


@FUZZ
@given(arrays.arrays(np.uint8, SIDES.map(lambda shape: (*shape, 3))))
def test_colour_comes_back_as_it_was(scratch: Path, rgb: np.ndarray) -> None:
    path = save(scratch / "rgb.png", rgb, "RGB")
    np.testing.assert_array_equal(read_image(path, "RGB"), rgb)
    np.testing.assert_allclose(read_image(path, "L"), luma(rgb), atol=0.51)


@FUZZ
@given(arrays.arrays(np.uint8, SIDES.map(lambda shape: (*shape, 4))))
def test_transparent_colour_lies_over_white(scratch: Path, rgba: np.ndarray) -> None:
    path = save(scratch / "rgba.png", rgba, "RGBA")
    alpha = rgba[..., 3:] / 255
    over = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(read_image(path, "RGB"), over, atol=1.01)
    np.testing.assert_allclose(read_image(path, "L"), luma(over), atol=1.51)


@FUZZ
@given(arrays.arrays(np.uint8, SIDES.map(lambda shape: (*shape, 2))))
def test_transparent_grey_lies_over_white(scratch: Path, la: np.ndarray) -> None:
    path = save(scratch / "la.png", la, "LA")
    alpha = la[..., 1] / 255
    over = la[..., 0] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(read_image(path, "L"), over, atol=1.01)
    np.testing.assert_allclose(read_image(path, "RGB"), np.stack([over] * 3, -1), atol=1.01)


@FUZZ
@given(arrays.arrays(np.uint8, SIDES), arrays.arrays(np.uint8, (256, 3)))
def test_a_palette_is_looked_up(scratch: Path, index: np.ndarray, palette: np.ndarray) -> None:
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    path = save(scratch / "palette.png", image, "P")
    np.testing.assert_array_equal(read_image(path, "RGB"), palette[index])
    np.testing.assert_allclose(read_image(path, "L"), luma(palette[index]), atol=0.51)


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    for name in ("palette.png", "palette.gif"):
        path = save(tmp_path / name, image, "P", transparency=1)
        np.testing.assert_array_equal(read_image(path, "RGB"), [[[10, 20, 30], [255, 255, 255]]])


@FUZZ
@given(arrays.arrays(np.uint16, SIDES))
def test_sixteen_bits_are_scaled_by_their_range(scratch: Path, wide: np.ndarray) -> None:
    for name in ("wide.png", "wide.tif"):
        path = save(scratch / name, wide, "I;16")
        grey = read_image(path, "L")
        np.testing.assert_allclose(grey, wide / 257, atol=0.5)
        np.testing.assert_array_equal(read_image(path, "RGB"), np.stack([grey] * 3, -1))


def test_sixteen_bits_by_hand(tmp_path: Path) -> None:
    path = save(tmp_path / "wide.png", np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16))
    np.testing.assert_array_equal(read_image(path, "L"), [[0, 0, 1, 1, 128, 254, 255, 255]])


def test_sixteen_bit_greys_are_not_stretched(tmp_path: Path) -> None:
    path = save(tmp_path / "faint.png", np.full((2, 2), 30_000, np.uint16))
    assert (read_image(path, "L") == 117).all()


def test_a_transparent_grey_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    path = save(tmp_path / "wide.png", np.array([[1000, 1001]], np.uint16), transparency=1000)
    np.testing.assert_array_equal(read_image(path, "L"), [[255, 4]])
    np.testing.assert_array_equal(read_image(path, "RGB")[0, :, 2], [255, 4])


def test_white_is_zero_in_sixteen_bits(tmp_path: Path) -> None:
    grey = np.array([[0, 65_535, 257 * 9]], np.uint16)
    path = save(tmp_path / "white.tif", grey, tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(read_image(path, "L"), [[255, 0, 246]])
    np.testing.assert_array_equal(read_image(save(tmp_path / "black.tif", grey), "L"), [[0, 255, 9]])


def test_a_tiff_of_twelve_bits_is_scaled_by_its_range(tmp_path: Path) -> None:
    """Two pixels, 0 and 4,095, in three bytes."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    body = b"II*\0" + struct.pack("<I", 12) + b"\0\x0f\xff\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "twelve.tif").write_bytes(body)
    np.testing.assert_array_equal(read_image(tmp_path / "twelve.tif", "L"), [[0, 255]])


def test_a_transparent_colour_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    row, clear = struct.pack(">6H", 1000, 2000, 3000, 1000, 2000, 9000), struct.pack(">3H", 1000, 2000, 3000)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    (tmp_path / "wide.png").write_bytes(png(2, 1, chunk(b"tRNS", clear), pixels, depth=16, colour=2))
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png", "RGB"), [[[255] * 3, [3, 7, 35]]])


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">3H", 65535, 32768, 0) + struct.pack(">3H", 257, 0, 65535)
    path = tmp_path / "wide.png"
    path.write_bytes(png(2, 1, chunk(b"IDAT", zlib.compress(rows)), depth=16, colour=2))
    np.testing.assert_allclose(read_image(path, "RGB"), [[[255, 128, 0], [1, 0, 255]]], atol=1)


@pytest.mark.parametrize("values", [[[-1, 5]], [[70_000, 5]], [[0.5, 0.25]]])
def test_thirty_two_bits_have_no_range(tmp_path: Path, values: list) -> None:
    kind = np.int32 if isinstance(values[0][0], int) else np.float32
    path = save(tmp_path / "deep.tif", np.array(values, kind))
    refused(path, "32-bit pixels without a known range", "8 or 16 bits")


@pytest.mark.parametrize(("mode", "white"), [("CMYK", (0, 0, 0, 0)), ("LAB", (255, 128, 128))])
def test_other_colour_spaces_become_colour_and_grey(tmp_path: Path, mode: str, white: tuple[int, ...]) -> None:
    path = save(tmp_path / "space.tif", Image.new(mode, (3, 2), white), mode)
    assert (read_image(path, "RGB") >= 250).all()
    assert (read_image(path, "L") >= 250).all()


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_listed_format_is_read(tmp_path: Path, extension: str) -> None:
    dark = np.zeros((12, 20), np.uint8)
    dark[:, 10:] = 255
    image = Image.fromarray(dark)
    path = save(tmp_path / f"picture.{extension}", image if extension == "pgm" else image.convert("RGB"))
    np.testing.assert_allclose(read_image(path, "L"), dark, atol=40)
    assert read_image(path, "RGB").shape == (12, 20, 3)
    assert list_images(tmp_path) == [path]


def test_the_first_of_several_frames_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 3), value) for value in (40, 200)]
    for name in ("frames.gif", "frames.tif", "frames.png", "frames.webp"):
        path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        assert (read_image(path, "L") == 40).all(), name


def test_a_stereo_photograph_is_read(tmp_path: Path) -> None:
    left, right = (Image.new("L", (16, 16), value) for value in (40, 200))
    path = save(tmp_path / "stereo.jpg", left, format="MPO", save_all=True, append_images=[right])
    np.testing.assert_allclose(read_image(path, "L"), 40, atol=3)


STORED = np.arange(6, dtype=np.uint8).reshape(2, 3)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.array([[3, 0], [4, 1], [5, 2]]),
    7: STORED[::-1, ::-1].T,
    8: np.array([[2, 5], [1, 4], [0, 3]]),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_camera_s_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "turned.png", STORED, exif=exif)
    np.testing.assert_array_equal(read_image(path, "L"), UPRIGHT[orientation])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"\xff" * 40, b"MM\0*\0\0\0\x08\xff\xff"])
def test_garbled_metadata_do_not_hide_the_pixels(tmp_path: Path, exif: bytes) -> None:
    path = tmp_path / "garbled.png"
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x07\x08"))
    path.write_bytes(png(2, 1, chunk(b"eXIf", exif), pixels))
    np.testing.assert_array_equal(read_image(path, "L"), [[7, 8]])


def test_arrays_may_be_changed(tmp_path: Path) -> None:
    for mode in ("L", "RGB"):
        for image in (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint16)):
            array = read_image(save(tmp_path / "zero.png", image), mode)
            assert array.flags.writeable
            assert array.dtype == np.uint8


# --- broken files ---


@FUZZ
@given(st.binary(max_size=400), st.sampled_from(EXTENSIONS), st.sampled_from(("L", "RGB")))
def test_random_bytes_are_refused(scratch: Path, body: bytes, extension: str, mode: str) -> None:
    path = scratch / f"random.{extension}"
    path.write_bytes(body)
    array_or_refusal(path, mode)


def array_or_refusal(path: Path, mode: str) -> None:
    try:
        array = read_image(path, mode)
    except UserError as error:
        refusal = str(error)
    else:
        assert (array.dtype, array.ndim) == (np.uint8, {"L": 2, "RGB": 3}[mode])
        return
    assert refusal.isprintable()
    assert refusal.startswith(str(path))


def _pictures() -> dict[str, bytes]:
    """A small whole file of each format."""
    grey = (np.arange(30 * 20) % 251).astype(np.uint8).reshape(30, 20)
    image = Image.fromarray(np.stack([grey, grey.T.reshape(30, 20), 255 - grey], -1))
    made: dict[str, bytes] = {}
    for extension in EXTENSIONS:
        to = io.BytesIO()
        kind = Image.registered_extensions()[f".{extension}"]
        (image.convert("L") if extension == "pgm" else image).save(to, kind)
        made[extension] = to.getvalue()
    return made


PICTURES = _pictures()


@settings(FUZZ, max_examples=400)
@given(st.data(), st.sampled_from(EXTENSIONS))
def test_garbled_files_are_refused_or_read(scratch: Path, data: st.DataObject, extension: str) -> None:
    body = bytearray(PICTURES[extension])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(body) - 1, 200)))
        body[at] = data.draw(st.integers(0, 255))
    path = scratch / f"garbled.{extension}"
    path.write_bytes(body)
    array_or_refusal(path, data.draw(st.sampled_from(("L", "RGB"))))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_cut_short_is_refused(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"short.{extension}"
    path.write_bytes(PICTURES[extension][: len(PICTURES[extension]) * 9 // 10])
    refused(path, "is damaged or cut short: copy or save it again")


def test_a_png_with_altered_pixels_is_refused(tmp_path: Path) -> None:
    body = bytearray(PICTURES["png"])
    body[len(body) // 2] ^= 0xFF
    path = tmp_path / "altered.png"
    path.write_bytes(body)
    refused(path, "is damaged or cut short")


@pytest.mark.parametrize("body", [b"hello, this is text\n" * 20, b"<svg xmlns='x'/>", b"%PDF-1.4", b"\0" * 100])
def test_what_is_no_image_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "words.png"
    path.write_bytes(body)
    refused(path, "is not an image of a known format", "PNG, JPEG")


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "PDF", "TGA"])
def test_other_formats_of_pillow_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    refused(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty (0 bytes): copy or save it again")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder: give an image file in it")
    refused(tmp_path / "none.png", "does not exist: check the path")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "none.png")
    refused(tmp_path / ("x" * 300))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "is not a file")


def test_a_link_to_nothing_and_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "dead.png").symlink_to(tmp_path / "none")
    refused(tmp_path / "dead.png", "is a broken link")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png")


def test_a_name_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.png"
    path.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        read_image(path, "L")
    assert str(caught.value).isprintable()
    assert r"two\nlines\x1b[31m.png" in str(caught.value)


def test_a_file_name_is_taken_as_text_too(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.png", np.full((2, 2), 9, np.uint8))
    assert (read_image(str(path), "L") == 9).all()


# --- bytes in memory, JPEGs at less than their size ---


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_bytes_are_read_as_the_file_is(tmp_path: Path, extension: str, mode: str) -> None:
    path = tmp_path / f"picture.{extension}"
    path.write_bytes(PICTURES[extension])
    np.testing.assert_array_equal(read_image(("any", PICTURES[extension]), mode), read_image(path, mode))


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello", "is not an image of a known format"),
        (PICTURES["png"][:100], "is damaged or cut short"),
        (png(9_000, 9_000), "is 9000 x 9000 pixels, more than 64,000,000"),
    ],
)
def test_broken_bytes_are_refused_by_their_name(body: bytes, fault: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(("birds/owl\n.png", body), "RGB")
    assert str(caught.value).startswith(r"'birds/owl\n.png' " + fault)
    assert caught.value.fault.startswith(fault)
    assert str(caught.value).isprintable()


def jpeg(image: np.ndarray, **options: object) -> bytes:
    to = io.BytesIO()
    Image.fromarray(image).save(to, "jpeg", quality=95, **options)
    return to.getvalue()


@pytest.mark.parametrize(
    ("min_side", "expected"), [(None, (200, 320)), (101, (200, 320)), (100, (100, 160)), (30, (50, 80)), (1, (25, 40))]
)
def test_a_jpeg_comes_smaller_but_never_too_small(min_side: int | None, expected: tuple[int, int]) -> None:
    slope = np.add.outer(np.arange(200), np.arange(320)).astype(np.float64)
    image = np.stack([slope / 3, 255 - slope / 3, np.full_like(slope, 90)], -1).astype(np.uint8)
    read = read_image(("slope.jpg", jpeg(image)), "RGB", min_side=min_side)
    assert read.shape == (*expected, 3)
    factor = 200 // expected[0]
    mean = image.reshape(expected[0], factor, expected[1], factor, 3).mean((1, 3))
    np.testing.assert_allclose(read, mean, atol=4)


def test_a_smaller_jpeg_is_turned_upright_all_the_same() -> None:
    image = np.zeros((160, 320, 3), np.uint8)
    image[:, :160] = 255
    exif = Image.Exif()
    # The camera was turned: the left half is above.
    exif[274] = 6
    read = read_image(("turned.jpg", jpeg(image, exif=exif)), "RGB", min_side=80)
    assert read.shape == (160, 80, 3)
    assert read[:70].min() > 240
    assert read[90:].max() < 15


def test_other_formats_come_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.png", np.zeros((64, 64), np.uint8))
    assert read_image(path, "L", min_side=8).shape == (64, 64)


def test_threads_do_all_work_and_leave_the_warnings_as_they_were() -> None:
    before = list(warnings.filters)
    done: list[int] = []

    def work(row: int) -> None:
        read_image(("any.png", PICTURES["png"]), "L")
        done.append(row)

    in_threads(work, 100, "reading")
    assert sorted(done) == list(range(100))
    assert list(warnings.filters) == before


def test_a_fault_in_a_thread_is_the_caller_s() -> None:
    def work(row: int) -> None:
        if row == 3:
            read_image(("broken.png", b"x"), "L")

    with pytest.raises(ImageError, match=r"broken\.png is not an image"):
        in_threads(work, 50, "reading")


# --- huge files ---


@pytest.mark.parametrize(
    ("width", "height", "fault"),
    [
        (100_000, 100_000, "too many pixels: make it smaller"),
        (2**31 - 1, 2**31 - 1, "too many pixels: make it smaller"),
        (9_000, 9_000, "is 9000 x 9000 pixels, more than 64,000,000: make it smaller"),
        (64_000_001, 1, "is 64000001 x 1 pixels, more than 64,000,000: make it smaller"),
    ],
)
def test_a_small_file_that_declares_a_huge_picture_is_not_decoded(
    tmp_path: Path, width: int, height: int, fault: str
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height, chunk(b"IDAT", zlib.compress(bytes(100)))))
    refused(path, fault)


def test_the_limit_is_the_caller_s(tmp_path: Path) -> None:
    path = save(tmp_path / "grey.png", np.zeros((10, 10), np.uint8))
    assert read_image(path, "L", max_pixels=100).shape == (10, 10)
    with pytest.raises(UserError, match="is 10 x 10 pixels, more than 99: make it smaller"):
        read_image(path, "L", max_pixels=99)


def test_a_bomb_in_the_metadata_is_refused_or_ignored(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    path.write_bytes(png(2, 1, text, chunk(b"IDAT", zlib.compress(b"\0\x07\x08"))))
    array_or_refusal(path, "L")


# --- folders ---


def test_images_of_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "10.tiff", ".hidden.png", "notes.txt", "png", "c.png.bak"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["10.tiff", "a.jpeg", "b.PNG"]


def test_faults_of_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    cases = [
        (list_images, "none", "none does not exist: check the path"),
        (list_images, "file", "file is a file: give the folder that holds the images"),
        (list_images, "empty", "empty holds no image (PNG, JPEG"),
    ]
    for ask, name, fault in cases:
        with pytest.raises(UserError) as caught:
            ask(tmp_path / name)
        assert fault in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path))
        assert str(caught.value).isprintable()


# --- squares ---


def test_a_block_of_two_is_averaged() -> None:
    image = np.array([[0, 100, 10, 10], [100, 200, 10, 10], [0, 0, 255, 255], [0, 0, 255, 1]], np.uint8)
    # (255 * 3 + 1) / 4 = 191.5, rounded either way.
    np.testing.assert_allclose(to_square(image, 2, 0), [[100, 10], [0, 191.5]], atol=0.5)


def test_areas_are_averaged_in_each_channel() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    expected = image.reshape(4, 3, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(to_square(image, 4, 7), expected, atol=1)


@pytest.mark.parametrize("wide", [True, False])
def test_padding_lies_on_both_sides(wide: bool) -> None:
    image = np.full((2, 6), 200, np.uint8)
    expected = np.full((6, 6), 9, np.uint8)
    expected[2:4] = 200
    square = to_square(image if wide else image.T.copy(), 6, 9)
    np.testing.assert_array_equal(square, expected if wide else expected.T)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    image = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    square = to_square(image, 28, 0)
    np.testing.assert_array_equal(square, image)
    square[0, 0] ^= 1
    assert square[0, 0] != image[0, 0], "the caller's array is not shared"


def test_enlarging_stays_within_the_values() -> None:
    square = to_square(np.array([[50, 60], [70, 80]], np.uint8), 28, 0)
    assert (square.min(), square.max()) == (50, 80)
    assert len(np.unique(square)) > 4, "blocks, not a slope"


@FUZZ
@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)),
    st.integers(1, 33),
    st.integers(0, 255),
)
def test_squares_are_squares_and_turn_with_the_picture(image: np.ndarray, size: int, background: int) -> None:
    square = to_square(image, size, background)
    assert (square.shape, square.dtype) == ((size, size), np.uint8)
    # Pillow rounds between its two passes.
    np.testing.assert_allclose(to_square(image.T, size, background), square.T.astype(int), atol=1)
    low, high = min(image.min(), background), max(image.max(), background)
    assert low <= square.min()
    assert square.max() <= high


def test_a_thin_picture_takes_no_square_of_memory() -> None:
    import tracemalloc

    image = np.zeros((1, 65_535), np.uint8)
    image[0, :32_000] = 255
    tracemalloc.start()
    square = to_square(image, 28, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert square.shape == (28, 28)
    assert peak < 50_000_000


@pytest.mark.parametrize("shape", [(1, 65_536), (65_536, 1, 3)])
def test_a_line_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"too long and thin: crop it"):
        to_square(np.zeros(shape, np.uint8), 28, 0)
