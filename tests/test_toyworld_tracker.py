"""The tracker against the renderer's truth: clean, blurred and noisy, on every background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from toyworld import evaluate
from toyworld.tracker import motion, track, track_uint8

from framepack_core.toyworld import render

SEEDS = range(render.HELD_OUT, render.HELD_OUT + 32)
FRAMES = torch.arange(0, 3 * render.SECTION_FRAMES + 1, 18)


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """What an autoencoder does to edges, roughly."""
    taps = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = pad(pixels.flatten(0, 2)[:, None], (3, 3, 3, 3), mode="replicate")
    return conv2d(conv2d(flat, taps[None, None, None]), taps[None, None, :, None]).view_as(pixels)


@pytest.mark.parametrize(
    ("sigma", "noise", "position", "radius"),
    [(0, 0, 0.3, 0.3), (1.0, 0, 0.2, 0.3), (1.0, 0.05, 0.2, 0.4), (0, 0.08, 0.3, 0.4)],
)
def test_finds_the_shape(sigma: float, noise: float, position: float, radius: float) -> None:
    clips = render.draw(SEEDS, 3, "changing")
    assert clips.backdrop.unique().tolist() == [0, 1, 2, 3]
    truth = clips.track[:, FRAMES]
    pixels = render.render(clips, frames=FRAMES)
    if sigma:
        pixels = blur(pixels, sigma)
    pixels = pixels + noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))

    found = track(pixels)

    assert found.present.all()
    assert (found.position - truth[..., :2]).norm(dim=-1).max() < position
    assert (found.radius - truth[..., 2]).abs().max() < radius
    assert (found.form == clips.form[:, None]).float().mean() >= 0.99
    assert (found.colour_index == clips.colour[:, None]).float().mean() >= 0.99


def test_reads_colour_and_picture_files_alike() -> None:
    clips = render.draw(SEEDS[:24], 1)
    found = track(render.render(clips, frames=torch.tensor([0])))
    from_bytes = track_uint8(render.render_uint8(clips, frames=torch.tensor([0])))
    paint = torch.tensor(list(render.COLOURS.values()))[clips.colour]
    assert torch.allclose(found.colour[:, 0], paint, atol=0.03)
    assert torch.allclose(found.position, from_bytes.position, atol=0.02)


def test_an_empty_frame_has_no_shape() -> None:
    grey = torch.zeros(1, 3, 1, render.SIZE, render.SIZE)
    assert not track(grey).present.any()
    assert not track(grey + 0.05 * torch.randn(grey.shape)).present.any()


@pytest.mark.parametrize("sections", [1, 2])
def test_names_the_motion(sections: int) -> None:
    cases = evaluate.Cases.draw(32, 0)
    wanted = torch.tensor([[render.MOTIONS.index(m)] * sections for m in cases.motions])
    clips = render.with_motions(cases.clips, wanted)
    some = torch.arange(0, clips.track.shape[1], 6)
    seen = motion(track(render.render(clips, frames=some)))
    assert seen == list(cases.motions)


def test_names_no_motion_where_there_is_none_to_name() -> None:
    clips = render.draw(SEEDS[:1], 1)
    pixels = render.render(clips)
    pixels[:, :, -5:] = 0
    assert motion(track(pixels)) == ["lost"]
    corner = render.with_motions(render.draw(SEEDS[:1], 1, central=True), torch.tensor([[1, 3]]))
    assert motion(track(render.render(corner))) == ["other"]


def test_join_ratio_sees_a_jump() -> None:
    clips = render.draw(SEEDS[:16], 2, "steady")
    clips = clips[clips.motions[:, 0] < 4]
    smooth = clips.track.clone()
    ratios = []
    for jump in (0.0, 3.0):
        moved = smooth.clone()
        moved[:, render.SECTION_FRAMES + 1 :, 0] += jump
        pixels = render.render(render.Clips(**{**vars(clips), "track": moved}))
        ratios.append(evaluate.join_ratio(evaluate.Video(pixels, track(pixels))))
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[1] > 5
