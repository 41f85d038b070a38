"""Samples while training: prompts encoded once before, then made by the sampler of inference."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..models.prompt import TextCondition
from ..parsing.sample_prompts import SamplePrompt
from ..runtime.display import Display
from ..runtime.distributed import launched_rank
from ..runtime.errors import FramePackError
from ..runtime.files import is_file
from ..runtime.images import load_image, resize_and_crop, save_png, to_tensor, to_uint8
from ..runtime.video import VideoWriter
from ..sampling.decode import Decode, decode_video
from ..sampling.flow import CFG, GUIDANCE, FlowDenoiser, Guided
from ..sampling.generate import SamplerConfig, generate, unipc_sampler
from ..sampling.masks import latent_mask, load_control, mask_latents
from ..sampling.one_frame import generate_one_frame, parse_one_frame, plan_one_frame
from ..sampling.plan import FPS, Mode, Plan, Section
from ..sampling.sections import check_size, plan_video, sections_to_hold
from .batches import text_to
from .cache import LatentEncoders, TextEncoder
from .config import TrainMode

SIZE = 256  # pixels, where a prompt names none
STEPS = 20
SAMPLES_FOLDER = "sample"


@dataclass(frozen=True)
class PreparedSample:
    """A prompt with everything encoded; one-frame has a section and controls, video a plan.

    anchor: the start image's latent [1, C, 1, h, w], or the controls' [1, C, N, h, w]. still: of
    its video only the last frame is kept.
    """

    prompt: str
    plan: Plan | Section
    anchor: Tensor
    guided: Guided
    cfg: CFG | None
    sampler: SamplerConfig
    seed: int
    still: bool = False

    def make(self, denoiser: FlowDenoiser, device: torch.device | str) -> Tensor:
        """The latents [1, C, T, h, w], the same for the same model."""
        sampler = unipc_sampler(denoiser, self.guided, self.sampler, self.cfg)
        anchor = self.anchor.to(device)
        if isinstance(self.plan, Section):
            return generate_one_frame(self.plan, sampler, anchor, self.seed)
        return generate(self.plan, sampler, anchor, self.seed)

    @property
    def window(self) -> int | None:
        """None for one frame, which is decoded alone."""
        return None if isinstance(self.plan, Section) else self.plan.window


def check_prompts(
    prompts: Sequence[SamplePrompt], mode: TrainMode, window: int, *, sees_end: bool = False
) -> None:
    """Refuse prompts that no sample can be made of, before any model is loaded.

    sees_end: whether F1 is trained with end frames, so that it can be given an end image.
    """
    for prompt in prompts:
        check_size(*_size(prompt))
        if mode == "one_frame":
            _section(prompt, window)
        else:
            prompt.check()
            _plan(prompt, mode, window)
            if mode == "f1" and prompt.end_image_path is not None and not sees_end:
                raise FramePackError(
                    f"sample {prompt.prompt!r}: F1 has no end image; take it out, or train with "
                    "end_frame"
                )
        for path in _images(prompt):
            if not is_file(Path(path)):
                raise FramePackError(f"sample {prompt.prompt!r}: image {path}: no such file")


def prepare_samples(
    prompts: Sequence[SamplePrompt],
    mode: TrainMode,
    window: int,
    latent: LatentEncoders,
    text: TextEncoder,
    *,
    flow_shift: float = 0.0,
    sees_end: bool = False,
    device: torch.device | str = "cpu",
) -> list[PreparedSample]:
    """Encode all prompts and images; a prompt without a seed gets a random one.

    flow_shift: of all samples; 0 takes each prompt's, else that by its size. sees_end: as for
    `check_prompts`.
    """
    check_prompts(prompts, mode, window, sees_end=sees_end)
    make = _prepare_one_frame if mode == "one_frame" else _prepare_video
    samples = []
    for prompt in prompts:
        plan, anchor, image = make(prompt, mode, window, latent)
        guidance = GUIDANCE if prompt.guidance_scale is None else prompt.guidance_scale
        seed = random.randrange(2**32) if prompt.seed is None else prompt.seed
        conditions = [text.encode(prompt.prompt), *_negative(prompt, text)]
        guided = [Guided(text_to(c, device), image.to(device), guidance) for c in conditions]
        cfg = CFG(guided[1], prompt.cfg_scale) if len(guided) > 1 and prompt.cfg_scale else None
        shift = flow_shift or prompt.discrete_flow_shift
        sampler = SamplerConfig(prompt.sample_steps or STEPS, shift)
        still = isinstance(plan, Plan) and prompt.is_still
        samples.append(
            PreparedSample(prompt.prompt, plan, anchor, guided[0], cfg, sampler, seed, still)
        )
    return samples


def sample_writer(
    samples: Sequence[PreparedSample],
    denoiser: FlowDenoiser,
    decoder: Callable[[], AbstractContextManager[Decode]],
    output_dir: Path,
    name: str,
    *,
    device: torch.device | str = "cpu",
    bulk: bool = False,
    overlap: int | None = None,
    together: bool = False,
    on_file: Callable[[Path, PreparedSample], None] = lambda _path, _sample: None,
) -> Callable[[int], None]:
    """What `Callbacks.on_sample` calls: makes all samples of a step into files under sample/.

    decoder: gives what decodes, which is there only meanwhile; bulk, overlap: as for
    `decode_video`. A sample that fails is reported, and the others are made. together: all
    processes make them, of which the first writes, and what fails in making is raised.
    """
    clips = partial(decode_video, bulk=bulk, overlap=overlap)

    def write(step: int) -> None:
        made = [sample.make(denoiser, device) for sample in samples if together]
        if launched_rank() > 0:
            return
        with Display(f"samples of step {step}", "samples"), decoder() as decode:
            for i, sample in enumerate(samples):
                stem = f"{name}_{step:06d}_{i:02d}_{sample.seed}"
                with Display(f"sample {stem}", "samples"):
                    latents = made[i] if together else sample.make(denoiser, device)
                    path = _save(output_dir / SAMPLES_FOLDER / stem, latents, sample, decode, clips)
                    on_file(path, sample)

    return write


def _save(
    path: Path,
    latents: Tensor,
    sample: PreparedSample,
    decode: Decode,
    clips: Callable[[Decode, Tensor, int], Iterator[Tensor]],
) -> Path:
    """An mp4, or a png of a single frame."""
    if sample.window is None or sample.still:
        path = path.with_name(f"{path.name}.png")
        save_png(path, to_uint8(decode(latents))[-1])
        return path
    path = path.with_name(f"{path.name}.mp4")
    height, width = (8 * side for side in latents.shape[3:])
    with VideoWriter(path, width=width, height=height, fps=FPS) as video:
        for clip in clips(decode, latents, sample.window):
            for frame in to_uint8(clip):
                video.write(frame)
    return path


def _prepare_video(
    prompt: SamplePrompt, mode: TrainMode, window: int, encoders: LatentEncoders
) -> tuple[Plan, Tensor, Tensor]:
    plan = _plan(prompt, mode, window)
    start, image = _encode(prompt.image_path, prompt, encoders)
    if prompt.end_image_path is not None:
        plan = plan.with_end(_encode(prompt.end_image_path, prompt, encoders)[0])
    return plan, start, image


def _prepare_one_frame(
    prompt: SamplePrompt, _mode: TrainMode, window: int, encoders: LatentEncoders
) -> tuple[Section, Tensor, Tensor]:
    """SigLIP sees the start image if there is one, else the first control, as in the caches."""
    paths = prompt.control_image_path or ()
    width, height = _size(prompt)
    masks: list[Tensor | None] = []
    latents = []
    for i, path in enumerate(paths):
        mask_paths = prompt.control_image_mask_path or ()
        pixels, mask = load_control(path, mask_paths[i] if i < len(mask_paths) else None)
        masks.append(None if mask is None else latent_mask(mask, width, height))
        fitted = resize_and_crop(pixels, width, height, resample="auto")
        latents.append(encoders.vae(to_tensor(fitted)).float().cpu())
    seen = prompt.image_path or next(iter(paths), None)
    _, image = _encode(seen, prompt, encoders)
    return _section(prompt, window), mask_latents(torch.cat(latents, dim=2), masks), image


def _encode(
    path: str | None, prompt: SamplePrompt, encoders: LatentEncoders
) -> tuple[Tensor, Tensor]:
    """The latent and the SigLIP tokens of an image at the sample's size."""
    assert path is not None  # check_prompts has seen to it
    pixels = resize_and_crop(load_image(path), *_size(prompt), resample="auto")
    return encoders.vae(to_tensor(pixels)).float().cpu(), encoders.image(pixels).float().cpu()


