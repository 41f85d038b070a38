"""Toy World: the built-in model, the real architecture at toy size."""

from pathlib import Path

SNAPSHOT = Path(__file__).parent / "snapshot"
