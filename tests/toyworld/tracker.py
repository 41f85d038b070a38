"""Where the shape is in each frame, what it is, and how it moved: measured from pixels alone.

Shapes are vivid and backgrounds nearly grey, so a pixel's share of the shape is the share of its
chroma along the shape's; no clean background is needed, and the blur of an autoencoder only
softens the edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from framepack_core.toyworld.render import COLOURS, FORMS, SIZE, coverage

PRESENT = 20.0  # pixels of area: less is no shape
MOVED = 4.0  # pixels
RESIZED = 0.15  # in log radius
TURNED = 7.0  # pixels of extent on both axes


@dataclass(frozen=True)
class Track:
    """One row a frame [..., F]: position [..., 2] (x, y) and radius in pixels, as in `render`.

    colour [..., 3] is the shape's own, 0..1; colour_index and form index COLOURS and FORMS;
    fit is how well the best form matches (overlap over union, 1 is perfect); present tells
    whether there is a shape at all.
    """

    position: Tensor
    radius: Tensor
    colour: Tensor
    colour_index: Tensor
    form: Tensor
    fit: Tensor
    present: Tensor

    def __getitem__(self, frames: slice | int) -> Track:
        """The same for some frames."""
        return Track(
            self.position[..., frames, :],
            self.radius[..., frames],
            self.colour[..., frames, :],
            *(
                getattr(self, name)[..., frames]
                for name in ("colour_index", "form", "fit", "present")
            ),
        )


def track(pixels: Tensor) -> Track:
    """Follow the shape through clips [..., 3, F, 64, 64] in -1..1."""
    leading, frames = pixels.shape[:-4], pixels.shape[-3]
    rgb = rearrange(pixels.float(), "... c f h w -> (... f) h w c").add(1).div(2)
    share = _share(rgb)
    area = share.sum(dim=(1, 2))
    position = _centre(share, area)
    radius = (area / math.pi).sqrt()
    form, fit = _form(share, position, radius)
    colour = _colour(rgb, share)
    values = (position, radius, colour, _nearest_colour(colour), form, fit, area >= PRESENT)
    return Track(*(v.unflatten(0, (*leading, frames)) for v in values))


def track_uint8(frames: Tensor) -> Track:
    """Follow the shape through uint8 frames [..., F, 64, 64, 3]."""
    return track(rearrange(frames, "... f h w c -> ... c f h w").float() / 127.5 - 1)


def motion(tracked: Track) -> list[str]:
    """What each clip of a batch [B, F] shows from its first to its last frame.

    One of render.MOTIONS, or "other" where two of them mix, or "lost" where the shape is gone.
    """
    path, radius = tracked.position, tracked.radius
    net = path[:, -1] - path[:, 0]
    extent = path.amax(dim=1) - path.amin(dim=1)
    resized = (radius[:, -1] / radius[:, 0]).log()
    rows = zip(
        net.tolist(),
        extent.tolist(),
        resized.tolist(),
        tracked.present.all(dim=1).tolist(),
        strict=True,
    )
    return [_name_motion(*row) for row in rows]


def _name_motion(net: list[float], extent: list[float], resized: float, present: bool) -> str:
    if not present:
        return "lost"
    (dx, dy), travelled = net, math.hypot(*net)
    if travelled >= MOVED:
        if abs(resized) >= 2 * RESIZED or min(abs(dx), abs(dy)) > travelled / 2:
            return "other"
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    if min(extent) >= TURNED:
        return "circle"
    if max(extent) >= MOVED:
        return "other"
    if abs(resized) >= RESIZED:
        return "grow" if resized > 0 else "shrink"
    return "still"


def _share(rgb: Tensor) -> Tensor:
    """How much of each pixel [N, H, W] is shape, 0..1."""
    chroma = rgb - rgb.mean(dim=-1, keepdim=True)
    chroma = chroma - chroma.flatten(1, 2).median(dim=1).values[:, None, None]
    strength = chroma.norm(dim=-1)
    # The most vivid pixels, about as many as the smallest shape has, give the shape's chroma.
    order = strength.flatten(1).topk(int(PRESENT), dim=1).indices
    vivid = chroma.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 3)).mean(dim=1)
    along = torch.einsum("nhwc,nc->nhw", chroma, vivid)
    share = along / vivid.square().sum(dim=-1).clamp(min=1e-6)[:, None, None]
    share = ((share - 0.2) / 0.6).clamp(0, 1)  # symmetric about one half: areas stay
    weak = vivid.norm(dim=-1) < 0.15
    return share.masked_fill(weak[:, None, None], 0)


def _centre(share: Tensor, area: Tensor) -> Tensor:
    """Centre of mass [N, 2], taken again within reach of the first, so that specks do not pull."""
    axis = torch.arange(SIZE, device=share.device) + 0.5
    x, y = axis[None, None, :], axis[None, :, None]
    reach = 2.0 * (area / math.pi).sqrt() + 2
    weight = share.square()
    for _ in range(2):
        total = weight.sum(dim=(1, 2)).clamp(min=1e-6)
        cx, cy = ((weight * a).sum(dim=(1, 2)) / total for a in (x, y))
        distance = ((x - cx[:, None, None]).square() + (y - cy[:, None, None]).square()).sqrt()
        weight = share * (distance <= reach[:, None, None])
    return torch.stack((cx, cy), dim=-1)


def _form(share: Tensor, position: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    axis = torch.arange(SIZE, device=share.device) + 0.5
    x = (axis - position[:, :1])[:, None, :]
    y = (axis - position[:, 1:])[:, :, None]
    fits = []
    for form in range(len(FORMS)):
        ideal = coverage(form, x, y, radius[:, None, None])
        union = torch.maximum(ideal, share).sum(dim=(1, 2)).clamp(min=1e-6)
        fits.append(torch.minimum(ideal, share).sum(dim=(1, 2)) / union)
    fit, form = torch.stack(fits, dim=1).max(dim=1)
    return form, fit


def _colour(rgb: Tensor, share: Tensor) -> Tensor:
    inside = share * (share >= 0.9)
    inside = torch.where(inside.sum(dim=(1, 2), keepdim=True) > 0, inside, share)
    total = inside.sum(dim=(1, 2)).clamp(min=1e-6)
    return torch.einsum("nhwc,nhw->nc", rgb, inside) / total[:, None]


def _nearest_colour(colour: Tensor) -> Tensor:
    palette = torch.tensor(list(COLOURS.values()), device=colour.device)
    return torch.cdist(_hue(colour), _hue(palette)).argmin(dim=1)


def _hue(colour: Tensor) -> Tensor:
    """The direction of the chroma: what stays of a colour when it is lighter, darker or paler."""
    chroma = colour - colour.mean(dim=-1, keepdim=True)
    return chroma / chroma.norm(dim=-1, keepdim=True).clamp(min=1e-6)
