"""Whether real files compute here what the reference computes with them, one model at a time.

Ours runs and is freed before the reference does, whose blocks visit the device one after the other:
the device never holds more than one model.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models.build import dit_config
from ..runtime.fingerprint import file_sha256
from ..runtime.memory import limited_memory
from ..weights.layouts import TITLES, Component, find_component
from .job import AnyJob
from .model_files import find_models
from .models import Models, open_models
from .options import FLAGS, TransformerOptions
from .verify_lora import FormulaLoras
from .verify_models import (
    DIFFUSERS_DIT,
    DIFFUSERS_VAE,
    VAE_PARTS,
    Tokens,
    Types,
    clip_subject,
    dit_cases,
    dit_subject,
    from_diffusers,
    llama_subject,
    our_clip,
    our_dit,
    our_llama,
    our_siglip,
    our_vae,
    reference_dit,
    reference_encoder,
    reference_vae,
    siglip_subject,
    vae_subject,
)
from .verify_report import Case, Checked, CheckedFile, Report
from .verify_stages import Recording, Subject, judge, record
from .verify_weights import Held, Loaded, ReferenceModel, ReferenceWeights, wrong_weights

Change = Callable[[str, Tensor], Tensor]
RESULT = "result"
REST = "output layers"


def open_verification(job: AnyJob, reference: Path | None = None) -> Verification:
    """What a job's options name: every component that is given, all of a snapshot.

    reference: a snapshot whose weights the reference takes, by default the same files. Raises
    FramePackError for what is missing or of another kind.
    """
    named: set[Component] = set(FLAGS if job.models.root else job.models.named)
    if named & {"llama", "clip"}:
        named |= {"llama", "clip"}  # they are loaded together
    needed: list[Component] = [component for component in FLAGS if component in named]
    models = open_models(
        job.models,
        needed,
        f1=job.prompt.f1,
        fp8=job.fp8,
        execution=job.execution,
        loras=job.loras,
        decoding=job.decoding,
    )
    others = models.paths
    if reference is not None:
        others = find_models(TransformerOptions(snapshot=str(reference)), needed, job.prompt.f1)
    return Verification(models, others)


@dataclass
class _Ours:
    """What one of our models made of each case, and how it holds its weights."""

    checked: Checked
    component: Component
    types: Types
    held: Mapping[str, Held]
    recordings: dict[str, Recording]


@dataclass
class Verification:
    """Models as a run would use them, and where the reference finds its weights."""

    models: Models
    others: Mapping[Component, Path]

    def run(self) -> Iterator[Checked]:
        """Check one component after the other."""
        paths = {c: find_component(path, c).weights for c, path in self.models.paths.items()}
        loras = [use.lora.path for use in self.models.loras]
        limit = limited_memory(self.models.execution.gpu_memory, self.models.device)
        with limit as self.models.budget, ThreadPoolExecutor() as pool:
            wanted = [*loras, *(path for weights in paths.values() for path in weights)]
            digests = {path: pool.submit(file_sha256, path) for path in wanted}
            for component, checked in self._components():
                files = loras if component is None else paths[component]
                checked.files = [
                    CheckedFile(p.name, p.stat().st_size, digests[p].result()) for p in files
                ]
                yield checked

    def report(self) -> Report:
        """An empty report of this run."""
        models = self.models
        attention = getattr(models.attention, "name", "sdpa")
        settings = f"{models.precision} weights, attention {attention}"
        if models.execution.swapped:
            settings += f", {models.execution.swapped} blocks swapped"
        if models.execution.gpu_memory is not None:
            settings += f", within {models.execution.gpu_memory:g} GiB"
        if models.execution.compilation is not None:
            settings += ", compiled"
        name = str(models.device)
        if models.device.type == "cuda":
            name = torch.cuda.get_device_name(models.device)
        return Report(name, settings)

    def _components(self) -> Iterator[tuple[Component | None, Checked]]:
        """The component, None for LoRAs, and what was found."""
        paths = self.models.paths
        if "vae" in paths:
            yield "vae", self._vae()
        if "llama" in paths:
            yield from self._text_encoders()
        if "image_encoder" in paths:
            yield "image_encoder", self._image_encoder()
        if "dit" in paths:
            yield from self._transformer()

    def _vae(self) -> Checked:
        label = _reference_name(DIFFUSERS_VAE)
        with self.models.vae() as vae:
            types = self._types(_dtype(vae))
            subjects = {part: our_vae(vae, part, types) for part in VAE_PARTS}
            ours = self._ours("vae", vae, label, types, subjects)
        del vae, subjects
        reference = reference_vae(self.others["vae"])
        return self._judged(ours, reference, partial(vae_subject, reference.model))

    def _text_encoders(self) -> Iterator[tuple[Component, Checked]]:
        with self.models.text_encoders() as encoders:
            types, tokens = self._types(_dtype(encoders.clip)), Tokens.of(encoders)
            subjects = {"a prompt in the template": our_llama(encoders, tokens, types)}
            llama = self._ours("llama", encoders.llama, "LlamaModel", types, subjects)
            subjects = {"a prompt": our_clip(encoders, tokens, types)}
            clip = self._ours("clip", encoders.clip, "CLIPTextModel", types, subjects)
        del encoders, subjects
        for ours, subject_of in ((llama, llama_subject), (clip, clip_subject)):
            reference = reference_encoder(ours.component, self.others[ours.component])
            subject = partial(subject_of, reference.model, tokens)
            yield ours.component, self._judged(ours, reference, lambda _, t, s=subject: s(t))

    def _image_encoder(self) -> Checked:
        with self.models.image_encoder() as encoder:
            types = self._types(_dtype(encoder.model))
            subjects = {"a picture": our_siglip(encoder)}
            ours = self._ours("image_encoder", encoder.model, "SiglipVisionModel", types, subjects)
        del encoder, subjects
        reference = reference_encoder("image_encoder", self.others["image_encoder"])
        return self._judged(
            ours, reference, lambda _, types: siglip_subject(reference.model, types)
        )

    def _transformer(self) -> Iterator[tuple[Component | None, Checked]]:
        types, uses = self._types(self.models.dtype), self.models.loras
        cases = {case.title: case for case in dit_cases(dit_config(self.models.paths["dit"]))}
        label = _reference_name(DIFFUSERS_DIT)
        with self.models.dit() as dit:
            applied = self.models.applied
            subjects = {title: our_dit(dit, case, types) for title, case in cases.items()}
            with applied.scaled(0) if applied is not None else nullcontext():
                ours = self._ours("dit", dit, label, types, subjects)
            first = next(iter(cases))
            with_loras = {first: record(subjects[first])} if uses else {}
        del dit, applied, subjects
        reference = reference_dit(self.others["dit"])

        def subject(title: str, types: Types) -> Subject:
            return dit_subject(reference.model, cases[title], types)

        yield "dit", self._judged(ours, reference, subject)
        if uses:
            change = FormulaLoras(uses, ours.held)
            names = ", ".join(f"{use.lora.path.name} at {use.strength:g}" for use in uses)
            how = "by their formula" if change.plain else "with the factors of our readers"
            checked = Checked(f"LoRA {names}", f"{label}, merged {how}", ours.checked.dtype)
            loras = replace(ours, checked=checked, recordings=with_loras)
            yield None, self._judged(loras, reference, subject, change)

    def _types(self, dtype: torch.dtype) -> Types:
        return Types(dtype, dtype, self.models.device)

    def _ours(
        self,
        component: Component,
        model: nn.Module,
        reference: str,
        types: Types,
        subjects: Mapping[str, Subject],
    ) -> _Ours:
        """Compare a loaded model's weights with the reference's, and run its cases."""
        loaded = Loaded(component, model, types.ours)
        held = loaded.held()
        own = ReferenceWeights(component, self.models.paths[component], held)
        other = ReferenceWeights(component, self.others[component], held)
        checked = Checked(TITLES[component], reference, _type_name(types.ours))
        stored = _counted(map(own.stored, held))
        checked.weights = f"{stored} in the file, {_counted(held.values())} here"
        checked.wrong = wrong_weights(loaded, own, other, self.models.device)
        recordings = {title: record(subject) for title, subject in subjects.items()}
        return _Ours(checked, component, types, held, recordings)

    def _judged(
        self,
        ours: _Ours,
        reference: ReferenceModel,
        subject: Callable[[str, Types], Subject],
        change: Change | None = None,
    ) -> Checked:
        """Run the reference twice in each of two types: on our stages' outputs, and on its own.

        subject: the reference on the input of this title. change: LoRAs.
        """
        _free(self.models.device)
        path = self.others[ours.component]
        weights = ReferenceWeights(ours.component, path, ours.held, change)
        own = ours.types.ours
        for title, recorded in ours.recordings.items():
            forced: list[Recording] = []
            free: list[list[Tensor]] = []
            for types in (ours.types, _wider(ours.types)):
                exact = types.used != own
                with _without_tf32(), reference.loaded(weights, types.used, exact, types.device):
                    forced.append(record(subject(title, types), recorded.stages))
                    free.append(record(subject(title, types)).result)
            rounded, truth = forced
            stages = [
                judge(name, parts, rounded.stages[name], truth.stages[name], own)
                for name, parts in recorded.stages.items()
            ]
            stages.append(judge(REST, recorded.result, rounded.result, truth.result, own))
            result = judge(RESULT, recorded.result, free[0], free[1], own)
            ours.checked.cases.append(Case(title, stages, result))
        return ours.checked


def _wider(types: Types) -> Types:
    """In which rounding shows."""
    if types.ours != torch.float32:
        return types._replace(used=torch.float32)
    # Apple's GPUs have nothing wider
    device = torch.device("cpu") if types.device.type == "mps" else types.device
    return types._replace(used=torch.float64, device=device)


def _reference_name(name: str) -> str:
    """What the reference is called that a class of diffusers is where it is installed."""
    return "plain PyTorch" if from_diffusers(name) is None else name


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _counted(held: Iterable[Held]) -> str:
    """The types of weights and how many have each."""
    return " and ".join(f"{n} {kind}" for kind, n in Counter(map(str, held)).most_common())


def _free(device: torch.device) -> None:
    """Give back what the model before took."""
    gc.collect()  # transformers' models refer to themselves
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """PyTorch lets convolutions in fp32 round to 10 bits, which is no better than fp16."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products
