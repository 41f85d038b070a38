"""Pictures: reading and writing files, sizes, cropping, and pixels to tensors and back."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, PngImagePlugin
from torch import Tensor

from .errors import FramePackError
from .files import atomic_path, is_file

Size = tuple[int, int]
Pixels = NDArray[np.uint8]

SIZE_STEP = 16  # 8 pixels a latent, 2 x 2 latents a token
BUCKETS_640: tuple[Size, ...] = (
    (416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640),
    (640, 608), (672, 576), (704, 544), (768, 512), (832, 480), (864, 448), (960, 416),
)  # fmt: skip
NOISE, GRADIENT = "noise", "gradient"  # pictures that are made, besides colours
GREYS = 96, 160  # of a gradient
# What Pillow raises for files that are not pictures or are cut short.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def load_image(path: str | Path) -> Pixels:
    """Read a picture as uint8 [H, W, 3], turned upright by its EXIF orientation.

    Greys, palettes and CMYK become RGB, 16-bit greys are scaled to 8 bits, and transparent pixels
    are laid over white.
    """
    return np.array(_to_rgb(_open_upright(path)))


def made_picture(kind: str, size: Size, seed: int, name: str) -> Pixels:
    """A picture uint8 [H, W, 3] of (width, height) that shows nothing, to begin a video with.

    kind: noise, by the seed; gradient, from a dark grey at the top to a light one; or a colour by
    its name or as #rrggbb. Raises FramePackError, which calls the kind `name`, for others.
    """
    width, height = size
    if kind == NOISE:
        return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    if kind == GRADIENT:
        column = np.linspace(*GREYS, height).round().astype(np.uint8)
        return np.tile(column[:, None, None], (1, width, 3))
    try:
        colour = ImageColor.getrgb(kind)
    except ValueError:
        raise FramePackError(
            f"{name}: {kind!r} is no colour; use {NOISE}, {GRADIENT}, or a colour such as grey or "
            "#405060"
        ) from None
    return np.full((height, width, 3), colour[:3], dtype=np.uint8)


def load_image_rgba(path: str | Path) -> Pixels:
    """Read a picture as uint8 [H, W, 4], upright, with the colours stored below transparency."""
    image = _open_upright(path)
    if not image.has_transparency_data:
        image = _to_rgb(image)
    return np.array(image.convert("RGBA"))


def _open_upright(path: str | Path) -> Image.Image:
    path = Path(path)
    if not is_file(path):
        raise FramePackError(f"image {path}: no such file")
    try:
        with Image.open(_without_texts(path)) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FramePackError(
            f"image {path}: cannot be read ({reason}); use a whole PNG, JPEG or WebP file"
        ) from error


PNG = b"\x89PNG\r\n\x1a\n"
# Colour profiles and texts, which are not used here: Pillow refuses them from 1 MB on.
PNG_TEXTS = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}


def _without_texts(path: Path) -> Path | io.BytesIO:
    """A PNG without its profile and texts; any other file as it is."""
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return path
        data, kept = memoryview(file.read()), [PNG]
    place = 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + length + 12  # length, kind, content, checksum
        if bytes(data[place + 4 : place + 8]) not in PNG_TEXTS:
            kept.append(bytes(data[place:end]))
        place = end
    return io.BytesIO(b"".join(kept))


def _from_floats(image: Image.Image) -> Image.Image:
    """A float grey as 8 bits: of 0..1, of 0..255 or of 0..65535, by what its brightest pixel is."""
    levels = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    brightest = levels.max(initial=0.0)
    factor = 255.0 if brightest <= 1 else 1.0 if brightest <= 255 else 1 / 257
    return Image.fromarray((levels * factor).clip(0, 255).round().astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":  # which convert("RGB") would take for 0..255
        image = _from_floats(image)
    if image.mode.startswith("I"):  # 16-bit greys, which convert("RGB") would clip at 255
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def save_png(path: Path, image: Pixels, metadata: dict[str, str] | None = None) -> None:
    """Write uint8 [H, W, 3] as a PNG with text entries; the file appears whole or not at all."""
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        text.add_itxt(key, value)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text)


def resize_and_crop(
    image: Pixels, width: int, height: int, *, resample: Literal["lanczos", "auto"] = "lanczos"
) -> Pixels:
    """Scale uint8 [H, W, 3] to cover width x height, then crop the middle.

    "lanczos" is the rule of the FramePack demo. "auto" is that of musubi-tuner: Lanczos to enlarge,
    the mean over the covered area otherwise, an odd margin's spare pixel cut at right or bottom.
    """
    source_height, source_width = image.shape[:2]
    scale = max(width / source_width, height / source_height)
    if resample == "lanczos":
        resized = (round(source_width * scale), round(source_height * scale))
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    else:
        resized = (int(source_width * scale + 0.5), int(source_height * scale + 0.5))
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
    if resized != (source_width, source_height):
        by_area = resample == "auto" and scale <= 1
        image = resize_area(image, *resized) if by_area else resize_lanczos(image, *resized)
    return image[top : top + height, left : left + width].copy()


def fitted(frames: Iterable[Pixels], size: Size) -> Iterator[Pixels]:
    """Frames uint8 [H, W, 3] scaled and cropped to (width, height), one after another."""
    width, height = size
    for frame in frames:
        same = frame.shape[:2] == (height, width)
        yield frame if same else resize_and_crop(frame, width, height)


def resize_lanczos(image: Pixels, width: int, height: int) -> Pixels:
    """Pillow's Lanczos, which widens its kernel when it shrinks."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def resize_area(image: Pixels, width: int, height: int) -> Pixels:
    """Shrink: every new pixel is the mean of the old ones it covers, weighed by how far it does."""
    rows = _coverage(image.shape[0], height)
    columns = _coverage(image.shape[1], width)
    mean = np.einsum("hy,yxc,wx->hwc", rows, image.astype(np.float32), columns, optimize=True)
    return mean.round().clip(0, 255).astype(np.uint8)


