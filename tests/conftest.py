"""Puts the project on the path last, so that our `nodes/` hides nobody else's `nodes`."""

import sys
from pathlib import Path

import torch

torch.set_num_threads(1)  # tiny models: threads only get in each other's way
sys.path.insert(0, str(Path(__file__).parent))  # for `import tiny`
sys.path.append(str(Path(__file__).resolve().parents[1]))
