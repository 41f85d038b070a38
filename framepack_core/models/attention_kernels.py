"""Attention kernels by name, and the fastest exact one of this machine, measured.

Which kernel is fastest differs by card, number type and length, so nothing is listed: `auto` times
those that are installed on the tensors of the first pass and keeps the answer. Kernels that round
more than bf16 does are used only where they are named.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from weakref import WeakValueDictionary

import torch
from einops import rearrange
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..runtime.errors import FramePackError
from .attention import Attention, sdpa
from .fastest import Way, chosen, fastest

AUTO = "auto"
SHORT = 1024  # tokens; below, the choice of a kernel costs more than it gains
ERROR = 0.02  # relative, against fp32; exact kernels stay below 0.004 in bf16
SAMPLED = 128  # queries that are checked

Run = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q, k, v [B, heads, L, head_dim]) -> [B, L, heads * head_dim], without a mask."""


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel, the module that it needs and the package that a user installs for it.

    exact: rounds no more than the number type does; backward: has gradients.
    """

    name: str
    run: Run
    module: str = ""
    package: str = ""
    exact: bool = True
    backward: bool = False
    error: float = ERROR

    def installed(self) -> bool:
        try:
            return not self.module or find_spec(self.module) is not None
        except Exception:  # of the package that holds the module, which is asked on the way
            return False


def _backend(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return rearrange(scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")


def _by_token(module: str, function: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A package's function that takes [B, L, heads, head_dim]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = getattr(_module(module), function)(q, k, v)
    return rearrange(out[0] if isinstance(out, tuple) else out, "b l h d -> b l (h d)")


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _module("sageattention").sageattn(q, k, v, tensor_layout="HND")
    return rearrange(out, "b h l d -> b l (h d)")


_module = cache(importlib.import_module)


def _package(
    name: str, module: str, package: str, function: str = "flash_attn_func", backward: bool = False
) -> AttentionKernel:
    run = partial(_by_token, module, function)
    return AttentionKernel(name, run, module, package, backward=backward)


KERNELS = (
    AttentionKernel("sdpa", sdpa, backward=True),
    AttentionKernel("cudnn", partial(_backend, SDPBackend.CUDNN_ATTENTION), backward=True),
    AttentionKernel("torch-flash", partial(_backend, SDPBackend.FLASH_ATTENTION), backward=True),
    AttentionKernel("efficient", partial(_backend, SDPBackend.EFFICIENT_ATTENTION), backward=True),
    _package("flash", "flash_attn", "flash-attn", backward=True),
    _package("flash3", "fa3_fwd_interface", "fa3-fwd"),
    _package("flash3", "flash_attn_interface", "flash-attn-3", backward=True),
    _package("flash4", "flash_attn.cute", "flash-attn-4"),
    _package("xformers", "xformers.ops", "xformers", "memory_efficient_attention", backward=True),
    AttentionKernel("sageattn", _sage, "sageattention", "sageattention", exact=False),
)
ALIASES = {"torch": "sdpa"}  # as musubi-tuner names it
NAMES = (AUTO, *ALIASES, *dict.fromkeys(kernel.name for kernel in KERNELS))


def attention_of(name: str) -> Attention:
    """The attention of this name; refuses one that is not installed."""
    if name == AUTO:
        return AutoAttention()
    kernel = find_kernel(name)
    return sdpa if kernel.run is sdpa else NamedAttention(kernel)


def training_attention(name: str) -> Attention:
    """The attention of this name with gradients; refuses one that has none or is not installed."""
    kernel = find_kernel(name, trained=True)
    return sdpa if kernel.run is sdpa else NamedAttention(kernel)


def find_kernel(name: str, *, trained: bool = False) -> AttentionKernel:
    """The kernel of this name; raises FramePackError where its package is missing or broken.

    trained: one that has gradients.
    """
    name = ALIASES.get(name, name)
    found = [kernel for kernel in KERNELS if kernel.name == name]
    if not found:
        raise FramePackError(f"attention {name}: unknown; use {', '.join(NAMES)}")
    able = [kernel for kernel in found if kernel.backward or not trained]
    if not able:
        raise FramePackError(f"attention {name}: it has no gradients; train with torch or flash")
    problem = "is not installed"
    for kernel in able:
        if kernel.installed():
            try:
                _module(kernel.module or "torch")
                return kernel
            except (
                Exception
            ) as error:  # packages that were built for another PyTorch raise anything
                problem = f"cannot be loaded ({next(iter(str(error).splitlines()), error)})"
    packages = " or ".join(kernel.package for kernel in able)
    raise FramePackError(
        f"attention {name}: its package {problem}; `pip install {packages}`, or use torch"
    )


class Traceable:
    """An attention that compiled code calls as one operation, whatever it does inside."""

    def __init__(self) -> None:
        _register_operation()
        self._number = next(_numbers)
        _by_number[self._number] = self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and q.requires_grad:
            return self.trained(q, k, v, key_mask)
        if is_compiling():
            return torch.ops.framepack_reel.attention(q, k, v, key_mask, self._number)
        return self.attend(q, k, v, key_mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        """The attention without gradients."""
        raise NotImplementedError

    def trained(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        """The attention with gradients."""
        return sdpa(q, k, v, key_mask)


_numbers = itertools.count()
_by_number: WeakValueDictionary[int, Traceable] = WeakValueDictionary()


@cache
def _register_operation() -> None:
    # PyTorch 2.4 to 2.5 reads no schema from annotations that are text.
    schema = "(Tensor q, Tensor k, Tensor v, Tensor? key_mask, int number) -> Tensor"

    @torch.library.custom_op("framepack_reel::attention", mutates_args=(), schema=schema)
    def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, number: int) -> Tensor:
        return _by_number[number].attend(q, k, v, key_mask).contiguous()

    @attention.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, number: int) -> Tensor:
        batch, heads, length, size = q.shape
        return q.new_empty(batch, length, heads * size)


class NamedAttention(Traceable):
    """One kernel; where there is a mask, which few of them take, PyTorch's attention."""

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel, self.name = kernel, kernel.name

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return sdpa(q, k, v, key_mask) if key_mask is not None else self.kernel.run(q, k, v)

    def trained(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        if not self.kernel.backward:
            raise FramePackError(
                f"attention {self.kernel.name}: it has no gradients; train with torch or flash"
            )
        return self.attend(q, k, v, key_mask)


class AutoAttention(Traceable):
    """The fastest exact kernel for a device, number type, head size and length.

    more: kernels of a host, tried like the others. On a CPU, for short sequences, with a mask and
    with gradients it is PyTorch's attention.
    """

    def __init__(self, more: Sequence[AttentionKernel] = ()) -> None:
        super().__init__()
        self.more, self.name = tuple(more), AUTO

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        if not self.measures(q, key_mask):
            return sdpa(q, k, v, key_mask)
        return self.kernel(q, k, v).run(q, k, v)

    def measures(self, q: Tensor, key_mask: Tensor | None) -> bool:
        """Whether there is a choice of kernels for tensors like q."""
        return key_mask is None and q.device.type == "cuda" and q.shape[2] >= SHORT

    @property
    def kernels(self) -> list[AttentionKernel]:
        """Those that it chooses from."""
        return [*(k for k in KERNELS if k.exact and k.installed()), *self.more]

    def kernel(self, q: Tensor, k: Tensor, v: Tensor) -> AttentionKernel:
        """The kernel for tensors like these, measured on them the first time."""
        names = tuple(kernel.name for kernel in self.more)
        key = (q.device, q.dtype, q.shape[1], q.shape[3], q.shape[2].bit_length(), names)
        if key not in chosen:
            chosen[key] = choose(self.kernels, q, k, v)
        return chosen[key]  # type: ignore[no-any-return]


def choose(
    kernels: Sequence[AttentionKernel],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> AttentionKernel:
    """The fastest of the kernels whose result is right; clock: as for `fastest`."""
    expected, queries = _expected(q, k, v)

    def error(out: Tensor) -> float:
        found = rearrange(out[:, queries], "b l (h d) -> b h l d", h=q.shape[1])
        return float((found[:, :1].float() - expected).norm() / expected.norm())

    ways = [Way(kernel.name, partial(kernel.run, q, k, v), kernel.error) for kernel in kernels]
    shape, dtype = f"tokens of {q.shape[1]} x {q.shape[3]}", str(q.dtype)
    case = f"{q.shape[2]} {shape}, {dtype.removeprefix('torch.')}"
    alike = f"2^{q.shape[2].bit_length()} {shape}, {dtype}"
    return kernels[fastest("attention", case, ways, error, q.device, alike, clock)]


def _expected(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plain attention in fp32 of some queries of the first head, and which they are."""
    queries = torch.linspace(0, q.shape[2] - 1, SAMPLED, device=q.device).long()
    q, k, v = (x[:, :1].float() for x in (q[:, :, queries], k, v))
    weights = (q @ k.mT * q.shape[3] ** -0.5).softmax(dim=-1)
    return weights @ v, queries
