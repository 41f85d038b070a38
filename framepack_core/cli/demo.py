"""`framepack demo`: a video by the built-in model, from a start picture drawn here."""

from __future__ import annotations

import torch

from ..headless.encodings import Encodings
from ..headless.job import OutputOptions, VideoJob
from ..headless.jobs import Job, make
from ..headless.models import Models
from ..headless.options import FLAGS
from ..headless.output import Output
from ..headless.pictures import Picture
from ..headless.request import Request
from ..headless.scenes import Video
from ..runtime.display import Display, say
from ..runtime.files import free_path
from ..runtime.images import save_png
from ..runtime.video import contact_sheet, read_video
from ..sampling.options import SamplingOptions
from ..sampling.sections import plan_framepack
from ..toyworld import SNAPSHOT
from ..toyworld.concept import write_lessons
from ..toyworld.render import captions, draw, start_image
from .commands import Demo

SECTIONS = 2
STEPS = 25
SEED = 26
ENLARGE = 2  # of the sheet: the frames are 64 pixels wide


def run(command: Demo) -> None:
    """Make i2v.mp4 and contact_sheet.png in the folder asked for, or clips to train on."""
    if command.clips:
        say(f"{len(write_lessons(command.clips))} clips and captions\n{command.clips}")
        return
    output = Output(OutputOptions(save_path=command.out, no_ledger=True), "i2v").unused()
    output.check(latent_bytes=0)
    models = Models(dict.fromkeys(FLAGS, SNAPSHOT), torch.device("cpu"), torch.float32)
    clips = draw([SEED], SECTIONS, central=True)
    start = Picture.of("start picture", start_image(clips)[0].numpy())
    scene = Video(plan_framepack(SECTIONS), captions(clips)[0][0], start, start)
    request = Request(VideoJob(sampling=SamplingOptions(infer_steps=STEPS)), scene, SEED)
    with Display("summary of the run"):
        say(request.describe())
    [video] = make([Job(request, output)], models, Encodings(models.device))
    frames, fps = read_video(video)
    sheet = free_path(command.out / "contact_sheet.png")
    save_png(sheet, contact_sheet(frames, columns=6, enlarge=ENLARGE))
    say(f"{len(frames)} frames, {fps:g} fps\n{sheet}")
