"""`framepack quantize`: the transformer in a quantised format, and what that costs."""

from __future__ import annotations

import json

from ..headless.model_files import find_models, read_loras
from ..models.merge import check_free, save_dit
from ..models.quantise import LayerErrors, pass_error
from ..runtime.device import parse_device
from ..runtime.display import Bar, say
from ..runtime.files import atomic_path, size_text
from .commands import Quantize


def run(command: Quantize) -> None:
    """Write the file, then print the errors of its layers and of a whole pass."""
    dit = find_models(command.transformer, ["dit"], command.transformer.f1)["dit"]
    check_free(command.output, sharded=False)
    if command.errors is not None:
        check_free(command.errors, sharded=False)
    loras, device = read_loras(command.loras, dit), parse_device(command.device or "cpu")
    errors = LayerErrors()
    with Bar("quantising", unit="tensor") as bar:
        options = {"precision": command.format, "device": device}
        save_dit(dit, command.output, loras, on_tensor=bar.move_to, on_encoded=errors, **options)
    say(errors.describe())
    if command.errors is not None:
        with atomic_path(command.errors) as temporary:
            temporary.write_text(json.dumps(errors.errors, indent=1), encoding="utf-8")
    if not command.no_pass:
        with Bar("comparing", unit="block") as bar:
            error = pass_error(dit, command.output, loras, device, on_block=bar.move_to)
        say(f"a pass on random inputs: {error:.4f} of the norm of bf16's")
    say(f"{command.output} ({size_text(command.output.stat().st_size)})")
