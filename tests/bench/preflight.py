"""What `framepack check` says against what `framepack generate` then takes, setting by setting.

    python tests/bench/preflight.py DIR [SETTING ...]     DIR is of training_files.py

The transformer and the VAE have random weights at full size; the encoders are of full width but
few layers, for their time is not in the estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_files import DIT, TINY_SIZE, Size, size_of

from framepack_core.cli import main, read_command
from framepack_core.cli.check import Check
from framepack_core.headless.jobs import Job
from framepack_core.headless.models import open_job_models
from framepack_core.headless.request import decide
from framepack_core.models.image import SIGLIP_CONFIG, siglip_model
from framepack_core.models.text import CLIP_CONFIG, LLAMA_CONFIG, clip_model, llama_model
from framepack_core.models.vae import AutoencoderKL, VAEConfig
from framepack_core.runtime.files import size_text
from framepack_core.sampling.decode import RetryingDecode
from framepack_core.sampling.flow import FlowDenoiser
from framepack_core.toyworld import SNAPSHOT
from framepack_core.weights.files import save_weights

SETTINGS = {
    "bf16": ["--video_size", "640", "640"],
    "f1, cfg": ["--f1", "--video_size", "480", "832", "--guidance_scale", "2"],
    "fp8_scaled": ["--fp8_scaled", "--video_size", "768", "512"],
    "window 5": ["--latent_window_size", "5", "--video_size", "736", "480"],
    "20 to swap": [
        *("--blocks_to_swap", "20", "--use_pinned_memory_for_block_swap"),
        *("--video_size", "640", "640"),
    ],
}
SMALL = ["--video_size", "64", "64"]
RUN = ["--prompt", "a cat walks on the grass", "--video_sections", "2", "--infer_steps", "4"]
RUN += ["--seed", "1", "--no_ledger"]


def make_encoders(folder: Path, size: Size) -> Path:
    """A snapshot of encoders and a VAE of random weights, with Toy World's tokenizers."""
    root = folder / "encoders"
    if root.is_dir():
        return root
    tiny = size is TINY_SIZE
    heads, layers = (2, 3) if tiny else (32, 3)
    narrow = {"num_hidden_layers": layers, "intermediate_size": 64, "num_attention_heads": heads}
    toy = {n: json.loads((SNAPSHOT / n / "config.json").read_text()) for n in _TOKENIZED}
    words = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    known = [{key: toy[n][key] for key in words if key in toy[n]} for n in _TOKENIZED]
    config = size.config
    llama = LLAMA_CONFIG | narrow | known[0] | {"hidden_size": config.text_embed_dim}
    llama["num_key_value_heads"] = heads
    clip = CLIP_CONFIG | narrow | known[1] | {"hidden_size": config.pooled_projection_dim}
    clip["num_attention_heads"] = 2
    siglip = SIGLIP_CONFIG | narrow | {"hidden_size": config.image_proj_dim}
    siglip["num_attention_heads"] = 2
    vae = SNAPSHOT / "vae" if tiny else None
    models: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], nn.Module]]] = {
        "text_encoder": (llama, llama_model),
        "text_encoder_2": (clip, clip_model),
        "image_encoder": (siglip, siglip_model),
        "vae": (
            json.loads((vae / "config.json").read_text()) if vae else {},
            lambda c: AutoencoderKL(VAEConfig.from_dict(c), device="meta"),
        ),
    }
    for name, (values, make) in models.items():
        (root / name).mkdir(parents=True)
        shapes = make(values).state_dict()
        state = {n: 0.02 * torch.randn(x.shape).half() for n, x in shapes.items()}
        save_weights(root / name / "model.safetensors", state, {})
        if values:
            (root / name / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer", "tokenizer_2"):
        (root / name).symlink_to(SNAPSHOT / name)
    return root


_TOKENIZED = ("text_encoder", "text_encoder_2")


class Watch:
    """Seconds of sampling and decoding, and the most memory while the transformer was there."""

    def __init__(self) -> None:
        self.first = self.last = self.decoding = 0.0
        self.memory = 0

    def __enter__(self) -> Watch:
        self._kept = FlowDenoiser.denoise, RetryingDecode.__call__
        denoise, decode, watch = *self._kept, self

        def timed_denoise(self: FlowDenoiser, *args: Any, **kwargs: Any) -> Any:
            _synchronize()
            if not watch.first:
                watch.first = time.perf_counter()
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
            found = denoise(self, *args, **kwargs)
            _synchronize()
            watch.last = time.perf_counter()
            if torch.cuda.is_available():
                watch.memory = torch.cuda.max_memory_allocated()
            return found

        def timed_decode(self: RetryingDecode, *args: Any) -> Any:
            start = time.perf_counter()
            found = decode(self, *args)
            _synchronize()
            watch.decoding += time.perf_counter() - start
            return found

        FlowDenoiser.denoise, RetryingDecode.__call__ = timed_denoise, timed_decode
        return self

    def __exit__(self, *_: object) -> None:
        FlowDenoiser.denoise, RetryingDecode.__call__ = self._kept

    @property
    def sampling(self) -> float:
        return self.last - self.first


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(name: str, options: list[str]) -> str:
    """A row of the table."""
    command = read_command(["check", *options])[1]
    check = Check(Job.prepare(decide(command))[0], open_job_models(command))
    print("\n".join(check.lines()), flush=True)
    request, scene = check.job.request, check.job.request.scene
    passes = scene.sections * request.sampler.steps * (1 if request.negative_prompt is None else 2)
    said = passes * check.step.seconds, check._decoding.seconds
    memory = check._transformer_need
    with Watch() as watch:
        assert main(["generate", *options]) == 0
    took = watch.sampling, watch.decoding
    row = f"{name:<20}"
    if watch.memory:
        row += (
            f" memory {size_text(memory)} / {size_text(watch.memory)}"
            f" = {memory / watch.memory:.2f};"
        )
    return (
        f"{row} sampling {said[0]:.1f} / {took[0]:.1f} s; decoding {said[1]:.1f} / {took[1]:.1f} s;"
        f" time = {sum(said) / sum(took):.2f}"
    )


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of training_files.py")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(SETTINGS))
    args = parser.parse_args()
    size = size_of(args.folder)
    torch.manual_seed(0)
    root = make_encoders(args.folder, size)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        picture = Path(work) / "start.png"
        Image.effect_noise((640, 640), 64).convert("RGB").save(picture)
        common = ["--snapshot", str(root), "--dit", str(args.folder / DIT), *RUN]
        common += ["--image_path", str(picture), "--save_path", work]
        for name in args.settings or SETTINGS:
            small = SMALL if size is TINY_SIZE else []
            swap = [w if w != "40" else "2" for w in SETTINGS[name]] if small else SETTINGS[name]
            rows.append(compare(name, [*common, *swap, *small]))
            print(rows[-1], flush=True)
    print("\n".join(["what was said / what it took", *rows]))


if __name__ == "__main__":
    run()
