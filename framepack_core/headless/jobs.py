"""From requests to files: encode all, sample all, decode all, each model loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.build import open_dit
from ..models.dit import FramePackDiT
from ..models.fastest import remember_choices
from ..models.quantise import precision_of
from ..runtime.display import Bar, Display, say, warn
from ..runtime.distributed import Crew
from ..runtime.errors import FramePackError
from ..runtime.files import shell_word
from ..runtime.memory import limited_memory
from ..sampling.decode import Decode
from ..sampling.estimate import latent_bytes, pass_memory, start_shape
from ..sampling.flow import CFG, Guided
from ..sampling.generate import SectionDone, StepInfo
from ..sampling.latents import load_latents, save_latents
from ..sampling.ledger import CHOICES, Ledger, LedgerRun, OpenLedger
from ..sampling.plan import FPS, Plan
from ..sampling.probe import TrialPass
from ..sampling.sanity_checks import Drift
from ..sampling.step_cache import Calibration
from .crew import Sampling
from .encodings import Encodings
from .job import JobOptions
from .models import SMALLER_DECODE, SMALLER_VIDEO, Models, explain_out_of_memory
from .options import DecodingOptions
from .output import Output
from .request import Request
from .scenes import OneFrameEdit, SampleContext, Scene, Video

FREE_MEMORY = "the encoders need about 16 GB in one piece: close what else uses it"


@dataclass(frozen=True)
class Job:
    """A request and where its result goes; `title` tells it from the other jobs of a run."""

    request: Request
    output: Output
    title: str = ""

    @classmethod
    def prepare(
        cls,
        options: JobOptions,
        name: str = "",
        title: str = "",
        *,
        scene: Scene | None = None,
        fps: float = FPS,
    ) -> list[Job]:
        """Check all that is cheap to check, and say what will be made: a job for each variant.

        name: what the files' names begin with before the seed, the time by default.
        """
        request = Request.of(options, scene)
        single = isinstance(request.scene, OneFrameEdit)
        seeds, name = request.seeds, name or timestamp()
        jobs = []
        for seed in seeds:
            output = Output(options.output, f"{name}_{seed}", fps, single).unused()
            own = title if len(seeds) == 1 else f"{title and f'{title}, '}seed {seed}"
            jobs.append(cls(replace(request, seed=seed), output, own))
        scene = request.scene
        output.check(len(jobs) * latent_bytes(start_shape(*scene.size), scene.latent_frames))
        with Display("summary of the run"):
            say(f"{title and f'{title}: '}{request.describe()}")
        return jobs

    @property
    def metadata(self) -> dict[str, str]:
        return self.request.metadata(self.output.fps)

    def first(self, made: int) -> Job:
        """The job of the sections of a video that are made first."""
        scene = self.request.scene
        assert isinstance(scene, Video)  # an edited frame has one section
        return replace(self, request=replace(self.request, scene=scene.first(made)))

    def named(self, message: str) -> str:
        """A message that says which job it is about."""
        return f"{self.title}: {message}" if self.title else message


Attempt = Callable[[Job], AbstractContextManager[Any]]
"""Around each thing that is done for a job: it may keep an error to this job."""


def timestamp() -> str:
    """The time to the millisecond, for names."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


def make(
    jobs: Sequence[Job],
    models: Models,
    encodings: Encodings,
    attempt: Attempt = nullcontext,
) -> list[Path]:
    """Make the results of all jobs, print where they are, and return it.

    Latents are on disk before anything is decoded, in case that fails or is stopped.
    """
    say("encoding the prompts and the images")
    with limited_memory(models.execution.gpu_memory, models.device) as models.budget:
        with explain_out_of_memory(FREE_MEMORY):
            encodings.add([job.request.wanted() for job in jobs], models)
        waiting: list[Job] = []
        with _latents_kept(waiting, models):
            made = _sample_all(jobs, models, encodings, attempt, waiting)
            return made + _decode_all(waiting, models, attempt)


