"""A video under construction, as its node shows it: section in progress, finished ones as clips."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import latent_preview
import numpy as np
from torch import Tensor

from ...framepack_core.runtime.display import Display
from ...framepack_core.runtime.video import VideoWriter
from ...framepack_core.sampling.generate import SectionDone
from ...framepack_core.sampling.plan import FPS, Plan
from ...framepack_core.sampling.sections import LATENT_STRIDE
from .live import Report
from .paths import temporary_folder
from .progress import Pace, Preview, RunProgress, strip_of
from .sockets import to_latent, to_uint8
from .tiny_vae import MovingPicture

INTERVAL = 0.5  # seconds between messages about steps
CLIPS_FOLDER = "framepack_reel"  # in ComfyUI's temp folder
CRF = 20
LARGEST, QUALITY = 512, 92  # of a picture: pixels of a side, and of JPEG


class SectionReport:
    """Tells a sampler's node where its run is.

    start [B, C, 1, h, w] sets the size. With a vae every finished section becomes a clip, decoded
    once and alone: without its neighbours its first frame stands for four. ledger: whether finished
    sections are kept when the run is stopped. log: notes that are shown at the end. variants: how
    many videos are made at once, which clips show beside each other.
    """

    def __init__(
        self,
        hidden: Any,
        plan: Plan,
        start: Tensor,
        vae: Any = None,
        ledger: bool = False,
        log: Sequence[str] = (),
        variants: int = 1,
    ) -> None:
        self.ledger, self.log, self.variants = ledger, log, variants
        self.finished = 0
        self.report = Report("fpreel.section", hidden, gathered=("done",))
        self.plan, self.vae = plan, vae
        self.height, self.width = (side * LATENT_STRIDE for side in start.shape[3:])
        self._began = self._section_began = time.monotonic()
        self._last_sent = 0.0

    @contextmanager
    def run(self) -> Iterator[SectionReport]:
        """Around the whole run: says how long the video will be, and how the run ended."""
        self._send(
            "sampling",
            mode=self.plan.mode,
            sections=1 + self.plan.last,
            planned=len(self.plan.sections),
            window=self.plan.window,
            frames=self.plan.frames,
            fps=FPS,
            width=self.width,
            height=self.height,
            ledger=self.ledger,
        )
        try:
            yield self
        except BaseException:
            self._send("interrupted", log=list(self.log))
            raise
        frames = self.plan.first(self.finished).frames
        self._send("finished", picture=None, frames=frames, log=list(self.log))

    def finishing(self) -> bool:
        """Whether the user has asked for the run to end with the sections that are done."""
        return self.report.finishing

    def step(
        self, order: int, step: int, steps: int, picture: str | None, remaining: float | None
    ) -> None:
        self._send(
            "sampling",
            order=order,
            section=self.plan.sections[order].index,
            step=step,
            steps=steps,
            picture=picture,
            remaining=remaining,
        )

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._last_sent >= INTERVAL

    def on_section(self, done: SectionDone) -> None:
        """A section is finished, and stays so where its clip is cancelled."""
        clip = None
        try:
            if self.vae is not None:
                with Display(f"preview of section {done.section.index}", "previews of sections"):
                    clip = self._clip(done)
        finally:
            self._tell(done, clip)

    def _tell(self, done: SectionDone, clip: dict[str, str] | None) -> None:
        entry = {
            "section": done.section.index,
            "stored": done.stored,
            "drift": None if done.drift is None else done.drift.rounded,
            "seconds": time.monotonic() - self._section_began,
            "clip": clip,
        }
        self._section_began = time.monotonic()
        self.finished += 1
        self._send("sampling", order=done.order, section=done.section.index, done=[entry])

    def _clip(self, done: SectionDone) -> dict[str, str]:
        """A file that the page can play."""
        name = f"{self.report.run['run']}_{done.section.index}.mp4"
        path = temporary_folder() / CLIPS_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        latents = to_latent(done.latents[: self.variants])["samples"].split(1)
        clips = [to_uint8(self.vae.decode(latent).flatten(0, 1)) for latent in latents]
        width, height = len(clips) * self.width, self.height
        with VideoWriter(path, width=width, height=height, fps=FPS, crf=CRF) as video:
            for frames in zip(*clips, strict=True):
                video.write(np.concatenate(frames, axis=1))
        return {"filename": name, "subfolder": CLIPS_FOLDER, "type": "temp"}

    def _send(self, state: str, **news: Any) -> None:
        self._last_sent = time.monotonic()
        self.report.send(state=state, elapsed=self._last_sent - self._began, **news)


class ReportedProgress(RunProgress):
    """The bar of a run whose node shows more than a bar: also the section in progress.

    The bar's own preview is for clients that show no such node: a page would have the picture
    twice, and the second one for ever.
    """

    def __init__(self, report: SectionReport, patcher: Any, steps: int, small: Any = None) -> None:
        """small: a VAE from `tiny_vae`, which shows the section as it moves."""
        super().__init__(None, len(report.plan.sections), patcher, steps)
        self.report, self._shoot, self._pace = report, self._preview, Pace()
        self._moving = None if small is None else MovingPicture(small)
        self._shown: tuple[int, str] | None = None  # the section's place in the run, its picture
        self._pictures = Display("picture of the section in progress")
        if self._shoot is None:
            with self._pictures:
                self._shoot = _rgb_previewer(patcher.model.latent_format)
        if report.report.run["workflow"]:
            self._preview = None

    def step(self, order: int, step: int, denoised: Tensor) -> None:
        super().step(order, step, denoised)
        remaining = self._pace.left((self.sections - order) * self.steps - step)
        if not self.report.is_due:
            return
        picture = None
        with self._pictures:
            picture = self._moved(order, denoised) or self._still(denoised)
        self.report.step(order, step, self.steps, picture, remaining)

    def _moved(self, order: int, denoised: Tensor) -> str | None:
        """The section as it moves; between two of them the one before stays."""
        if self._moving is None:
            return None
        clip = self._moving.shoot(denoised)
        if clip is not None:
            self._shown = order, _address("webp", clip)
        return self._shown[1] if self._shown is not None and self._shown[0] == order else None

    def _still(self, denoised: Tensor) -> str | None:
        return None if self._shoot is None else _picture(self._shoot, denoised)


def _rgb_previewer(latent_format: Any) -> Callable[[Tensor], Preview]:
    """Latents to colours by a small table, where the user chose no preview method."""
    factors = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    shoot = latent_preview.Latent2RGBPreviewer(*factors).decode_latent_to_preview
    return lambda latents: ("JPEG", strip_of(shoot, latents), LARGEST)


def _picture(shoot: Callable[[Tensor], Preview], denoised: Tensor) -> str:
    """First, middle and last latent frame as the address of a picture."""
    kind, picture, largest = shoot(denoised)
    picture.thumbnail((largest, largest))
    data = io.BytesIO()
    picture.save(data, format=kind, quality=QUALITY, subsampling=0)  # of few pixels, all matter
    return _address(kind.lower(), data.getvalue())


def _address(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
