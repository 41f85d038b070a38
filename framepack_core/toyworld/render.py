"""The world of Toy World: a coloured shape on a still background, moving as its caption says.

A batch of clips is drawn from seeds on the CPU, so a seed names the same clip on every machine;
only the pixels are made on the device that asks for them. Where a shape goes next follows from
what one sees and from the caption alone: it moves at one speed and slows down before the wall,
so eight sections of "moves right" stay in the frame and end in the same place.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

SIZE = 64
FPS = 30
SECTION_FRAMES = 36
MAX_SECTIONS = 8
HELD_OUT = 1 << 40
"""Seeds from here on are for evaluation; training draws below."""

FORMS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.92, 0.14, 0.14),
    "yellow": (0.92, 0.88, 0.10),
    "green": (0.12, 0.80, 0.16),
    "cyan": (0.10, 0.84, 0.90),
    "blue": (0.14, 0.22, 0.94),
    "magenta": (0.90, 0.14, 0.86),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUNDS = ("plain", "gradient", "checker", "stripes")
MOTIONS = ("left", "right", "up", "down", "circle", "grow", "shrink", "still")
TRAVEL = len(MOTIONS)
"""The motion of clips that go straight to a given end frame, in any direction."""
OPPOSITE = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "grow": "shrink",
    "shrink": "grow",
}
MOTION_PHRASES = {
    "left": ("moves left", "goes left", "is moving to the left"),
    "right": ("moves right", "goes right", "is moving to the right"),
    "up": ("moves up", "goes up", "is moving to the top"),
    "down": ("moves down", "goes down", "is moving to the bottom"),
    "circle": ("moves in a circle", "goes around", "is moving around"),
    "grow": ("grows", "gets bigger", "is growing"),
    "shrink": ("shrinks", "gets smaller", "is shrinking"),
    "still": ("stands still", "stays in place", "is standing still"),
    "travel": ("moves", "goes on", "is moving"),
}

Kind = Literal["steady", "changing", "travel"]

SPEED = 18.0  # pixels a section
SLOWING = 2.0  # a section: within SPEED / SLOWING of the wall the rest shrinks exponentially
ORBIT = 6.0  # pixels, radius of the circling motion: one turn a section
GROWTH, LARGEST = 4.5, 14.0  # pixels of radius a section, and where it ends
SHRINKAGE, SMALLEST = 3.5, 5.0
RESIZE_SLOWING = 1.5
RADIUS = (6.0, 10.0)  # of the start frame
CENTRAL_RADIUS = (7.5, 9.5)  # of start frames from which every motion can be seen
ROOM = 10.0  # pixels: a motion is only drawn where it can go at least this far
EDGE = 1.0  # pixels between a shape and the border at the nearest

# Forms are scaled to the area of a circle of the same radius, their centre of mass in the middle:
# so the tracker reads one size for all of them. Reach is (left, right, up, down) in radii.
_SQUARE = math.sqrt(math.pi) / 2
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3)))  # inradius
_CROSS_ARM = 0.38  # half width of an arm, in arm lengths
_CROSS = math.sqrt(math.pi / (8 * _CROSS_ARM - 4 * _CROSS_ARM**2))
_REACH = torch.tensor(
    [
        (1.0, 1.0, 1.0, 1.0),
        (_SQUARE,) * 4,
        (math.sqrt(3) * _TRIANGLE, math.sqrt(3) * _TRIANGLE, 2 * _TRIANGLE, _TRIANGLE),
        (_CROSS,) * 4,
    ],
    dtype=torch.float64,
)


@dataclass(frozen=True)
class Clips:
    """A batch of clips of one length.

    form, colour [B] index FORMS and COLOUR_NAMES; motions [B, sections] indexes MOTIONS (or is
    TRAVEL); track [B, 36 sections + 1, 3] holds x, y and radius in pixels, x from the left and y
    from the top of the frame. The background is backdrop [B] (an index into BACKGROUNDS), its two
    colours [B, 2, 3] and texture [B, 3]: angle, period in pixels, phase in periods.
    """

    seeds: tuple[int, ...]
    form: Tensor
    colour: Tensor
    motions: Tensor
    track: Tensor
    backdrop: Tensor
    backdrop_colours: Tensor
    texture: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def sections(self) -> int:
        return self.motions.shape[1]

    def __getitem__(self, rows: Tensor | slice | list[int]) -> Clips:
        chosen = torch.arange(len(self))[rows]
        fields = ("form", "colour", "motions", "track", "backdrop", "backdrop_colours", "texture")
        return Clips(
            tuple(self.seeds[i] for i in chosen.tolist()),
            **{name: getattr(self, name)[chosen] for name in fields},
        )

    def changed(self) -> Tensor:
        """[B, sections] bool: the section's motion is not the one that the clip began with."""
        return (self.motions != self.motions[:, :1]).cummax(dim=1).values


