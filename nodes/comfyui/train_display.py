"""What a training run shows on its node while it runs."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management

from ...framepack_core.runtime.display import Display
from ...framepack_core.runtime.files import is_file
from ...framepack_core.training.config import TrainConfig
from ...framepack_core.training.loop import StepReport
from ...framepack_core.training.samples import SAMPLES_FOLDER, PreparedSample
from .live import Report
from .paths import output_folder
from .progress import NodeBar

INTERVAL = 0.2  # seconds between messages to the interface


class TrainingDisplay:
    """Bar, losses and samples; of a run that is resumed also those of before."""

    def __init__(self, hidden: Any, config: TrainConfig) -> None:
        self.config, self._past = config, Display("losses and samples of before")
        self.report = Report("fpreel.training", hidden, gathered=("losses", "samples"))
        self.root = output_folder() / "loras"
        self._bar, self._listing = NodeBar(), Display("list of samples")
        self._step, self._steps = 0, 1
        self._validation: float | None = None
        self._unsent: list[tuple[int, float]] = []
        self._started, self._last_sent = time.monotonic(), -math.inf
        self._samples: list[dict[str, Any]] = []
        self._has_begun = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around the whole run: says how it ended."""
        self._send("loading")
        try:
            yield
        except BaseException:
            self._send("interrupted")
            raise
        self._send("finished")

    def on_step(self, report: StepReport) -> None:
        """After an update; raises to stop the run."""
        if not self._has_begun:
            self._has_begun = True
            with self._past:
                self._tell_past(report.step)
        self._step, self._steps = report.step, report.total
        self._unsent.append((report.step, report.loss))
        if report.validation is not None:
            self._validation = report.validation
        if time.monotonic() - self._last_sent >= INTERVAL or report.step == report.total:
            self._send(
                "training",
                step=report.step,
                steps=report.total,
                lr=report.rate,
                speed=1 / max(report.seconds_a_step, 1e-6),
                remaining=report.seconds_left,
                validation=self._validation,
            )
            self._bar.move_to(report.step, report.total)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def _tell_past(self, first: int) -> None:
        """The losses and samples of the steps before the first of a run that is resumed."""
        if first == 1 or not is_file(self.config.log_path):
            return
        lines = self.config.log_path.read_text(encoding="utf-8").splitlines()
        entries = (json.loads(line) for line in lines if line.strip())
        losses = [(e["step"], e["loss"]) for e in entries if e["step"] < first]
        self.report.send(losses=losses, samples=self._samples_before(first))

    def _samples_before(self, first: int) -> list[dict[str, Any]]:
        folder = self.root / SAMPLES_FOLDER
        name = re.compile(rf"{re.escape(self.config.output_name)}_(\d{{6}})_\d\d_\d+\.(?:mp4|png)")
        found = ((name.fullmatch(path.name), path) for path in sorted(folder.glob("*")))
        steps = [(int(match[1]), path) for match, path in found if match]
        return [self._entry(step, "", path) for step, path in steps if step < first]

    @staticmethod
    def _entry(step: int, prompt: str, path: Path) -> dict[str, Any]:
        """A sample as the interface is told of it."""
        folder = path.parent.relative_to(output_folder()).as_posix()
        file = {"filename": path.name, "subfolder": folder, "type": "output"}
        return {"step": step, "prompt": prompt, **file}

    def on_save(self, path: Path) -> None:
        self._send("saving", saved=path.name)

    def sampling(self, write: Callable[[int], None]) -> Callable[[int], None]:
        """A writer of samples that says when it is at work."""

        def sample(step: int) -> None:
            self._step = step
            self._send("sampling")
            try:
                write(step)
            finally:  # or the VAE would stay beside the training
                comfy.model_management.unload_all_models()
                comfy.model_management.soft_empty_cache()

        return sample

    def on_sample(self, path: Path, sample: PreparedSample) -> None:
        """A sample is there: told to the interface as a file, which the chart shows.

        The bar has no preview of it, which would stay below the chart.
        """
        with self._listing:
            entry = self._entry(self._step, sample.prompt, path)
            self._samples.append(entry)
            self._send("sampling", samples=[entry])
        self._bar.move_to(self._step, self._steps)

    def outputs(self) -> dict[str, Any] | None:
        """The samples of the last step for the history; the chart shows them on the node.

        Under "images" the node would get a second player, which loads no video in Nodes 2.0.
        """
        files = [entry for entry in self._samples if entry["step"] == self._step]
        listed = [{k: e[k] for k in ("filename", "subfolder", "type")} for e in files]
        return {"samples": listed} if listed else None

    def _send(self, state: str, **news: Any) -> None:
        elapsed, self._last_sent = time.monotonic() - self._started, time.monotonic()
        losses, self._unsent = self._unsent, []
        self.report.send(state=state, elapsed=elapsed, losses=losses, **news)
