"""Puts the project on the path last, so that our `nodes/` hides nobody else's `nodes`."""

import gc
import os
import sys
from pathlib import Path

# Tiny models: threads only get in each other's way, also those of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "80"  # of help texts, whatever the terminal has

import pytest
import torch

FULL_TIMEOUT = 3600  # seconds that a test may take in the length that a release is judged by

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))  # for `import tiny`
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_itemcollected(item: pytest.Item) -> None:
    if os.environ.get("FRAMEPACK_FULL") == "1":
        item.add_marker(pytest.mark.timeout(FULL_TIMEOUT), append=False)


def pytest_runtest_setup() -> None:
    """Commands collect garbage between models: what is imported is kept out of what that walks."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any(word in config.getoption("markexpr") for word in ("slow", "comfy")):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: make test-all"))


@pytest.fixture
def no_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ComfyUI lends tokenizers, though one may hold this repository or be in COMFYUI_PATH."""
    from framepack_core.weights import tokenizers

    nowhere = dict.fromkeys(tokenizers.COMFYUI, Path("nowhere"))
    monkeypatch.setattr(tokenizers, "COMFYUI", nowhere)
