"""Whether Toy World learns a new word inside ComfyUI, printed: [STEPS [CASES]]. Takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAMPLER_STEPS = 12


def main(steps: int = 250, cases: int = 64) -> dict[str, Any]:
    """Run `measure` in ComfyUI's own Python, with a base directory of its own."""
    from comfy_host import find_comfyui, host_environment, make_base

    comfy = find_comfyui()
    if isinstance(comfy, str):
        raise SystemExit(comfy)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        command = [comfy.python, __file__, comfy.root, base, "measure", steps, cases]
        subprocess.run([str(part) for part in command], env=host_environment(), check=True)
        return json.loads((base / "learned.json").read_text(encoding="utf-8"))


def measure(steps: int, cases: int) -> None:
    """Write shares of held-out cases and seconds to BASE/learned.json."""
    import inside  # first: it makes ComfyUI importable

    # isort: split
    import torch
    import training_cases

    inside.start()
    with torch.inference_mode():  # as ComfyUI's executor does
        knew, before = training_cases.learned(inside.toy().model, cases, SAMPLER_STEPS)
        times = [time.monotonic()]
        data = training_cases.dataset()
        times.append(time.monotonic())
        trained = training_cases.train(steps, "word", data)
        times.append(time.monotonic())
        model = training_cases.use(trained.lora)
        knows, after = training_cases.learned(model, cases, SAMPLER_STEPS)
    found = {
        "clips": len(data.found.items),
        "seconds to cache": times[1] - times[0],
        "seconds to train": times[2] - times[1],
        "word before": sum(knew) / cases,
        "word": sum(knows) / cases,
        "others as before": sum(a == b for a, b in zip(before, after, strict=True)) / cases,
    }
    (inside.BASE / "learned.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    if "measure" in sys.argv:
        measure(*map(int, sys.argv[4:]))
    else:
        for name, value in main(*map(int, sys.argv[1:])).items():
            print(f"{value:8.2f}  {name}")
