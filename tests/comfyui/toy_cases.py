"""What the guidance nodes do to Toy World, measured by tracking the shape in what they make.

Every measure runs the nodes on a batch of held-out cases, which has one seed and one plan, and
returns the shares or means that it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from inside import SETTINGS, pack, run, toy
from toyworld import evaluate, tracker

HELD_OUT = 1 << 40  # seeds that no training has used
WINDOW = 9
NEAR = 0.05 * 64  # pixels
ASIDE = 0.5  # of the way in the prompt's direction that a shape may go across it
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

Measured = dict[str, float]


def render() -> Any:
    return pack("framepack_core.toyworld.render")


def share(flags: Any) -> float:
    return float(torch.as_tensor(flags).float().mean())


# Batches of ComfyUI's types


def conditioning(prompts: Sequence[str]) -> list[Any]:
    """CONDITIONING of one prompt a case."""
    encoded = [run("FPReelTextEncode", clip=toy().clip, text=text)[0][0] for text in prompts]
    longest = max(words.shape[1] for words, _ in encoded)
    mask = torch.tensor([[i < words.shape[1] for i in range(longest)] for words, _ in encoded])
    pad = torch.nn.functional.pad
    words = torch.cat([pad(words, (0, 0, 0, longest - words.shape[1])) for words, _ in encoded])
    pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
    return [[words, {"pooled_output": pooled, "attention_mask": mask.long()}]]


def start_frames(images: torch.Tensor) -> tuple[dict[str, Any], Any]:
    """LATENT and CLIP_VISION_OUTPUT of pictures uint8 [B, 64, 64, 3]."""
    made = [
        run("FPReelStartFrame", image=image[None] / 255, vae=toy().vae, clip_vision=toy().vision)
        for image in images
    ]
    latent = {"samples": torch.cat([latent["samples"] for latent, _ in made])}
    embeds = torch.cat([vision.last_hidden_state for _, vision in made])
    return latent, SimpleNamespace(last_hidden_state=embeds)


def decoded(latent: dict[str, Any]) -> Any:
    """The videos of a batch, and what the tracker sees in them."""
    images, *_ = run(
        "FPReelDecode", latent=latent, vae=toy().vae, mode="sections", tile_size=0, window=0
    )
    clips = images.unflatten(0, (len(latent["samples"]), -1)).permute(0, 4, 1, 2, 3) * 2 - 1
    return evaluate.Video(clips, tracker.track(clips))


def glimpses(latent: dict[str, Any], *places: tuple[int, int]) -> Any:
    """The same for a few latents (first, behind the last), as decoding takes most of the time.

    Each place is decoded as a video of its own, so that nothing of what is before it shows.
    """
    clips = []
    for place in places:
        cut = {"samples": latent["samples"][:, :, slice(*place)]}
        images, *_ = run(
            "FPReelDecode", latent=cut, vae=toy().vae, mode="whole", tile_size=0, window=0
        )
        clips.append((images * 255).round().to(torch.uint8).unflatten(0, (len(cut["samples"]), -1)))
    return tracker.track_uint8(torch.cat(clips, dim=1))


def ends_of(section: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a section begins and where it ends, for `glimpses`."""
    first = 1 + WINDOW * section
    return (first, first + 2), (first + WINDOW - 2, first + WINDOW)


def plan(mode: str, sections: int, paddings: str = "") -> Any:
    made, _ = run(
        "FPReelPlan",
        mode=mode,
        length="sections",
        seconds=1.0,
        sections=sections,
        window=9,
        paddings=paddings,
    )
    return made


def guide(plan: Any, sections: str, **given: Any) -> Any:
    (made,) = run(
        "FPReelGuideSections",
        **({"plan": plan, "sections": sections, "padding": -1, "seed": -1, "guidance": -1} | given),
    )
    return made


