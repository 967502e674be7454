"""Trains the text encoder and the UNet on cached latents, and saves a diffusers pipeline.

``python -m bases.tiny.recipe.unet --out base --vae vae --minutes 90 [--init OLD] [--workers 2]``

v-prediction with a schedule that ends in pure noise (zero terminal SNR, Lin et al. 2023,
arXiv:2305.08891): plain colours and dark scenes need it. Two single-threaded processes that
average their gradients use two cores better than one process with two threads.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .material import NAMED, Sprites, load_sprites
from .scenes import Painter

TEXT_WIDTH = 128
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.998


@dataclass
class Parts:
    """What is trained, and what it needs."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler

    def parameters(self) -> list[nn.Parameter]:
        """All trained weights: 7.1 M of the UNet, 0.6 M of the text encoder."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def tokens(self, captions: list[str]) -> Tensor:
        """Token ids ``[B, 24]``."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=length)
        return torch.tensor(ids.input_ids)


def new_parts(tokenizer: CLIPTokenizer, channels: int) -> Parts:
    """A small UNet (48, 96, 160 channels, one layer a block) and a two-layer text encoder."""
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    return Parts(unet, text_encoder, tokenizer, scheduler)


@torch.no_grad()
def widened(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """A copy for more latent channels: first and last layer grow, all else stays."""
    if unet.config.in_channels == channels:
        return unet
    kept, weights = unet.config.in_channels, unet.state_dict()
    config = dict(unet.config) | {"in_channels": channels, "out_channels": channels}
    new = UNet2DConditionModel.from_config(config)
    for name, weight in new.state_dict().items():
        if weight.shape == weights[name].shape:
            weight.copy_(weights[name])
        else:
            weight *= 0.0 if name.endswith("bias") else 0.3
            target = weight[:, :kept] if name == "conv_in.weight" else weight[:kept]
            target.copy_(weights[name])
    return new


@torch.no_grad()
def encode_material(
    parts: Parts, vae: AutoencoderKL, sprites: Sprites, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Latents ``[count, C, 16, 16]`` (fp16) and token ids ``[count, 24]`` of painted pictures.

    30 % of the pictures show any sprite under a placeholder noun; the others show the named
    concepts, so that few things are drawn well rather than many badly.
    """
    rng, painter = random.Random(seed), Painter(sprites, seed)
    named, everything = sprites.indices(frozenset(NAMED)), range(len(sprites.names))
    latents, tokens = [], []
    for batch in range(count // 64):
        anonymous = batch % 10 < 3
        indices = [rng.choice(everything if anonymous else named) for _ in range(64)]
        pictures, captions = painter.paint(indices, placeholder_share=1.0 if anonymous else 0.0)
        latents.append(vae.encode(pictures).latent_dist.mean.half())
        tokens.append(parts.tokens(captions))
    return torch.cat(latents), torch.cat(tokens)


def _average_gradients(weights: list[nn.Parameter], workers: int) -> None:
    flat = torch.cat([weight.grad.view(-1) for weight in weights])
    dist.all_reduce(flat)
    flat /= workers
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.grad.copy_(part.view_as(weight))


def draw_times(count: int) -> Tensor:
    """Timesteps ``[count]``: one of four uniform, the others around the noise that decides shapes.

    A logit-normal distribution, as in Esser et al. 2024 (arXiv:2403.03206, section 3.1).
    """
    middle = torch.sigmoid(torch.randn(count) - 0.4)
    share = torch.where(torch.rand(count) < 0.25, torch.rand(count), middle)
    return (1000 * share).long().clamp(max=999)


def train(
    parts: Parts, latents: Tensor, tokens: Tensor, minutes: float, peak_lr: float, workers: int
) -> None:
    """Trains in place until the time is up, and leaves the averaged weights in ``parts``."""
    weights = parts.parameters()
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    alphas = parts.scheduler.alphas_cumprod.float()
    unconditional = parts.tokens([""])[0]
    start, step, smooth = time.monotonic(), 0, 0.0
    while True:
        done = torch.tensor([(time.monotonic() - start) / (60 * minutes)])
        if workers > 1:
            dist.broadcast(done, 0)
        if done.item() >= 1:
            break
        tail = max(0.0, (done.item() - 0.45) / 0.55)  # flat, then cosine
        rate = min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * tail)))
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * rate
        rows = torch.randint(len(latents), (32,))
        clean, ids = latents[rows].float(), tokens[rows].clone()  # [32, C, 16, 16], [32, 24]
        ids[torch.rand(32) < CAPTION_DROPOUT] = unconditional
        times, noise = draw_times(32), torch.randn_like(clean)
        signal = alphas[times].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas[times]).sqrt().view(-1, 1, 1, 1)
        words = parts.text_encoder(ids)[0]  # [32, 24, 128]
        velocity = parts.unet(signal * clean + sigma * noise, times, words).sample
        loss = (velocity - (signal * noise - sigma * clean)).square().mean()
        loss.backward()
        if workers > 1:
            _average_gradients(weights, workers)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - keep)
        smooth = 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0 and (workers == 1 or dist.get_rank() == 0):
            shown = smooth / (1 - 0.98**step)
            images = step * 32 * workers
            print(f"step={step} images={images} loss={shown:.4f}", flush=True)
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)


def run(rank: int, args: argparse.Namespace) -> None:
    """One worker: the first one saves the result."""
    torch.set_num_threads(1)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method="tcp://127.0.0.1:29517", rank=rank, world_size=args.workers
        )
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    parts = new_parts(tokenizer, vae.config.latent_channels)
    if args.init:
        unet = UNet2DConditionModel.from_pretrained(args.init, subfolder="unet").float()
        parts.unet = widened(unet, vae.config.latent_channels)
        parts.text_encoder = CLIPTextModel.from_pretrained(
            args.init, subfolder="text_encoder"
        ).float()
    sprites = load_sprites(args.icons, args.sprites)
    latents, tokens = encode_material(parts, vae, sprites, args.pictures, seed=10 + rank)
    torch.manual_seed(1000 + rank)
    train(parts, latents, tokens, args.minutes, args.lr, args.workers)
    if rank == 0:
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=parts.text_encoder,
            tokenizer=tokenizer,
            unet=parts.unet,
            scheduler=parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(dtype=torch.float16).save_pretrained(args.out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, default=Path("node_modules/@iconify-json"))
    parser.add_argument("--sprites", type=Path, default=Path("sprites.npz"))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--pictures", type=int, default=16384)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.workers == 1:
        run(0, args)
    else:
        torch.multiprocessing.spawn(run, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