def caption(form: int, colour: int, motion: int, *, then: bool = False, variant: int = 0) -> str:
    """One sentence for one section; variants below CAPTION_VARIANTS say it in other words."""
    phrases = MOTION_PHRASES["travel" if motion == TRAVEL else MOTIONS[motion]]
    article, phrase = divmod(variant, len(phrases))
    subject = f"{('a', 'the')[article]} {COLOUR_NAMES[colour]} {FORMS[form]}"
    return f"{subject} {'then ' if then else ''}{phrases[phrase]}"


CAPTION_VARIANTS = 2 * 3


def captions(clips: Clips, *, variant: int = 0, then: bool = False) -> list[list[str]]:
    """The caption of each section of each clip; `then` marks those after a change of motion."""
    marks = clips.changed() & then
    return [
        [
            caption(form, colour, motion, then=mark, variant=variant)
            for motion, mark in zip(motions, mark_row, strict=True)
        ]
        for form, colour, motions, mark_row in zip(
            clips.form.tolist(),
            clips.colour.tolist(),
            clips.motions.tolist(),
            marks.tolist(),
            strict=True,
        )
    ]


def draw(
    seeds: Sequence[int],
    sections: int,
    kind: Kind = "steady",
    *,
    central: bool = False,
    legs: int = 1,
) -> Clips:
    """Clips of 36 * sections + 1 frames, one a seed, each the same in whatever batch it is drawn.

    kind: "steady" keeps one motion, "changing" draws a motion for each section, "travel" goes
    straight to a random place in each of `legs` equal parts of the clip. central starts near the
    middle and of middle size, so that every motion has room.
    """
    if not 1 <= sections <= MAX_SECTIONS:
        raise ValueError(f"a clip has 1 to {MAX_SECTIONS} sections, not {sections}")
    uniform = torch.tensor([_uniforms(seed) for seed in seeds], dtype=torch.float64)
    fields, choices = uniform[:, :20], uniform[:, 20:]
    form = _pick(fields[:, 0], len(FORMS))
    start = _start(form, fields[:, 2:5], central)
    clips = Clips(
        seeds=tuple(seeds),
        form=form,
        colour=_pick(fields[:, 1], len(COLOURS)),
        motions=torch.zeros(len(seeds), 0, dtype=torch.long),
        track=start[:, None],
        **_backdrop(fields[:, 8:18]),
    )
    if kind == "travel":
        return _travel(clips, sections, legs, choices)
    return _wander(clips, sections, choices, steady=kind == "steady")


def with_motions(clips: Clips, motions: Tensor) -> Clips:
    """The same shapes from the same start frames, moving as motions [B, sections] says."""
    track = clips.track[:, :1]
    for motion in motions.unbind(1):
        track = torch.cat((track, _section(clips.form, track[:, -1], motion)), dim=1)
    return replace(clips, motions=motions, track=track)


