"""Trains the autoencoder: 64 px pictures to latents of 16x16 and back.

``python -m bases.tiny.recipe.vae --out vae --channels 8 --minutes 12 [--anchor OLD]``

With ``--anchor`` the first channels keep the meaning that they have in an older autoencoder, so
that a UNet trained on its latents goes on from there: new channels only add detail.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .material import Sprites, load_sprites
from .scenes import Painter

BLOCKS = (32, 64, 64)
CROP_PX = 32
LATENT_CROP = CROP_PX // 4
POOL = 48
# Noise on the latents while decoding: a decoder that forgives a diffusion model's small errors.
LATENT_NOISE = 0.08
POSTERIOR_STD = 0.03


def new_autoencoder(channels: int) -> AutoencoderKL:
    """A small autoencoder of diffusers' own class, factor 4."""
    return AutoencoderKL(
        block_out_channels=BLOCKS,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


@torch.no_grad()
def grow(old: AutoencoderKL, channels: int) -> AutoencoderKL:
    """A copy with more latent channels whose first ones are the old ones."""
    new, kept = new_autoencoder(channels), old.config.latent_channels
    weights = old.state_dict()
    for name, weight in new.state_dict().items():
        source = weights[name]
        if weight.shape == source.shape:
            weight.copy_(source)
        elif name.startswith("encoder.conv_out"):  # rows: means, then log-variances
            weight[:kept], weight[channels : channels + kept] = source[:kept], source[kept:]
        elif name == "decoder.conv_in.weight":
            weight *= 0.2
            weight[:, :kept] = source
        elif name.endswith("bias"):  # quant_conv, post_quant_conv
            weight.zero_()
            weight[:kept] = source[:kept]
        else:
            weight.zero_()
            eye = torch.eye(channels - kept).view(channels - kept, channels - kept, 1, 1)
            weight[kept:channels, kept:channels] = eye
            weight[:kept, :kept] = source[:kept, :kept]
            if name == "quant_conv.weight":
                weight[:kept, channels : channels + kept] = source[:kept, kept:]
    return new


@torch.no_grad()
def whiten(vae: AutoencoderKL, norm: nn.BatchNorm2d, pictures: Tensor) -> None:
    """Folds mean and deviation of the latents into the 1x1 convolutions on both sides.

    Afterwards each channel has mean 0 and deviation 1, and ``scaling_factor`` is 1.
    """
    channels = vae.config.latent_channels
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    norm_mean, norm_std = norm.running_mean, (norm.running_var + norm.eps).sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.weight[channels:] = 0
    into.bias[channels:] = 2 * math.log(POSTERIOR_STD)
    out.bias += out.weight[:, :, 0, 0] @ ((mean - norm_mean) / norm_std)
    out.weight *= (std / norm_std).view(1, -1, 1, 1)


def gradient_error(difference: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels: what makes an edge an edge."""
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return across + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()


def train(
    sprites: Sprites, channels: int, minutes: float, peak_lr: float, anchor: AutoencoderKL | None
) -> AutoencoderKL:
    """Trains on random crops until the time is up; returns the averaged, whitened weights."""
    torch.manual_seed(0)
    rng = random.Random(0)
    painter = Painter(sprites)
    vae = grow(anchor, channels) if anchor else new_autoencoder(channels)
    norm = nn.BatchNorm2d(channels, affine=False, momentum=0.01)
    weights = list(vae.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.97), weight_decay=0)
    start, step = time.monotonic(), 0
    pool = old_latents = torch.empty(0)
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        warm_up, decay = min(1.0, (step + 1) / 100), 0.02 + 0.49 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * warm_up * decay
        if step % 8 == 0:
            pool, _ = painter.paint([rng.randrange(len(sprites.names)) for _ in range(POOL)])
            if anchor:
                with torch.no_grad():
                    old_latents = anchor.encode(pool).latent_dist.mean
        places = [(rng.randrange(POOL), rng.randrange(9), rng.randrange(9)) for _ in range(16)]
        crops = torch.stack(  # [16, 3, 32, 32]
            [pool[i, :, 4 * y : 4 * y + CROP_PX, 4 * x : 4 * x + CROP_PX] for i, y, x in places]
        )
        latents = norm(vae.encode(crops).latent_dist.mean)  # [16, C, 8, 8]
        decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = decoded - crops
        loss = error.abs().mean() + error.square().mean() + 0.5 * gradient_error(error)
        if anchor:
            old = torch.stack(
                [old_latents[i, :, y : y + LATENT_CROP, x : x + LATENT_CROP] for i, y, x in places]
            )
            kept = latents[:, : old.shape[1]]
            loss = loss + 0.1 * (kept - old)[..., 1:-1, 1:-1].square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        torch._foreach_lerp_(
            average, [w.detach() for w in weights], 1 - min(0.998, (1 + step) / (10 + step))
        )
        if step % 100 == 0:
            psnr = 10 * math.log10(4 / error.square().mean().item())
            print(
                f"step={step} seconds={time.monotonic() - start:.0f} psnr_db={psnr:.1f}", flush=True
            )
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)
    vae.eval()
    pictures, _ = painter.paint([rng.randrange(len(sprites.names)) for _ in range(512)])
    whiten(vae, norm, pictures)
    return vae


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, default=Path("node_modules/@iconify-json"))
    parser.add_argument("--sprites", type=Path, default=Path("sprites.npz"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--anchor", type=Path)
    args = parser.parse_args()
    anchor = AutoencoderKL.from_pretrained(args.anchor).eval() if args.anchor else None
    sprites = load_sprites(args.icons, args.sprites)
    train(sprites, args.channels, args.minutes, args.lr, anchor).save_pretrained(args.out)


if __name__ == "__main__":
    main()