def _sample_all(
    jobs: Sequence[Job],
    models: Models,
    encodings: Encodings,
    attempt: Attempt,
    waiting: list[Job],
) -> list[Path]:
    """Save the latents of all jobs; those to be decoded wait. Returns the files that stay."""
    made = []
    limited = jobs if models.budget is not None else []
    different = {(job.request.scene.size, job.request.scene.window): job for job in limited}
    working = [pass_memory(pass_of(job, models)) for job in different.values()]
    if jobs and jobs[0].output.ledger is not None:  # before the model's products are chosen
        remember_choices(jobs[0].output.ledger / CHOICES)
    with models.dit(max(working, default=0)) as dit:
        for job in jobs:
            with attempt(job):
                done, latents = _sample(job, dit, models, encodings)
                metadata = None if done.output.options.no_metadata else done.metadata
                save_latents(done.output.latent_path, latents, metadata)
                if done.output.options.hand_on and isinstance(done.request.scene, Video):
                    done.output.hand_on(latents, done.request.scene.plan.listed())
                if done.output.decodes:
                    waiting.append(done)
                if done.output.keeps_latents:
                    made.append(shown(done.output.latent_path))
    return made


def pass_of(job: Job, models: Models) -> TrialPass:
    """A pass of a job, to be tried."""
    scene = job.request.scene
    edits = isinstance(scene, OneFrameEdit)
    mode = scene.plan.mode if isinstance(scene, Video) else "framepack"
    ended = isinstance(scene, Video) and scene.plan.end is not None
    window = scene.latent_frames if edits else scene.window
    start = torch.zeros(start_shape(*scene.size), device=models.device)
    kept = {"dtype": models.dtype, "precision": models.precision}
    config, state = open_dit(models.paths["dit"], **kept)
    precision = precision_of(state.encodings().values())
    trial = TrialPass(config, mode, window, start, models.dtype, models.attention, precision)
    return replace(trial, ended=ended)


def _sample(
    job: Job, dit: FramePackDiT, models: Models, encodings: Encodings
) -> tuple[Job, Tensor]:
    """The latents, and the job, of those sections only that were made where it ended early."""
    request, scene = job.request, job.request.scene
    embeds = encodings.embeds(scene.image)
    positive = request.guided(encodings.text(scene.prompt), embeds)
    cfg = None
    if request.negative_prompt is not None:
        negative = positive._replace(text=encodings.text(request.negative_prompt))
        cfg = request.cfg(negative)
    open_ledger = _ledger(job, models, positive, cfg)
    sampling = Sampling(positive, request.sampler, cfg, request.rope_scaling)
    with explain_out_of_memory(SMALLER_VIDEO), _followed(job, models.crew) as progress:
        sampler = sampling.sampler(dit, models, progress.on_step)
        finish = None if job.output.ledger is None else Ledger(job.output.ledger).finish_asked()
        context = SampleContext(sampler, request.seed, open_ledger, progress.on_section, finish)
        latents = scene.make(encodings, context).cpu()
    if isinstance(request.step_cache, Calibration):
        say(f"--magcache_mag_ratios {request.step_cache.ratios()}")
    if not progress.finished or progress.finished == scene.sections:
        return job, latents
    finished = job.first(progress.finished)
    with Display("note on the early end"):
        say(finished.named(progress.describe_early_end(request.seed)))
    return finished, latents


def _ledger(job: Job, models: Models, positive: Guided, cfg: CFG | None) -> OpenLedger | None:
    """Where the sections of a job are kept, under all that they depend on besides the plan."""
    request = job.request
    if job.output.ledger is None or isinstance(request.step_cache, Calibration):
        return None  # a section that is not made again cannot be measured
    settings = models.identity() | {
        "prompt": positive.text,
        "image": positive.image_embeds,
        "CFG": cfg,
        **request.ledger_settings(),
    }
    ledger = Ledger(job.output.ledger, say=lambda text: say(job.named(text)))

    def open_ledger(plan: Plan, more: Mapping[str, Any]) -> LedgerRun:
        return ledger.open(plan, {**settings, **more})

    return open_ledger


