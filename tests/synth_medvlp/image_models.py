"""Tiny random checkpoints of the formats that S5 and S6 load, and stand-ins for a generator and a screener."""

import numpy as np
import torch

from synth_medvlp.diffusion import told
from synth_medvlp.screening import NO, QUESTIONS, YES

TEXTS = ["Large left pleural effusion.", "No acute cardiopulmonary process.", "Moderate cardiomegaly is seen."]


def tiny_pipeline(folder, channels=3, size=16):
    """A StableDiffusionPipeline with three colour channels and another size than is asked for, as RoentGen has."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from synth_medvlp.train_diffusion import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300)
    vae = AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
        sample_size=size,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=size // 2, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8,),
        down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"], attention_head_dim=2,
        norm_num_groups=4, cross_attention_dim=16,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=77, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


class Painter:
    """A generator whose image is grey noise of its seed; its brightness decides what `Judge` says of it."""

    name = "painter"

    def __init__(self, size=8):
        self.size, self.calls = size, []

    def __call__(self, prompts, seeds):
        self.calls.append(list(zip(prompts, seeds, strict=True)))
        images = np.zeros((len(seeds), self.size, self.size), np.uint8)
        reasons = []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if seed % 7 == 0:
                reasons.append("nan")
                continue
            images[i] = np.random.default_rng(seed).integers(0, 256, images.shape[1:])
            images[i, 0, 0] = seed % 5
            reasons.append("")
            assert prompt
        return images, told(reasons, [len(p) > 20 for p in prompts], 0.5)


class Judge:
    """A screener: pixel (0, 0) 0 = NO to all, 1 = NO to one, 2 = looks like a bad image, else good."""

    def __init__(self, fail_after=None):
        self.identity, self.counts, self.left = {"backend": "judge"}, {"replies": 0}, fail_after

    def answers(self, images):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt("killed here")
        self.counts["replies"] += len(images)
        out = np.full((len(images), len(QUESTIONS)), YES, np.int8)
        out[images[:, 0, 0] == 0] = NO
        out[images[:, 0, 0] == 1, 3] = NO
        return out

    def features(self, images):
        near = (images[:, 0, 0] == 2)[:, None]
        return np.where(near, [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32)
