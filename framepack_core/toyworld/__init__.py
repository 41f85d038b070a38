"""Toy World: the built-in model, the real architecture at toy size."""

from pathlib import Path

SNAPSHOT = Path(__file__).parent / "snapshot"
OPPOSITE_LORA = Path(__file__).parent / "loras" / "opposite.safetensors"
TEXT_LORA = Path(__file__).parent / "loras" / "text.safetensors"
F1_END_LORA = Path(__file__).parent / "loras" / "f1_end.safetensors"
