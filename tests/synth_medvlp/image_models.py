"""Tiny random checkpoints of the formats that A2, S5 and S6 load, and stand-ins for a generator and a screener."""

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


def tiny_encoder(folder):
    """A DINOv2 encoder with its image processor, as RAD-DINO is."""
    from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": {"height": 28, '
        '"width": 28}, "do_resize": true, "do_center_crop": true, "do_normalize": true, "do_rescale": true, '
        '"rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], '
        '"resample": 3, "do_convert_rgb": true}'
    )
    assert AutoImageProcessor.from_pretrained(folder)
    return folder


def tiny_llava(folder, texts):
    """A multimodal language model with its processor and a chat template."""
    from transformers import (
        AutoImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip

    from synth_medvlp.train_diffusion import train_tokenizer

    torch.manual_seed(0)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, '
        '"crop_size": {"height": 28, "width": 28}}'
    )
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.model_max_length = 4096
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}assistant:"
    )
    LlavaProcessor(
        AutoImageProcessor.from_pretrained(folder), tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
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
