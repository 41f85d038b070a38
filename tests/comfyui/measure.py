"""How well guided Toy World videos come out of ComfyUI's nodes, printed: [CASES [STEPS]].

Slow: the tests run a few of these cases with fewer steps.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path


def main(cases: int = 16, steps: int = 25) -> None:
    """Run `measure` in ComfyUI's own Python, with a base directory of its own."""
    from comfy_host import find_comfyui, host_environment, make_base

    comfy = find_comfyui()
    if isinstance(comfy, str):
        raise SystemExit(comfy)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base")
        command = [comfy.python, __file__, comfy.root, base, "measure", cases, steps]
        subprocess.run([str(part) for part in command], env=host_environment(), check=True)


def measure(cases: int, steps: int) -> None:
    import inside  # first: it makes ComfyUI importable

    # isort: split
    import torch
    import toy_cases
    from toyworld.evaluate import evaluate

    inside.start()
    strengths = (0, 0.25, 0.5, 0.75, 1)
    measures = {
        "section prompts": toy_cases.section_prompts,
        "section image": toy_cases.section_images,
        **{
            f"end image, {policy}": partial(toy_cases.end_image, policy=policy, strengths=strengths)
            for policy in ("persistent", "first_section")
        },
        "one frame": toy_cases.one_frame_displacement,
        "masked reference": toy_cases.masked_control,
    }
    print(f"{cases} cases, {steps} steps")
    with torch.inference_mode():  # as ComfyUI's executor does
        for measure in evaluate(toy_cases.in_comfyui(), cases, steps=steps):
            print(measure, flush=True)
    for title, run in measures.items():
        start = time.monotonic()
        with torch.inference_mode():
            found = run(cases=cases, steps=steps)
        print(f"{title} ({time.monotonic() - start:.0f} s)")
        for name, value in found.items():
            print(f"  {value:8.3f}  {name}", flush=True)


if __name__ == "__main__":
    if "measure" in sys.argv:
        measure(*map(int, sys.argv[4:]))
    else:
        main(*map(int, sys.argv[1:]))
