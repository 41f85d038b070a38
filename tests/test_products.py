"""Products in the numbers of quantised weights: what they compute, their gradients, the choice."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from tiny import multiply_in_fp8, randn
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from framepack_core.models import fastest, products
from framepack_core.models.offload import HostWeights, Visit, streamed_forwards
from framepack_core.models.products import DEQUANTISING, PRODUCTS, Product, choose_products
from framepack_core.weights.formats import MADE, Encoding
from framepack_core.weights.quantised_linear import QuantisedLinear, full_weight

WIDE, HIGH, ROWS = 512, 96, 40
ADDED = {8: 0.045, 4: 0.2}  # what quantising normally distributed inputs adds, relative


def layer_of(name: str, wide: int = WIDE) -> QuantisedLinear:
    weight = randn(HIGH, wide, seed=3) * 0.02
    options = MADE[name].options((HIGH, wide))
    parts = Encoding(MADE[name], options or {}).encode(weight)
    layer = QuantisedLinear(wide, HIGH, device="meta")
    layer.load_state_dict(parts | {"bias": randn(HIGH, seed=4)}, assign=True)
    return layer.requires_grad_(False)


CASES = [
    (product, name)
    for product in PRODUCTS
    for name in MADE
    if MADE[name].name in product.formats and name != "fp8_scaled"
]


@pytest.mark.parametrize(
    ("product", "name"), CASES, ids=[f"{product.name}-{name}" for product, name in CASES]
)
def test_the_product_is_that_of_the_dequantised_weight(product: Product, name: str) -> None:
    if product.module:
        pytest.importorskip(product.module)
    layer, x = layer_of(name), randn(2, ROWS, WIDE).bfloat16()
    assert product.takes(layer)
    expected = linear(x.float(), full_weight(layer, torch.float32), layer.bias)
    try:
        found = product(layer, x)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        if "CPU" not in str(error):
            raise
        pytest.skip(f"only on a GPU ({error})")
    assert found.dtype == x.dtype and found.shape == (2, ROWS, HIGH)
    error = float((found.float() - expected).norm() / expected.norm())
    assert 0.001 < error < ADDED[product.bits], error


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8_convrot"])
def test_gradients_are_those_of_the_dequantised_product(name: str) -> None:
    if name == "float8_e4m3fn":
        multiply_in_fp8()
    layer = layer_of(name)
    layer.product = next(p for p in PRODUCTS if p.takes(layer))
    x = randn(ROWS, WIDE).requires_grad_()
    out = layer(x)
    assert 0 < (out - products.dequantised(layer, x)).norm() < 0.06 * out.norm()
    (found,) = torch.autograd.grad(out, x, randn(ROWS, HIGH, seed=5))
    expected = randn(ROWS, HIGH, seed=5) @ full_weight(layer, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8_convrot"])
def test_compiled_code_computes_the_same(name: str) -> None:
    if name == "float8_e4m3fn":
        multiply_in_fp8()
    layer = layer_of(name)
    layer.product = next(p for p in PRODUCTS if p.takes(layer))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, y = (randn(ROWS, WIDE).requires_grad_() for _ in range(2))
    out, expected = compiled(x), layer(y)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for found in (out, expected):
        found.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["int8_tensorwise", "int8_convrot"])
def test_checkpointed_blocks_keep_no_weights_for_their_gradients(monkeypatch, name: str) -> None:
    """Else all swapped blocks of a training would be on the device at once."""
    layers = [layer_of(name) for _ in range(3)]
    copies, visit = [], HostWeights.visit

    def noted(weights: HostWeights, number: int) -> Visit:
        found = visit(weights, number)
        copies.extend(map(weakref.ref, found.copies.values()))
        return found

    def run(product: Product | None) -> tuple[int, torch.Tensor]:
        blocks = [nn.Sequential(layer, nn.Linear(HIGH, WIDE)) for layer in layers]
        for block in blocks:
            nn.init.constant_(block[1].weight, 0.01)
            block[0].product = product
            block.requires_grad_(False)
        x = start = randn(ROWS, WIDE).requires_grad_()
        copies.clear()
        for forward in streamed_forwards(blocks, torch.device("cpu")):
            x = checkpoint(forward, x, use_reentrant=False)
        kept = sum(copy() is not None for copy in copies)
        (gradient,) = torch.autograd.grad(x.sum(), start)
        return kept, gradient

    monkeypatch.setattr(HostWeights, "visit", noted)
    expected = run(None)[1]
    kept, gradient = run(Product("exact", ("int8_tensorwise",), by_whole))
    assert copies and not kept
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_few_rows_are_multiplied_whole() -> None:
    layer = layer_of("int8_tensorwise")
    layer.product, x = PRODUCTS[1], randn(3, WIDE)
    assert torch.equal(layer(x), products.dequantised(layer, x))


def test_what_no_product_takes() -> None:
    blocks, full = layer_of("fp8_scaled"), layer_of("float8_e4m3fn")
    assert blocks.scale_weight is not None and blocks.scale_weight.ndim == 3
    assert not any(product.takes(blocks) for product in PRODUCTS)
    assert full.encoding is not None
    full.encoding = Encoding(full.encoding.format, {"full_precision_matrix_mult": True})
    assert not any(product.takes(full) for product in PRODUCTS)
    assert not any(product.takes(layer_of("gguf_q8_0")) for product in PRODUCTS)


def wrong(x, *_):
    return torch.zeros(len(x), HIGH)


def refusing(*_):
    raise RuntimeError("no such card\nat line 1")


def by_whole(x, parts, encoding, bias):
    return linear(x, encoding.decode(parts, x.dtype), bias)


def test_the_fastest_right_one_is_taken(monkeypatch, capsys, tmp_path: Path) -> None:
    """Times as they would be on a GPU: what is wrong or refuses is passed over, ties stay."""
    names = ("int8_tensorwise", "mxfp8")
    layers = [*map(layer_of, names), layer_of(names[0]), layer_of(names[0], HIGH)]
    model = torch.nn.ModuleList([*layers, torch.nn.Linear(2, 2)])
    tried = [
        Product("wrong", names, wrong),
        Product("refusing", names, refusing),
        Product("slow", names, by_whole),
        Product("fast", names[:1], by_whole),
        Product("for other cards", names, by_whole, capability=(99, 0)),
    ]
    times = {"slow": 0.99, "fast": 0.5}
    monkeypatch.setattr(products, "_needs_gpu", lambda device: False)
    monkeypatch.setattr(products, "ROWS", 33)
    monkeypatch.setattr(fastest, "_file", None)
    fastest.remember_choices(tmp_path / "attention.json")
    turn = iter([1.0, times["slow"], times["fast"], 1.0, times["slow"]])

    def choose() -> list[str]:
        choose_products(model, torch.device("cpu"), torch.float32, tried, lambda run: next(turn))
        assert [layer.product for layer in layers] == [tried[3], None, tried[3], tried[3]]
        return capsys.readouterr().out.splitlines()

    first, second = choose()
    assert first == (
        f"int8_tensorwise: fast is the fastest for 33 rows, 2 of {WIDE} by {HIGH}, 1 of {HIGH} by "
        f"{HIGH} "
        f"({DEQUANTISING} 1.00 ms, error 0.000; wrong is wrong by 100%; refusing refuses (no such "
        "card); slow 0.99 ms, error 0.000; fast 0.50 ms, error 0.000)"
    )
    assert second.startswith(f"mxfp8: {DEQUANTISING} is the fastest for")
    assert choose() == []  # in this process they are known
    fastest.chosen.clear()
    assert choose() == [  # and by the next one
        "int8_tensorwise: fast, as it was chosen here before",
        f"mxfp8: {DEQUANTISING}, as it was chosen here before",
    ]


def test_a_cpu_dequantises(capsys) -> None:
    layer = layer_of("nvfp4")
    choose_products(torch.nn.Sequential(layer), torch.device("cpu"), torch.float32)
    assert layer.product is None
    assert capsys.readouterr().out.startswith("nvfp4: dequantised, then multiplied; only GPUs")
