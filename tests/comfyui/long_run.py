"""One run of the sampler node with its ledger, as a process that may be killed: ROOT BASE."""

from __future__ import annotations

import inside  # first: it makes ComfyUI importable

# isort: split
import torch

inside.start()

import checks_long_runs  # noqa: E402

with torch.inference_mode():
    checks_long_runs.longer(ledger=False)
    print("begins", flush=True)
    checks_long_runs.longer()
