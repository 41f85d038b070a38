"""What to make, from a job's options: everything checked that needs no model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

from torch import Tensor

from ..models.prompt import TextCondition, check_prompt
from ..parsing.blend import blended
from ..parsing.overrides import by_section
from ..parsing.section_spec import parse_spec
from ..runtime.display import warn
from ..runtime.errors import FramePackError
from ..runtime.images import Size
from ..runtime.options import Leaf, leaves
from ..sampling.anchor import check_anchor
from ..sampling.decode import check_drop, decode_slices
from ..sampling.draft import draft_size
from ..sampling.flow import CFG, Guided, RopeScaling
from ..sampling.generate import SamplerConfig
from ..sampling.latents import LOOP_KEY
from ..sampling.one_frame import parse_one_frame, plan_one_frame
from ..sampling.options import SamplingOptions
from ..sampling.plan import FPS, Plan
from ..sampling.sections import WINDOW, parse_paddings, plan_video, sections_for_seconds
from ..sampling.step_cache import Calibration, StepCacheFactory
from .encodings import EncodeRequest
from .job import AnyJob, EditJob, JobOptions, VideoJob
from .pictures import Picture, load_controls, load_start_mask, size_of_video
from .scenes import OneFrameEdit, Scene, Video

DEFAULT_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """One result to make: the job that describes it, with everything looked up that needs no model.

    seed: the job's, or a random one.
    """

    job: JobOptions
    scene: Scene
    seed: int
    step_cache: StepCacheFactory | None = None

    @classmethod
    def of(cls, job: JobOptions, scene: Scene | None = None) -> Request:
        """Raise FramePackError for the first thing that cannot work.

        The scene is the one that the job describes, unless it is given.
        """
        for name in ("prompt", "negative_prompt", "custom_system_prompt"):
            check_prompt(getattr(job.prompt, name) or "", f"--{name}")
        step_cache, seed = job.step_cache.factory(), job.sampling.seed
        if isinstance(step_cache, Calibration) and job.sampling.guidance_scale != 1:
            raise FramePackError("--magcache_calibration measures with --guidance_scale 1 only")
        seed = random.randrange(2**32) if seed is None else seed
        scene = read_scene(job, seed) if scene is None else scene
        return cls(job, scene, seed, step_cache)

    @property
    def seeds(self) -> list[int]:
        """Of the variants, of which one has the request's own seed."""
        if not isinstance(self.job, VideoJob):
            return [self.seed]
        return self.job.variants.seeds(self.seed)

    @property
    def sampler(self) -> SamplerConfig:
        options = self.job.sampling
        return SamplerConfig(
            options.infer_steps, options.flow_shift, options.unipc_variant, self.step_cache
        )

    @property
    def rope_scaling(self) -> RopeScaling | None:
        threshold = self.job.sampling.rope_scaling_timestep_threshold
        factor = self.job.sampling.rope_scaling_factor
        return None if threshold is None else RopeScaling(threshold, factor)

    @property
    def negative_prompt(self) -> str | None:
        """None without classifier-free guidance, which alone reads it."""
        with_cfg = self.job.sampling.guidance_scale != 1
        return self.job.prompt.negative_prompt or "" if with_cfg else None

    def guided(self, text: TextCondition, embeds: Tensor) -> Guided:
        """What a prompt and the start image are to the sampler."""
        return Guided(text, embeds, self.job.sampling.embedded_cfg_scale)

    def cfg(self, negative: Guided) -> CFG:
        """Classifier-free guidance against a negative prompt."""
        options = self.job.sampling
        return CFG(negative, options.guidance_scale, options.guidance_rescale)

    def describe(self) -> str:
        """The plan, and what it is sampled with."""
        guidance = self.job.sampling.embedded_cfg_scale
        seeds = ", ".join(map(str, self.seeds))
        title = "seed" if len(self.seeds) == 1 else f"{len(self.seeds)} variants, seeds"
        return f"{self.scene.describe()}, guidance {guidance:g}\n{title} {seeds}"

    def wanted(self) -> EncodeRequest:
        """What has to be encoded for it."""
        wanted = self.scene.wanted()
        negative = [] if self.negative_prompt is None else [self.negative_prompt]
        return replace(wanted, texts=[*wanted.texts, *negative])

    def metadata(self, fps: float) -> dict[str, str]:
        """The settings under the names that musubi-tuner gives them in its latent files."""
        width, height = self.scene.size
        found = {
            "seeds": self.seed,
            "prompt": self.scene.prompt,
            "height": height,
            "width": width,
            "video_seconds": (4 * self.scene.latent_frames - 3) / FPS,
            "latent_window_size": self.scene.window,
            "fps": f"{fps:g}",
        }
        if isinstance(self.scene, Video) and self.scene.plan.closes:
            found[LOOP_KEY] = True
        return {key: str(value) for key, value in {**found, **self.job.noted}.items()}

    def ledger_settings(self) -> dict[str, Any]:
        """What tells sections apart besides model, plan, prompts and images.

        An option without a name here counts under its own as soon as it is not at its default.
        """
        options, sampler = self.job.sampling, self.sampler
        others = (leaf for leaf in leaves(SamplingOptions) if leaf.name not in _OF_LEDGER)
        return {
            "guidance": options.embedded_cfg_scale,
            "seed": self.seed,
            "steps": sampler.steps,
            "shift": sampler.shift,
            "solver": sampler.variant,
            "step cache": sampler.step_cache,
            "RoPE scaling": self.rope_scaling,
            **{x.name: x.of(options) for x in others if x.of(options) != x.default},
        }


