"""The world's renderer: seeds name clips, motions do what captions say, shapes stay inside."""

from __future__ import annotations

import math

import pytest
import torch

from framepack_core.toyworld import render
from framepack_core.toyworld.render import FORMS, MOTIONS, SECTION_FRAMES, SIZE

SEEDS = range(render.HELD_OUT, render.HELD_OUT + 200)


def all_motions(sections: int) -> tuple[render.Clips, torch.Tensor]:
    """Central start images, each with every motion in turn, and the motions [B]."""
    clips = render.draw(SEEDS, 1, central=True)
    motions = torch.arange(len(clips)) % len(MOTIONS)
    return render.with_motions(clips, motions[:, None].expand(-1, sections)), motions


def test_a_seed_names_a_clip_whatever_the_batch_and_length() -> None:
    whole = render.draw([5, 6, 7, 8], 3, "changing")
    alone = render.draw([7], 2, "changing")
    frames = 2 * SECTION_FRAMES + 1
    assert torch.equal(alone.track, whole[[2]].track[:, :frames])
    some = torch.tensor([0, 40, 72])
    assert torch.equal(
        render.render_uint8(alone, frames=some), render.render_uint8(whole[[2]], frames=some)
    )
    assert not torch.equal(whole.track[0], whole.track[1])


def test_a_seed_keeps_its_clip() -> None:
    """What is trained and reported refers to clips by seed: a change here is a new world."""
    clip = render.draw([1], 1)
    assert render.captions(clip) == [["a magenta circle moves left"]]
    expected = torch.tensor((44.14326533822812, 20.724230475485513, 7.981740348367763))
    assert torch.allclose(clip.track[0, 0], expected.double())
    image = render.start_image(clip)[0]
    assert image[0, 0].tolist() == [69, 60, 67]
    assert image[20, 44].tolist() == [230, 36, 219]


@pytest.mark.parametrize("sections", [1, 8])
def test_shapes_stay_inside(sections: int) -> None:
    for kind in ("steady", "changing", "travel"):
        clips = render.draw(SEEDS, sections, kind)
        x, y, radius = clips.track[:, ::6].unbind(-1)
        assert (radius >= render.SMALLEST).all() and (radius <= render.LARGEST).all()
        border = torch.ones(SIZE, SIZE, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        axis = torch.arange(SIZE) + 0.5
        for form in range(len(FORMS)):
            rows = clips.form == form
            cover = render.coverage(
                form,
                (axis - x[rows, :, None])[..., None, :],
                (axis - y[rows, :, None])[..., :, None],
                radius[rows][..., None, None],
            )
            assert cover[..., border].max() < 0.5


def test_motions_do_what_they_are_called() -> None:
    clips, motions = all_motions(2)
    net = clips.track[:, -1] - clips.track[:, 0]
    expected = {
        "left": (-1, 0, 0),
        "right": (1, 0, 0),
        "up": (0, -1, 0),
        "down": (0, 1, 0),
        "circle": (0, 0, 0),
        "grow": (0, 0, 1),
        "shrink": (0, 0, -1),
        "still": (0, 0, 0),
    }
    for index, name in enumerate(MOTIONS):
        moved = net[motions == index]
        signs = torch.sign(torch.where(moved.abs() < 1, 0, moved))
        if name == "grow":  # may be pushed off the wall
            signs, moved = signs[:, 2:], moved[:, 2:]
            assert (signs == 1).all()
            continue
        assert (signs == torch.tensor(expected[name])).all(), name


def test_circle_is_one_round_turn_a_section() -> None:
    clips, motions = all_motions(1)
    path = clips.track[motions == MOTIONS.index("circle"), :, :2]
    centre = (path[:, 0] + path[:, SECTION_FRAMES // 2]) / 2
    radii = (path - centre[:, None]).norm(dim=-1)
    assert torch.allclose(radii, torch.full_like(radii, render.ORBIT))
    step = (path[:, 1:] - path[:, :-1]).norm(dim=-1)
    expected = 2 * render.ORBIT * math.sin(math.pi / SECTION_FRAMES)
    assert torch.allclose(step, torch.full_like(step, expected))


def test_speed_does_not_jump_at_joins() -> None:
    clips = render.draw(SEEDS, 4, "steady")
    clips = clips[clips.motions[:, 0] != MOTIONS.index("circle")]
    step = clips.track[:, 1:] - clips.track[:, :-1]
    change = (step[:, 1:] - step[:, :-1]).abs().amax(dim=(0, 2))
    joins = torch.arange(SECTION_FRAMES, 4 * SECTION_FRAMES, SECTION_FRAMES) - 1
    assert change[joins].max() <= change.max()
    assert change.max() < 0.06  # pixels a frame, where the fastest step is 0.5


def test_area_is_that_of_a_circle_of_the_radius() -> None:
    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    for form in range(len(FORMS)):
        for radius in (5.0, 9.3, 14.0):
            cover = render.coverage(form, axis[None, :], axis[:, None], torch.tensor(radius))
            assert cover.sum().item() == pytest.approx(math.pi * radius**2, rel=0.02)
            assert (cover * axis[None, :]).sum().abs() < 1e-2 * cover.sum()
            assert (cover * axis[:, None]).sum().abs() < 1e-2 * cover.sum()


def test_half_a_pixel_shows() -> None:
    clip = render.draw([3], 1)
    moved = clip.track.clone()
    moved[..., 0] += 0.5
    shifted = render.Clips(**{**vars(clip), "track": moved})
    difference = (render.render(clip) - render.render(shifted)).abs().flatten(1).max()
    assert difference > 0.1


def test_captions() -> None:
    red_circle = (FORMS.index("circle"), render.COLOUR_NAMES.index("red"))
    right = MOTIONS.index("right")
    assert render.caption(*red_circle, right) == "a red circle moves right"
    assert render.caption(*red_circle, right, then=True) == "a red circle then moves right"
    texts = {
        render.caption(form, colour, motion, variant=variant)
        for form in range(len(FORMS))
        for colour in range(len(render.COLOURS))
        for motion in range(len(MOTIONS) + 1)
        for variant in range(render.CAPTION_VARIANTS)
    }
    assert len(texts) == 4 * 6 * 9 * render.CAPTION_VARIANTS


def test_a_change_is_marked_in_later_captions_only() -> None:
    clips = render.draw(SEEDS, 3, "changing")
    for motions, changed in zip(clips.motions.tolist(), clips.changed().tolist(), strict=True):
        first = motions[0]
        assert changed == [False, motions[1] != first, motions[1] != first or motions[2] != first]


def test_travel_goes_straight_to_the_place_in_each_leg() -> None:
    clips = render.draw(SEEDS, 4, "travel", legs=2)
    half = clips.track[:, : 2 * SECTION_FRAMES + 1]
    line = torch.lerp(
        half[:, :1], half[:, -1:], torch.linspace(0, 1, half.shape[1]).double()[:, None]
    )
    assert torch.allclose(half, line)
    assert ((half[:, 0] - half[:, -1]).norm(dim=-1) > 1).float().mean() > 0.9


def test_too_many_sections() -> None:
    with pytest.raises(ValueError, match="1 to 8 sections, not 9"):
        render.draw([1], 9)