def video(plan: Any, images: torch.Tensor, prompts: Sequence[str], steps: int, **more: Any) -> Any:
    start, vision = start_frames(images)
    latent, *_ = run(
        "FPReelSampler",
        **(SETTINGS | {"steps": steps, "seed": 7} | more),
        model=toy(plan.mode).model,
        plan=plan,
        positive=conditioning(prompts),
        start_latent=start,
        clip_vision_output=vision,
    )
    return latent


# Measures


def in_comfyui() -> Any:
    """Toy World whose videos come out of the nodes, for the evaluation of the core.

    A batch has one seed here, that of its first case.
    """

    class NodeToy(evaluate.Toy):
        def make_videos(
            self,
            mode: str,
            starts: torch.Tensor,
            prompts: Sequence[str],
            sections: int,
            seeds: Sequence[int],
            *,
            steps: int,
            ends: torch.Tensor | None = None,
        ) -> Any:
            made = plan(mode, sections)
            if ends is not None:
                end, _ = start_frames(ends)
                (made,) = run(
                    "FPReelEndFrame", plan=made, end_image=end, strength=1.0, policy="persistent"
                )
            return decoded(video(made, starts, prompts, steps, seed=seeds[0]))

    return NodeToy.load(pack("framepack_core.toyworld").SNAPSHOT, torch.device("cpu"))


def section_prompts(cases: int, steps: int, sections: int = 4) -> Measured:
    """Another motion in each section, all at padding 0: each begins at the start image again."""
    world = render()
    motions = [name for name in world.MOTIONS if name != "circle"]  # its ends look like its start
    drawn = [
        evaluate.Cases.draw(cases, 710_000, (*motions[index:], *motions[:index]))
        for index in range(sections)
    ]
    guided = plan("framepack", sections, ",".join("0" * sections))
    for index, case in enumerate(drawn):
        guided = guide(guided, str(index), conditioning=conditioning(case.prompts))
    latent = video(guided, drawn[0].starts, drawn[0].prompts, steps)
    followed = [
        seen == wanted
        for index, case in enumerate(drawn)
        for seen, wanted in zip(
            tracker.motion(glimpses(latent, *ends_of(index))), case.motions, strict=True
        )
    ]
    return {"sections that move as prompted": share(followed)}


def section_images(cases: int, steps: int) -> Measured:
    """An image of its own for the second section: the shape jumps to where that has it."""
    world = render()
    seeds = range(HELD_OUT + 720_000, HELD_OUT + 720_000 + cases)
    clips = world.draw(seeds, 1, "travel")
    latent, vision = start_frames(world.end_image(clips))
    made = guide(plan("framepack", 2, "0,0"), "1", start_image=latent, clip_vision_output=vision)
    prompts = [text.replace("moves", "stands still") for (text,) in world.captions(clips)]
    latent = video(made, world.start_image(clips), prompts, steps)
    tracked = glimpses(latent, ends_of(1)[0])
    error = (tracked.position[:, -1] - clips.track[:, -1, :2]).norm(dim=-1)
    return {"shape is where the image has it": share((error <= NEAR) & tracked.present[:, -1])}


def end_image(cases: int, steps: int, policy: str, strengths: Sequence[float]) -> Measured:
    """Mean distance in pixels from the end image's place, by strength."""
    world = render()
    seeds = range(HELD_OUT + 730_000, HELD_OUT + 730_000 + cases)
    clips = world.draw(seeds, 2, "travel")
    end, _ = start_frames(world.end_image(clips))
    prompts = [texts[0] for texts in world.captions(clips)]
    goal, measured = clips.track[:, -1, :2], {}
    for strength in strengths:
        (made,) = run(
            "FPReelEndFrame",
            plan=plan("framepack", 2),
            end_image=end,
            strength=strength,
            policy=policy,
        )
        latent = video(made, world.start_image(clips), prompts, steps)
        tracked = glimpses(latent, ends_of(1)[1])
        error = (tracked.position[:, -1] - goal).norm(dim=-1)
        measured |= {
            f"distance at strength {strength:g}": float(error.mean()),
            f"reached at strength {strength:g}": share(error <= NEAR),
        }
    return measured


