"""torch.compile of the blocks: one piece of code for every length, with or without LoRAs."""

from __future__ import annotations

from typing import Any

# Dynamic from the first call on: one compilation for all lengths, and the same code, whichever
# length a run meets first, so that a resumed run repeats what the whole one computed.
COMPILATION: dict[str, Any] = {"dynamic": True}
RECOMPILATIONS = 64  # of one kind of block: one with each set of adapted layers


def prepare_compiling(versions: int | None = None) -> None:
    """Settings of the compiler that the blocks need; versions: of one kind of block, at most."""
    import torch._dynamo

    # LoRAs are hooks, and code compiled for a model without them must not serve another
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for name in ("recompile_limit", "cache_size_limit"):  # its name now and before PyTorch 2.6
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, versions or RECOMPILATIONS)
