"""Pretraining: samples are cut as inference will see them, the optimiser works, a run resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toyworld import pretrain_dit, pretrain_vae
from toyworld import pretrain_layouts as layouts
from toyworld.pretrain import load_vae, main
from toyworld.pretrain_layouts import BOUNDARY, PARTS, ZERO, Layout
from toyworld.pretrain_loop import learning_rate, load_state
from toyworld.pretrain_optimizer import Optimizer, orthogonalise

from framepack_core.models.packing import Context
from framepack_core.sampling.history import History
from framepack_core.sampling.sections import Section, plan_f1, plan_framepack


def bank() -> Tensor:
    """A clip's latents [1, BANK, 1, 2, 2], each row with its own number in every element."""
    rows = torch.arange(layouts.BANK, dtype=torch.float32)
    rows[0] = BOUNDARY  # the start image's own latent, encoded alone
    rows[ZERO] = 0
    return rows.view(1, -1, 1, 1, 1).expand(-1, -1, 1, 2, 2)


def cut(layout: Layout) -> tuple[Tensor, Context, list[int]]:
    """Target, context and indices of the target, as the training step cuts them."""
    latents = bank()[:, list(layout.rows)].transpose(1, 2)
    target, clean, clean_2x, clean_4x = latents.split(PARTS, dim=2)
    i0, i1, i2, i4 = torch.tensor([layout.indices]).split(PARTS, dim=1)
    return target, Context(clean, i1, clean_2x, i2, clean_4x, i4), i0[0].tolist()


def assert_same_context(actual: Context, expected: Context) -> None:
    for name, value in vars(expected).items():
        assert torch.equal(getattr(actual, name), value), name


def truth(section: Section) -> Tensor:
    first = 1 + 9 * section.index
    return bank()[:, first : first + 9].transpose(1, 2)


@pytest.mark.parametrize("mode", ["framepack", "f1"])
@pytest.mark.parametrize("sections", [1, 2, 3, 4])
def test_samples_are_what_inference_sees(mode: str, sections: int) -> None:
    """True latents run through inference's own history give the layouts' contexts."""
    plan = plan_f1(sections) if mode == "f1" else plan_framepack(sections)
    history = History(plan, bank()[:, :1].transpose(1, 2))
    for section in plan.sections:
        if mode == "f1":
            layout = layouts.f1_layout(section)
        else:
            layout = layouts.framepack_layout(section, sections)
        target, context, indices = cut(layout)
        assert_same_context(context, history.context(section))
        assert indices == history.latent_indices(section)[0].tolist()
        assert torch.equal(target, truth(section))
        history.append(section, truth(section))


def test_end_frame_is_the_nearest_future_of_the_section_made_first() -> None:
    first_made, then_made, _ = plan_framepack(3).sections
    for end in ("first_section", "persistent"):
        history = layouts.framepack_layout(first_made, 3, end=end).rows[10:]
        assert history == (BOUNDARY + 3, *[ZERO] * 18)
    kept = layouts.framepack_layout(then_made, 3, end="persistent").rows[10:]
    assert kept == (*range(19, 28), BOUNDARY + 3, *[ZERO] * 9)
    dropped = layouts.framepack_layout(then_made, 3, end="first_section").rows[10:]
    assert dropped == (*range(19, 28), *[ZERO] * 10)


def test_plans_beyond_the_clip_repeat_its_last_section() -> None:
    assert [layouts.row(0, frame) for frame in (1, 36, 37, 45, 46)] == [1, 36, 28, 36, 28]
    assert layouts.row(2, 19) == 28


@pytest.mark.parametrize("mode", ["framepack", "f1"])
def test_every_group_has_sound_layouts(mode: str) -> None:
    assert sum(layouts.groups(mode).values()) == pytest.approx(1)
    for group in layouts.groups(mode):
        for layout in layouts.layouts(mode, group):
            assert len(layout.rows) == len(layout.indices) == sum(PARTS)
            assert set(layout.rows[: PARTS[0]]) <= set(range(1, BOUNDARY))
            assert layout.rows[PARTS[0]] == BOUNDARY + layout.boundary
            assert layout.weight > 0 and 0 <= layout.section < layouts.SECTIONS