_OF_LEDGER = {
    *("seed", "infer_steps", "embedded_cfg_scale", "flow_shift", "sample_solver", "unipc_variant"),
    *("rope_scaling_timestep_threshold", "rope_scaling_factor"),
    *("guidance_scale", "guidance_rescale"),  # of its CFG
}


def decide(job: AnyJob) -> VideoJob | EditJob:
    """The job that options mean; warns of those that have no effect."""
    for line in job.unused():
        warn(line)
    return job.decided()


def read_scene(job: JobOptions, seed: int) -> Scene:
    """The video, or the edited frame, that a job describes; seed: of a picture that is made."""
    require_prompt(job)
    return _read_edit(job) if isinstance(job, EditJob) else _read_video(cast(VideoJob, job), seed)


def require_prompt(job: JobOptions) -> None:
    """Refuse a job without a prompt."""
    if job.prompt.prompt is None:
        raise FramePackError("--prompt is missing")


def _window(job: JobOptions) -> int:
    return job.prompt.latent_window_size or WINDOW


def _read_video(job: VideoJob, seed: int) -> Video:
    made = job.guidance.start_picture
    if job.prompt.image_path is None and made is None:
        raise FramePackError(
            "--image_path is missing; for text to video give --start_picture in its place"
        )
    plan = read_plan(job)
    start = first_image(job, plan)
    size, mask = size_of_video(job, start), None
    whole = size if job.guidance.draft == "half" else None
    size = size if whole is None else draft_size(whole, "--draft half")
    plan = fit_pictures(plan, size)
    if start is not None:
        image, mask = Picture.load(start, size), load_start_mask(job, start, size)
    else:
        assert made is not None
        image = Picture.made(made, size, seed)
    anchor = read_anchor(job, plan)
    more = {"anchor": anchor, "draft_of": whole}
    video = Video(plan, first_prompt(job, plan), image, image, mask, **more)
    return shortened(job, video)


def _read_edit(job: EditJob) -> OneFrameEdit:
    text = job.one_frame.one_frame_inference
    assert text is not None  # or it would be a video
    options = parse_one_frame(text, "--one_frame_inference")
    controls, size = load_controls(job)
    section = plan_one_frame(options, len(controls), _window(job))
    [path] = parse_spec(job.prompt.image_path, "--image_path").resolve(1)
    [prompt] = parse_spec(job.prompt.prompt, "--prompt").resolve(1)
    if path is None and not controls:
        raise FramePackError(
            "--control_image_path is missing: an edit needs pictures to start from (or an "
            "--image_path alone, which only SigLIP sees)"
        )
    if path is None:
        image = controls[0].picture
    else:
        image = Picture.load(path, size or size_of_video(job, path))
    assert prompt is not None
    return OneFrameEdit(section, prompt, image, tuple(controls), _window(job))


