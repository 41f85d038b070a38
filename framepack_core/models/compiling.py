"""torch.compile of the blocks: one piece of code for every length, with or without LoRAs."""

from __future__ import annotations

from typing import Any, Literal

from ..runtime.options import Settings, leaves, option

RECOMPILATIONS = 64  # of one kind of block: one with each set of adapted layers
COMPILING = "compiling the blocks: the first step takes up to a minute longer"
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class CompileOptions(Settings):
    """How blocks are compiled, where they are."""

    compile_backend: str = option("inductor", "Backend of torch.compile.", metavar="NAME", node="")
    compile_mode: CompileMode = option("default", "Mode of torch.compile.", node="")
    compile_dynamic: Literal["true", "false", "auto"] | None = option(
        None, "Dynamic shapes of torch.compile.", absent="true", node=""
    )
    compile_fullgraph: bool = option(
        False, "Full graph of torch.compile: no graph breaks.", node=""
    )
    compile_cache_size_limit: int | None = option(
        None,
        "Cache size limit of torch.compile: versions of a block.",
        absent=f"{RECOMPILATIONS}",
        node="",
        mutable=True,
        gt=0,
    )

    @property
    def changed(self) -> str | None:
        """The first option that would do nothing where nothing is compiled."""
        found = (x for x in leaves(CompileOptions) if x.of(self) != x.default)
        return next((leaf.name for leaf in found), None)

    @property
    def compilation(self) -> dict[str, Any]:
        """Options of torch.compile.

        Dynamic from the first call on by default: one compilation for all lengths, and the same
        code, whichever length a run meets first, so that a resumed run repeats what the whole one
        computed.
        """
        dynamic = {None: True, "auto": None, "true": True, "false": False}
        return {
            "backend": self.compile_backend,
            "mode": self.compile_mode,
            "dynamic": dynamic[self.compile_dynamic],
            "fullgraph": self.compile_fullgraph,
        }


def prepare_compiling(versions: int | None = None) -> None:
    """Settings of the compiler that the blocks need; versions: of one kind of block, at most."""
    import torch._dynamo

    # LoRAs are hooks, and code compiled for a model without them must not serve another
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for name in ("recompile_limit", "cache_size_limit"):  # its name now and before PyTorch 2.6
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, versions or RECOMPILATIONS)
