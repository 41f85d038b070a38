"""What a run makes, a video or one edited frame: what it needs encoded and how it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..runtime.display import warn
from ..runtime.images import Size, fitted, to_tensor
from ..runtime.video_reader import VideoFile
from ..sampling.decode import Decode, cut, decode_frames, decode_video
from ..sampling.generate import Finish, OnSection, SampleSection, generate
from ..sampling.ledger import OpenLedger
from ..sampling.masks import mask_latents
from ..sampling.one_frame import describe_one_frame, generate_one_frame
from ..sampling.plan import LABEL, Plan, Section
from ..sampling.sections import LATENT_STRIDE
from .encodings import EncodeRequest, Encodings, texts_of
from .options import DecodingOptions
from .pictures import Control, Picture

CLIP = 8  # frames of an old video that are in memory at once


@dataclass(frozen=True)
class SampleContext:
    """How the sections of a scene are made, where they are kept, and who is told of each.

    finish: says where a video shall end with the sections that it has.
    """

    sample: SampleSection
    seed: int
    open_ledger: OpenLedger | None = None
    on_section: OnSection | None = None
    finish: Finish | None = None


class Scene(Protocol):
    """A result to be made from a prompt and the picture that the image encoder sees."""

    @property
    def prompt(self) -> str:
        """What the video shows, where no section says otherwise."""
        ...

    @property
    def image(self) -> Picture:
        """What the image encoder sees."""
        ...

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        ...

    @property
    def window(self) -> int:
        """Latent frames of a section."""
        ...

    @property
    def sections(self) -> int:
        """How many sections are sampled."""
        ...

    @property
    def latent_frames(self) -> int:
        """Of the latents made."""
        ...

    @property
    def frames(self) -> int:
        """Of the result."""
        ...

    @property
    def drop(self) -> int:
        """Frames that are left out at its start."""
        ...

    def describe(self) -> str:
        """What will be made, as text."""
        ...

    def wanted(self) -> EncodeRequest:
        """What has to be encoded for it."""
        ...

    def make(self, encodings: Encodings, context: SampleContext) -> Tensor:
        """Its latents [1, 16, T, h, w]."""
        ...

    def clips(self, decode: Decode, latents: Tensor, decoding: DecodingOptions) -> Iterator[Tensor]:
        """Its latents decoded, as clips [1, 3, F, H, W] that follow each other in time."""
        ...


@dataclass(frozen=True)
class OldLatents:
    """A finished run to extend: its latents [1, 16, T, h, w]."""

    latents: Tensor

    @property
    def frames(self) -> int:
        return 4 * self.latents.shape[2] - 3

    def clips(self, decode: Callable[[Tensor], Iterator[Tensor]]) -> Iterator[Tensor]:
        """All of it, as it decodes alone."""
        return decode(self.latents)


@dataclass(frozen=True)
class OldVideo:
    """A video to extend: the clip at the join that becomes latents, and the file.

    Its frames are kept as they are, in the size of the clip.
    """

    latents: Picture
    file: VideoFile

    @property
    def frames(self) -> int:
        return len(self.file)

    def clips(self, decode: Callable[[Tensor], Iterator[Tensor]]) -> Iterator[Tensor]:
        """All of it, read as it is asked for."""
        frames = fitted(self.file.frames(), self.latents.size)
        while some := list(islice(frames, CLIP)):
            yield to_tensor(np.stack(some))


@dataclass(frozen=True)
class Video:
    """Sections of a plan whose handles are texts and Pictures.

    image is what the image encoder sees, start what stands before the sections: the same picture,
    or for a video that is extended its latent. start_mask [1, 1, 1, h, w] multiplies its latent.
    anchor: how far sections are held to the start, as generate() takes it. drop: frames of the
    result that are left out at its start. draft_of: the size of the video that it is a draft of.
    """

    plan: Plan
    prompt: str
    image: Picture
    start: Picture | Tensor
    start_mask: Tensor | None = None
    existing: OldLatents | OldVideo | None = None
    anchor: float = 0.0
    drop: int = 0
    draft_of: Size | None = None

    @property
    def size(self) -> Size:
        return self.image.size

    @property
    def window(self) -> int:
        return self.plan.window

    @property
    def sections(self) -> int:
        return len(self.plan.sections)

    @property
    def latent_frames(self) -> int:
        return self.plan.latent_frames

    @property
    def frames(self) -> int:
        if self._kept is None:
            return self.plan.frames - self.drop
        # Without a beginning, the first new latent stands for one frame, and not for four.
        missing = 0 if self.plan.begins else 4
        return self._kept.frames + 4 * self.window * self.sections - missing - self.drop

    @property
    def _kept(self) -> OldLatents | OldVideo | None:
        """The video that it extends, where the new sections reach to it."""
        return self.existing if self.plan.begins or self.plan.backward else None

    def describe(self) -> str:
        more = f", anchor {self.anchor:g}" if self.anchor else ""
        more += f", without the first {self.drop} frames" if self.drop else ""
        if self.draft_of is not None:
            more += f", a draft of {self.draft_of[0]}x{self.draft_of[1]}"
        own = f"  otherwise {_label(self.prompt)}, image {self.image.label!r}{more}"
        if self._kept is None:
            return f"{self.plan.describe(*self.size)}\n{own}"
        # The plan itself counts only what the sections see of the video that they extend.
        direction = "backward" if self.plan.backward else "forward"
        plan = self.plan.extending((self._kept.frames + 3) // 4, direction)
        return f"{plan.describe(*self.size)}\n  in all {self.frames} frames\n{own}"

    def wanted(self) -> EncodeRequest:
        placed = [self.start, *self.plan.handles("image")]
        if self.existing is not None:
            placed.append(self.existing.latents)
        return EncodeRequest(
            texts=[self.prompt, *chain.from_iterable(map(texts_of, self.plan.handles("prompt")))],
            for_image_encoder=[self.image, *self.plan.handles("image_embeds")],
            for_vae=[source for source in placed if isinstance(source, Picture)],
        )

    def make(self, encodings: Encodings, context: SampleContext) -> Tensor:
        start = encodings.latents(self.start)
        if self.start_mask is not None:
            start = mask_latents(start, [self.start_mask])
        plan = self.plan.encoded(
            prompt=encodings.text, image=encodings.latents, image_embeds=encodings.embeds
        )
        existing = None if self.existing is None else encodings.latents(self.existing.latents)
        origin = {"start image": start, "existing video": existing}
        if self.anchor:  # off it has no name, so that sections of before are found
            origin["anchor"] = self.anchor
        latents_of = None
        if self.draft_of is not None:
            width, height = (side // LATENT_STRIDE for side in self.draft_of)
            origin["draft of"] = latents_of = height, width
        ledger = context.open_ledger and context.open_ledger(plan, origin)
        return generate(
            plan,
            context.sample,
            start,
            context.seed,
            context.on_section,
            existing=existing,
            ledger=ledger,
            anchor=self.anchor,
            finish=context.finish,
            draft_of=latents_of,
        )

    def first(self, made: int | None) -> Video:
        """The video of the sections that are made first; None is all."""
        video = replace(self, plan=self.plan.first(made), drop=0)
        if video.frames > self.drop:
            return replace(video, drop=self.drop)
        warn(f"all of its {video.frames} frames are kept, as {self.drop} were to be left out")
        return video

    def clips(self, decode: Decode, latents: Tensor, decoding: DecodingOptions) -> Iterator[Tensor]:
        return cut(self._clips(decode, latents, decoding), self.drop)

    def _clips(
        self, decode: Decode, latents: Tensor, decoding: DecodingOptions
    ) -> Iterator[Tensor]:
        way = {"bulk": decoding.bulk_decode, "overlap": decoding.decode_overlap}
        whole = partial(decode_video, window=self.window, loop=self.plan.closes, **way)
        if self._kept is None:
            return whole(decode, latents)
        # Neighbouring latents change how a frame decodes, so what exists is decoded without the
        # new ones, and these with one window of what exists.
        new = self.window * self.sections
        old = self._kept.clips(partial(whole, decode))
        if self.plan.backward:
            start = 1 if self.plan.begins else 0
            joined = whole(decode, latents[:, :, : start + new + self.window])
            return chain(cut(joined, 0, 4 * (start + new) - 3), cut(old, 1))
        joined = whole(decode, latents[:, :, -new - self.window - 1 :])
        return chain(old, cut(joined, 4 * self.window + 1))


@dataclass(frozen=True)
class OneFrameEdit:
    """One frame beside control images; no video, and the start image is only seen."""

    section: Section
    prompt: str
    image: Picture
    controls: tuple[Control, ...]
    window: int
    sections: int = 1
    latent_frames: int = 1
    frames: int = 1
    drop: int = 0

    @property
    def size(self) -> Size:
        return self.image.size

    def describe(self) -> str:
        width, height = self.size
        images = [
            f"  control image {control.picture.label!r} at {index}"
            + ("" if control.mask is None else ", masked")
            for control, index in zip(self.controls, self.section.clean_indices, strict=False)
        ]
        own = f"  {_label(self.prompt)}, image {self.image.label!r}"
        plan = describe_one_frame(self.section, len(self.controls))
        return "\n".join([f"{width}x{height}, {plan}", *images, own])

    def wanted(self) -> EncodeRequest:
        return EncodeRequest([self.prompt], [self.image], [c.picture for c in self.controls])

    def make(self, encodings: Encodings, context: SampleContext) -> Tensor:
        width, height = self.size
        blank = torch.zeros(1, 16, 0, height // 8, width // 8, device=encodings.device)
        latents = [encodings.latents(control.picture) for control in self.controls]
        controls = torch.cat([blank, *latents], dim=2)
        controls = mask_latents(controls, [control.mask for control in self.controls])
        return generate_one_frame(self.section, context.sample, controls, context.seed)

    def clips(self, decode: Decode, latents: Tensor, decoding: DecodingOptions) -> Iterator[Tensor]:
        return decode_frames(decode, latents)


def _label(prompt: str) -> str:
    return f"prompt {prompt if len(prompt) <= LABEL else prompt[:LABEL] + '...'!r}"
