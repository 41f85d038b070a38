"""What a run shows on its node: text, a bar, a preview; and where it can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import latent_preview
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...framepack_core.runtime.display import Display, hosted
from ...framepack_core.training.cache import (
    CacheProgress,
)

PREVIEW_FRAMES = 3
TEXT_EVENT = "fpreel.text"  # ComfyUI's own text goes with the run in newer frontends
Interrupted = comfy.model_management.InterruptProcessingException

# Before ComfyUI 0.33 it is an Exception, as those of displays that fail.
hosted(
    stopping=(Interrupted,),
    run=lambda: getattr(getattr(PromptServer, "instance", None), "last_prompt_id", None),
)

Preview = tuple[str, Image.Image, int]  # file format, picture and the largest side to show it with


class NodeText:
    """The text on a node, which stays there after the run."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self._display = node_id, Display("text on the node")

    def show(self, text: str) -> None:
        """Replace it."""
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            with self._display:
                server.send_sync(TEXT_EVENT, {"node": self.node_id, "text": text})


def show_text(node_id: str, text: str) -> None:
    """Write a line on the node."""
    NodeText(node_id).show(text)


class NodeBar:
    """The progress bar of the node that runs, and its picture."""

    def __init__(self, total: int = 1) -> None:
        self._display, self._bar = Display("progress bar"), None
        with self._display:
            self._bar = comfy.utils.ProgressBar(total)

    def move_to(self, done: int, total: int, preview: Preview | None = None) -> None:
        """So many are done; raises where the user has cancelled the run."""
        if self._bar is not None:
            with self._display:
                self._bar.update_absolute(done, total, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()


class Pace:
    """How long steps take, from those that are made while it is asked."""

    def __init__(self) -> None:
        self._began, self._made = 0.0, 0

    def left(self, steps: int) -> float | None:
        """Seconds for so many steps more, after one that was made; None after the first."""
        now = time.monotonic()
        self._made += 1
        if self._made == 1:
            self._began = now
            return None
        return (now - self._began) / (self._made - 1) * steps


class RunProgress:
    """One bar over all sections and steps, with the section being made as its preview.

    node_id: where a line of text says how far it is, if anywhere.
    """

    def __init__(self, node_id: str | None, sections: int, patcher: Any, steps: int) -> None:
        self.sections, self.steps = sections, steps
        self.text = None if node_id is None else NodeText(node_id)
        self.bar = NodeBar(sections * steps)
        self._display, self._preview = Display("preview of the section in progress"), None
        with self._display:
            self._preview = section_previewer(patcher)

    def step(self, order: int, step: int, denoised: Tensor) -> None:
        """Report that step 1, 2, ... of section 0, 1, ... is done; raises to stop the run."""
        if self.text is not None:
            self.text.show(f"section {order + 1} of {self.sections}, step {step} of {self.steps}")
        preview = None
        if self._preview is not None:
            with self._display:
                preview = self._preview(denoised)
        done = order * self.steps + step
        self.bar.move_to(done, self.sections * self.steps, preview)


def section_previewer(patcher: Any) -> Callable[[Tensor], Preview] | None:
    """Latents [B, C, T, h, w] to a strip of frames, if the user's preview method is not "none"."""
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    if previewer is None:
        return None
    shoot = previewer.decode_latent_to_preview_image

    def preview(latents: Tensor) -> Preview:
        kind, _, largest = shoot("JPEG", latents[:1, :, :1])
        return kind, strip_of(lambda frame: shoot("JPEG", frame)[1], latents), largest

    return preview


def strip_of(shoot: Callable[[Tensor], Image.Image], latents: Tensor) -> Image.Image:
    """First, middle and last frame of latents [B, C, T, h, w] beside each other."""
    last = latents.shape[2] - 1
    count = min(PREVIEW_FRAMES, last + 1)
    chosen = [round(i * last / max(1, count - 1)) for i in range(count)]
    return _strip([shoot(latents[:1, :, i : i + 1]) for i in chosen])


def _strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size beside each other, or below each other where they are wide."""
    width, height = pictures[0].size
    right, down = (width, 0) if width <= height else (0, height)
    last = len(pictures) - 1
    strip = Image.new("RGB", (width + right * last, height + down * last))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (right * i, down * i))
    return strip


def item_progress(node_id: str, what: str) -> Callable[[CacheProgress], None]:
    label, bar, start = NodeText(node_id), NodeBar(), time.monotonic()

    def on_item(progress: CacheProgress) -> None:
        left = (time.monotonic() - start) / progress.encoded * (progress.total - progress.done)
        text = f"{progress.done} of {progress.total} {what}, {duration(left)} left"
        label.show(f"{text}\n{progress.name}")
        bar.move_to(progress.done, progress.total)

    return on_item


def item_report(node_id: str, what: str, done: CacheProgress) -> str:
    text = f"{done.total} {what}: {done.encoded} encoded now, {done.total - done.encoded} before"
    show_text(node_id, text)
    return text


def duration(seconds: float) -> str:
    """As people read it: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
