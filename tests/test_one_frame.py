"""One-frame editing: options, where controls stand, masks, and the target against the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import guided, randn, tiny_dit

from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.images import load_image, load_image_rgba, resize_and_crop
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.sampling.generate import SamplerConfig, unipc_sampler
from framepack_core.sampling.masks import latent_mask, load_control, mask_latents
from framepack_core.sampling.one_frame import (
    OneFrame,
    describe_one_frame,
    generate_one_frame,
    one_frame_context,
    parse_one_frame,
    plan_one_frame,
)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("default", OneFrame()),
        ("", OneFrame()),
        (" no_2x , no_4x,no_post", OneFrame(no_2x=True, no_4x=True, no_post=True)),
        ("target_index = 1, control_index=0; 10", OneFrame(1, (0, 10))),
    ],
)
def test_options(text: str, options: OneFrame) -> None:
    assert parse_one_frame(text) == options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("control_indices=3", "'control_indices=3' is unknown; use default, no_2x"),
        ("target_index", "'target_index' is unknown; .* target_index=N"),
        ("no_2x=1", "'no_2x=1' is unknown"),
        ("target_index=x", "target_index: 'x' is not a whole number"),
        ("target_index=-1", "target_index: '-1' is not"),
        ("control_index=0;;1", "control_index: '' is not"),
        ("no_2x,no_2x", "no_2x is given twice"),
    ],
)
def test_bad_options_say_what_to_mend(text: str, words: str) -> None:
    with pytest.raises(FramePackError, match=f"^one_frame_inference: .*{words}"):
        parse_one_frame(text)


def test_layouts_by_hand() -> None:
    plain = plan_one_frame(OneFrame(), controls=2, window=4)
    assert (plain.latent_indices, plain.clean_indices) == ((4,), (0, 0, 5))
    assert (plain.clean_2x_indices, plain.clean_4x_indices) == ((6, 7), tuple(range(8, 24)))
    kisekae = OneFrame(target_index=1, control_index=(0, 10), no_2x=True, no_4x=True, no_post=True)
    section = plan_one_frame(kisekae, controls=2)
    assert (section.latent_indices, section.clean_indices) == ((1,), (0, 10))
    assert section.clean_2x_indices == section.clean_4x_indices == ()
    assert plan_one_frame(OneFrame(control_index=(3, 7)), controls=1).clean_indices == (3, 7)


def test_description() -> None:
    section = plan_one_frame(OneFrame(1, (0, 8), no_4x=True), controls=2)
    assert describe_one_frame(section, 2) == (
        "one frame at index 1; it sees control images at 0, 8; a blank latent at 10; "
        "blank 2x context at 11-12"
    )


@pytest.mark.parametrize(
    ("options", "controls", "words"),
    [
        (OneFrame(control_index=(0, 1, 2)), 1, "3 values for 1 control image; .* blank latent"),
        (OneFrame(control_index=(0,)), 2, "1 values for 2 control images"),
        (OneFrame(control_index=(0, 1), no_post=True), 1, "2 values for 1 control image; [^,]*$"),
    ],
)
def test_a_wrong_count_of_indices_is_refused(options, controls: int, words: str) -> None:
    with pytest.raises(FramePackError, match=words):
        plan_one_frame(options, controls)


@pytest.mark.parametrize("controls", [0, 1, 3])
def test_the_context_is_the_controls_and_blanks(controls: int) -> None:
    latents = torch.arange(1.0, controls + 1).view(1, 1, -1, 1, 1).expand(1, 16, -1, 4, 4)
    context = one_frame_context(plan_one_frame(OneFrame(), controls), latents)
    shown = list(range(1, controls + 1)) or [0]
    assert context.clean[0, 0, :, 0, 0].tolist() == [*shown, 0]
    assert context.clean_2x.shape[2] == 2 and not context.clean_2x.any()
    assert context.clean_4x.shape[2] == 16 and not context.clean_4x.any()
    bare = OneFrame(no_2x=True, no_4x=True, no_post=True)
    context = one_frame_context(plan_one_frame(bare, controls), latents)
    assert len(context.rates()) == 1 and context.clean.shape[2] == len(shown)


def test_a_plan_for_other_controls_is_refused() -> None:
    section = plan_one_frame(OneFrame(), controls=1)
    with pytest.raises(FramePackError, match="3 given to a plan of 2 indices"):
        one_frame_context(section, torch.zeros(1, 16, 3, 4, 4))


def run_tiny(controls: torch.Tensor, seed, **options) -> torch.Tensor:
    sampler = unipc_sampler(FlowDenoiser(tiny_dit()), guided(), SamplerConfig(steps=2))
    section = plan_one_frame(OneFrame(**options), controls.shape[2])
    return generate_one_frame(section, sampler, controls, seed)


def test_one_latent_is_made_and_every_option_counts() -> None:
    controls = randn(1, 16, 2, 4, 4)
    plain = run_tiny(controls, 1)
    assert plain.shape == (1, 16, 1, 4, 4)
    assert torch.equal(plain, run_tiny(controls, 1))
    for other in (
        run_tiny(controls, 2),
        run_tiny(controls, 1, target_index=2),
        run_tiny(controls, 1, control_index=(0, 3)),
        run_tiny(controls, 1, no_2x=True),
        run_tiny(controls, 1, no_4x=True),
        run_tiny(controls, 1, no_post=True),
        run_tiny(controls[:, :, :1], 1),
    ):
        assert (other - plain).abs().max() > 1e-4


def test_a_mask_of_zeros_removes_all_influence_of_a_control() -> None:
    controls = randn(1, 16, 2, 4, 4)
    other = torch.cat([controls[:, :, :1], randn(1, 16, 1, 4, 4, seed=9)], dim=2)
    hidden = torch.zeros(1, 1, 1, 4, 4)
    masked = [run_tiny(mask_latents(x, [None, hidden]), 1) for x in (controls, other)]
    assert torch.equal(*masked)
    assert (run_tiny(controls, 1) - run_tiny(other, 1)).abs().max() > 1e-4


def test_masks_belong_to_controls_in_order() -> None:
    controls, half = torch.ones(2, 16, 2, 4, 4), torch.full((1, 1, 1, 4, 4), 0.5)
    assert mask_latents(controls, [half])[1, 3, :, 0, 0].tolist() == [0.5, 1.0]
    assert controls.min() == 1
    with pytest.raises(FramePackError, match="masks: 3 for 2 control images"):
        mask_latents(controls, [None, half, half])


@pytest.mark.parametrize(("width", "height"), [(256, 128), (64, 200), (128, 128), (48, 96)])
def test_a_mask_is_cropped_as_its_image_is(width: int, height: int) -> None:
    """A white disc of a picture and of its mask ends up in the same place of a square."""
    y, x = np.mgrid[:height, :width]
    disc = (np.hypot(x - 0.6 * width, y - 0.45 * height) < 24).astype(np.uint8) * 255
    image = resize_and_crop(np.repeat(disc[..., None], 3, axis=2), 256, 256)[..., 0]
    blocks = torch.from_numpy(image / 255).reshape(32, 8, 32, 8).mean((1, 3))
    mask = latent_mask(disc, 256, 256)
    assert mask.shape == (1, 1, 1, 32, 32) and mask.min() >= 0 and mask.max() <= 1
    assert (mask[0, 0, 0] - blocks).abs().mean() < 0.02
    assert ((mask[0, 0, 0] > 0.5) != (blocks > 0.5)).float().mean() < 0.02


def save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_alpha_is_the_mask_and_hidden_colours_stay(tmp_path: Path) -> None:
    rgba = np.full((4, 6, 4), (10, 200, 30, 0), np.uint8)
    rgba[:, 3:, 3] = 255
    path = save(tmp_path / "control.png", Image.fromarray(rgba))
    pixels, mask = load_control(path)
    assert (pixels == (10, 200, 30)).all() and (mask == rgba[..., 3]).all()
    for name, mode in (("grey.png", "LA"), ("palette.png", "PA")):
        if mode == "PA":
            image = Image.new("P", (6, 4))
            image.info["transparency"] = 0
        else:
            image = Image.fromarray(rgba).convert(mode)
        _, mask = load_control(save(tmp_path / name, image))
        assert mask is not None and mask.min() == 0
    opaque = save(tmp_path / "opaque.png", Image.fromarray(rgba[..., :3]))
    assert load_control(opaque)[1] is None
    assert (load_image_rgba(opaque)[..., :3] == load_image(opaque)).all()


def test_a_mask_file_wins_over_alpha_and_must_have_the_images_shape(tmp_path: Path) -> None:
    control = save(tmp_path / "control.png", Image.new("RGBA", (6, 4), (1, 2, 3, 0)))
    larger = save(tmp_path / "larger.png", Image.new("L", (12, 8), 90))
    _, mask = load_control(control, larger)
    assert mask.shape == (8, 12) and (mask == 90).all()
    square = save(tmp_path / "square.png", Image.new("L", (8, 8)))
    with pytest.raises(FramePackError, match="8x8 is another shape than its image's 6x4"):
        load_control(control, square)
    with pytest.raises(FramePackError, match="no such file"):
        load_control(control, tmp_path / "none.png")
