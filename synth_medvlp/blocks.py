"""The small image generator's own parts (reference: S5): a latent space and a UNet that knows places.

At 64 pixels a learned autoencoder costs more training than the diffusion model behind it and loses the ribs; 32
principal components of 8 x 8 pixels keep 35 dB and cost nothing. `diffusers` loads both classes as parts of a pipeline.
"""

import functools

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks for it in the module of a class of its own
from torch import nn
from torch.nn import functional as F

HALVINGS = 3  # blocks of 8 x 8 pixels


class BlockAutoencoder(ModelMixin, ConfigMixin):
    """Pixels float [B, 1, size, size] in -1..1 <-> latents [B, channels, size / 8, size / 8] of mean 0, variance 1.

    A component's spread is its standard deviation to the power 1 - whitening: coarse structure still rules the noise
    levels, fine structure is not lost in them. block_out_channels only tells the pipeline the number of halvings.
    """

    @register_to_config
    def __init__(self, size: int = 64, latent_channels: int = 32, whitening: float = 0.3, scaling_factor: float = 1.0,
                 block_out_channels: tuple = (1,) * (HALVINGS + 1)):  # fmt: skip
        super().__init__()
        side = 2**HALVINGS
        if size % side:
            raise ValueError(f"size {size}: must be a multiple of {side}")
        self.analysis = nn.Parameter(torch.zeros(latent_channels, 1, side, side), requires_grad=False)
        self.synthesis = nn.Parameter(torch.zeros(latent_channels, 1, side, side), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(1, 1, size, size), requires_grad=False)

    @classmethod
    def fit(cls, images: np.ndarray, channels: int = 32, whitening: float = 0.3) -> "BlockAutoencoder":
        """Of uint8 [n, size, size]; the mean image is taken out, so that latents are about what differs."""
        pixels = as_pixels(images)
        side, size = 2**HALVINGS, images.shape[1]
        self = cls(size=size, latent_channels=channels, whitening=whitening)
        self.mean.copy_(pixels.mean(0, keepdim=True))
        blocks = F.unfold(pixels - self.mean, side, stride=side).transpose(1, 2).reshape(-1, side * side)
        values, vectors = torch.linalg.eigh(blocks.double().T @ blocks.double() / len(blocks))
        values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
        spread = values.clamp_min(1e-8).sqrt()
        scale = spread**whitening * (spread ** (1 - whitening)).square().mean().sqrt()
        self.analysis.copy_((vectors / scale).T.reshape(self.analysis.shape))
        self.synthesis.copy_((vectors * scale).T.reshape(self.synthesis.shape))
        return self.eval()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.conv2d(pixels - self.mean, self.analysis, stride=self.analysis.shape[-1])

    def decode(self, latents: torch.Tensor, return_dict: bool = False, generator=None) -> tuple[torch.Tensor]:
        """(pixels,), as the pipeline calls it."""
        return (F.conv_transpose2d(latents, self.synthesis, stride=self.synthesis.shape[-1]) + self.mean,)


class PlacedUNet(UNet2DConditionModel):
    """A UNet whose first features carry a learned code of their place: of a chest that lies the same in every image, it
    need not find out from the borders where "left" and "base" are, which at the noisiest levels is all there is."""

    @functools.wraps(UNet2DConditionModel.__init__)  # diffusers reads the names of a config from the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        c = self.config
        self.conv_in = _PlacedConv(c.in_channels, c.block_out_channels[0], c.sample_size)


class _PlacedConv(nn.Conv2d):
    def __init__(self, channels: int, width: int, side: int):
        super().__init__(channels, width, 3, padding=1)
        self.place = nn.Parameter(0.3 * torch.randn(1, width, side, side))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return super().forward(latents) + self.place


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [n, h, w] -> float32 [n, 1, h, w] in -1..1."""
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
