"""Drafts: few steps, half the size, and noise that is the video's own at half the resolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import failure, files, latents, parse, picture, small
from toyworld.evaluate import Toy
from toyworld.evaluate_draft import evaluate_draft

from framepack_core.headless.request import Request, decide
from framepack_core.headless.scenes import Video
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.draft import draft_size, shrink_noise
from framepack_core.sampling.generate import generate, plan_noise
from framepack_core.sampling.options import DRAFT_STEPS
from framepack_core.sampling.sections import plan_video
from framepack_core.sampling.step_cache import EasyCache, TeaCache
from framepack_core.toyworld import SNAPSHOT


@pytest.fixture
def start(tmp_path: Path) -> str:
    return picture(tmp_path / "a.png")


def command(start: str, *options: str) -> list[str]:
    """`framepack generate` of one small section of 64 by 48."""
    given = ("--prompt", "x", "--image_path", start, "--video_sections", "1")
    size = ("--video_size", "48", "64")
    return small("generate", Path(start).parent / "out", *given, *size, *options)


def request(start: str, *options: str) -> Request:
    return Request.of(decide(parse(command(start, *options))))


def test_noise_is_the_mean_of_the_videos_and_as_strong() -> None:
    noise = torch.randn(1, 16, 9, 65, 81, generator=torch.Generator().manual_seed(0))
    small = shrink_noise(noise, 32, 40)
    assert torch.allclose(small[0, 3, 2, 5, 7], 2 * noise[0, 3, 2, 10:12, 14:16].mean())
    assert abs(small.std() - 1) < 0.01 and abs(small.mean()) < 0.01
    beside = (small[..., 1:] * small[..., :-1]).mean()
    assert abs(beside) < 0.01, "neighbours have to be independent"
    with pytest.raises(ValueError, match="is too small for 33x40"):
        shrink_noise(noise, 33, 40)


def test_sizes_are_halved_to_whole_patches() -> None:
    assert draft_size((832, 480), "x") == (416, 240)
    assert draft_size((720, 1056), "x") == (352, 528)
    with pytest.raises(FramePackError, match=r"^x: 64x16 is too small to be halved; 32 is the"):
        draft_size((64, 16), "x")


@pytest.mark.parametrize("mode", ["framepack", "f1"])
def test_a_section_begins_with_the_noise_of_the_video_at_half_the_resolution(mode: str) -> None:
    plan = plan_video(mode, 3, window=2).with_overrides("1", seed=9)
    seen = []

    def sample(task):
        seen.append(task.noise)
        return torch.randn(task.noise.shape, generator=torch.Generator().manual_seed(task.order))

    generate(plan, sample, torch.randn(1, 16, 1, 4, 6), 5, draft_of=(9, 12))
    expected = [shrink_noise(n, 4, 6) for n in plan_noise(plan, (1, 16, 2, 9, 12), 5)]
    assert len(seen) == 3 and all(map(torch.equal, seen, expected))


def test_few_steps_and_teacache_where_nothing_else_was_chosen(start: str) -> None:
    def chosen(*options: str) -> tuple[int, object]:
        sampler = request(start, *options).sampler
        return sampler.steps, sampler.step_cache and sampler.step_cache(torch.tensor([1.0, 0.0]))

    steps, cache = chosen("--draft", "steps", "--infer_steps", "25")
    assert steps == DRAFT_STEPS and isinstance(cache, TeaCache)
    steps, cache = chosen("--draft", "half", "--infer_steps", "4", "--easycache", "0.1")
    assert steps == 4 and isinstance(cache, EasyCache)
    assert chosen() == (2, None)


def test_a_draft_says_what_it_is_of(start: str, capsys: pytest.CaptureFixture[str]) -> None:
    half = request(start, "--draft", "half")
    assert isinstance(half.scene, Video)
    assert (half.scene.size, half.scene.draft_of) == ((32, 16), (64, 48))
    assert ", a draft of 64x48" in half.describe() and half.metadata(30)["draft"] == "half"
    quick = request(start, "--draft", "steps")
    assert quick.scene.size == (64, 48) and "a draft of" not in quick.describe()
    assert "draft" not in request(start).metadata(30)


def test_drafts_and_videos_do_not_share_sections(
    start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [word for word in command(start) if word != "--no_ledger"]
    sizes = {"half": (2, 4), "steps": (6, 8)}
    made = {}
    for kind, size in sizes.items():
        made[kind] = latents([*kept, "--draft", kind], capsys)
        assert tuple(made[kind].shape[3:]) == size
    whole = latents(kept, capsys)
    assert whole.shape == made["steps"].shape
    same_size = [*kept, "--video_size", "16", "32", "--teacache", "0.15"]
    assert not torch.equal(latents(same_size, capsys), made["half"]), "its noise is its own"
    files([*kept, "--draft", "half"], capsys)
    assert len(list((Path(start).parent / "out" / ".ledger").glob("*.safetensors"))) == 4


def test_what_cannot_be_halved_is_refused(start: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(command(start, "--draft", "half", "--video_size", "16", "64"), capsys)
    assert "--draft half: 64x16 is too small to be halved" in message
    old = latents(command(start), capsys)
    [path] = (Path(start).parent / "out").glob("*.safetensors")
    extend = small("extend", path.parent, "--prompt", "x", "--latent_path", str(path))
    message = failure([*extend, "--draft", "half"], capsys)
    assert "--draft half: a video that is extended keeps its size; use steps" in message
    grown = latents([*extend, "--draft", "steps", "--video_sections", "1"], capsys)
    assert torch.equal(grown[:, :, : old.shape[2]], old) and grown.shape[2] > old.shape[2]


@pytest.mark.slow
def test_drafts_of_toy_world_show_what_the_video_shows() -> None:
    toy = Toy.load(SNAPSHOT, torch.device("cpu"))
    measures = list(evaluate_draft(toy, 2))
    assert len(measures) == 6 and all(measure.met for measure in measures), measures
