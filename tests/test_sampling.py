"""Solver, denoiser, caches and loop, each against something worked out another way."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import context, guided, randn, tiny_dit

from framepack_core.models.dit import Tokens
from framepack_core.runtime.errors import FramePackError
from framepack_core.sampling.flow import CFG, FlowDenoiser, RopeScaling, x_at
from framepack_core.sampling.generate import (
    SamplerConfig,
    generate,
    section_noise,
    unipc_sampler,
)
from framepack_core.sampling.schedule import dynamic_shift, flow_sigmas
from framepack_core.sampling.sections import plan_f1, plan_framepack
from framepack_core.sampling.step_cache import EasyCache, MagCache, MagCacheConfig, TeaCache
from framepack_core.sampling.unipc import sample_unipc


def test_schedule_by_hand() -> None:
    assert dynamic_shift(9, 80, 80) == pytest.approx(7.0)
    assert dynamic_shift(1, 80, 80) == pytest.approx(math.exp(0.5 + (1600 - 256) * 0.65 / 3840))
    torch.testing.assert_close(flow_sigmas(2, 3.0), torch.tensor([1.0, 0.75, 0.0]))
    for bad in (lambda: flow_sigmas(0, 7), lambda: flow_sigmas(5, 0), lambda: flow_sigmas(5, -1)):
        with pytest.raises(FramePackError):
            bad()


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_converges_to_the_exact_flow(variant: str) -> None:
    """For Gaussian data of deviation d, x0(x, s) is linear and the flow keeps x / deviation(s)."""
    deviation = 0.5

    def denoise(x, sigma):
        s = sigma.view(-1, 1)
        return x * (1 - s) * deviation**2 / ((1 - s) ** 2 * deviation**2 + s**2)

    x = randn(2, 8).double()
    errors = []
    for steps in (10, 20, 40):
        sigmas, seen = flow_sigmas(steps, 1.0).double(), []
        sample_unipc(
            denoise, x, sigmas, variant=variant, on_step=lambda _i, x, _d, s=seen: s.append(x)
        )
        s = sigmas[steps // 2].item()
        exact = x * math.sqrt((1 - s) ** 2 * deviation**2 + s**2)
        errors.append((seen[steps // 2] - exact).abs().max().item())
    assert errors[0] > 6 * errors[1] and errors[0] > 36 * errors[2]  # third order: 8 a halving


def test_denoise_inverts_the_noising_of_a_perfect_model() -> None:
    x0, noise = randn(2, 16, 1, 4, 4), randn(2, 16, 1, 4, 4, seed=1)

    def perfect(_inputs, _transform):
        return noise - x0

    sigma = torch.tensor([0.9, 0.3])
    denoiser = FlowDenoiser(perfect)
    x = x_at(sigma, x0, noise)
    torch.testing.assert_close(denoiser.denoise(x, sigma, guided(2)), x0, rtol=1e-4, atol=1e-5)
    assert denoiser.loss(x0, noise, sigma, guided(2)).abs().max() < 1e-10


def test_cfg_of_scale_one_is_the_positive_pass() -> None:
    denoiser, x, sigma = FlowDenoiser(tiny_dit()), randn(1, 16, 2, 4, 4), torch.tensor([0.5])
    plain = denoiser.denoise(x, sigma, guided())
    cfg = CFG(guided(seed=5), 1.0)
    torch.testing.assert_close(denoiser.denoise(x, sigma, guided(), cfg=cfg), plain)
    strong = denoiser.denoise(x, sigma, guided(), cfg=CFG(guided(seed=5), 3.0))
    assert (strong - plain).abs().max() > 1e-2


def test_rope_scaling_starts_at_its_threshold() -> None:
    x, sigma = randn(1, 16, 1, 4, 4), torch.tensor([0.8])
    plain = FlowDenoiser(tiny_dit()).denoise(x, sigma, guided())
    below = FlowDenoiser(tiny_dit(), rope_scaling=RopeScaling(801)).denoise(x, sigma, guided())
    at = FlowDenoiser(tiny_dit(), rope_scaling=RopeScaling(800)).denoise(x, sigma, guided())
    torch.testing.assert_close(below, plain)
    assert (at - plain).abs().max() > 1e-4


@pytest.mark.parametrize(
    "make", [lambda s: TeaCache(s, 3.0), MagCache, lambda s: EasyCache(s, 0.6)]
)
def test_caches_keep_one_state_a_pass(make) -> None:
    """With CFG the positive pass must decide and reuse as it does alone."""
    dit, sigmas, ctx = tiny_dit(), flow_sigmas(12, 3.0), context()
    x = randn(1, 16, 2, 4, 4)

    def positive_only(cache, negative):
        denoiser, out = FlowDenoiser(dit), []
        for sigma in sigmas[:-1]:
            out.append(denoiser.velocity(x * sigma, sigma[None], guided(), None, ctx, cache))
            if negative:
                other = guided(seed=7)
                denoiser.velocity(x * sigma, sigma[None], other, None, ctx, cache, "negative")
        return torch.stack(out)

    alone, mixed = make(sigmas), make(sigmas)
    torch.testing.assert_close(positive_only(alone, False), positive_only(mixed, True))
    assert 0 < sum(alone.computed) < len(alone.computed)


def test_mag_cache_computes_first_and_last_and_checks_its_settings() -> None:
    cache = MagCache(flow_sigmas(10, 3.0), MagCacheConfig(threshold=100, max_skips=100))
    dit, x = tiny_dit(), randn(1, 16, 2, 4, 4)
    for sigma in flow_sigmas(10, 3.0)[:-1]:
        FlowDenoiser(dit).velocity(x, sigma[None], guided(), step_cache=cache)
    assert cache.computed == [True, True] + [False] * 7 + [True]
    with pytest.raises(FramePackError, match="magcache"):
        MagCacheConfig(max_skips=0)
    with pytest.raises(FramePackError, match="teacache"):
        TeaCache(flow_sigmas(10, 3.0), 0)


def test_easy_cache_follows_the_changes_of_input_and_output() -> None:
    """By hand: the output is twice the input, so each step is predicted to change it by 0.2.

    That adds up to 0.25 of an output of 2.2 in three steps, and of one of 2.8 in four.
    """
    sigmas = torch.linspace(1, 0, 11)
    cache, inputs = EasyCache(sigmas, 0.25), [torch.full((1, 4, 8), 1 + 0.1 * i) for i in range(10)]

    class Doubling:
        def transform(self, tokens):
            return 2 * tokens.latent

    results = [
        cache.transform(Doubling(), Tokens(x, x, x, x, None), float(sigma), "positive")  # type: ignore[arg-type]
        for x, sigma in zip(inputs, sigmas[:-1], strict=True)
    ]
    assert cache.computed == [True, True, False, False, True, False, False, False, True, True]
    torch.testing.assert_close(results[2], inputs[2] + inputs[1])
    with pytest.raises(FramePackError, match="easycache"):
        EasyCache(sigmas, 0)


def run_tiny(plan, seed, batch=1, steps=2, on_section=None):
    sampler = unipc_sampler(FlowDenoiser(tiny_dit()), guided(batch), SamplerConfig(steps=steps))
    start = randn(1, 16, 1, 4, 4, seed=3).expand(batch, -1, -1, -1, -1)
    return generate(plan, sampler, start, seed, on_section), start


@pytest.mark.parametrize("plan", [plan_framepack(2, window=3), plan_f1(2, window=3)])
def test_a_run_starts_with_the_start_image_and_repeats_to_the_bit(plan) -> None:
    seen = []
    video, start = run_tiny(plan, 5, on_section=seen.append)
    assert video.shape == (1, 16, 7, 4, 4)
    torch.testing.assert_close(video[:, :, :1], start)
    torch.testing.assert_close(run_tiny(plan, 5)[0], video, rtol=0, atol=0)
    assert (run_tiny(plan, 6)[0] - video).abs().max() > 1e-3
    assert [done.order for done in seen] == [0, 1]
    in_time = [done.latents for done in sorted(seen, key=lambda done: done.section.index)]
    torch.testing.assert_close(torch.cat([start, *in_time], dim=2), video)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    noise = next(section_noise((2, 16, 3, 4, 4), [11, 12]))
    alone = next(section_noise((1, 16, 3, 4, 4), 12))
    torch.testing.assert_close(noise[1:], alone, rtol=0, atol=0)
    with pytest.raises(FramePackError, match="2 seeds for a batch of 3"):
        next(section_noise((3, 1), [1, 2]))


def test_noise_of_all_sections_comes_from_one_generator() -> None:
    shape = (1, 16, 3, 4, 4)
    generator = torch.Generator("cpu").manual_seed(7)
    expected = [torch.randn(shape, generator=generator) for _ in range(3)]
    for noise, other in zip(section_noise(shape, 7), expected, strict=False):
        torch.testing.assert_close(noise, other, rtol=0, atol=0)


def test_values_that_are_not_finite_stop_the_run() -> None:
    with pytest.raises(FramePackError, match="not finite"):
        generate(
            plan_framepack(1, window=2),
            lambda task: task.noise * math.nan,
            torch.zeros(1, 16, 1, 4, 4),
            0,
        )


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 16, 3, 4, 4), "one latent frame"), ((1, 16, 1, 5, 4), "4x5, an image of 32x40")],
)
def test_a_start_that_cannot_be_used_is_refused(shape, words) -> None:
    with pytest.raises(FramePackError, match=words):
        generate(plan_framepack(1), lambda task: task.noise, torch.zeros(shape), 0)


def test_on_step_can_stop_a_run() -> None:
    class Stop(Exception):
        pass

    def stop(info):
        if info.step == 2:
            raise Stop

    sampler = unipc_sampler(FlowDenoiser(tiny_dit()), guided(), SamplerConfig(5), on_step=stop)
    with pytest.raises(Stop):
        generate(plan_framepack(1, window=2), sampler, torch.zeros(1, 16, 1, 4, 4), 0)
