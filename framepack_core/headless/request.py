"""What to make, from the command line's options: everything checked that needs no model."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from ..models.prompt import check_prompt
from ..parsing.section_spec import SectionSpec, parse_spec
from ..runtime.device import cpu_generator
from ..runtime.display import warn
from ..runtime.errors import FramePackError
from ..runtime.images import Size
from ..sampling.flow import GUIDANCE, RopeScaling
from ..sampling.generate import SamplerConfig
from ..sampling.one_frame import parse_one_frame, plan_one_frame
from ..sampling.plan import Plan
from ..sampling.sections import FPS, WINDOW, parse_paddings, plan_video, sections_for_seconds
from ..sampling.step_cache import (
    MAGCACHE_RATIOS,
    MagCache,
    MagCacheConfig,
    MagCalibration,
    StepCacheFactory,
    TeaCache,
)
from .encodings import EncodeRequest
from .pictures import Picture, load_controls, load_start_mask, size_of_video
from .scenes import OneFrameEdit, Scene, Video

DEFAULT_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """One result to make, how it is sampled, and the settings to be noted in its files."""

    scene: Scene
    seed: int
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: float = GUIDANCE
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0
    negative_prompt: str = ""
    system_prompt: str | None = None
    rope_scaling: RopeScaling | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_args(cls, args: Namespace, scene: Scene | None = None) -> Request:
        """Raise FramePackError for the first thing that cannot work; warn of what has no effect.

        The scene is the one that the options describe, unless it is given.
        """
        for name in ("prompt", "negative_prompt", "custom_system_prompt"):
            check_prompt(getattr(args, name) or "", f"--{name}")
        _warn_of_unused(args)
        threshold = args.rope_scaling_timestep_threshold
        sampler = SamplerConfig(
            args.infer_steps, args.flow_shift, args.unipc_variant, _step_cache(args)
        )
        return cls(
            scene=read_scene(args) if scene is None else scene,
            seed=_seed(args),
            sampler=sampler,
            guidance=args.embedded_cfg_scale,
            cfg_scale=args.guidance_scale,
            cfg_rescale=args.guidance_rescale,
            negative_prompt=args.negative_prompt or "",
            system_prompt=args.custom_system_prompt,
            rope_scaling=None
            if threshold is None
            else RopeScaling(threshold, args.rope_scaling_factor),
            settings=_settings(args),
        )

    @property
    def with_cfg(self) -> bool:
        return self.cfg_scale != 1

    def describe(self) -> str:
        """The plan, and what it is sampled with."""
        return f"{self.scene.describe()}, guidance {self.guidance:g}\nseed {self.seed}"

    def wanted(self) -> EncodeRequest:
        """What has to be encoded for it."""
        wanted = self.scene.wanted()
        negative = [self.negative_prompt] if self.with_cfg else []
        return replace(wanted, texts=[*wanted.texts, *negative])

    def metadata(self, fps: float) -> dict[str, str]:
        """The settings under the names that musubi-tuner gives them in its latent files."""
        width, height = self.scene.size
        settings = {
            "seeds": self.seed,
            "prompt": self.scene.prompt,
            "height": height,
            "width": width,
            "video_seconds": (4 * self.scene.latent_frames - 3) / FPS,
            "infer_steps": self.sampler.steps,
            "guidance_scale": self.cfg_scale,
            "latent_window_size": self.scene.window,
            "embedded_cfg_scale": self.guidance,
            "guidance_rescale": self.cfg_rescale,
            "sample_solver": "unipc",
            "fps": f"{fps:g}",
            **self.settings,
        }
        return {key: str(value) for key, value in settings.items()}


_NOTED = (
    "prompt",
    "negative_prompt",
    "custom_system_prompt",
    "latent_paddings",
    "section_seeds",
    "section_guidance",
    "section_lora_strengths",
    "end_image_strength",
    "end_image_policy",
    "one_frame_inference",
)


def _settings(args: Namespace) -> dict[str, str]:
    """Options that are noted as they were written."""
    given = {name: getattr(args, name) for name in _NOTED}
    return {"mode": _mode(args)} | {
        n: str(value) for n, value in given.items() if value is not None
    }


def read_scene(args: Namespace) -> Scene:
    """The video, or the edited frame, that the options describe."""
    require(args, "prompt")
    if args.one_frame_inference is not None:
        return _read_edit(args)
    for option in ("control_image_path", "control_image_mask_path"):
        if getattr(args, option):
            raise FramePackError(
                f"--{option} is for an edited frame; add --one_frame_inference default, or take "
                "it out"
            )
    return _read_video(args)


def require(args: Namespace, option: str, why: str = "") -> None:
    """Refuse to go on without an option."""
    if getattr(args, option) is None:
        raise FramePackError(f"--{option} is missing{why}")


def _mode(args: Namespace) -> str:
    return "f1" if args.f1 else "framepack"


def _window(args: Namespace) -> int:
    return WINDOW if args.latent_window_size is None else args.latent_window_size


def _read_video(args: Namespace) -> Video:
    require(args, "image_path")
    plan = read_plan(args)
    start = parse_spec(args.image_path, "--image_path").resolve(len(plan.sections))[0]
    size = size_of_video(args, start)
    plan, image = fit_pictures(plan, size), Picture.load(start, size)
    mask = load_start_mask(args, start, size)
    return Video(plan, first_prompt(args, plan), image, image, mask)


def _read_edit(args: Namespace) -> OneFrameEdit:
    options = parse_one_frame(args.one_frame_inference, "--one_frame_inference")
    controls, size = load_controls(args)
    section = plan_one_frame(options, len(controls), _window(args))
    [path] = parse_spec(args.image_path, "--image_path").resolve(1)
    [prompt] = parse_spec(args.prompt, "--prompt").resolve(1)
    if path is None and not controls:
        raise FramePackError(
            "--control_image_path is missing: an edit needs pictures to start from (or an "
            "--image_path alone, which only SigLIP sees)"
        )
    image = controls[0].picture if path is None else None
    image = image or Picture.load(path, size or size_of_video(args, path))
    return OneFrameEdit(section, prompt, image, tuple(controls), _window(args))


def read_plan(args: Namespace) -> Plan:
    """The plan with the texts and paths of its sections."""
    count = args.video_sections
    if count is None:
        count = sections_for_seconds(args.video_seconds or DEFAULT_SECONDS, _window(args))
    paddings = None
    if args.latent_paddings is not None:
        paddings = parse_paddings(args.latent_paddings, "--latent_paddings")
    plan = plan_video(_mode(args), count, _window(args), paddings)
    plan = plan.scheduled(parse_spec(args.prompt, "--prompt"), "prompt")
    plan = plan.scheduled(parse_spec(args.image_path, "--image_path"), "image", "image_embeds")
    plan = _with_numbers(plan, "seed", parse_spec(args.section_seeds, "--section_seeds"), int)
    guidance = parse_spec(args.section_guidance, "--section_guidance")
    plan = _with_numbers(plan, "guidance", guidance, float)
    return _with_end(_with_lora_strengths(plan, args), args)


def first_prompt(args: Namespace, plan: Plan) -> str:
    """The prompt of the sections that have none of their own."""
    return parse_spec(args.prompt, "--prompt").resolve(len(plan.sections))[0]


def fit_pictures(plan: Plan, size: Size) -> Plan:
    """The plan with pictures of one size in the place of their paths."""
    load = cache(partial(Picture.load, size=size))
    return plan.encoded(image=load, image_embeds=load)


def _with_numbers(plan: Plan, name: str, spec: SectionSpec, read: Callable[[str], Any]) -> Plan:
    spec.resolve(len(plan.sections))  # refuses sections that there are not
    for key in sorted(spec.texts, reverse=True):  # one counted from the end comes later and wins
        try:
            number = read(spec.texts[key])
        except ValueError:
            raise FramePackError(
                f"{spec.name}: {spec.texts[key]!r} of section {key} is not a number"
            ) from None
        plan = plan.with_overrides(str(key), **{name: number})
    return plan


def _with_lora_strengths(plan: Plan, args: Namespace) -> Plan:
    strengths = parse_spec(args.section_lora_strengths, "--section_lora_strengths")
    if strengths.texts and not args.lora_weight:
        raise FramePackError(
            "--section_lora_strengths: there is no LoRA; name one with --lora_weight, or take it "
            "out"
        )
    return _with_numbers(plan, "lora_strength", strengths, float)


def _with_end(plan: Plan, args: Namespace) -> Plan:
    if args.end_image_path is None:
        return plan
    strength = 1.0 if args.end_image_strength is None else args.end_image_strength
    return plan.with_end(args.end_image_path, args.end_image_policy or "persistent", strength)


_NEED_END = ("end_image_strength", "end_image_policy")
_NEED_MAGCACHE = ("magcache_retention_ratio", "magcache_threshold", "magcache_k")
_VIDEO_ONLY = (
    "video_seconds",
    "video_sections",
    "latent_paddings",
    "section_seeds",
    "section_guidance",
    "section_lora_strengths",
    "end_image_path",
    "image_mask_path",
)


def _warn_of_unused(args: Namespace) -> None:
    given = {n for n, value in vars(args).items() if value is not None and value is not False}

    def unused(names: tuple[str, ...], why: str) -> None:
        for name in names:
            if name in given:
                warn(f"--{name} has no effect {why}")

    if args.guidance_scale == 1:
        without_cfg = "while --guidance_scale is 1"
        unused(("negative_prompt",), without_cfg)
        unused(("guidance_rescale",) if args.guidance_rescale else (), without_cfg)
    if args.end_image_path is None:
        unused(_NEED_END, "without --end_image_path")
    if args.magcache_mag_ratios is None:
        unused(_NEED_MAGCACHE, "without --magcache_mag_ratios")
    if args.one_frame_inference is not None:
        unused(_VIDEO_ONLY, "with --one_frame_inference")
    else:
        unused(("one_frame_auto_resize",), "without --one_frame_inference")
        if args.video_sections is not None:
            unused(("video_seconds",), "with --video_sections; give one of them")


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
        given = {
            "threshold": args.magcache_threshold,
            "max_skips": args.magcache_k,
            "retention": args.magcache_retention_ratio,
        }
        given = {name: value for name, value in given.items() if value is not None}
        ratios = args.magcache_mag_ratios or MAGCACHE_RATIOS
        return partial(MagCache, config=MagCacheConfig(**given, ratios=ratios))
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
