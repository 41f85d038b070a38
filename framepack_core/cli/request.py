"""What to make, from the command line's options: everything checked that needs no model."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..runtime.device import cpu_generator
from ..runtime.errors import FramePackError
from ..runtime.images import Pixels, load_image, nearest_bucket, resize_and_crop
from ..sampling.flow import GUIDANCE, RopeScaling
from ..sampling.generate import SamplerConfig
from ..sampling.sections import WINDOW, Plan, check_size, plan_video, sections_for_seconds
from ..sampling.step_cache import (
    MAGCACHE_RATIOS,
    MagCache,
    MagCacheConfig,
    MagCalibration,
    StepCacheFactory,
    TeaCache,
)
from ..toyworld.render import SIZE as TOYWORLD_SIZE
from .models import uses_toyworld

DEFAULT_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """One video to make of a start image, uint8 [H, W, 3] in its final size."""

    image: Pixels
    prompt: str
    plan: Plan
    seed: int
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: float = GUIDANCE
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0
    negative_prompt: str | None = None
    system_prompt: str | None = None
    rope_scaling: RopeScaling | None = None

    @classmethod
    def from_args(cls, args: Namespace) -> Request:
        """Raise FramePackError for the first thing that cannot work; warn of what has no effect."""
        _check_given(args)
        _warn_of_unused(args)
        threshold = args.rope_scaling_timestep_threshold
        return cls(
            image=_start_image(args),
            prompt=args.prompt,
            plan=_plan(args),
            seed=_seed(args),
            sampler=SamplerConfig(
                args.infer_steps, args.flow_shift, args.unipc_variant, _step_cache(args)
            ),
            guidance=args.embedded_cfg_scale,
            cfg_scale=args.guidance_scale,
            cfg_rescale=args.guidance_rescale,
            negative_prompt=args.negative_prompt,
            system_prompt=args.custom_system_prompt,
            rope_scaling=None
            if threshold is None
            else RopeScaling(threshold, args.rope_scaling_factor),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def metadata(self, fps: float) -> dict[str, str]:
        """The settings under the names that musubi-tuner gives them in its latent files."""
        width, height = self.size
        settings = {
            "seeds": self.seed,
            "prompt": self.prompt,
            "height": height,
            "width": width,
            "video_seconds": self.plan.seconds,
            "infer_steps": self.sampler.steps,
            "guidance_scale": self.cfg_scale,
            "latent_window_size": self.plan.window,
            "embedded_cfg_scale": self.guidance,
            "guidance_rescale": self.cfg_rescale,
            "sample_solver": "unipc",
            "fps": f"{fps:g}",
            "mode": self.plan.mode,
        }
        if self.negative_prompt is not None:
            settings["negative_prompt"] = self.negative_prompt
        return {key: str(value) for key, value in settings.items()}


def _check_given(args: Namespace) -> None:
    for option in ("image_path", "prompt"):
        if getattr(args, option) is None:
            raise FramePackError(f"--{option} is missing (or --latent_path, to decode latents)")
    if ";;;" in args.prompt:
        raise FramePackError("--prompt: a prompt for each section (';;;') is not supported")


def _warn_of_unused(args: Namespace) -> None:
    without_cfg = args.guidance_scale == 1
    if without_cfg and args.negative_prompt is not None:
        warn("--negative_prompt has no effect while --guidance_scale is 1")
    if without_cfg and args.guidance_rescale:
        warn("--guidance_rescale has no effect while --guidance_scale is 1")
    if args.video_seconds is not None and args.video_sections is not None:
        warn("--video_seconds is ignored, because --video_sections is given")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def _start_image(args: Namespace) -> Pixels:
    if args.video_size is not None:
        check_size(args.video_size[1], args.video_size[0])
    image = load_image(args.image_path)
    if args.video_size is not None:
        height, width = args.video_size
    elif uses_toyworld(args):
        height = width = TOYWORLD_SIZE
    else:
        height, width = nearest_bucket(*image.shape[:2])
    return resize_and_crop(image, width, height)


def _plan(args: Namespace) -> Plan:
    window = WINDOW if args.latent_window_size is None else args.latent_window_size
    sections = args.video_sections
    if sections is None:
        sections = sections_for_seconds(args.video_seconds or DEFAULT_SECONDS, window)
    return plan_video("f1" if args.f1 else "framepack", sections, window)


def _seed(args: Namespace) -> int:
    seed = random.randrange(2**32) if args.seed is None else args.seed
    cpu_generator(seed)  # refuses what is out of range
    return seed


def _step_cache(args: Namespace) -> StepCacheFactory | None:
    wanted = {
        "--teacache": args.teacache is not None,
        "--magcache_mag_ratios": args.magcache_mag_ratios is not None,
        "--magcache_calibration": args.magcache_calibration,
    }
    if sum(wanted.values()) > 1:
        chosen = " and ".join(option for option, given in wanted.items() if given)
        raise FramePackError(f"{chosen} cannot be combined; choose one")
    if args.teacache is not None:
        return partial(TeaCache, threshold=args.teacache)
    if args.magcache_mag_ratios is not None:
        config = MagCacheConfig(
            threshold=args.magcache_threshold,
            max_skips=args.magcache_k,
            retention=args.magcache_retention_ratio,
            ratios=args.magcache_mag_ratios or MAGCACHE_RATIOS,
        )
        return partial(MagCache, config=config)
    if args.magcache_calibration:
        if args.guidance_scale != 1:
            raise FramePackError("--magcache_calibration measures with --guidance_scale 1 only")
        return Calibration()
    return None


class Calibration:
    """Makes a MagCalibration for each section and sums them up."""

    def __init__(self) -> None:
        self.sections: list[MagCalibration] = []

    def __call__(self, sigmas: Tensor) -> MagCalibration:
        self.sections.append(MagCalibration(sigmas))
        return self.sections[-1]

    def ratios(self) -> str:
        """The mean over the sections, as --magcache_mag_ratios takes it."""
        steps = zip(*(section.norm_ratio for section in self.sections), strict=True)
        means = [1.0, *(sum(step) / len(step) for step in steps)]
        return ",".join(f"{mean:.5f}" for mean in means)


def latents_window(args: Namespace, metadata: Mapping[str, str]) -> int:
    """The window that saved latents were made with: the option, else what their file says."""
    if args.latent_window_size is not None:
        return args.latent_window_size
    return int(metadata.get("latent_window_size", WINDOW))
