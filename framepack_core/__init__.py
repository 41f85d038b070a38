"""FramePack without a host: models, sampling, training and a command line.

Imports point one way: cli -> headless -> toyworld -> training -> sampling -> models -> lora ->
weights -> parsing -> runtime.

The functions below are loaded when they are first asked for, as they need torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import generate, load, plan, train

__all__ = ["generate", "load", "plan", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
