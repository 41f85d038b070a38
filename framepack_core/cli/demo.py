"""`framepack demo`: a video by the built-in model, from a start picture drawn here."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from ..runtime.images import save_png
from ..runtime.video import contact_sheet, read_video
from ..sampling.generate import SamplerConfig
from ..sampling.sections import plan_framepack
from ..toyworld import SNAPSHOT
from ..toyworld.render import captions, draw, start_image
from .generate import make_video
from .models import FLAGS, Decoding, Models
from .output import Output
from .request import Request

SECTIONS = 2
STEPS = 25
SEED = 1


def run(args: Namespace) -> None:
    """Make i2v.mp4 and contact_sheet.png in the folder asked for."""
    output = Output(Path(args.out), "i2v")
    output.check(latent_bytes=0)
    models = Models(dict.fromkeys(FLAGS, SNAPSHOT), torch.device("cpu"), torch.float32)
    clips = draw([SEED], SECTIONS, central=True)
    request = Request(
        image=start_image(clips)[0].numpy(),
        prompt=captions(clips)[0][0],
        plan=plan_framepack(SECTIONS),
        seed=SEED,
        sampler=SamplerConfig(STEPS),
    )
    print(f"prompt: {request.prompt}")
    [video] = make_video(request, models, output, Decoding())
    frames, fps = read_video(video)
    sheet = Path(args.out) / "contact_sheet.png"
    save_png(sheet, contact_sheet(frames))
    print(f"{video} ({len(frames)} frames, {fps:g} fps)\n{sheet}")
