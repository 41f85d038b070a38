"""`framepack extend`: sections after or before a finished run or any video."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
from torch import Tensor

from ..headless.encodings import Encodings
from ..headless.jobs import Job, make
from ..headless.models import FLAGS, Models
from ..headless.pictures import Picture, load_start_mask
from ..headless.request import first_prompt, fit_pictures, read_plan, require, warn
from ..headless.scenes import OldLatents, OldVideo, Video
from ..parsing.section_spec import parse_spec
from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, Size, fitted, to_uint8
from ..runtime.video_reader import VideoFile
from ..sampling.plan import FPS, HISTORY_LENGTH, Plan
from ..sampling.sections import check_size
from .decode import LatentFile


def run(args: Namespace) -> None:
    """Make the new sections and the video that holds both; what exists stays as it is."""
    require(args, "prompt")
    if args.direction == "backward":
        require(args, "image_path", ": a video that grows backward begins with a new start image")
    if args.image_mask_path is not None:
        require(args, "image_path", ": --image_mask_path needs an image to mask")
    models = Models.from_args(args, list(FLAGS))
    scene, fps = _from_latents(args, models) if args.latent_path else _from_video(args)
    job = Job.prepare(args, scene=scene, fps=fps)
    make([job], models, Encodings(models.device, args.custom_system_prompt))


def _from_latents(args: Namespace, models: Models) -> tuple[Video, float]:
    file = LatentFile.read(args.latent_path, args.latent_window_size)
    file.check(models.decoding.bulk)
    if file.latents.shape[2] <= file.window:
        raise _too_short(args.latent_path, file.frames, file.window)
    if args.video_size is not None:
        warn("--video_size has no effect with --latent_path, whose size stays")
    args = Namespace(**{**vars(args), "latent_window_size": file.window})
    plan = read_plan(args).extending(file.latents.shape[2], args.direction)
    image = start = _given_image(args, plan, file.size)
    if image is None:
        image = _frame_at_join(args.latent_path, file.latents, plan, models)
        start = file.latents[:, :, :1] if plan.mode == "f1" else image
    return _video(args, plan, image, start, OldLatents(file.latents)), file.fps


def _from_video(args: Namespace) -> tuple[Video, float]:
    video = VideoFile.open(args.video_path)
    height, width = args.video_size or video.size[::-1]
    check_size(width, height)
    plan = read_plan(args)
    clip = _at_join(video, (width, height), plan.window, args.direction == "backward")
    if video.fps != FPS:
        warn(
            f"--video_path {args.video_path} has {video.fps:g} fps; FramePack makes motion of {FPS}"
        )
    plan = plan.extending((len(clip) + 3) // 4, args.direction)
    image = _given_image(args, plan, (width, height))
    if image is None:
        [first] = fitted(video.frames(0, 1), (width, height))
        image = Picture.of(args.video_path, first if plan.mode == "f1" else clip[-1])
    old = OldVideo(Picture.of(args.video_path, clip), video)
    return _video(args, plan, image, image, old), video.fps


def _video(
    args: Namespace,
    plan: Plan,
    image: Picture,
    start: Picture | Tensor,
    existing: OldLatents | OldVideo,
) -> Video:
    plan = fit_pictures(plan, image.size)
    mask = load_start_mask(args, image.label, image.size)
    return Video(plan, first_prompt(args, plan), image, start, mask, existing)


def _given_image(args: Namespace, plan: Plan, size: tuple[int, int]) -> Picture | None:
    path = parse_spec(args.image_path, "--image_path").resolve(len(plan.sections))[0]
    return None if path is None else Picture.load(path, size)


def _frame_at_join(name: str, latents: Tensor, plan: Plan, models: Models) -> Picture:
    """The frame that new sections go on from: F1 sees the video's first, the other the last."""
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
