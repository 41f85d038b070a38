"""The training loop: bit-exact resuming, files that survive, adapters that load again."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import CONFIG, context, guided, multiply_in_fp8, randn, tiny_dit
from tiny_training import make_samples, run, state_of, tiny_config
from torch import Tensor

from framepack_core.lora.files import load_lora
from framepack_core.models import attention_kernels, products
from framepack_core.models.build import load_dit
from framepack_core.runtime.errors import FramePackError
from framepack_core.runtime.options import validate
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.training import blocks, loop
from framepack_core.training.adapters import Adapters
from framepack_core.training.batches import Batches
from framepack_core.training.config import AdapterConfig, TrainConfig
from framepack_core.training.loop import Callbacks, StepReport, train
from framepack_core.weights.files import open_weights, save_weights
from framepack_core.weights.quantised_linear import QuantisedLinear

WORKER = Path(__file__).with_name("tiny_training.py")


def start_worker(*arguments: object) -> int:
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120).returncode


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """16 updates; against 8, three that are lost to kill -9, and 8 more."""
    whole = tiny_config(tmp_path / "whole", steps=16, save_every_steps=8)
    samples = make_samples(tmp_path / "whole_cache")
    run(whole, samples)
    assert start_worker(tmp_path, 16, 11) == -9
    stopped = tiny_config(tmp_path / "out", steps=16, save_every_steps=8)
    assert state_of(stopped)["step"] == 8
    assert open_weights(stopped.output_dir / "tiny-step00000008.safetensors")
    assert len(stopped.log_path.read_text().splitlines()) == 11
    assert start_worker(tmp_path, 16, 0, "resume") == 0
    first, second = state_of(whole), state_of(stopped)
    for part in ("step", "adapter", "optimizer", "log"):
        assert_same(first[part], second[part])
    assert whole.log_path.read_text() == stopped.log_path.read_text()
    assert (
        dict(open_weights(whole.adapter_path)).keys()
        == dict(open_weights(stopped.adapter_path)).keys()
    )
    assert len(first["log"]) == 16


def test_a_run_attends_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that attends as PyTorch does trains the same, and is what did it."""
    calls = []

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        out = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v))
        )
        return out.transpose(1, 2)

    monkeypatch.setattr(attention_kernels, "_module", importlib.import_module)  # without a cache
    package = SimpleNamespace(flash_attn_func=flash, __spec__="found")
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    samples = make_samples(tmp_path / "cache")
    plain = run(tiny_config(tmp_path / "torch"), samples)
    assert not calls
    told = run(tiny_config(tmp_path / "flash", attn_mode="flash"), samples)
    assert calls and told.losses == pytest.approx(plain.losses, rel=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, steps=60, caption_dropout=0, adapter=AdapterConfig(rank=8, alpha=8)
    )
    result = run(config, make_samples(tmp_path / "cache", clips=1))
    losses = torch.tensor(result.losses)
    assert losses[-20:].mean() < 0.8 * losses[:10].mean()


@pytest.mark.parametrize(("precision", "lost"), [("float8_e4m3fn", 0.06), ("int8_convrot", 0.02)])
def test_it_learns_on_weights_in_their_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, lost: float
) -> None:
    """The losses are those on whole weights, within what the numbers lose."""
    if precision == "float8_e4m3fn":
        multiply_in_fp8()
    save_weights(tmp_path / "dit.safetensors", tiny_dit().state_dict())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    samples, losses, multiplied = make_samples(tmp_path / "cache"), {}, []

    def choose(model: torch.nn.Module, *_: object) -> bool:
        """As on a GPU where they are the fastest."""
        for layer in model.modules():
            if isinstance(layer, QuantisedLinear):
                layer.product = next((p for p in products.PRODUCTS if p.takes(layer)), None)
                multiplied.append(layer.product is not None)
        return True

    monkeypatch.setattr(loop, "choose_products", choose)
    monkeypatch.setattr(products, "FEWEST", 1)
    for kept in ("full", precision):
        dit = load_dit(tmp_path / "dit.safetensors", dtype=torch.float32, precision=kept)
        before = {name: x.clone() for name, x in dit.state_dict().items()}
        config = tiny_config(
            tmp_path / kept, steps=8, learning_rate=3e-2, caption_dropout=0.0, quantized_matmul=True
        )
        losses[kept] = train(config, FlowDenoiser(dit), Batches(samples, 1), Callbacks()).losses
        assert all(torch.equal(x, before[name]) for name, x in dit.state_dict().items())
    assert any(multiplied)
    for whole, own in zip(losses["full"], losses[precision], strict=True):
        assert whole != own and own == pytest.approx(whole, rel=lost)


