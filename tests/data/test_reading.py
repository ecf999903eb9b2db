"""Files of every kind are read rightly, or refused in one line."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import images_zoo as zoo
from xattn.data.reading import decode_image, read_image, to_pil
from xattn.errors import DataError, ParameterError, ShapeError, XattnWarning


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return zoo.build_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return zoo.build_bad(tmp_path_factory.mktemp("bad"))


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", zoo.GOOD)
def test_every_good_image_is_read_as_rgb(good: dict[str, Path], name: str) -> None:
    assert pixels(good[name]).shape[2] == 3


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        *[(n, 0) for n in ("rgb.png", "animated.png", "animated.webp", "pages.tif", "no-ending", "png-inside.jpg")],
        *[("name with spaces ü.png", 0), ("deep-rgb.png", 0), ("palette.png", 2), ("animated.gif", 2)],
        *[("photo.jpg", 8), ("exif-3.jpg", 8), ("exif-6.jpg", 8), ("cmyk.jpg", 12), ("cmyk.tif", 1)],
    ],
)
def test_the_picture_comes_out(good: dict[str, Path], name: str, tolerance: int) -> None:
    assert np.abs(pixels(good[name]) - zoo.picture()).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_every_exif_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned{suffix}"
    zoo.exif(path, orientation)
    with Image.open(path) as stored:
        turned = orientation >= 5 and suffix != ".tif"  # Pillow itself turns TIFF when loading
        if turned:
            assert stored.size == (zoo.HEIGHT, zoo.WIDTH)
    got = pixels(path)
    assert got.shape == (zoo.HEIGHT, zoo.WIDTH, 3)
    inner = np.s_[3:13, 3:20]  # away from the edges between colours, where lossy formats differ
    assert np.abs(got[inner] - zoo.RED).max() <= 12
    assert np.abs(got[:13, 28:45] - zoo.GREEN).max() <= 12


def test_an_exif_orientation_out_of_range_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    tags = Image.Exif()
    tags[0x0112] = 42
    zoo.rgb().save(path, exif=tags, quality=95)
    assert read_image(path).size == (zoo.WIDTH, zoo.HEIGHT)


def test_sixteen_bits_are_scaled_not_clipped(good: dict[str, Path]) -> None:
    expected = np.rint(zoo.deep_values() / 257)
    got = pixels(good["deep-grey.png"])
    np.testing.assert_array_equal(got, np.repeat(expected[:, :, None], 3, axis=2))
    assert got.min() == 0
    assert got.max() == 255
    assert len(np.unique(got)) == 256


def test_float_images_keep_their_unit_range(good: dict[str, Path], tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(good["float.tif"])[:, :, 0], zoo.picture()[:, :, 0])
    path = tmp_path / "range.tif"
    Image.fromarray(np.array([[-10.0, 0.0, 10.0]], np.float32)).save(path)
    with pytest.warns(XattnWarning, match=r"from -10 \(black\) to 10 \(white\), which is a guess"):
        np.testing.assert_array_equal(pixels(path)[0, :, 0], [0, 128, 255])
    Image.fromarray(np.full((2, 2), 7.0, np.float32)).save(path)
    with pytest.warns(XattnWarning, match="is a guess"):
        np.testing.assert_array_equal(pixels(path), 0)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_sixteen_are_told_and_can_be_set(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "scan.png"
    values = np.linspace(0, 2**bits - 1, 35).round().astype(np.uint16).reshape(5, 7)
    Image.fromarray(values).save(path)
    with pytest.warns(XattnWarning, match=rf"window=\(0, {2**bits - 1}\) fixes it"):
        guessed = pixels(path)
    assert (guessed.min(), guessed.max()) == (0, 255)
    given = np.asarray(read_image(path, window=(0, 2**bits - 1)))  # as the warning says: without another one
    np.testing.assert_array_equal(given, guessed)
    half = np.asarray(read_image(path, window=(0, 2 ** (bits - 1))))
    assert (half[..., 0] == 255).sum() > len(values.flat) / 3  # what is above the window is white


def test_a_window_of_ct_numbers(tmp_path: Path) -> None:
    path = tmp_path / "ct.tif"
    Image.fromarray(np.array([[-1000, -600, 400, 3000]], np.int32)).save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path, window=(-1000, 400)))[0, :, 0], [0, 73, 255, 255])
    array = np.array([[-1000.0, -300.0, 400.0]])
    np.testing.assert_array_equal(np.asarray(to_pil(array, window=(-1000, 400)))[0, :, 0], [0, 128, 255])
    for window in ((5, 5), (7, 1), (0, float("nan")), (1, 2, 3), "0,1"):
        with pytest.raises(ParameterError, match="window"):
            read_image(path, window=window)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"int64; pass .* or window=\(low, high\)"):
        to_pil(np.array([[1, 2]]))


def test_thirty_two_bit_integers(tmp_path: Path) -> None:
    path = tmp_path / "int.tif"
    Image.fromarray(np.array([[0, 257, 65535]], np.int32)).save(path)
    np.testing.assert_array_equal(pixels(path)[0, :, 0], [0, 1, 255])
    Image.fromarray(np.array([[0, 500_000, 1_000_000]], np.int32)).save(path)
    with pytest.warns(XattnWarning, match="is a guess"):
        np.testing.assert_array_equal(pixels(path)[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("name", ["alpha.png", "palette-alpha.png"])
def test_transparency_becomes_white(good: dict[str, Path], name: str) -> None:
    expected = zoo.picture()
    expected[zoo.HEIGHT // 2 :, : zoo.WIDTH // 2] = 255
    assert np.abs(pixels(good[name]) - expected).max() <= 2


def test_half_transparency_is_mixed_with_white(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(path)
    np.testing.assert_allclose(pixels(path)[0, 0], [255 * 0.8, 255 * 0.8 + 20, 255 * 0.8 + 40], atol=1)


def test_grey_with_alpha(good: dict[str, Path]) -> None:
    got = pixels(good["grey-alpha.png"])
    assert (got[: zoo.HEIGHT // 2] == 100).all()
    assert (got[zoo.HEIGHT // 2 :] == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_of_a_png_becomes_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "colour.png"
    colour: int | tuple[int, int, int] = 10 if mode == "L" else (10, 20, 30)
    image = Image.new(mode, (4, 2), colour)
    image.paste(200 if mode == "L" else (200, 200, 200), (2, 0, 4, 2))
    image.save(path, transparency=colour)
    got = pixels(path)
    assert (got[:, :2] == 255).all()
    assert (got[:, 2:] == 200).all()


def test_grey_and_bilevel(good: dict[str, Path]) -> None:
    grey = pixels(good["grey.png"])
    assert (grey[:, :, 0] == grey[:, :, 2]).all()
    assert set(np.unique(pixels(good["bilevel.png"]))) == {0, 255}


def test_sizes_of_extreme_images(good: dict[str, Path]) -> None:
    assert read_image(good["one-pixel.png"]).size == (1, 1)
    assert read_image(good["wide.png"]).size == (5000, 2)
    assert read_image(good["tall.png"]).size == (2, 5000)


@pytest.mark.parametrize("name", zoo.BAD)
def test_every_bad_image_is_refused_in_one_line(bad: dict[str, Path], name: str) -> None:
    with pytest.raises(DataError, match=zoo.BAD[name][1]) as caught:
        read_image(bad[name])
    message = str(caught.value)
    assert message.startswith(str(bad[name]))
    assert "\n" not in message


def test_a_missing_image_names_the_nearest(good: dict[str, Path]) -> None:
    path = good["photo.jpg"].with_name("foto.jpg")
    with pytest.raises(DataError, match=rf"foto\.jpg: does not exist\. Did you mean '.*{re.escape('photo.jpg')}'\?"):
        read_image(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"There is no folder '.*fotos'\. Did you mean '.*photos/cat\.jpg'\?"):
        read_image(tmp_path / "fotos" / "cat.jpg")


def test_permission_denied(good: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"photo\.jpg: permission denied"):
        read_image(good["photo.jpg"])


def test_a_device_error_is_one_line(good: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Input/output error\)"):
        read_image(good["photo.jpg"])


def test_the_pixel_limit_is_a_parameter(good: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="over the limit of 1,000"):
        read_image(good["photo.jpg"], pixel_limit=1000)
    assert read_image(good["photo.jpg"], pixel_limit=zoo.WIDTH * zoo.HEIGHT).width == zoo.WIDTH


def test_a_limit_above_pillows_own_still_refuses_bombs(bad: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="decompression bomb"):
        read_image(bad["bomb.png"], pixel_limit=10**12)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_image(pipe)


def test_bytes_are_decoded_by_the_same_rules(good: dict[str, Path]) -> None:
    data = good["exif-6.jpg"].read_bytes()
    np.testing.assert_array_equal(np.asarray(decode_image(data)), pixels(good["exif-6.jpg"]))
    with pytest.raises(DataError, match=r"row 7: is truncated or damaged|row 7: is not"):
        decode_image(data[:200], "row 7")
    with pytest.raises(DataError, match="row 8: is empty"):
        decode_image(b"", "row 8")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["photo.jpg", "palette.png", "animated.gif", "cmyk.tif", "animated.webp", "exif-6.jpg"]),
    cut=st.floats(0, 1),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_damage_of_any_kind_is_read_or_refused_by_data_error(
    good: dict[str, Path], name: str, cut: float, places: list[tuple[float, int]]
) -> None:
    data = bytearray(good[name].read_bytes())
    for place, value in places:
        data[int(place * len(data))] = value
    if cut < 0.5:
        data = data[: int(2 * cut * len(data))]
    message, mode = "", "RGB"
    try:
        mode = decode_image(bytes(data), name, pixel_limit=10**7).mode
    except DataError as error:
        message = str(error)
    assert mode == "RGB"
    assert not message or message.startswith(f"{name}: ")
    assert "\n" not in message


# --------------------------------------------------------------------------------------------------------- hardening


def test_what_was_read_is_not_turned_again(good: dict[str, Path]) -> None:
    read = read_image(good["exif-6.jpg"])
    assert to_pil(read).size == read.size == (zoo.WIDTH, zoo.HEIGHT)
    stored = read_image(good["exif-6.jpg"], upright=False)
    assert to_pil(stored).size == stored.size == (zoo.HEIGHT, zoo.WIDTH)
    assert not read.getexif()
    assert not read.info


@pytest.mark.parametrize("size", [(1, 119_999_999), (119_999_999, 1), (3000, 3000), (10_000, 10_000)])
def test_a_header_without_data_is_refused_before_memory_is_taken(size: tuple[int, int]) -> None:
    for bits, colour in ((8, 2), (1, 0), (16, 6)):
        with pytest.raises(DataError, match="cannot hold"):
            decode_image(zoo.png(*size, bits, colour, b""))


def test_decoders_that_need_more_memory_have_a_lower_limit(tmp_path: Path) -> None:
    zoo.rgb().save(tmp_path / "a.webp")
    assert read_image(tmp_path / "a.webp", pixel_limit=3 * zoo.WIDTH * zoo.HEIGHT).width == zoo.WIDTH
    with pytest.raises(DataError, match="over the limit of 1,533"):
        read_image(tmp_path / "a.webp", pixel_limit=4600)


def test_nothing_is_run_to_read_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n1 setgray\n")
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path / "a.jpg")


def test_endless_scans_and_monstrous_tiles(tmp_path: Path) -> None:
    zoo.rgb().save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    assert decode_image(data).size == (zoo.WIDTH, zoo.HEIGHT)
    with pytest.raises(DataError, match="scans, more than the 100"):
        decode_image(data[:-2] + b"\xff\xda\x00\x02" * 101 + data[-2:])
    tags = {256: 48, 257: 32, 258: 8, 259: 5, 262: 1, 277: 1, 322: 2**20, 323: 2**20, 324: 8, 325: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(DataError, match="tiles of 1048576 x 1048576"):
        decode_image(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4))


SAVED = {
    "jpg": {"quality": 80}, "progressive.jpg": {"progressive": True}, "png": {}, "gif": {}, "webp": {}, "bmp": {},
    "lossless.webp": {"lossless": True}, "tif": {}, "lzw.tif": {"compression": "tiff_lzw"}, "ppm": {}, "tga": {},
    "deflate.tif": {"compression": "tiff_adobe_deflate"}, "jpeg.tif": {"compression": "jpeg"}, "jp2": {}, "ico": {},
    "pcx": {}, "sgi": {}, "qoi": {}, "rle.tga": {"compression": "tga_rle"}, "packbits.tif": {"compression": "packbits"},
}  # fmt: skip


@pytest.mark.parametrize("ending", SAVED)
def test_seeded_damage_to_every_format(tmp_path: Path, capfd: pytest.CaptureFixture[str], ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    zoo.rgb().save(path, **SAVED[ending])
    whole = path.read_bytes()
    assert decode_image(whole).width == (32 if ending == "ico" else zoo.WIDTH)
    generator = np.random.default_rng(5)
    messages = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.integers(1, 6)):
            near = 64 if generator.integers(2) else len(data)  # headers as often as all the rest
            data[generator.integers(min(near, len(data)))] ^= 1 << generator.integers(8)
        cut = len(data) if generator.integers(3) else int(generator.integers(1, len(data)))
        try:
            image = decode_image(bytes(data[:cut]), "it", pixel_limit=10**6)
        except DataError as error:
            messages.add(str(error))
        else:
            assert image.mode == "RGB"
            assert image.width * image.height <= 10**6
    assert all(m.startswith("it: ") and m.endswith(".") and "\n" not in m and len(m) < 400 for m in messages)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------ to_pil


def test_arrays_and_tensors_of_every_layout() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for given_as in (values, torch.from_numpy(values.copy()), values.transpose(2, 0, 1), values[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(np.asarray(to_pil(given_as)), values)
    grey = values[:, :, 0]
    np.testing.assert_array_equal(np.asarray(to_pil(grey))[:, :, 1], grey)
    np.testing.assert_array_equal(np.asarray(to_pil(grey[:, :, None]))[:, :, 2], grey)
    rgba = np.concatenate([values, np.zeros((5, 7, 1), np.uint8)], axis=2)
    assert (np.asarray(to_pil(rgba)) == 255).all()


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ParameterError, match="expected uint8 values but got float64"):
        to_pil(np.zeros((4, 4, 3)))
    with pytest.raises(ParameterError, match="expected uint8 values but got int64"):
        to_pil(torch.zeros(4, 4, 3, dtype=torch.int64))
    for shape in [(5, 4, 5), (4,), (0, 4, 3), (1, 2, 3, 4)]:
        with pytest.raises(ShapeError, match="expected"):
            to_pil(np.zeros(shape, np.uint8))


def test_a_pillow_image_is_read_as_a_file_is(tmp_path: Path) -> None:
    zoo.exif(tmp_path / "t.jpg", 6)
    zoo.alpha(tmp_path / "a.png")
    for name in ("t.jpg", "a.png"):
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(np.asarray(to_pil(image)), np.asarray(read_image(tmp_path / name)))
