"""Good pictures with large profiles or texts, of floats, and of extreme shapes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from reports.inputs import error_of

from framepack_core.models.vae import AutoencoderKL
from framepack_core.runtime.images import load_image, load_image_rgba, size_for_area

GREY = np.full((8, 12, 3), 77, np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(path: Path, kind: bytes, content: bytes) -> Path:
    """A PNG with one more chunk before its pixels."""
    Image.fromarray(GREY).save(path)
    data = path.read_bytes()
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + chunk(kind, content) + data[place:])
    return path


LARGE = np.random.default_rng(0).integers(0, 256, 1_500_000, np.uint8).tobytes()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
        (b"zTXt", b"parameters\0\0" + zlib.compress(LARGE)),
        (b"iTXt", b"workflow\0\0\0\0\0" + b"x" * 1_500_000),
        (b"tEXt", b"workflow\0" + b"x" * 70_000_000),
        (b"iCCP", b"profile\0\0not compressed"),
    ],
)
def test_large_profiles_and_texts(kind: bytes, content: bytes, tmp_path: Path) -> None:
    path = with_chunk(tmp_path / "a.png", kind, content)
    assert np.array_equal(load_image(path), GREY)
    assert np.array_equal(load_image_rgba(path)[..., :3], GREY)


def test_what_counts_in_a_png_stays(tmp_path: Path) -> None:
    """Its orientation, its transparency, and that a file cut short is refused."""
    upright = np.zeros((8, 12, 4), np.uint8)
    upright[:, :6] = (200, 100, 50, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x")
    image = Image.fromarray(np.rot90(upright).copy())
    image.save(tmp_path / "a.png", exif=exif, pnginfo=text)
    assert np.array_equal(load_image_rgba(tmp_path / "a.png"), upright)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: data.index(b"IDAT") + 20])
    assert "cannot be read" in error_of(load_image, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32896.0, 65535.0], [0, 128, 255]),
        ([0.0, np.nan, 1.0], [0, 0, 255]),
        ([-0.5, 0.25, 1.0], [0, 64, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_float_tiffs(levels: list[float], expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / "a.tif")
    found = load_image(tmp_path / "a.tif")
    assert found.shape == (1, 3, 3)
    assert np.abs(found[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("shape", "area", "size"),
    [
        ((900, 9), 640 * 640, (6400, 64)),
        ((900, 9), 64 * 64, (256, 16)),
        ((9, 900), 64 * 64, (16, 256)),
        ((100_000, 1), 640 * 640, (25_600, 16)),
        ((640, 640), 640 * 640, (640, 640)),
    ],
)
def test_areas_of_extreme_shapes(shape: tuple[int, int], area: int, size: tuple[int, int]) -> None:
    assert size_for_area(*shape, area) == size


def test_an_area_without_a_size() -> None:
    error = error_of(size_for_area, 900, 9, 15 * 15)
    assert error == (
        "an image of 900x9 at an area of 225 pixels is less than 16x16; take a larger area"
    )


def test_an_empty_batch() -> None:
    import torch

    config = type("Config", (), {"in_channels": 3})
    vae = type("Stub", (), {"config": config})()
    error = error_of(AutoencoderKL.check_pixels, vae, torch.zeros(1, 3, 0, 64, 64))
    assert error == "there is no picture to encode: the batch is empty; connect one"
