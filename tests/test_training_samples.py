"""Samples while training: the sampler of inference, files under sample/, mistakes found early."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import CONFIG, randn, tiny_dit
from tiny_training import make_samples, run, tiny_config
from torch import Tensor

from framepack_core.models.prompt import TextCondition
from framepack_core.parsing.sample_prompts import SamplePrompt
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import load_image
from framepack_core.runtime.video import read_video
from framepack_core.sampling.flow import FlowDenoiser, Guided
from framepack_core.sampling.generate import SamplerConfig, generate, unipc_sampler
from framepack_core.sampling.plan import Plan
from framepack_core.sampling.sections import plan_framepack
from framepack_core.training.adapters import Adapters
from framepack_core.training.cache import LatentEncoders, TextEncoder
from framepack_core.training.config import AdapterConfig, TrainMode
from framepack_core.training.loop import Callbacks
from framepack_core.training.samples import (
    PreparedSample,
    check_prompts,
    prepare_samples,
    sample_writer,
)

WINDOW = 2
LATENT = LatentEncoders(
    lambda x: randn(1, 16, 1, x.shape[3] // 8, x.shape[4] // 8),
    lambda image: randn(1, 3, CONFIG.image_proj_dim),
    "stub",
)
TEXT = TextEncoder(
    lambda caption: TextCondition(
        randn(1, 4, CONFIG.text_embed_dim, seed=len(caption)),
        randn(1, CONFIG.pooled_projection_dim),
    ),
    "stub",
)


def decode(latents: Tensor) -> Tensor:
    frames = 4 * latents.shape[2] - 3
    return torch.zeros(1, 3, frames, 8 * latents.shape[3], 8 * latents.shape[4])


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (32, 32)).save(tmp_path / "start.png")
    return str(tmp_path / "start.png")


def prompt(image: str, **changes: object) -> SamplePrompt:
    values = {
        "image_path": image,
        "width": 32,
        "height": 32,
        "video_sections": 2,
        "sample_steps": 2,
        "seed": 5,
    }
    return SamplePrompt(prompt="a ball", **{**values, **changes})


def prepared(
    *prompts: SamplePrompt, mode: TrainMode = "framepack", flow_shift: float = 0.0
) -> list[PreparedSample]:
    return prepare_samples(prompts, mode, WINDOW, LATENT, TEXT, flow_shift=flow_shift)


def test_it_is_the_sampler_of_inference(image: str) -> None:
    denoiser = FlowDenoiser(tiny_dit())
    (sample,) = prepared(prompt(image))
    condition = Guided(TEXT.encode("a ball"), LATENT.image(None))
    sampler = unipc_sampler(denoiser, condition, SamplerConfig(2))
    expected = generate(plan_framepack(2, WINDOW), sampler, randn(1, 16, 1, 4, 4), 5)
    assert torch.equal(sample.make(denoiser, "cpu"), expected)


def test_files_and_the_trained_adapter(tmp_path: Path, image: str) -> None:
    dit = tiny_dit()
    denoiser = FlowDenoiser(dit)
    samples = prepared(prompt(image))
    seen: list[Tensor] = []

    def keep(latents: Tensor) -> Tensor:
        seen.append(latents)
        return decode(latents)

    write = sample_writer(samples, denoiser, lambda: nullcontext(keep), tmp_path, "run")
    adapters = Adapters.create(dit, AdapterConfig(rank=2, alpha=2))
    for parameter in adapters.parameters():
        parameter.data.fill_(0.1)
    with torch.no_grad():
        write(0)
        with adapters.attached(dit):
            write(7)
    assert not torch.equal(seen[0], seen[len(seen) // 2])
    frames, fps = read_video(tmp_path / "sample" / "run_000007_00_5.mp4")
    assert (len(frames), fps) == (17, 30.0)
    ways: list[tuple[dict[str, Any], list[int]]]
    ways = [({}, [5, 2]), ({"bulk": True}, [5]), ({"overlap": 1}, [5])]
    for way, lengths in ways:
        seen.clear()
        sample_writer(samples, denoiser, lambda: nullcontext(keep), tmp_path, "other", **way)(7)
        assert [x.shape[2] for x in seen] == lengths


def test_one_frame_with_an_end_and_true_guidance(tmp_path: Path, image: str) -> None:
    one = prompt(image, image_path=None, control_image_path=(image, image),
                 one_frame="target_index=1,control_index=0;10", cfg_scale=2.0)  # fmt: skip
    samples = prepared(one, mode="one_frame")
    assert samples[0].anchor.shape == (1, 16, 2, 4, 4) and samples[0].cfg is not None
    sample_writer(samples, FlowDenoiser(tiny_dit()), lambda: nullcontext(decode), tmp_path, "run")(
        3
    )
    assert (tmp_path / "sample" / "run_000003_00_5.png").is_file()
    ended = prompt(image, end_image_path=image)
    (sample,) = prepared(ended)
    assert sample.plan.end is not None and sample.plan.end.image.shape == (1, 16, 1, 4, 4)


def test_when_samples_are_made(tmp_path: Path) -> None:
    made: list[int] = []
    config = tiny_config(tmp_path, steps=5, sample_every_steps=2, sample_at_first=True)
    run(config, make_samples(tmp_path / "cache"), Callbacks(on_sample=made.append))
    assert made == [0, 2, 4, 5]


def test_sampling_does_not_change_the_training(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    drawn = Callbacks(on_sample=lambda _step: torch.rand(3))
    with_samples = run(tiny_config(tmp_path / "a", sample_every_steps=1), samples, drawn)
    assert with_samples.losses == run(tiny_config(tmp_path / "b"), samples).losses


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({"image_path": None}, "framepack", "no start image"),
        ({"width": 40}, "framepack", "40x32"),
        ({"end_image_path": "start.png"}, "f1", "F1 has no end image"),
        ({}, "one_frame", "no control image"),
        ({"image_path": "gone.png"}, "framepack", "gone.png: no such file"),
    ],
)
def test_mistakes(image: str, changes: dict[str, object], mode: str, message: str) -> None:
    with pytest.raises(FramePackError, match=message):
        check_prompts([prompt(image, **changes)], mode, WINDOW)


def test_f1_that_is_trained_with_end_frames_makes_samples_with_an_end_image(image: str) -> None:
    ended = [prompt(image, end_image_path=image)]
    check_prompts(ended, "f1", WINDOW, sees_end=True)
    [sample] = prepare_samples(ended, "f1", WINDOW, LATENT, TEXT, sees_end=True)
    [section, *_] = sample.plan.sections
    assert sample.plan.end is not None and len(section.clean_indices) == 3


def test_seeds_that_are_not_given_are_random(image: str) -> None:
    prompts = [prompt(image, seed=None)] * 2
    found = [s.seed for _ in range(2) for s in prepared(*prompts)]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("changes", "sections", "still"),
    [
        ({"frame_count": 9}, 1, False),
        ({"frame_count": 10}, 2, False),
        ({"frame_count": 2}, 1, False),
        ({"frame_count": 1}, 1, True),
        ({}, 1, True),
        ({"frame_count": 1, "video_sections": 2}, 2, False),
    ],
)
@pytest.mark.parametrize("mode", ["framepack", "f1"])
def test_frames_fill_whole_sections(
    image: str, mode: TrainMode, changes: dict[str, object], sections: int, still: bool
) -> None:
    (sample,) = prepared(prompt(image, **{"video_sections": None, **changes}), mode=mode)
    assert isinstance(sample.plan, Plan)
    assert (len(sample.plan.sections), sample.still) == (sections, still)


def test_a_still_image_is_the_last_frame(tmp_path: Path, image: str) -> None:
    """Where there is neither a length nor more than one frame, as a prompt of a picture."""

    def counted(latents: Tensor) -> Tensor:
        pixels = decode(latents)
        return pixels + torch.linspace(-1, 1, pixels.shape[2]).view(1, 1, -1, 1, 1)

    samples = prepared(prompt(image, video_sections=None))
    write = sample_writer(
        samples, FlowDenoiser(tiny_dit()), lambda: nullcontext(counted), tmp_path, "run"
    )
    write(3)
    [path] = (tmp_path / "sample").iterdir()
    assert path.name == "run_000003_00_5.png"
    assert (load_image(path) == 255).all()


def test_one_flow_shift_for_all_or_each_its_own(image: str) -> None:
    prompts = [prompt(image, discrete_flow_shift=3.0), prompt(image)]
    assert [s.sampler.shift for s in prepared(*prompts)] == [3.0, None]
    assert [s.sampler.shift for s in prepared(*prompts, flow_shift=10.0)] == [10.0, 10.0]