def _coverage(source: int, target: int) -> NDArray[np.float32]:
    """[target, source] share of each new pixel's length that lies on each old pixel."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    ends = np.minimum(edges[1:, None], pixels + 1)
    starts = np.maximum(edges[:-1, None], pixels)
    overlap = (ends - starts).clip(min=0)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def nearest_bucket(height: int, width: int, resolution: int = 640) -> Size:
    """(height, width) nearest in shape, of the FramePack demo's list; the later one of a tie."""
    if resolution != 640:
        raise FramePackError(f"resolution {resolution} has no bucket list; use 640")
    return min(reversed(BUCKETS_640), key=lambda size: abs(height * size[1] - width * size[0]))


def _round_down(length: int, step: int = SIZE_STEP) -> int:
    return length - length % step


def size_for_area(width: int, height: int, area: int, step: int = SIZE_STEP) -> Size:
    """(width, height) in multiples of step, of about that area, closest to the shape given.

    Raises FramePackError for an area that holds no square of a step.
    """
    sizes = _sizes_of_area(width, height, area, step)
    # Of very wide shapes the widths in question leave no height; their heights leave a width.
    sizes = sizes or [(w, h) for h, w in _sizes_of_area(height, width, area, step)]
    if not sizes:
        raise FramePackError(
            f"an image of {width}x{height} at an area of {area} pixels is less than {step}x{step}; "
            "take a larger area"
        )
    return min(sizes, key=lambda size: abs(size[0] / size[1] - width / height))


def _sizes_of_area(width: int, height: int, area: int, step: int) -> list[Size]:
    """Sizes of about an area whose widths are nearest to that of a shape."""
    middle = _round_down(int((area * width / height) ** 0.5), step)
    widths = [middle + step * i for i in range(-2, 3)]
    sizes = [(w, _round_down(area // w, step)) for w in widths if w > 0]
    return [size for size in sizes if size[1] > 0]


@dataclass(frozen=True)
class BucketSelector:
    """musubi-tuner's sizes of about width x height pixels, and which of them a picture gets."""

    width: int
    height: int
    enable_bucket: bool = True
    no_upscale: bool = False

    @cached_property
    def sizes(self) -> list[Size]:
        """Every (width, height), the narrowest first; a single one without bucketing."""
        if not self.enable_bucket:
            return [(self.width, self.height)]
        area = self.width * self.height
        side = int(area**0.5)
        # The last width is the first multiple that reaches the side, even if the height is less.
        widths = range(_round_down(side // 2), side + SIZE_STEP, SIZE_STEP)
        narrow = {(w, h) for w in widths if w and (h := _round_down(area // w))}
        return sorted(narrow | {(h, w) for w, h in narrow})

    def choose(self, width: int, height: int) -> Size:
        """(width, height) of the nearest shape; with no_upscale a small picture keeps its size."""
        small = width * height <= self.width * self.height
        if self.enable_bucket and self.no_upscale and small:
            if min(width, height) < SIZE_STEP:
                raise FramePackError(
                    f"image of {width}x{height}: smaller than {SIZE_STEP} pixels; allow enlarging"
                )
            return _round_down(width), _round_down(height)
        aspect = width / height
        return min(self.sizes, key=lambda size: abs(size[0] / size[1] - aspect))


def to_tensor(pixels: Pixels) -> Tensor:
    """uint8 [H, W, 3] or [N, H, W, 3] to float32 [1, 3, N, H, W] in -1..1."""
    frames = torch.from_numpy(np.array(pixels, ndmin=4))
    return rearrange(frames, "n h w c -> 1 c n h w").float() / 127.5 - 1


def to_uint8(video: Tensor) -> Pixels:
    """[1, 3, N, H, W] in -1..1 to uint8 [N, H, W, 3], rounded, with what lies outside clamped."""
    frames = rearrange(video, "1 c n h w -> n h w c")
    levels = ((frames.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to("cpu", torch.uint8).numpy()
