"""The options of every command that makes or reports something, as values.

Nothing here needs torch, so that `--help` stays instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from ..headless.job import AnyJob, LedgerOptions, VideoJob
from ..headless.options import (
    DecodingOptions,
    Fp8Options,
    LoraOptions,
    MergedModelOptions,
    ModeOption,
    TransformerOptions,
)
from ..runtime.options import S, Settings, leaves, option
from ..sampling.plan import Direction
from ..weights.precisions import Stated


class NamedTransformer(TransformerOptions, ModeOption):
    """The transformer alone."""


class Merge(Settings):
    """What is merged."""

    transformer: NamedTransformer = NamedTransformer()
    device: str | None = option(
        None, "Device where it is merged, such as cuda.", metavar="NAME", absent="cpu"
    )
    dtype: str | None = option(None, "Dtype, bf16 or fp16.", metavar="NAME", absent="bf16")
    fp8: Fp8Options = Fp8Options()
    loras: LoraOptions = LoraOptions()
    merged: MergedModelOptions = MergedModelOptions()


class Quantize(Settings):
    """What is quantised, and into what."""

    transformer: NamedTransformer = NamedTransformer()
    format: Stated = option(
        ...,
        "Format of the linear layers of the blocks: ComfyUI's (for its kernels: fp8 on RTX 40 and "
        "later, int8_convrot on RTX 20 and later, nvfp4 and mxfp8 on RTX 50), or GGUF's.",
    )
    output: Path = option(
        ...,
        "Output: a new .safetensors file, of a GGUF format a new .gguf file. What is not quantised "
        "is kept in bf16.",
        metavar="FILE",
    )
    device: str | None = option(
        None, "Device where it is computed, such as cuda.", metavar="NAME", absent="cpu"
    )
    errors: Path | None = option(
        None, "Error file: the error of every layer, as JSON.", metavar="FILE"
    )
    no_pass: bool = option(False, "No pass: write the file without comparing a pass with bf16.")
    loras: LoraOptions = LoraOptions()


class Make(AnyJob):
    """A video or an edited frame; or instead a merged model, as musubi-tuner's commands."""

    merged: MergedModelOptions = MergedModelOptions()


class ProcessOptions(Settings):
    """How several processes share a prompt file."""

    together: bool = option(
        False,
        "Together: all processes of torchrun make each video of a prompt file. Without it each "
        "makes its share of them.",
    )


class Generate(Make):
    """One of each, or what other commands do."""

    latent_path: tuple[Path, ...] = option((), "Latent files: only decode these.", metavar="FILE")
    from_file: Path | None = option(None, "Prompt file, as for `framepack batch`.", metavar="FILE")
    interactive: bool = option(False, "Interactive, as `framepack interactive`.")
    processes: ProcessOptions = ProcessOptions()

    @model_validator(mode="after")
    def _one_source(self) -> Generate:
        if self.processes.together and self.from_file is None:
            raise ValueError("--together: it needs --from_file; one video is always made together")
        chosen = ("latent_path", "from_file", "interactive")
        return _at_most_one(self, *chosen)


class Batch(Make):
    """One for each line of a file."""

    from_file: Path = option(
        ...,
        "Prompt file: a prompt a line, with options of its own behind it: a cat --w 640 --h 480 "
        "--d 42. What a line leaves out is taken from this command line.",
        metavar="FILE",
    )
    processes: ProcessOptions = ProcessOptions()


class Extend(VideoJob):
    """More of a video."""

    merged: MergedModelOptions = MergedModelOptions()
    latent_path: Path | None = option(
        None, "Latent file of the finished run to extend.", metavar="FILE"
    )
    video_path: Path | None = option(
        None, "Video to extend, any; it is fitted to the size that is given.", metavar="FILE"
    )
    direction: Direction = option(
        "forward",
        "Direction. backward needs the original model and a new start image to begin with.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Extend:
        if self.latent_path is None and self.video_path is None:
            raise ValueError("--latent_path or --video_path is missing")
        return _at_most_one(self, "latent_path", "video_path")


class Ledgers(LedgerOptions):
    """What is kept of finished sections."""

    action: Literal["list", "prune"] = option(..., "what to do", positional=True)
    limit: float | None = option(
        None,
        "Limit: how much may stay, the longest unused go first; 0 empties it.",
        absent="2",
        unit="GB",
        ge=0,
    )


class Finish(LedgerOptions):
    """Which runs end early."""


class Verify(AnyJob):
    """Which files are compared with the reference, and how they are run."""

    against: Path | None = option(
        None,
        "Against: a snapshot whose weights the reference takes instead of the same files, to "
        "compare files with those that they were made from.",
        metavar="DIR",
    )

    def ignored(self) -> list[str]:
        """The flags that were given and say nothing about models."""
        groups = ("models", "fp8", "execution", "loras", "decoding")
        own = ("f1", "against", "save_path")
        given = (leaf for leaf in leaves(Verify) if leaf.on(self) and leaf.flag not in own)
        return [
            f"--{leaf.flag}"
            for leaf in given
            if leaf.path[0] not in groups or leaf.group is DecodingOptions
        ]


class Inspect(Settings):
    """Which LoRA files are reported on."""

    action: Literal["inspect"] = option(..., "report what files are", positional=True)
    file: tuple[Path, ...] = option(..., "a LoRA of any trainer", positional=True)
    transformer: NamedTransformer = NamedTransformer()


class Convert(Settings):
    """Which file of another program is converted."""

    file: Path = option(
        ...,
        "a workflow or API prompt of ComfyUI with nodes of the wrapper packs, or a zip of sections "
        "from FramePack-eichi",
        positional=True,
    )
    output: Path | None = option(
        None,
        "Output: the new file, or of a zip the new folder; if there is one of this name, a number "
        "is added.",
        metavar="FILE",
        absent="the workflow's name with _framepack_reel behind it, or the zip's",
    )
    f1: bool = option(
        False, "F1: the sections of a zip are numbered from the start, as F1 makes them."
    )


class Demo(Settings):
    """A video with the built-in model."""

    out: Path = option(Path("demo"), "Output folder.", metavar="DIR")
    clips: Path | None = option(
        None, "Clips: instead draw those that teach the model a word into a folder.", metavar="DIR"
    )


def merging(job: Make | Extend) -> Merge:
    """What a job merges that makes a merged model instead of a video."""
    models = job.models
    files = NamedTransformer(snapshot=models.snapshot, dit=models.dit, f1=job.prompt.f1)
    return Merge(
        transformer=files,
        device=models.device,
        dtype=models.dtype,
        fp8=job.fp8,
        loras=job.loras,
        merged=job.merged,
    )


def _at_most_one(command: S, *names: str) -> S:
    given = [f"--{name}" for name in names if getattr(command, name)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} cannot be combined; choose one")
    return command
