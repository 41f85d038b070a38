"""`framepack generate`: an image and a prompt to a video or an edited frame."""

from __future__ import annotations

from argparse import Namespace

from ..headless.encodings import Encodings
from ..headless.jobs import Job, make
from ..headless.models import FLAGS, Models
from . import batch, decode, interactive


def run(args: Namespace) -> None:
    """Make what the options ask for and print where it is."""
    if args.latent_path:
        decode.run(args)
    elif args.from_file:
        batch.run(args)
    elif args.interactive:
        interactive.run(args)
    else:
        models = Models.from_args(args, list(FLAGS))
        make([Job.prepare(args)], models, Encodings(models.device, args.custom_system_prompt))
