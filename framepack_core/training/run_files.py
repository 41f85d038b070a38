"""What a run leaves on disk: adapters, the state to resume from, and the log of losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from ..runtime.device import parse_dtype
from ..runtime.display import Display
from ..weights.files import open_weights, save_weights
from .adapters import Adapters
from .checkpoint import Progress, append_log, load_state, save_state, write_log
from .config import STATE, TrainConfig
from .metadata import adapter_metadata
from .optimizers import weights_in_use

ADAPTER = ".safetensors"


class RunFiles:
    """The files of a run; of several processes only the one that `writes` touches them.

    settings: what a resumed run must have the same. metadata: of the adapter, besides what follows
    from the config. epoch_steps: updates an epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        adapters: Adapters,
        optimizer: Optimizer,
        settings: dict[str, Any],
        metadata: Mapping[str, str],
        epoch_steps: int,
        writes: bool,
    ) -> None:
        self.config, self.adapters, self.optimizer = config, adapters, optimizer
        self.settings, self.metadata = settings, metadata
        self.epoch_steps, self.writes = epoch_steps, writes
        self.progress = self._start()
        self._saved = self.progress.step
        self._log = Display("log of losses")

    def _start(self) -> Progress:
        """Where the run begins: what its state says, or an adapter that learned nothing yet."""
        config = self.config
        if self.writes:  # alone: another process may look after this one's first file is there
            config.check_name()
        if config.resume:
            state = config.resumed_state
            progress = load_state(state, self.adapters, self.optimizer, self.settings)
        else:
            progress = Progress()
            if config.network_weights is not None:
                self.adapters.load_tensors(open_weights(config.network_weights))
        if self.writes and config.resume:
            write_log(config.log_path, progress.log)
        return progress

    @property
    def behind(self) -> bool:
        """Whether updates were made that are not on disk."""
        return self.progress.step > self._saved

    def after_step(self) -> Path:
        """The adapter after so many updates."""
        return self._numbered(f"step{self.progress.step:08d}")

    def after_epoch(self) -> Path:
        """The adapter after so many epochs."""
        return self._numbered(f"{self.progress.step // self.epoch_steps:06d}")

    def record(self, entry: dict[str, float]) -> None:
        """An update into the log."""
        self.progress.log.append(entry)
        if self.writes:
            with self._log:
                append_log(self.config.log_path, entry)

    def save(self, path: Path) -> None:
        """The adapter first, then the state: whichever a crash leaves is whole."""
        if self.writes:
            self._write(path)
        self._saved = self.progress.step

    def _write(self, path: Path) -> None:
        with weights_in_use(self.optimizer):
            tensors = self.adapters.file_tensors(parse_dtype(self.config.save_dtype))
        about = adapter_metadata(self.config, self.epoch_steps, self.progress.step, self.metadata)
        save_weights(path, tensors, about)
        states = [self.config.state_path]
        if self.config.save_state and path != self.config.adapter_path:
            states.append(path.with_suffix(STATE))
        for state in states:
            save_state(state, self.progress, self.adapters, self.optimizer, self.settings)
        self.config.earlier_state_path.unlink(missing_ok=True)
        self._drop_old(path)

    def _numbered(self, number: str) -> Path:
        return self.config.output_dir / f"{self.config.output_name}-{number}.safetensors"

    def _drop_old(self, saved: Path) -> None:
        """Remove files of this run that the one just saved makes too old."""
        config = self.config
        adapters = config.keep_last_epochs, config.keep_last_steps
        states = config.keep_last_epoch_states, config.keep_last_step_states
        self._drop_before(saved, ADAPTER, *adapters)
        self._drop_before(
            saved, STATE, *(own or other for own, other in zip(states, adapters, strict=True))
        )
        if config.keep_last is not None:
            files = sorted(self._numbers(ADAPTER), key=lambda path: path.stat().st_mtime_ns)
            for path in files[: -config.keep_last]:
                path.unlink()

    def _drop_before(self, saved: Path, ending: str, epochs: int | None, steps: int | None) -> None:
        """Of files of the kind of `saved`, keep the last `epochs` files, or those of `steps`."""
        number = self.config.numbered.fullmatch(saved.stem)
        if number is None:
            return
        every = self.config.save_every_epochs
        kind, kept = "step", steps
        if number["epoch"]:
            kind, kept = "epoch", epochs and every and epochs * every - 1
        if kept is None:
            return
        for path, other in self._numbers(ending).items():
            if other[kind] and int(other[kind]) < int(number[kind]) - kept:
                path.unlink()

    def _numbers(self, ending: str) -> dict[Path, re.Match[str]]:
        """The numbered files of this run with an ending, and their numbers."""
        paths = self.config.output_dir.glob(f"*{ending}")
        pairs = ((p, self.config.numbered.fullmatch(p.name.removesuffix(ending))) for p in paths)
        return {path: match for path, match in pairs if match}
