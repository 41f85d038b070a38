"""`framepack generate`: an image and a prompt to a video, or a latent file to a video."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..runtime.errors import FramePackError
from ..sampling.decode import decode_bulk, decode_sections, decode_slices
from ..sampling.flow import CFG, Guided
from ..sampling.generate import StepInfo, generate, unipc_sampler
from ..sampling.latents import load_latents, save_latents
from ..sampling.sections import FPS, LATENT_STRIDE
from .models import FLAGS, Decoding, Models, explain_out_of_memory
from .output import LATENT_SUFFIX, Output
from .request import Calibration, Request, latents_window

LATENT_BYTES = 16 * 4  # 16 channels in fp32
FREE_MEMORY = "the encoders need about 16 GB in one piece: close what else uses it"
SMALLER_VIDEO = "make the video smaller (--video_size) or the window shorter (--latent_window_size)"
SMALLER_DECODE = "add --vae_chunk_size 16, then --vae_spatial_tile_sample_min_size 128"


def run(args: Namespace) -> None:
    """Make what the options ask for and print where it is."""
    paths = decode_file(args) if args.latent_path else make_from_args(args)
    for path in paths:
        print(path)


def make_from_args(args: Namespace) -> list[Path]:
    """Check all that is cheap to check, then make the video."""
    request = Request.from_args(args)
    time = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    output = Output.from_args(args, name=f"{time}_{request.seed}")
    width, height = request.size
    latents = request.plan.latent_frames * (height // LATENT_STRIDE) * (width // LATENT_STRIDE)
    output.check(latents * LATENT_BYTES)
    models = Models.from_args(args, list(FLAGS))
    return make_video(request, models, output, Decoding.from_args(args))


def make_video(request: Request, models: Models, output: Output, decoding: Decoding) -> list[Path]:
    """The files made; latents are on disk before they are decoded, in case that fails."""
    print(request.plan.describe(*request.size))
    print(f"seed {request.seed}", flush=True)
    latents = sample(request, models)
    if isinstance(request.sampler.step_cache, Calibration):
        print(f"--magcache_mag_ratios {request.sampler.step_cache.ratios()}")
    metadata = request.metadata(output.fps)
    save_latents(output.latent_path, latents, metadata if output.with_metadata else None)
    if not output.decodes:
        return [output.latent_path]
    with _latents_kept(output, models):
        made = decode(latents, request.plan.window, models, output, decoding, metadata)
    if output.keeps_latents:
        return [output.latent_path, made]
    output.latent_path.unlink()
    return [made]


def decode_file(args: Namespace) -> list[Path]:
    """Decode the latents of a file, without any model but the VAE."""
    if not (args.vae or args.snapshot):
        raise FramePackError("--latent_path: name the VAE that fits, with --vae or --snapshot")
    latents, metadata = load_latents(args.latent_path)
    name = Path(args.latent_path).stem.removesuffix(LATENT_SUFFIX)
    output = Output.from_args(args, name, fps=float(metadata.get("fps", FPS)))
    if not output.decodes:
        raise FramePackError("--output_type latent: the latents are in a file already")
    output.check(latent_bytes=0)
    decoding = Decoding.from_args(args)
    window = latents_window(args, metadata)
    if not decoding.bulk:
        decode_slices(latents.shape[2], window)  # refuses a wrong window
    models = Models.from_args(args, ["vae"])
    return [decode(latents, window, models, output, decoding, metadata)]


def sample(request: Request, models: Models) -> Tensor:
    """Encode, then sample all sections: latents [1, 16, 1 + n W, h, w]."""
    with_cfg = request.cfg_scale != 1
    prompts = [request.prompt, request.negative_prompt or ""][: 1 + with_cfg]
    print("encoding the prompt and the image", flush=True)
    with explain_out_of_memory(FREE_MEMORY):
        [(start, image)] = models.encode_images([request.image])
        texts = models.encode_texts(prompts, request.system_prompt)
        models.release()
    with explain_out_of_memory(SMALLER_VIDEO):
        positive, *negative = (Guided(text, image, request.guidance) for text in texts)
        cfg = CFG(negative[0], request.cfg_scale, request.cfg_rescale) if with_cfg else None
        denoiser = models.denoiser(request.rope_scaling)
        with _section_bar(len(request.plan.sections), request.sampler.steps) as on_step:
            sampler = unipc_sampler(denoiser, positive, request.sampler, cfg, on_step)
            latents = generate(request.plan, sampler, start, request.seed).cpu()
    del denoiser, sampler
    models.release()
    return latents


def decode(
    latents: Tensor,
    window: int,
    models: Models,
    output: Output,
    decoding: Decoding,
    metadata: Mapping[str, str],
) -> Path:
    """Decode latents [1, 16, F, h, w] straight into the output's video or pictures."""
    with explain_out_of_memory(SMALLER_DECODE):
        decoder = models.decoder(decoding)
        if decoding.bulk:
            clips, count = decode_bulk(decoder, latents), 1
        else:
            clips = decode_sections(decoder, latents, window)
            count = len(decode_slices(latents.shape[2], window))
        size = LATENT_STRIDE * latents.shape[4], LATENT_STRIDE * latents.shape[3]
        return output.write(tqdm(clips, "decoding", count), size, metadata)


@contextmanager
def _section_bar(sections: int, steps: int) -> Iterator[Callable[[StepInfo], None]]:
    """A bar over all steps of all sections, to be told of each."""
    with tqdm(total=sections * steps, desc=f"section 1/{sections}", unit="step") as bar:

        def on_step(info: StepInfo) -> None:
            bar.set_description(f"section {info.order + 1}/{sections}", refresh=False)
            bar.update()

        yield on_step


@contextmanager
def _latents_kept(output: Output, models: Models) -> Iterator[None]:
    """Whatever happens, say where the latents are and how to go on from them."""
    advice = (
        f"the latents are kept; to decode them: framepack generate --latent_path "
        f"{output.latent_path} --vae {models.paths['vae']} --save_path FOLDER"
    )
    try:
        yield
    except FramePackError as error:
        raise FramePackError(f"{error}; {advice}") from error
    except BaseException:
        print(f"warning: {advice}", file=sys.stderr)
        raise
