"""FramePack from Python: the options of the `framepack` command, by their names without dashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .cli.options import flag_names, table_options
from .headless.caching import cache
from .headless.crew import together
from .headless.encodings import Encodings
from .headless.job import AnyJob
from .headless.jobs import Job, make
from .headless.models import Models, open_job_models
from .headless.request import Request, decide
from .headless.training import train_lora
from .headless.training_options import CacheJob, TrainJob
from .runtime.distributed import launched_count
from .runtime.errors import FramePackError
from .runtime.options import leaves, nested, validate


def load(**options: Any) -> Models:
    """The models, found and checked, for several calls of `generate`.

    Each is read when it is first needed and then waits in main memory. Raises FramePackError in one
    of several processes of a launcher, which would all make the same.
    """
    if (processes := launched_count()) > 1:
        raise FramePackError(
            f"load: {processes} processes were launched, which share no loaded models; call "
            "generate without them, which all processes make together"
        )
    return open_job_models(_job("load", options), keep=True)


def plan(**options: Any) -> Request:
    """What `generate` would make of the same options, without any model; `describe()` tells it."""
    return Request.of(decide(_job("plan", options)))


def generate(models: Models | None = None, **options: Any) -> list[Path]:
    """Make a video or an edited frame and return its files.

    models: of `load`, whose options then count; otherwise they are loaded for this call. All
    processes of a launcher such as torchrun make it together; the first of them returns the files.
    """
    job = _job("generate", options)
    files: list[Path] = []

    def lead(models: Models) -> None:
        encodings = Encodings(models.device, job.prompt.custom_system_prompt)
        files.extend(make(Job.prepare(decide(job)), models, encodings))

    if models is None:
        together(job, lead)
    else:
        lead(models)
    return files


def train(**options: Any) -> Path:
    """Encode what of a data set is not cached yet, train a LoRA on it and return its file.

    The options are those of `framepack train`; dataset_config may be a folder of clips.
    """
    found = table_options(TrainJob, options, "train")
    if found.unknown:
        raise _unknown("train", next(iter(found.unknown)), flag_names(TrainJob), "framepack train")
    job = validate(TrainJob, nested(found.values), "train", found.names)
    cache(CacheJob(data=job.data, models=job.models, vae=job.decoding))
    return train_lora(job).path


def _job(place: str, options: Mapping[str, Any]) -> AnyJob:
    """The job of options by the names of their flags."""
    found = {leaf.flag: leaf.path for leaf in leaves(AnyJob)}
    for name in options.keys() - found.keys():
        raise _unknown(place, name, found, "framepack generate")
    values = {found[name]: value for name, value in options.items()}
    names = {path: f"{place}: {name}" for name, path in found.items()}
    return validate(AnyJob, nested(values), place, names)


def _unknown(place: str, name: str, known: Iterable[str], command: str) -> FramePackError:
    close = get_close_matches(name, known, n=1)
    advice = f"did you mean {close[0]}?" if close else f"see `{command} --help`"
    return FramePackError(f"{place}: {name} is unknown; {advice}")
