"""PNG files, and a pipeline's picture beside the oracle's and their difference."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest

from conformance.evidence.png import png
from conformance.evidence.triptych import MOST_PICTURES, MOST_SIDE, triptychs

RNG = np.random.default_rng(0)


def read(data: bytes) -> np.ndarray:
    """Decode a PNG that this project wrote, and check every chunk of it."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (crc,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert crc == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + size
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, colour, rest) == (8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def of(picture: dict, part: str) -> np.ndarray:
    """Decode one of a triptych's pictures."""
    return read(base64.b64decode(picture[part]))


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (64, 48, 3)])
def test_png(shape):
    """A picture is read back as it was written, by us and by Pillow."""
    pixels = RNG.integers(0, 256, shape, np.uint8)
    assert np.array_equal(read(png(pixels)), pixels)
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png(pixels)))
    assert np.array_equal(np.asarray(image), pixels)


def pictures(shape=(2, 16, 24, 3)):
    """Draw pixels, and the image that they are the roundings of."""
    pixels = RNG.integers(0, 250, shape, np.uint8)
    return pixels, np.moveaxis(pixels / 255.0, -1, 1)


def test_difference_is_amplified_until_the_largest_is_white():
    """The largest difference of a picture is white, the others are in proportion."""
    pixels, truth = pictures()
    image = truth.copy()
    image[0, 0, 3, 4] += 0.01
    image[0, 2, 5, 6] -= 0.005
    first, second = triptychs(pixels, pixels, image.astype(np.float32), truth)
    assert first["factor"] == pytest.approx(100, rel=1e-3)
    difference = of(first, "difference")
    assert difference[3, 4].tolist() == [255, 0, 0]
    assert difference[5, 6].tolist() in ([0, 0, 127], [0, 0, 128])
    assert np.count_nonzero(difference) == 2
    assert second["factor"] > 1e6, "what rounding to float32 leaves"
    assert np.array_equal(of(first, "port"), pixels[0])
    assert np.array_equal(of(second, "oracle"), pixels[1])


def test_pixels_alone():
    """Without the oracle's image the pixels are compared; equal ones have a black difference."""
    pixels, _ = pictures()
    other = pixels.copy()
    other[1, 2, 3, 1] += 5
    same, wrong = triptychs(other, pixels)
    assert same["factor"] == 1.0
    assert not of(same, "difference").any()
    assert wrong["factor"] == pytest.approx(51)
    assert of(wrong, "difference")[2, 3].tolist() == [0, 255, 0]


def test_psnr_and_ssim():
    """Equal pictures have PSNR inf; both are absent without scikit-image, SSIM of small ones."""
    pixels, _ = pictures()
    other = pixels + np.uint8(3)
    found = triptychs(other, pixels)[0]
    small = triptychs(other[:, :6], pixels[:, :6])[0]
    if found["psnr"] is None:
        pytest.skip("scikit-image is not installed")
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 9), abs=0.01)
    assert 0.9 < found["ssim"] < 1
    assert small["ssim"] is None
    assert triptychs(pixels, pixels)[0]["psnr"] == "inf"
    assert triptychs(pixels, pixels)[0]["ssim"] == 1.0


def test_without_scikit_image(monkeypatch):
    """Without scikit-image the pictures are shown all the same."""
    monkeypatch.setitem(__import__("sys").modules, "skimage.metrics", None)
    pixels, _ = pictures()
    assert (
        triptychs(pixels, pixels)[0] | {"psnr": None, "ssim": None} == triptychs(pixels, pixels)[0]
    )


def test_large_pictures_and_large_batches():
    """Pictures are at most 512 pixels wide, and of a batch the first few."""
    pixels = np.zeros((MOST_PICTURES + 2, 8, 2 * MOST_SIDE + 1, 3), np.uint8)
    other = pixels.copy()
    other[:, 7, -1] = 9
    found = triptychs(other, pixels)
    assert [picture["index"] for picture in found] == list(range(MOST_PICTURES))
    assert of(found[0], "oracle").shape == (3, 342, 3)
    difference = of(found[0], "difference")
    assert max(difference.shape) <= MOST_SIDE
    assert difference[-1, -1].tolist() == [255, 255, 255], "the worst is kept"


def test_values_that_are_not_finite():
    """Where the port's image is no number the difference is white."""
    pixels, truth = pictures()
    image = truth.copy()
    image[0, 1, 2, 3] = np.nan
    (found, _) = triptychs(pixels, pixels, image, truth)
    assert of(found, "difference")[2, 3].tolist() == [0, 255, 0]
    image[0, 1, 2, 3] = np.inf
    (found, _) = triptychs(pixels, pixels, image, truth)
    assert of(found, "difference")[2, 3, 1] == 255