def _plan(prompt: SamplePrompt, mode: TrainMode, window: int) -> Plan:
    sections = prompt.video_sections or sections_to_hold(prompt.frame_count or 1, window)
    return plan_video(cast(Mode, mode), sections, window)


def _section(prompt: SamplePrompt, window: int) -> Section:
    controls = prompt.control_image_path or ()
    if not controls:
        raise FramePackError(
            f"sample {prompt.prompt!r}: no control image; one-frame needs one "
            "(--ci, control_image_path)"
        )
    return plan_one_frame(parse_one_frame(prompt.one_frame or "default"), len(controls), window)


def _size(prompt: SamplePrompt) -> tuple[int, int]:
    return prompt.width or SIZE, prompt.height or SIZE


def _images(prompt: SamplePrompt) -> list[str]:
    single = [prompt.image_path, prompt.end_image_path]
    several = [*(prompt.control_image_path or ()), *(prompt.control_image_mask_path or ())]
    return [path for path in (*single, *several) if path is not None]


def _negative(prompt: SamplePrompt, text: TextEncoder) -> list[TextCondition]:
    """The condition to guide away from, where a prompt asks for true guidance."""
    if prompt.cfg_scale is None or prompt.cfg_scale == 1:
        return []
    return [text.encode(prompt.negative_prompt or "")]