def _decode_all(waiting: list[Job], models: Models, attempt: Attempt) -> list[Path]:
    """Decode the saved latents of jobs, which then wait no more."""
    if not waiting:
        return []
    made = []
    with models.decoder() as decoder:
        while waiting:
            with attempt(waiting[0]), _latents_named(waiting[0], models):
                made.append(_decode(waiting[0], decoder, models.decoding))
            waiting.pop(0)
    return made


def _decode(job: Job, decoder: Decode, decoding: DecodingOptions) -> Path:
    scene, output = job.request.scene, job.output
    latents, _ = load_latents(output.latent_path)
    with explain_out_of_memory(SMALLER_DECODE):
        clips = scene.clips(decoder, latents, decoding)
        path = shown(output.write(clips, scene.size, scene.frames, job.metadata, scene.drop))
    if not output.keeps_latents:
        output.latent_path.unlink()
    return path


def shown(path: Path) -> Path:
    """Print where a result is."""
    say(str(path))
    return path


@dataclass
class _Progress:
    """A bar over all steps of all sections, and how far the finished ones have drifted."""

    bar: Bar
    title: str
    sections: int
    steps: int
    finished: int = 0
    drifts: dict[int, Drift] = field(default_factory=dict)

    def on_step(self, info: StepInfo) -> None:
        self.bar.move(title=f"{self.title} {info.order + 1}/{self.sections}")

    def on_section(self, done: SectionDone) -> None:
        self.finished += 1
        if done.stored:
            self.bar.move(self.steps)
        if done.drift is not None:
            self.drifts[done.section.index] = done.drift

    def describe_early_end(self, seed: int) -> str:
        return (
            f"finished early, with {self.finished} of {self.sections} sections; the same command "
            f"with --seed {seed} makes the others"
        )

    def describe_drift(self) -> str:
        """The sections that moved furthest from the start image."""
        colour = max(self.drifts, key=lambda index: self.drifts[index].colour)
        contrast = max(self.drifts, key=lambda index: abs(self.drifts[index].contrast - 1))
        return (
            f"drift from the start image: colour up to {self.drifts[colour].colour:.2f} (section "
            f"{colour}), contrast up to x{self.drifts[contrast].contrast:.2f} (section {contrast})"
        )


@contextmanager
def _followed(job: Job, crew: Crew | None) -> Iterator[_Progress]:
    """Show the progress of a job; if it ends early, say what of it is kept."""
    sections, steps = job.request.scene.sections, job.request.sampler.steps
    title = job.named("section")
    with Bar(f"{title} 1/{sections}", sections * steps) as bar:
        progress = _Progress(bar, title, sections, steps)

        def kept() -> str:
            if not progress.finished or job.output.ledger is None:
                return ""
            return (
                f"{progress.finished} of {sections} sections are kept in {job.output.ledger}; "
                f"the same command with --seed {job.request.seed} resumes after them, and with "
                f"--finish_after {progress.finished} too it makes a video of them"
            )

        with nullcontext() if crew is None else crew.watch.noting(kept):
            try:
                yield progress
            except BaseException:
                if note := kept():
                    warn(note)
                raise
    if progress.drifts:
        with Display("note on drift"):
            say(job.named(progress.describe_drift()))


@contextmanager
def _latents_named(job: Job, models: Models) -> Iterator[None]:
    """Make an error say where the latents are and how to decode them."""
    try:
        yield
    except FramePackError as error:
        raise FramePackError(f"{error}; {_advice([job], models)}") from error


@contextmanager
def _latents_kept(waiting: Sequence[Job], models: Models) -> Iterator[None]:
    """Whatever ends the run, say where the latents are that still wait to be decoded."""

    def kept() -> str:
        return _advice(waiting, models) if waiting else ""

    with nullcontext() if models.crew is None else models.crew.watch.noting(kept):
        try:
            yield
        except FramePackError:
            raise
        except BaseException:
            if note := kept():
                warn(note)
            raise


def _advice(jobs: Sequence[Job], models: Models) -> str:
    paths = " ".join(shell_word(job.output.latent_path) for job in jobs)
    return (
        f"the latents are kept; to decode them: framepack generate --latent_path {paths} "
        f"--vae {shell_word(models.paths['vae'])} --save_path FOLDER"
    )