def test_captions_are_found_by_number() -> None:
    clips = pretrain_dit._draw_group("changing", range(40))
    texts = pretrain_dit.all_captions()
    numbers = pretrain_dit.caption_numbers(clips)
    plain = pretrain_dit.render.captions(clips)
    marked = pretrain_dit.render.captions(clips, then=True)
    for clip in range(len(clips)):
        for section in range(layouts.SECTIONS):
            found = [texts[i] for i in numbers[clip, section].tolist()]
            assert found == [plain[clip][section], marked[clip][section]]


def test_orthogonalise_evens_out_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        x = torch.randn(shape, generator=generator)
        values = torch.linalg.svdvals(orthogonalise(x).float())
        assert values.min() > 0.5 and values.max() < 1.4


def test_optimizer_fits_a_linear_map_and_keeps_an_average() -> None:
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(8, 8, generator=generator)
    model = nn.Linear(8, 8).bfloat16()
    optimizer = Optimizer(model, {"weight"}, weight_decay=0)
    for step in range(400):
        x = torch.randn(64, 8, generator=generator)
        loss = (model(x.bfloat16()).float() - x @ goal.T).square().mean()
        optimizer.set_rate(learning_rate(step / 400, 0.1))
        optimizer.step(torch.autograd.grad(loss, optimizer.params))
        optimizer.track_average()
    assert (optimizer.masters[0] - goal).abs().max() < 0.05
    assert (optimizer.ema[0] - goal).abs().max() < 0.05
    assert torch.equal(model.weight, optimizer.masters[0].bfloat16())


def test_finished_autoencoder_has_unit_latents_and_the_same_pictures() -> None:
    torch.manual_seed(0)
    settings = pretrain_vae.SMOKE
    pool = pretrain_vae.make_pool(8, torch.device("cpu"), 0)[:, :9]
    config = pretrain_vae.replace(pretrain_vae.VAE, block_out_channels=settings.channels)
    model = pretrain_vae.AutoencoderKL(config)
    finished = pretrain_vae.finished(config, model.state_dict(), pool)
    pixels = pool.transpose(1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = finished.encode(pixels)
        assert torch.allclose(
            finished.decode(latents), model.decode(model.encode(pixels)), atol=1e-4
        )
        drawn = finished.encode(pixels, generator=torch.Generator().manual_seed(0))
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(16), atol=0.01)
    assert (drawn - latents).std() == pytest.approx(pretrain_vae.LATENT_NOISE, rel=0.05)


@pytest.mark.slow
def test_a_run_trains_resumes_and_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def random_captions(*_: object) -> tuple[Tensor, Tensor, Tensor]:
        count = len(pretrain_dit.all_captions()) + 1
        text, pooled = torch.randn(count, 8, 64), torch.randn(count, 64)
        return text, torch.arange(8).expand(count, -1) < 5, pooled

    monkeypatch.setattr(pretrain_dit, "encode_captions", random_captions)
    common = ["--smoke", "--minutes", "1", "--out", str(tmp_path), "--cases", "0", "--clips", "4"]
    main(["--device", "cpu", "vae", *common, "--max-steps", "1"])
    vae = load_vae(tmp_path, torch.device("cpu"))
    assert vae.config.block_out_channels == pretrain_vae.SMOKE.channels

    f1 = ["dit", "--mode", "f1", "--vae", str(tmp_path), *common, "--max-steps", "1"]
    main(["--device", "cpu", *f1])
    first, _ = load_state(tmp_path, "dit-f1", "weights")
    main(["--device", "cpu", *f1, "--resume", str(tmp_path), "--peak", "0"])
    again, _ = load_state(tmp_path, "dit-f1", "weights")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any((first[name] != 0).all() for name in first if name.startswith("proj_out"))
