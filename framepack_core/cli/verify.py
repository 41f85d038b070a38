"""`framepack verify`: whether real files compute here what the reference computes with them."""

from __future__ import annotations

from importlib.util import find_spec

from ..headless.verify import open_verification
from ..runtime.display import say, warn
from ..runtime.errors import FramePackError
from ..runtime.files import atomic_path, free_path
from .commands import Verify


def run(command: Verify) -> None:
    """Say what was found of each component, and write all of it into a report."""
    if ignored := command.ignored():
        warn(f"verify makes nothing, so these change nothing: {', '.join(ignored)}")
    if find_spec("diffusers") is None:
        say(
            "verify: diffusers is not installed, so the transformer and the VAE are compared with "
            "plain PyTorch; for diffusers' own: pip install 'diffusers>=0.42'"
        )
    verification = open_verification(command, command.against)
    report = verification.report()
    for checked in verification.run():
        report.checked.append(checked)
        say("\n".join(f"verify: {line}" for line in checked.lines()))
    path = free_path(command.output.save_path / "verify.md")
    with atomic_path(path) as temporary:
        temporary.write_text(report.markdown(), encoding="utf-8")
    say(str(path))
    if not report.good:
        raise FramePackError(
            f"{', '.join(c.title for c in report.checked if not c.good)}: not what the reference "
            f"computes; attach {path} to an issue"
        )
