"""The colours of previews against the pictures that latents are of."""

from __future__ import annotations

import torch

from framepack_core.models.build import load_snapshot
from framepack_core.toyworld import SNAPSHOT
from framepack_core.toyworld.preview import LATENT_RGB
from framepack_core.toyworld.render import draw, render_uint8

PATCH, LATENT_STEP = 8, 4  # pixels of a side, and frames, that are one latent


def test_latents_have_the_colours_of_their_pictures() -> None:
    """Of clips that the table was not fitted to: most of what differs between patches."""
    frames = render_uint8(draw(range(2000, 2032), sections=1))[:, :5].permute(0, 4, 1, 2, 3)
    pixels = frames.float() / 127.5 - 1
    with torch.inference_mode():
        latents = load_snapshot(SNAPSHOT, dtype=torch.float32).vae.encode(pixels)
    shown = torch.einsum("bcthw,cr->brthw", latents, torch.tensor(LATENT_RGB))[:, :, 1:]
    # The frames of each latent but the first, which has one, by patches.
    groups = pixels[:, :, 1:].unflatten(2, (-1, LATENT_STEP)).mean(3)
    real = groups.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH)).mean((-3, -1))
    assert shown.shape == real.shape
    assert (shown - real).var() < 0.3 * real.var()
