"""What the bare base draws: two pictures as base64 lines on stdout.

A process of its own, so that the demo's terminal stays free of the libraries' words.
``python -m examples.base_answers FOLDER SEED``
"""

from __future__ import annotations

import base64
import io
import sys

import torch
from diffusers import StableDiffusionPipeline

PROMPTS = ("a photo of sks", "a photo of sks on the beach")


def main(folder: str, seed: int) -> None:
    """Draws both prompts with the same settings as the endpoint's default."""
    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(PROMPTS),
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for _ in PROMPTS],
    ).images
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        print(base64.b64encode(buffer.getvalue()).decode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
