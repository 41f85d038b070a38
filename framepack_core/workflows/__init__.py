"""Workflow files of ComfyUI: those of other packs, made into ones for the nodes of this pack."""

from .convert import Converted, convert

__all__ = ["Converted", "convert"]
