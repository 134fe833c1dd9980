"""The vision encoder (reference: Pipeline and shapes; "Reaching 512x512x256"): a 3-D ViT over blocks of MONAI.

Axes are D, H, W = z, y, x everywhere; tokens are flattened with D slowest and W fastest.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def grid_of(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, int, int]:
    """Tokens along D, H, W. ValueError: the patch does not divide the shape."""
    if len(shape) != 3 or len(patch) != 3 or any(s % p or s < p for s, p in zip(shape, patch, strict=True)):
        raise ValueError(f"model.patch {list(patch)} does not divide data.shape {list(shape)}; change one of them")
    return tuple(s // p for s, p in zip(shape, patch, strict=True))


def patchify(volume: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """[B, 1, D, H, W] -> [B, N, pD * pH * pW], voxels of a patch in the order of a Conv3d kernel."""
    x = volume.unflatten(4, (-1, patch[2])).unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B, gD, gH, gW, 1, pD, pH, pW]
    return x.flatten(4).flatten(1, 3)


def pick(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """x [B, N, C], keep int64 [B, K] -> [B, K, C]."""
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def blocks(width: int, depth: int, heads: int, mlp: int) -> nn.ModuleList:
    """Pre-norm transformer blocks with fused attention and no qkv bias."""
    made = nn.ModuleList(
        TransformerBlock(width, mlp, heads, qkv_bias=False, use_flash_attention=True) for _ in range(depth)
    )
    for block in made:
        block.norm_cross_attn = nn.Identity()  # MONAI's has parameters that no gradient reaches, which DDP refuses
    return made


def run(module: nn.Module, x: torch.Tensor, recompute: bool) -> torch.Tensor:
    """module(x); recompute: keep only x for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, x, use_reentrant=False)
    return module(x)


def weight_std(width: int) -> float:
    """0.02 at the 768 channels of ViT-B (reference: arm `random`), and the same gain at any other width.

    With 0.02 a narrow ViT starts as good as linear, and its MAE never learns to look at what is visible.
    """
    return 0.02 * math.sqrt(768 / width)


def draw_weights(module: nn.Module, width: int) -> None:
    """Truncated normal weights and zero biases for all linear layers and convolutions of a transformer."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=weight_std(width))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class PatchEmbedding(nn.Conv3d):
    """A convolution with kernel = stride = patch, so that kernels can be resized, computed as one matrix product."""

    def __init__(self, patch: Sequence[int], width: int):
        super().__init__(1, width, tuple(patch), tuple(patch))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """patches [B, K, pD * pH * pW] of `patchify` -> [B, K, C]."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


