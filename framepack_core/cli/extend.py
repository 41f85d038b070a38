"""`framepack extend`: sections after or before a finished run or any video."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from ..headless.crew import together
from ..headless.encodings import Encodings
from ..headless.job import AnyJob
from ..headless.jobs import Job, make
from ..headless.models import Models
from ..headless.pictures import Picture, load_start_mask
from ..headless.request import (
    decide,
    first_image,
    first_prompt,
    fit_pictures,
    read_anchor,
    read_plan,
    require_prompt,
    shortened,
    warn,
)
from ..headless.scenes import OldLatents, OldVideo, Video
from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, Size, fitted, to_uint8
from ..runtime.options import updated
from ..runtime.video_reader import VideoFile
from ..sampling.plan import FPS, HISTORY_LENGTH, Plan
from ..sampling.sections import check_size
from .commands import Extend
from .decode import LatentFile


def run(command: Extend) -> None:
    """Make the new sections and the video that holds both; what exists stays as it is."""
    require_prompt(command)
    if command.prompt.image_path is None:
        _refuse_without_image(command)
    together(command, partial(_extend, command))


def _extend(command: Extend, models: Models) -> None:
    if command.guidance.start_picture is not None:
        raise FramePackError("--start_picture: the video begins already; give --image_path instead")
    if command.guidance.draft == "half":
        raise FramePackError("--draft half: a video that is extended keeps its size; use steps")
    options, command = decide(AnyJob.of(command)), command.without_ignored()
    if command.latent_path:
        scene, fps = _from_latents(command, models)
    else:
        scene, fps = _from_video(command)
    jobs = Job.prepare(options, scene=scene, fps=fps)
    make(jobs, models, Encodings(models.device, command.prompt.custom_system_prompt))


def _refuse_without_image(command: Extend) -> None:
    missing = "--image_path is missing: "
    if command.direction == "backward":
        raise FramePackError(f"{missing}a video that grows backward begins with a new start image")
    if command.guidance.image_mask_path is not None:
        raise FramePackError(f"{missing}--image_mask_path needs an image to mask")


def _from_latents(command: Extend, models: Models) -> tuple[Video, float]:
    path = command.latent_path
    assert path is not None
    file = LatentFile.read(path, command.prompt.latent_window_size)
    file.check(models.decoding)
    if file.latents.shape[2] <= file.window:
        raise _too_short(str(path), file.frames, file.window)
    if command.prompt.video_size is not None:
        warn("--video_size has no effect with --latent_path, whose size stays")
    command = updated(command, {("prompt", "latent_window_size"): file.window})
    plan = read_plan(command).extending(file.latents.shape[2], command.direction)
    image = _given_image(command, plan, file.size)
    start: Picture | Tensor
    if image is not None:
        start = image
    else:
        image = _context_frame(str(path), file.latents, plan, models)
        start = file.latents[:, :, :1] if plan.mode == "f1" else image
    return _video(command, plan, image, start, OldLatents(file.latents)), file.fps


def _from_video(command: Extend) -> tuple[Video, float]:
    name = str(command.video_path)
    video = VideoFile.open(name)
    size = command.prompt.size or video.size
    check_size(*size)
    plan = read_plan(command)
    clip = _at_join(video, size, plan.window, command.direction == "backward")
    if video.fps != FPS:
        warn(f"--video_path {name} has {video.fps:g} fps; FramePack makes motion of {FPS}")
    plan = plan.extending((len(clip) + 3) // 4, command.direction)
    image = _given_image(command, plan, size)
    if image is None:
        of_f1 = plan.mode == "f1"
        shown = next(iter(fitted(video.frames(0, 1), size))) if of_f1 else clip[-1]
        image = Picture.of(name, shown)
    old = OldVideo(Picture.of(name, clip), video)
    return _video(command, plan, image, image, old), video.fps


def _video(
    command: Extend,
    plan: Plan,
    image: Picture,
    start: Picture | Tensor,
    existing: OldLatents | OldVideo,
) -> Video:
    plan = fit_pictures(plan, image.size)
    mask = load_start_mask(command, image.label, image.size)
    anchor = read_anchor(command, plan)
    prompt = first_prompt(command, plan)
    return shortened(command, Video(plan, prompt, image, start, mask, existing, anchor))


def _given_image(command: Extend, plan: Plan, size: tuple[int, int]) -> Picture | None:
    path = first_image(command, plan)
    return None if path is None else Picture.load(path, size)


def _context_frame(name: str, latents: Tensor, plan: Plan, models: Models) -> Picture:
    """The frame that new sections continue: F1 sees the video's first, the other the last."""
    part = latents[:, :, :1] if plan.mode == "f1" else latents[:, :, -plan.window - 1 :]
    with models.decoder() as decode:
        return Picture.of(name, to_uint8(decode(part)[:, :, -1:])[0])


def _at_join(video: VideoFile, size: Size, window: int, backward: bool) -> Pixels:
    """As many whole sections of a video as the model sees of it, where new ones join it."""
    sections = min(-(-(HISTORY_LENGTH - 1) // window), (len(video) - 1) // (4 * window))
    if sections < 1:
        raise _too_short(str(video.path), len(video), window)
    count = 4 * window * sections + 1
    found = list(fitted(video.frames(0 if backward else len(video) - count, count), size))
    if len(found) < count:
        raise FramePackError(
            f"video {video.path}: {count - len(found)} of its {len(video)} frames cannot be "
            "decoded; convert it again"
        )
    return np.stack(found)


def _too_short(name: str, frames: int, window: int) -> FramePackError:
    return FramePackError(
        f"{name}: {frames} frames are less than a section; give {4 * window + 1} or more, or a "
        "smaller --latent_window_size"
    )
