"""Pictures: what a file turns into, what is refused, sizes, and pixels to tensors and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from framepack_core.runtime.device import cpu_generator, parse_device, parse_dtype
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import (
    BucketSelector,
    load_image,
    made_picture,
    resize_and_crop,
    resize_area,
    save_png,
    size_for_area,
    to_tensor,
    to_uint8,
)

ORIENTATION = 0x0112


def picture(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_load_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was held so that the file must be turned right by 90 degrees
    Image.fromarray(picture()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png"), np.rot90(picture(), -1))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.uint16)), (77, 77, 77)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 100, 255, 128)), (127, 177, 255)),
        (Image.new("LA", (2, 2), (50, 255)), (50, 50, 50)),
        (Image.new("RGB", (2, 2), (10, 20, 30)).convert("P"), None),
    ],
    ids=["grey", "grey16", "transparent", "half", "grey-alpha", "palette"],
)
def test_load_makes_rgb_of_every_mode(tmp_path: Path, image: Image.Image, expected: tuple) -> None:
    image.save(tmp_path / "image.png")
    expected = expected or image.convert("RGB").getpixel((0, 0))
    assert load_image(tmp_path / "image.png")[0, 0].tolist() == list(expected)


def test_load_refuses_what_is_not_a_whole_picture(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    save_png(whole, picture(64, 64))
    contents = {"text.png": b"hello", "empty.png": b"", "cut.png": whole.read_bytes()[:5000]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FramePackError, match=rf"{name}: cannot be read \([^\n]+\); use"):
            load_image(tmp_path / name)
    with pytest.raises(FramePackError, match=r"nothing\.png: no such file"):
        load_image(tmp_path / "nothing.png")


def test_png_keeps_pixels_and_text(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", picture(), {"comment": "ünïcode"})
    assert np.array_equal(load_image(tmp_path / "a.png"), picture())
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"comment": "ünïcode"}


def test_area_shrink_is_the_mean_of_the_covered_pixels() -> None:
    image = picture(6, 9)
    blocks = image.astype(np.float64).reshape(2, 3, 3, 3, 3).mean((1, 3))
    assert np.abs(resize_area(image, 3, 2) - blocks).max() <= 0.5
    # 3 pixels onto 2: each new one covers a whole pixel and half of the middle one
    row = np.array([[[0] * 3, [90] * 3, [240] * 3]], np.uint8)
    assert resize_area(row, 2, 1)[0, :, 0].tolist() == [30, 190]


@pytest.mark.parametrize("resample", ["lanczos", "auto"])
@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 48), (96, 96)])
def test_crop_keeps_the_middle(resample: str, width: int, height: int) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[18:22, 28:32] = 255
    out = resize_and_crop(image, width, height, resample=resample)
    assert out.shape == (height, width, 3)
    rows, columns = np.nonzero(out[..., 0] > 128)
    assert abs(rows.mean() + 0.5 - height / 2) <= 1
    assert abs(columns.mean() + 0.5 - width / 2) <= 1


def test_small_pictures_keep_their_size_unless_they_are_too_small() -> None:
    selector = BucketSelector(256, 256, no_upscale=True)
    assert selector.choose(100, 65) == (96, 64)
    with pytest.raises(FramePackError, match="smaller than 16"):
        selector.choose(100, 10)


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        ((64, 64), [(32, 128), (48, 80), (64, 64)]),
        ((96, 64), [(32, 192), (48, 128), (64, 96), (80, 64)]),
        ((80, 48), [(16, 240), (32, 112), (48, 80), (64, 48)]),
    ],
)
def test_bucket_sizes_by_hand(resolution: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    turned = {(h, w) for w, h in sizes}
    assert BucketSelector(*resolution).sizes == sorted(turned.union(sizes))


def test_buckets_of_960x544_have_the_sizes_around_the_square() -> None:
    sizes = BucketSelector(960, 544).sizes  # its area is that of a square of 722.66
    assert {(720, 720), (736, 704), (704, 736)} <= set(sizes)
    assert min(min(size) for size in sizes) == 352  # half of that, in steps of 16


@given(width=st.integers(32, 1280), height=st.integers(32, 1280))
def test_buckets_fill_the_area_and_step_by_16_across_the_square(width: int, height: int) -> None:
    area, sizes = width * height, set(BucketSelector(width, height).sizes)
    assert sizes == {(h, w) for w, h in sizes}
    for w, h in sizes:
        assert w % 16 == h % 16 == 0
        assert w * h <= area < max(w * (h + 16), (w + 16) * h)
    below, above = area**0.5 // 16 * 16, -(-math.isqrt(area) // 16) * 16
    assert {below, above} <= {w for w, _ in sizes}
    stepped = sorted(w for w, h in sizes if w <= above and area // w // 16 * 16 == h)
    assert stepped == list(range(stepped[0], above + 1, 16))


def test_size_for_area_is_the_best_of_all_near_widths() -> None:
    aspect = 1920 / 1080
    sizes = [(w, 640 * 640 // w // 16 * 16) for w in range(16, 2000, 16)]
    assert size_for_area(1920, 1080, 640 * 640) == min(
        (s for s in sizes if s[1]), key=lambda s: abs(s[0] / s[1] - aspect)
    )


def test_tensor_round_trip_and_clamp() -> None:
    frames = np.stack([picture(), 255 - picture()])
    video = to_tensor(frames)
    assert video.shape == (1, 3, 2, 5, 7)
    assert video[0, :, 1, 2, 3].numpy() == pytest.approx(frames[1, 2, 3] / 127.5 - 1, abs=1e-6)
    assert np.array_equal(to_uint8(video), frames)
    assert to_tensor(picture()).shape == (1, 3, 1, 5, 7)
    beyond = torch.tensor([-3.0, 0.1, 3.0]).view(1, 3, 1, 1, 1)
    assert to_uint8(beyond).ravel().tolist() == [0, 140, 255]


def test_names_of_types_devices_and_seeds() -> None:
    assert parse_dtype("bf16") is torch.bfloat16
    assert parse_dtype("Float32") is torch.float32
    with pytest.raises(FramePackError, match="'fp12' is unknown; use one of bf16"):
        parse_dtype("fp12")
    with pytest.raises(FramePackError, match=r"device 'cuda:99' cannot be used \([^\n]+\)"):
        parse_device("cuda:99")
    for seed in (-1, 2**64):
        with pytest.raises(FramePackError, match=f"seed {seed} is out of range"):
            cpu_generator(seed)
    cpu_generator(2**64 - 1)


def test_pictures_that_are_made() -> None:
    grey = made_picture("grey", (48, 32), 0, "x")
    assert grey.shape == (32, 48, 3) and (grey == 128).all()
    assert made_picture("#102030", (16, 16), 0, "x")[3, 4].tolist() == [16, 32, 48]
    column = made_picture("gradient", (16, 64), 0, "x")
    assert (column == column[:, :1, :1]).all() and (np.diff(column[:, 0, 0].astype(int)) >= 0).all()
    assert (column[0, 0, 0], column[-1, 0, 0]) == (96, 160)
    noise = [made_picture("noise", (64, 64), seed, "x") for seed in (1, 1, 2)]
    assert np.array_equal(*noise[:2]) and not np.array_equal(*noise[1:])
    assert 120 < noise[0].mean() < 135 and noise[0].std() > 70
    with pytest.raises(FramePackError, match="x: 'void' is no colour; use noise, gradient, or"):
        made_picture("void", (16, 16), 0, "x")
