"""Bucket lists and choices of both references, and where each resizer scales and crops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from framepack_core.runtime import images
from framepack_core.runtime.images import BucketSelector, nearest_bucket, size_for_area
from golden.result import Case, exact

METHODS = {"PIL LANCZOS": "resize_lanczos", "cv2 INTER_AREA": "resize_area"}


def check(folder: Path) -> Iterator[Case]:
    spec = json.loads((folder / "buckets.json").read_text())
    yield from _nearest(spec["find_nearest_bucket"])
    for i, config in enumerate(spec["bucket_selector"]["configs"]):
        yield from _selector(f"selector.{i}", config)
    for i, case in enumerate(spec["calculate_bucket_resolution"]["cases"]):
        (width, height), step = case["resolution_w_h"], case["reso_steps"]
        actual = size_for_area(*case["image_w_h"], width * height, step)
        yield exact(f"size_for_area.{i}", list(actual), case["bucket_w_h"])
    for rule, resample in (
        ("resize_image_to_bucket", "auto"),
        ("resize_and_center_crop", "lanczos"),
    ):
        for i, case in enumerate(spec[rule]["cases"]):
            yield exact(f"{rule}.{i}", _geometry(case, resample), _expected_geometry(case))


def _nearest(spec: dict[str, Any]) -> Iterator[Case]:
    yield exact("nearest.list", [list(b) for b in images.BUCKETS_640], spec["buckets_h_w"])
    for case in spec["cases"]:
        h, w = case["h"], case["w"]
        yield exact(f"nearest.{h}x{w}", list(nearest_bucket(h, w)), case["bucket_h_w"])


def _selector(name: str, config: dict[str, Any]) -> Iterator[Case]:
    width, height = config["resolution_w_h"]
    selector = BucketSelector(width, height, config["enable_bucket"], config["no_upscale_asked"])
    yield exact(f"{name}.step", images.SIZE_STEP, config["step"])
    small = selector.choose(width // 2, height // 2) == (width // 32 * 16, height // 32 * 16)
    yield exact(f"{name}.no_upscale", small, config["no_upscale"])
    yield exact(f"{name}.sizes", [list(size) for size in selector.sizes], config["buckets_w_h"])
    chosen = [list(selector.choose(*case["image_w_h"])) for case in config["cases"]]
    yield exact(f"{name}.choices", chosen, [case["bucket_w_h"] for case in config["cases"]])


def _expected_geometry(case: dict[str, Any]) -> dict[str, Any]:
    resized = case["resized_w_h"]
    method = None if resized == case["image_w_h"] else METHODS[case["method"]]
    return {
        "method": method,
        "resized": resized,
        "crop": case["crop_left_top"],
        "out": case["out_w_h"],
    }


def _geometry(case: dict[str, Any], resample: str) -> dict[str, Any]:
    """What resize_and_crop did, read off a picture whose pixels hold their own coordinates."""
    width, height = case["image_w_h"]
    target_width, target_height = case["target_w_h"]
    called: dict[str, Any] = {"method": None, "resized": [width, height]}

    def record(method: str) -> Any:
        def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
            called.update(method=method, resized=[width, height])
            return _coordinates(width, height)

        return resize

    with (
        patch.object(images, "resize_area", record("resize_area")),
        patch.object(images, "resize_lanczos", record("resize_lanczos")),
    ):
        out = images.resize_and_crop(
            _coordinates(width, height), target_width, target_height, resample=resample
        )
    return {**called, "crop": out[0, 0].tolist(), "out": [out.shape[1], out.shape[0]]}


def _coordinates(width: int, height: int) -> np.ndarray:
    """[height, width, 2] with the column and the row of every pixel."""
    return np.moveaxis(np.indices((height, width))[::-1], 0, -1)