class VitEncoder(nn.Module):
    """3-D ViT; learned positions on patch tokens only, a zero-initialised CLS without position, a final LayerNorm.

    shape, patch: D, H, W in voxels. width, depth, heads, mlp: 768, 12, 12, 3072 is ViT-B.
    standardise: each voxel less its mean over the training volumes, by its standard deviation (`fit_input`): of volumes
    resized to one frame, what differs between chests, which a small ViT else takes long to see behind what does not.
    pool: what `summary` is, the CLS token (M3D) or the map of all tokens, flattened (CT-CLIP), where each place has
    weights of its own, which few volumes can teach.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        standardise: bool = False,
        pool: str = "cls",
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"model.width {width} is no multiple of model.heads {heads}")
        self.shape, self.patch, self.width = tuple(shape), tuple(patch), width
        self.grid = grid_of(shape, patch)
        self.n_tokens = math.prod(self.grid)
        self.embed = PatchEmbedding(patch, width)
        self.positions = nn.Parameter(torch.empty(1, self.n_tokens, width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = blocks(width, depth, heads, mlp)
        self.norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self.pool, self.standardise = pool, standardise
        if standardise:
            self.register_buffer("input_mean", torch.zeros(1, 1, *shape))
            self.register_buffer("input_spread", torch.ones(1, 1, *shape))
        draw_weights(self, width)
        nn.init.trunc_normal_(self.positions, std=weight_std(width))

    def forward(
        self, volume: torch.Tensor, keep: torch.Tensor | None = None, other_shape: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """volume [B, 1, D, H, W] in [-1, 1] -> (cls [B, C], tokens [B, N, C]) after the final LayerNorm.

        keep: int64 [B, K], the tokens to encode; the others are never computed, and tokens are [B, K, C].
        other_shape: take volumes of another shape, with the positions interpolated to their grid.
        """
        shape = tuple(volume.shape[2:])
        if volume.ndim != 5 or volume.shape[1] != 1 or (shape != self.shape and not other_shape):
            raise ValueError(f"a batch of volumes [B, 1, {', '.join(map(str, self.shape))}] was expected (data.shape), "
                             f"not {list(volume.shape)}")  # fmt: skip
        if self.standardise:
            volume = (volume - resized(self.input_mean, shape)) / resized(self.input_spread, shape)
        positions = resize_positions(self.positions, self.grid, grid_of(shape, self.patch))
        patches = patchify(volume.to(self.embed.weight.dtype), self.patch)  # [B, N, pD * pH * pW]
        if keep is not None:
            patches, positions = pick(patches, keep), positions[0][keep]
        x = self.embed(patches) + positions
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = run(block, x, self.gradient_checkpointing)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]

    def summary(self, volume: torch.Tensor) -> torch.Tensor:
        """volume [B, 1, D, H, W] -> what stands for the whole of it, [B, summary_width]."""
        cls, tokens = self(volume)
        return cls if self.pool == "cls" else tokens.flatten(1)

    @property
    def summary_width(self) -> int:
        return self.width if self.pool == "cls" else self.n_tokens * self.width

    @torch.no_grad()
    def fit_input(self, batches: Iterable[torch.Tensor]) -> None:
        """Mean and spread of each voxel over batches of volumes [B, 1, D, H, W]; a spread is at least 20 HU."""
        n, total, squares = 0, torch.zeros_like(self.input_mean), torch.zeros_like(self.input_mean)
        for volume in batches:
            n += len(volume)
            total += volume.sum(0, keepdim=True)
            squares += volume.square().sum(0, keepdim=True)
        self.input_mean.copy_(total / n)
        self.input_spread.copy_((squares / n - self.input_mean.square()).clamp_min(0).sqrt().clamp_min(0.02))


def resized(map_: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """[B, C, D, H, W] -> another shape, trilinear (align_corners false); the same tensor where equal."""
    if tuple(map_.shape[2:]) == tuple(shape):
        return map_
    return F.interpolate(map_, tuple(shape), mode="trilinear", align_corners=False)


def resize_positions(positions: torch.Tensor, grid: Sequence[int], to: Sequence[int]) -> torch.Tensor:
    """[1, N, C] of one grid -> [1, N', C] of another, trilinear (align_corners false); the same tensor where equal."""
    if tuple(grid) == tuple(to):
        return positions
    table = positions.mT.unflatten(2, tuple(grid))  # [1, C, gD, gH, gW]
    return resized(table.float(), to).flatten(2).mT.to(positions.dtype)


def resize_kernel(kernel: torch.Tensor, to: Sequence[int]) -> torch.Tensor:
    """[C, 1, pD, pH, pW] -> another patch, so that a constant volume embeds the same.

    Trilinear, divided by the ratio of the voxel counts. That keeps the sum of a kernel only when a patch grows by whole
    factors; otherwise what is lost of the sum is spread evenly.
    """
    if tuple(kernel.shape[2:]) == tuple(to):
        return kernel
    made = resized(kernel.float(), to) * (kernel[0].numel() / math.prod(to))
    axes = (1, 2, 3, 4)
    lost = kernel.float().sum(axes, keepdim=True) - made.sum(axes, keepdim=True)
    return (made + lost / math.prod(to)).to(kernel.dtype)


def resize_weights(
    state: dict[str, torch.Tensor],
    from_shape: Sequence[int],
    from_patch: Sequence[int],
    to_shape: Sequence[int],
    to_patch: Sequence[int],
) -> dict[str, torch.Tensor]:
    """Carries the state_dict of a VitEncoder from one rung to another; a new dict, equal where nothing changes."""
    grids = grid_of(from_shape, from_patch), grid_of(to_shape, to_patch)
    maps = {k: resized(v, to_shape) for k, v in state.items() if k in ("input_mean", "input_spread")}
    return (
        state
        | maps
        | {
            "positions": resize_positions(state["positions"], *grids),
            "embed.weight": resize_kernel(state["embed.weight"], to_patch),
        }
    )