def one_frame(
    images: torch.Tensor,
    prompts: Sequence[str],
    controls: tuple[Any, ...],
    steps: int,
    **options: Any,
) -> Any:
    """What the tracker sees in the one picture of each case."""
    _, vision = start_frames(images)
    choices = {"target_index": 9, "no_2x": False, "no_4x": False, "no_post": False}
    (latent,) = run(
        "FPReelOneFrame",
        **(SETTINGS | {"steps": steps, "seed": 7} | choices | options),
        model=toy().model,
        positive=conditioning(prompts),
        controls=controls,
        clip_vision_output=vision,
    )
    return glimpses(latent, (0, 1))[0]


def control(latent: dict[str, Any], index: int, **more: Any) -> tuple[Any, ...]:
    (controls,) = run("FPReelControlImage", image=latent, index=index, **more)
    return controls


def one_frame_displacement(cases: int, steps: int, targets: Sequence[int] = (3, 5, 9)) -> Measured:
    """How far a picture at a later index shows the shape displaced the prompted way."""
    drawn = evaluate.Cases.draw(cases, 740_000, tuple(DIRECTIONS))
    latent, _ = start_frames(drawn.starts)
    way = torch.tensor([DIRECTIONS[name] for name in drawn.motions])
    measured = {}
    for target in targets:
        seen = one_frame(
            drawn.starts, drawn.prompts, control(latent, 0), steps, target_index=target
        )
        moved = seen.position - drawn.clips.track[:, 0, :2]
        along = (moved * way).sum(-1)
        across = (moved - along[:, None] * way).norm(dim=-1)
        measured |= {
            f"pixels along at {target}": float(along.mean()),
            f"the prompted way at {target}": share((along > 0) & (across < ASIDE * along)),
        }
    return measured


def masked_control(cases: int, steps: int) -> Measured:
    """A reference picture (index 10) draws the shape to its place, unless the shape is masked."""
    world = render()
    seeds = range(HELD_OUT + 750_000, HELD_OUT + 750_000 + cases)
    clips = world.draw(seeds, 1, "travel", central=True)
    starts = world.start_image(clips)
    prompts = [texts[0] for texts in world.captions(clips)]
    (start, _), (reference, _) = start_frames(starts), start_frames(world.end_image(clips))
    first = control(start, 0)
    weights = torch.stack([shape_mask(place) for place in clips.track[:, -1]])
    goal = clips.track[:, -1, :2]

    def seen(name: str, controls: tuple[Any, ...]) -> Measured:
        place = one_frame(starts, prompts, controls, steps, no_post=True).position
        return {f"{name}: at the reference's place": share((place - goal).norm(dim=-1) <= NEAR)}

    def masked(part: str) -> tuple[Any, ...]:
        """The node takes one mask for a batch: a control for each case, put together again."""
        each = [
            control({"samples": latent}, 10, mask=mask[None], masked_part=part)[0].latent
            for latent, mask in zip(reference["samples"].split(1), weights, strict=True)
        ]
        scale = pack("nodes.comfyui.model").LATENT_SCALE
        return control({"samples": torch.cat(each) / scale}, 10, controls=first)

    return (
        seen("plain", control(reference, 10, controls=first))
        | seen("shape kept", masked("kept"))
        | seen("shape hidden", masked("hidden"))
    )


def shape_mask(place: torch.Tensor, margin: float = 8) -> torch.Tensor:
    """MASK [64, 64] of a disc around a shape at (x, y, radius)."""
    axis = torch.arange(64) + 0.5
    x, y, radius = place.float()
    distance = ((axis[None] - x).square() + (axis[:, None] - y).square()).sqrt()
    return (distance < radius + margin).float()
