"""Masks of control images, as the sampler finds them in the context of a one-frame section."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from framepack_core.sampling.generate import SectionTask
from framepack_core.sampling.masks import latent_mask, mask_latents
from framepack_core.sampling.one_frame import OneFrame, generate_one_frame, plan_one_frame
from framepack_core.sampling.sections import LATENT_STRIDE

from .result import Case, compare, compare_ours, digest


def check(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.glob("one_frame_mask*.safetensors")):
        tensors = load_file(path)
        controls, expected = tensors["control_latents"], tensors["clean_latents"]
        height, width = (LATENT_STRIDE * side for side in controls.shape[3:])
        pictures = [mask_of(tensors, i) for i in range(controls.shape[2])]
        masks = [None if x is None else latent_mask(x.numpy(), width, height) for x in pictures]
        clean = masked_context(controls, masks)
        for i in range(expected.shape[2]):
            name = f"{path.stem}.control{i}" if i < controls.shape[2] else f"{path.stem}.post"
            picture = pictures[i] if i < len(pictures) else None
            if picture is None or picture.shape[1] * height == picture.shape[0] * width:
                yield compare(name, clean[:, :, i], expected[:, :, i], 0.0, 1e-5)
            else:
                yield from cropped(
                    name, clean[:, :, i], controls[:, :, i], expected[:, :, i], picture
                )


def cropped(
    name: str, ours: Tensor, control: Tensor, reference: Tensor, mask: Tensor
) -> Iterator[Case]:
    """A mask of another shape than the video: the reference stretches it, we cut its middle out."""
    height, width = mask.shape
    aspect = control.shape[-1] / control.shape[-2]
    across, down = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - across) / 2, (height - down) / 2

    def masked(box: tuple[float, float, float, float] | None) -> Tensor:
        size = (control.shape[-1], control.shape[-2])
        small = Image.fromarray(mask.numpy()).resize(size, Image.Resampling.LANCZOS, box=box)
        return control * (torch.from_numpy(np.array(small)).float() / 255)

    yield compare(f"{name}.stretched", masked(None), reference, 0.0, 1e-5)
    yield compare_ours(
        name,
        "mask-stretched",
        ours,
        rule=masked((left, top, left + across, top + down)),
        reference=reference,
        inputs=digest(mask, control),
        rtol=0.0,
        atol=1e-5,
    )


def mask_of(tensors: dict[str, Tensor], control: int) -> Tensor | None:
    """The mask file of a control, else its alpha, from tensors named mask<control>_..."""
    given = sorted(name for name in tensors if name.startswith(f"mask{control}_"))
    return tensors[max(given, key=lambda name: "file" in name)] if given else None


def masked_context(controls: Tensor, masks: list[Tensor | None]) -> Tensor:
    seen: list[Tensor] = []

    def sample(task: SectionTask) -> Tensor:
        seen.append(task.context.clean)
        return task.noise

    section = plan_one_frame(OneFrame(), controls.shape[2])
    generate_one_frame(section, sample, mask_latents(controls, masks), seed=0)
    return seen[0]