def read_plan(job: VideoJob) -> Plan:
    """The plan with the texts and paths of its sections."""
    prompt, guidance, window = job.prompt, job.guidance, _window(job)
    count = job.length.video_sections
    if count is None:
        count = sections_for_seconds(job.length.video_seconds or DEFAULT_SECONDS, window)
    paddings = guidance.latent_paddings
    if paddings is not None:
        paddings = parse_paddings(paddings, "--latent_paddings")
    plan = plan_video(prompt.mode, count, window, paddings)
    decode_slices(plan.latent_frames, window, job.decoding.decode_overlap)  # refuses before a run
    texts = plan.texts(prompt.prompt, "--prompt")
    if guidance.prompt_blend >= 2 and len(set(texts)) == 1:
        warn(f"--prompt_blend {guidance.prompt_blend} has no effect, as no prompt changes")
    prompts = blended([text for text in texts if text is not None], guidance.prompt_blend)
    plan = plan.scheduled(prompts, "prompt", run=texts[0])
    images = parse_spec(prompt.image_path, "--image_path").resolve(count)
    plan = plan.scheduled(images, "image", "image_embeds")
    for leaf in by_section():
        plan = _with_numbers(plan, leaf, getattr(guidance, leaf.flag))
    if any(s.lora_strength is not None for s in plan.sections) and not job.loras.lora_weight:
        raise FramePackError(
            "--section_lora_strengths: there is no LoRA; name one with --lora_weight, or take it "
            "out"
        )
    if guidance.loop:
        plan = plan.with_loop()
    if guidance.end_image_path is not None:
        policy, strength = guidance.end_image_policy, guidance.end_image_strength
        plan = plan.with_end(guidance.end_image_path, policy, strength)
    if plan.end is not None:
        plan.check_end(trained=job.loras.see_end)
    return plan


def read_anchor(job: VideoJob, plan: Plan) -> float:
    """How far sections are held to the start image; warns where none can be."""
    check_anchor(plan, job.guidance.anchor, "--anchor")
    return job.guidance.anchor


def read_finish(job: VideoJob, plan: Plan) -> int | None:
    """After how many sections a video ends, None after all; warns where there are no more."""
    count = job.variants.finish_after
    if count is not None and count >= len(plan.sections):
        warn(
            f"--finish_after {count} has no effect, as the video has {len(plan.sections)} sections"
        )
    return count


def shortened(job: VideoJob, video: Video) -> Video:
    """The video of the sections and frames that are asked for; refuses frames that it lacks."""
    video = video.first(read_finish(job, video.plan))
    drop = job.guidance.drop_first_frames
    check_drop(drop, video.frames, video.plan.closes, "--drop_first_frames")
    return replace(video, drop=drop)


def first_prompt(job: VideoJob, plan: Plan) -> str:
    """The prompt of the sections that have none of their own."""
    first = plan.texts(job.prompt.prompt, "--prompt")[0]
    assert first is not None
    return first


def first_image(job: VideoJob, plan: Plan) -> str | None:
    """The path of the image of the sections that have none of their own, if one is given."""
    return parse_spec(job.prompt.image_path, "--image_path").resolve(len(plan.sections))[0]


def fit_pictures(plan: Plan, size: Size) -> Plan:
    """The plan with pictures of one size in the place of their paths."""
    load = cache(partial(Picture.load, size=size))
    return plan.encoded(image=load, image_embeds=load)


def _with_numbers(plan: Plan, leaf: Leaf, text: str | None) -> Plan:
    """The plan with an override by a section spec."""
    spec = parse_spec(text, f"--{leaf.flag}")
    spec.resolve(len(plan.sections))  # refuses sections that there are not
    for key in sorted(spec.texts, reverse=True):  # one counted from the end comes later and wins
        value = leaf.read(spec.texts[key], f"{spec.name}: section {key}")
        plan = plan.with_overrides(str(key), **{leaf.name: value})
    return plan