def test_quantized_matmul_of_a_model_that_is_not_quantised(tmp_path: Path, caplog) -> None:
    run(
        tiny_config(tmp_path, steps=1, quantized_matmul=True),
        make_samples(tmp_path / "cache", clips=1),
    )
    assert "quantized_matmul: no effect" in caplog.text


def test_an_exception_keeps_what_was_reached(tmp_path: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    config, samples = tiny_config(tmp_path), make_samples(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        run(config, samples, Callbacks(stop))
    assert state_of(config)["step"] == 3
    assert (tmp_path / "tiny-step00000003.safetensors").is_file()
    resumed = run(config.model_copy(update={"resume": True}), samples)
    straight = run(tiny_config(tmp_path / "straight"), samples)
    assert resumed.losses == straight.losses


def test_a_bad_loss_stops_before_the_weights(tmp_path: Path) -> None:
    dit = tiny_dit()
    seen = []

    def poison(report: StepReport) -> None:
        seen.append(report.step)
        if report.step == 2:
            dit.proj_out.weight.fill_(torch.nan)

    config = tiny_config(tmp_path)
    batches = Batches(make_samples(tmp_path / "cache"))
    with pytest.raises(FramePackError, match="step 3: the loss is nan"):
        train(config, FlowDenoiser(dit), batches, Callbacks(poison))
    assert seen == [1, 2] and state_of(config)["step"] == 2
    assert all(x.isfinite().all() for x in state_of(config)["adapter"].values())


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    config = tiny_config(tmp_path)
    with pytest.raises(FramePackError, match="nothing to resume"):
        run(config.model_copy(update={"resume": True}), samples)
    run(config, samples)
    other = config.model_copy(update={"resume": True, "learning_rate": 1.0})
    with pytest.raises(FramePackError, match=r"learning_rate = 0\.01, not 1\.0"):
        run(other, samples)
    config.state_path.write_bytes(config.state_path.read_bytes()[:1000])
    with pytest.raises(FramePackError, match="is damaged"):
        run(config.model_copy(update={"resume": True}), samples)


def test_resuming_on_other_data_is_refused(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    config = tiny_config(tmp_path)
    run(config, samples)
    with pytest.raises(FramePackError, match="was trained with other clips; put them back"):
        run(config.model_copy(update={"resume": True}), samples[1:])


def test_resuming_on_another_base_is_refused(tmp_path: Path) -> None:
    def resume(base: str) -> list[float]:
        batches = Batches(make_samples(tmp_path / "cache"), 42)
        steps = config.model_copy(update={"resume": config.exists, "steps": config.steps + 1})
        return train(steps, FlowDenoiser(tiny_dit()), batches, base=base).losses

    config = tiny_config(tmp_path, scheduler="constant")
    first = resume("one")
    with pytest.raises(FramePackError, match="another base model; load the one that it was"):
        resume("two")
    assert resume("one") == first


def test_a_run_of_version_0_1_resumes(tmp_path: Path) -> None:
    """Its settings as that version kept them: some have other names now, some are new."""
    samples = make_samples(tmp_path / "cache")
    config = tiny_config(tmp_path, steps=2, gradient_accumulation_steps=2)
    run(config, samples)
    state = state_of(config)
    digests = {name: json.loads(state["settings"])[name] for name in ("base", "data")}
    earlier = json.loads(Path(__file__).with_name("saved_training_settings_0.1.json").read_text())
    torch.save({**state, "settings": json.dumps({**earlier, **digests})}, config.state_path)
    other = {"resume": True, "gradient_accumulation_steps": 1}
    with pytest.raises(FramePackError, match="with gradient_accumulation_steps = 2, not 1"):
        run(config.model_copy(update=other), samples)
    with pytest.raises(FramePackError, match="with quantized_matmul = True, not False"):
        settings = {**earlier, **digests, "own_numbers": True}  # as it was called for a while
        torch.save({**state, "settings": json.dumps(settings)}, config.state_path)
        run(config.model_copy(update={"resume": True, "steps": 3}), samples)
    torch.save({**state, "settings": json.dumps({**earlier, **digests})}, config.state_path)
    resumed = run(config.model_copy(update={"resume": True, "steps": 3}), samples)
    assert len(resumed.losses) == 3


def test_a_name_is_not_written_over(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    config = tiny_config(tmp_path)
    run(config, samples)
    with pytest.raises(FramePackError, match="this run is there already"):
        run(config, samples)
    assert config.renamed().output_name == "tiny_2"
    run(config.renamed(), samples)
    assert config.renamed().output_name == "tiny_3"


def test_starting_from_an_adapter(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    first = tiny_config(tmp_path / "first", save_dtype="fp32")
    run(first, samples)
    second = tiny_config(
        tmp_path / "second",
        network_weights=first.adapter_path,
        learning_rate=1e-30,
        save_dtype="fp32",
        optimizer_args={"weight_decay": 0},
    )
    run(second, samples)
    start, end = (dict(open_weights(c.adapter_path)) for c in (first, second))
    assert start.keys() == end.keys()
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-25)


def test_a_host_without_gradients(tmp_path: Path) -> None:
    dit = tiny_dit()
    batches = Batches(make_samples(tmp_path / "cache"), 42)
    with torch.inference_mode():
        losses = train(tiny_config(tmp_path / "a"), FlowDenoiser(dit), batches).losses
    assert losses == train(tiny_config(tmp_path / "b"), FlowDenoiser(dit), batches).losses


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    losses = [
        run(tiny_config(tmp_path / str(on), gradient_checkpointing=on), samples).losses
        for on in (True, False)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("swapped", [0, 1, 3])
@pytest.mark.parametrize("inputs_to_cpu", [False, True])
def test_what_waits_in_main_memory_changes_nothing(
    tmp_path: Path, swapped: int, inputs_to_cpu: bool
) -> None:
    samples = make_samples(tmp_path / "cache")
    whole = run(tiny_config(tmp_path / "whole"), samples)
    spared = {"blocks_to_swap": swapped, "gradient_checkpointing_cpu_offload": inputs_to_cpu}
    sparing = run(tiny_config(tmp_path / "sparing", **spared), samples)
    assert sparing.losses == whole.losses
    for a, b in zip(whole.adapters.parameters(), sparing.adapters.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_inputs_of_all_blocks_wait_in_main_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by what is copied: every input but the first block's, which needs no gradient."""
    copied = []
    empty_like = torch.empty_like

    def seen(tensor: torch.Tensor, **options: object) -> torch.Tensor:
        if "pin_memory" in options and tensor.numel():  # PyTorch 2.6 saves an empty one too
            copied.append(tuple(tensor.shape))
        return empty_like(tensor, **options)

    monkeypatch.setattr(torch, "empty_like", seen)
    config = tiny_config(tmp_path, steps=1, gradient_checkpointing_cpu_offload=True)
    samples = make_samples(tmp_path / "cache")
    run(config, samples)
    double, single = tiny_dit().config.num_layers, tiny_dit().config.num_single_layers
    assert len(copied) == config.gradient_accumulation_steps * (2 * (double - 1) + single)


def test_a_tensor_that_is_not_on_the_model_s_device_does_not_move() -> None:
    """PyTorch 2.6 to 2.11 save an empty one on the CPU for each block; a GPU cannot fetch that."""
    tensor = torch.zeros(2, requires_grad=True)
    with blocks._Offload(torch.device("meta")).hooks():
        product = tensor * torch.ones(2, requires_grad=True)
    assert product.grad_fn is not None
    saved = product.grad_fn._saved_self, product.grad_fn._saved_other  # type: ignore[attr-defined]
    assert [x.device.type for x in saved] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "option", [{"blocks_to_swap": 1}, {"gradient_checkpointing_cpu_offload": True}]
)
def test_blocks_that_wait_need_checkpointing(tmp_path: Path, option: dict[str, int]) -> None:
    samples = make_samples(tmp_path / "cache")
    given = {**option, "gradient_checkpointing": False}
    with pytest.raises(FramePackError, match=f"x: {next(iter(option))}: needs gradient_checkp"):
        validate(TrainConfig, given, "x")
    unchecked = tiny_config(tmp_path).model_copy(update=given)
    with pytest.raises(FramePackError, match="wait in main memory need checkpointing; turn it on"):
        run(unchecked, samples)


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    """Four batches of one against one of four: the same captions and no dropout."""
    samples = make_samples(tmp_path / "cache", clips=2)
    batches = Batches(samples, seed=1)
    dit = tiny_dit()
    config = tiny_config(
        tmp_path,
        adapter=AdapterConfig(rank=2, alpha=2),
        steps=1,
        gradient_accumulation_steps=4,
        seed=1,
        caption_dropout=0,
    )
    loss = train(config, FlowDenoiser(dit), batches).losses[0]
    single = tiny_config(tmp_path / "single", adapter=config.adapter, steps=4, seed=1,
                         caption_dropout=0, learning_rate=1e-30)  # fmt: skip
    losses = train(single, FlowDenoiser(dit), batches).losses
    assert loss == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_keep_last(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    run(tiny_config(tmp_path, save_every_steps=1, keep_last=2, steps=5), samples)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == [
        "tiny-step00000003.safetensors",
        "tiny-step00000004.safetensors",
        "tiny.safetensors",
    ]


def test_validation_is_the_same_every_time(tmp_path: Path) -> None:
    samples = make_samples(tmp_path / "cache")
    config = tiny_config(tmp_path, validate_every_steps=1, learning_rate=1e-30, steps=2)
    found = []
    train(
        config,
        FlowDenoiser(tiny_dit()),
        Batches(samples[:4]),
        Callbacks(lambda report: found.append(report.validation)),
        validation=Batches(samples[4:]),
    )
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0] > 0


# --- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_file_is_the_adapter(tmp_path: Path, kind: str, rank: int) -> None:
    """What is trained beside the layers is what a reader of LoRA files adds to the weights."""
    dit = tiny_dit()
    adapters = Adapters.create(dit, AdapterConfig(kind=kind, rank=rank, alpha=3))
    for i, parameter in enumerate(adapters.parameters()):
        parameter.data = 0.1 * randn(*parameter.shape, seed=i)
    inputs = (randn(1, 16, 2, 4, 4), torch.tensor([0.5]), guided())
    denoiser = FlowDenoiser(dit)
    plain = denoiser.velocity(*inputs, context=context())
    with adapters.attached(dit):
        trained = denoiser.velocity(*inputs, context=context()).detach()
    assert not torch.allclose(plain, trained, atol=1e-2)

    from framepack_core.weights.files import save_weights

    path = tmp_path / "adapter.safetensors"
    save_weights(path, adapters.file_tensors(torch.float32))
    lora = load_lora(path, {n: tuple(p.shape) for n, p in dit.named_parameters()})
    parameters = dict(dit.named_parameters())
    assert len(lora.deltas) == 12 + 2 * 5
    for name, delta in lora.deltas.items():
        parameters[name] += delta.delta(parameters[name])
    merged = denoiser.velocity(*inputs, context=context())
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)


def test_an_adapter_begins_as_nothing() -> None:
    dit = tiny_dit()
    x = randn(1, 16, 2, 4, 4)
    for kind in ("lora", "loha", "lokr"):
        adapters = Adapters.create(dit, AdapterConfig(kind=kind, rank=2, alpha=2))
        plain = FlowDenoiser(dit).velocity(x, torch.tensor([0.5]), guided())
        with adapters.attached(dit):
            assert torch.equal(FlowDenoiser(dit).velocity(x, torch.tensor([0.5]), guided()), plain)


def test_all_layers_at_full_size() -> None:
    from framepack_core.models.dit import DiTConfig, FramePackDiT
    from framepack_core.training.adapters import select_layers

    with torch.device("meta"):
        dit = FramePackDiT(DiTConfig())
    assert len(select_layers(dit)) == 440
    assert len(select_layers(dit, include=(r"^transformer_blocks\.\d+\.norm1\.",))) == 20
    assert len(select_layers(dit, exclude=("single_",))) == 240
    with pytest.raises(FramePackError, match="include pattern 'blocks_9' matches none"):
        select_layers(dit, include=("blocks_9",))


def test_dropout_repeats_with_the_seed() -> None:
    config = AdapterConfig(rank=4, alpha=4, dropout=0.5, rank_dropout=0.3)
    adapter = next(Adapters.create(tiny_dit(), config)._adapters())
    adapter.factors["up"].data.fill_(1.0)
    x = torch.ones(64, 8, adapter.factors["down"].shape[1])
    out = torch.zeros(64, 8, len(adapter.factors["up"]))
    draws = [adapter.add_branch(out, x, seed).detach() for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    whole = adapter.add_branch(out, x, None).detach()
    mean = torch.stack([adapter.add_branch(out, x, n).detach().mean() for n in range(40)]).mean()
    torch.testing.assert_close(mean, whole.mean(), rtol=0.15, atol=0.02)


def test_a_step_may_leave_out_every_layer(tmp_path: Path) -> None:
    adapter = AdapterConfig(rank=2, alpha=2, module_dropout=0.6, include=("blocks.0.proj_out",))
    config = tiny_config(tmp_path, steps=8, adapter=adapter)
    norms: list[float] = []
    callbacks = Callbacks(lambda report: norms.append(report.grad_norm))
    losses = run(config, make_samples(tmp_path / "cache"), callbacks).losses
    assert len(losses) == len(norms) == 8
    assert 0 in norms and any(norms)


def test_adapters_of_another_rank_are_refused() -> None:
    dit = tiny_dit()
    small, large = (Adapters.create(dit, AdapterConfig(rank=r, alpha=1)) for r in (2, 3))
    with pytest.raises(FramePackError, match="use the rank of the file"):
        large.load_tensors(small.file_tensors(torch.float32))


def test_metadata_says_mode_and_network(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=1)
    run(config, make_samples(tmp_path / "cache"))
    metadata = open_weights(config.adapter_path).metadata
    assert metadata["framepack_mode"] == "framepack"
    assert metadata["ss_base_model_version"] == "framepack"
    assert metadata["ss_network_module"] == "networks.lora_framepack"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")
    assert metadata["modelspec.architecture"] == "framepack/lora"
    assert json.loads(metadata["ss_network_args"])["rank_dropout"] == 0.1
    assert "framepack_end_target" not in metadata


@pytest.mark.parametrize(("share", "sees_end"), [(0.0, False), (0.5, True)])
def test_a_lora_of_f1_says_that_it_has_seen_end_frames(
    tmp_path: Path, share: float, sees_end: bool
) -> None:
    config = tiny_config(
        tmp_path, steps=2, mode="f1", end_frame_prob=share, no_metadata=True, learning_rate=0.1
    )
    run(config, make_samples(tmp_path / "cache", mode="f1", ends=True))
    shapes = {name: x.shape for name, x in tiny_dit().state_dict().items()}
    assert load_lora(config.adapter_path, shapes).report.sees_end == sees_end


# --- rates ----------------------------------------------------------------------------------------


def test_a_run_takes_them(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        scheduler_type="torch.optim.lr_scheduler.StepLR",
        scheduler_args={"step_size": 1, "gamma": 0.5},
        learning_rate=0.08,
    )
    seen = []
    run(config, make_samples(tmp_path / "cache"), Callbacks(lambda r: seen.append(r.rate)))
    assert seen == pytest.approx([0.08, 0.04, 0.02, 0.01])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamw9bit", "'adamw9bit' is unknown"),
        ("no_such_package.Adam", "run: pip install no_such_package"),
        ("torch.optim.Adamm", r"torch\.optim has no Adamm"),
    ],
)
def test_unknown_optimisers(tmp_path: Path, name: str, message: str) -> None:
    samples = make_samples(tmp_path / "cache")
    with pytest.raises(FramePackError, match=message):
        run(tiny_config(tmp_path, optimizer=name), samples)
    with pytest.raises(FramePackError, match="optimizer_args: adamw does not take them"):
        run(tiny_config(tmp_path, optimizer_args={"speed": 1}), samples)


def test_adapter_settings_are_checked() -> None:
    for change, message in (
        ({"rank": 0}, "x: rank: 0 must be above 0"),
        ({"dropout": 1.0}, r"x: dropout: 1\.0 must be below 1"),
        ({"kind": "dora"}, "x: kind: 'dora' is unknown; use 'lora', 'loha' or 'lokr'"),
        ({"kind": "loha", "dropout": 0.1}, "x: dropout: loha has none; use rank_dropout"),
    ):
        with pytest.raises(FramePackError, match=message):
            validate(AdapterConfig, change, "x")