def render(
    clips: Clips, *, frames: Tensor | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Pixels [B, 3, F, 64, 64] in -1..1 of all frames, or of frames [F] or [B, F]."""
    track = clips.track
    if frames is not None:
        rows = frames if frames.ndim == 2 else frames.expand(len(clips), -1)
        track = track.gather(1, rows[..., None].expand(-1, -1, 3))
    track = track.to(device, torch.float32)
    background = _render_backdrop(clips, device)
    paint = torch.tensor(list(COLOURS.values()), device=device)[clips.colour.to(device)]
    axis = torch.arange(SIZE, device=device) + 0.5
    x = (axis - track[..., 0, None])[..., None, :]
    y = (axis - track[..., 1, None])[..., :, None]
    radius = track[..., 2, None, None]
    pixels = background[:, :, None].repeat(1, 1, track.shape[1], 1, 1)
    for form in clips.form.unique().tolist():
        rows = (clips.form == form).nonzero()[:, 0].to(device)
        cover = coverage(form, x[rows], y[rows], radius[rows])[:, None]
        pixels[rows] = torch.lerp(pixels[rows], paint[rows, :, None, None, None], cover)
    return pixels.mul_(2).sub_(1)


def render_uint8(clips: Clips, *, frames: Tensor | None = None) -> Tensor:
    """Pixels as a picture file holds them: uint8 [B, F, 64, 64, 3]."""
    pixels = render(clips, frames=frames).permute(0, 2, 3, 4, 1)
    return pixels.add(1).mul(127.5).round().to(torch.uint8)


def start_image(clips: Clips) -> Tensor:
    """Frame 0 of each clip, uint8 [B, 64, 64, 3]."""
    return render_uint8(clips, frames=torch.tensor([0]))[:, 0]


def end_image(clips: Clips) -> Tensor:
    """The last frame of each clip, uint8 [B, 64, 64, 3]."""
    return render_uint8(clips, frames=torch.tensor([clips.track.shape[1] - 1]))[:, 0]


def coverage(form: int, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How much of each pixel a shape at the origin covers, 0..1 over a one pixel wide edge."""
    return (0.5 - _distance(FORMS[form], x, y, radius)).clamp_(0, 1)


def _distance(form: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    if form == "circle":
        return (x.square() + y.square()).sqrt() - radius
    if form == "square":
        return torch.maximum(x.abs(), y.abs()) - _SQUARE * radius
    if form == "triangle":
        slope = x.abs() * (math.sqrt(3) / 2) - y / 2
        return torch.maximum(slope, y + torch.zeros_like(x)) - _TRIANGLE * radius
    across = torch.maximum(x.abs(), y.abs())
    along = torch.minimum(x.abs(), y.abs())
    arm = _CROSS * radius
    return torch.maximum(across - arm, along - _CROSS_ARM * arm)


def _uniforms(seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.random() for _ in range(20 + 2 * MAX_SECTIONS)]


def _pick(uniform: Tensor, count: int) -> Tensor:
    return (uniform * count).long().clamp_(max=count - 1)


def _walls(form: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest centre [..., 2] (x, y) at which a shape is inside the frame."""
    reach = _REACH[form].view(*form.shape, *[1] * (radius.ndim - form.ndim), 4)
    reach = reach * radius[..., None] + EDGE
    return reach[..., 0::2], SIZE - reach[..., 1::2]


def _start(form: Tensor, uniform: Tensor, central: bool) -> Tensor:
    low, high = CENTRAL_RADIUS if central else RADIUS
    radius = low + (high - low) * uniform[:, 2]
    floor, ceiling = _walls(form, radius)
    if central:
        middle = (floor + ceiling) / 2
        floor, ceiling = middle - 4, middle + 4
    place = floor + (ceiling - floor) * uniform[:, :2]
    return torch.cat((place, radius[:, None]), dim=1)


def _backdrop(uniform: Tensor) -> dict[str, Tensor]:
    """Two near greys, far from every shape colour in chroma, and how they are laid out."""
    light = 0.2 + 0.6 * uniform[:, 0]
    contrast = (0.05 + 0.12 * uniform[:, 1]) * torch.where(light > 0.5, -1.0, 1.0)
    lights = torch.stack((light, light + contrast), dim=1)
    tint = uniform[:, None, 2:5] - uniform[:, None, 2:5].mean(dim=-1, keepdim=True)
    texture = torch.stack(
        (
            torch.floor(uniform[:, 5] * 8) * (math.pi / 4),
            18 + 12 * uniform[:, 6],
            uniform[:, 7],
        ),
        dim=1,
    )
    return {
        "backdrop": _pick(uniform[:, 8], len(BACKGROUNDS)),
        "backdrop_colours": lights[..., None] + 0.08 * tint,
        "texture": texture,
    }


def _render_backdrop(clips: Clips, device: torch.device | str) -> Tensor:
    """[B, 3, 64, 64] in 0..1."""
    angle, period, phase = clips.texture.to(device, torch.float32)[..., None, None].unbind(1)
    kind = clips.backdrop.to(device)[:, None, None]
    axis = torch.arange(SIZE, device=device) + 0.5 - SIZE / 2
    along = axis[None, None, :] * torch.cos(angle) + axis[None, :, None] * torch.sin(angle)
    across = axis[None, :, None] * torch.cos(angle) - axis[None, None, :] * torch.sin(angle)
    wave = torch.sin(2 * math.pi * (along / period + phase))
    product = wave * torch.sin(2 * math.pi * (across / period + phase))
    soft = period / 6  # an edge of about one pixel at any period
    mix = torch.where(kind == 1, 0.5 + along / (SIZE * 1.42), torch.zeros_like(along))
    mix = torch.where(kind == 2, (0.5 + soft * product).clamp(0, 1), mix)
    mix = torch.where(kind == 3, (0.5 + soft * wave).clamp(0, 1), mix)
    first, second = clips.backdrop_colours.to(device, torch.float32)[..., None, None].unbind(1)
    return torch.lerp(first, second, mix[:, None])


def _rest(distance: Tensor, speed: float, slowing: float, time: Tensor) -> Tensor:
    """What is left of distance [B] after time [F] sections: steady, then exponentially slower."""
    distance = distance[:, None].clamp(min=0)
    brake = speed / slowing
    steady = ((distance - brake) / speed).clamp(min=0)
    left = torch.minimum(distance, torch.full_like(distance, brake))
    slowed = left * torch.exp(-slowing * (time - steady).clamp(min=0))
    return torch.where(time < steady, distance - speed * time, slowed)


def _section(form: Tensor, state: Tensor, motion: Tensor) -> Tensor:
    """The 36 states [B, 36, 3] after state [B, 3] (x, y, radius) under motion [B]."""
    time = torch.arange(1, SECTION_FRAMES + 1, dtype=state.dtype) / SECTION_FRAMES
    x, y, radius = state.unbind(1)
    floor, ceiling = _walls(form, radius)
    still = torch.ones_like(time)

    def towards(wall: Tensor, value: Tensor) -> Tensor:
        side = torch.sign(wall - value)[:, None]
        return wall[:, None] - side * _rest((wall - value).abs(), SPEED, SLOWING, time)

    turn = 2 * math.pi * time
    top = torch.where(y <= SIZE / 2, 1.0, -1.0)[:, None]  # turns towards the middle of the frame
    grown = LARGEST - _rest(LARGEST - radius, GROWTH, RESIZE_SLOWING, time)
    shrunk = SMALLEST + _rest(radius - SMALLEST, SHRINKAGE, RESIZE_SLOWING, time)
    stay = (x[:, None] * still, y[:, None] * still, radius[:, None] * still)
    ways = {
        "left": (towards(floor[:, 0], x), *stay[1:]),
        "right": (towards(ceiling[:, 0], x), *stay[1:]),
        "up": (stay[0], towards(floor[:, 1], y), stay[2]),
        "down": (stay[0], towards(ceiling[:, 1], y), stay[2]),
        "circle": (
            stay[0] + ORBIT * top * torch.sin(turn),
            stay[1] + ORBIT * top * (1 - torch.cos(turn)),
            stay[2],
        ),
        "grow": (*stay[:2], grown),
        "shrink": (*stay[:2], shrunk),
        "still": stay,
    }
    paths = torch.stack([torch.stack(ways[name], dim=-1) for name in MOTIONS])
    path = paths[motion, torch.arange(len(motion))]
    floor, ceiling = _walls(form, path[..., 2])
    place = torch.minimum(torch.maximum(path[..., :2], floor), ceiling)
    return torch.cat((place, path[..., 2:]), dim=-1)


def _possible(form: Tensor, state: Tensor) -> Tensor:
    """[B, motions] bool: which motions can be seen to happen from state [B, 3]."""
    floor, ceiling = _walls(form, state[:, 2])
    below, above = state[:, :2] - floor, ceiling - state[:, :2]
    # A circle bulges to both sides by its radius and towards the middle by its diameter.
    orbit = torch.minimum(below[:, 0], above[:, 0]) >= ORBIT
    orbit &= torch.maximum(below[:, 1], above[:, 1]) >= 2 * ORBIT
    # Growing pushes a shape off the wall: not so far that it looks like another motion.
    floor, ceiling = _walls(form, torch.full_like(state[:, 2], LARGEST))
    pushed = torch.maximum(floor - state[:, :2], state[:, :2] - ceiling).amax(dim=1)
    return torch.stack(
        (
            below[:, 0] >= ROOM,
            above[:, 0] >= ROOM,
            below[:, 1] >= ROOM,
            above[:, 1] >= ROOM,
            orbit,
            (state[:, 2] <= 10.5) & (pushed <= 2),
            state[:, 2] >= 7.0,
            torch.ones_like(orbit),
        ),
        dim=1,
    )


def _choose(possible: Tensor, uniform: Tensor) -> Tensor:
    """One of the possible motions [B], each equally likely."""
    count = possible.sum(dim=1)
    rank = (uniform * count).long().clamp_(max=count - 1)
    return (possible.cumsum(dim=1) <= rank[:, None]).sum(dim=1)


def _wander(clips: Clips, sections: int, choices: Tensor, *, steady: bool) -> Clips:
    motions: list[Tensor] = []
    track = clips.track
    for index in range(sections):
        state = track[:, -1]
        motion = _choose(_possible(clips.form, state), choices[:, 2 * index])
        if motions:
            keep = torch.tensor(steady) | (choices[:, 2 * index + 1] < 0.25)
            motion = torch.where(keep, motions[-1], motion)
        motions.append(motion)
        track = torch.cat((track, _section(clips.form, state, motion)), dim=1)
    return replace(clips, motions=torch.stack(motions, dim=1), track=track)


def _travel(clips: Clips, sections: int, legs: int, uniform: Tensor) -> Clips:
    start = clips.track[:, 0]
    floor, ceiling = _walls(clips.form, start[:, 2])
    time = torch.linspace(0, 1, SECTION_FRAMES * sections // legs + 1, dtype=torch.float64)
    track = clips.track
    for leg in range(legs):
        place = floor + (ceiling - floor) * uniform[:, 2 * leg : 2 * leg + 2]
        goal = torch.cat((place, start[:, 2:]), dim=1)[:, None]
        path = torch.lerp(track[:, -1:], goal, time[1:, None])
        track = torch.cat((track, path), dim=1)
    motions = torch.full((len(clips), sections), TRAVEL)
    return replace(clips, motions=motions, track=track)
