"""How the Triton kernels of PRM and LCT are launched on a map (B, C, H, W)."""

import contextlib
from typing import Any, Callable, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import accumulation_dtype, memory_format

if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 3):
    raise RuntimeError(
        f'Triton {triton.__version__} cannot compile the kernels of PRM and LCT, which '
        f'need Triton 3.3 or later (PyTorch 2.7). Set PRM_MMDET_BACKEND=torch'
    )

# Positions are 32-bit numbers in the kernels, and a kernel's last block may reach
# beyond the last position.
_MAX_POSITIONS = 2**31 - 2**16


def dense(x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """Return a map as the kernels read it: contiguous or channels_last.

    Args:
        x: Features, (B, C, H, W).
        like: A dense map whose memory format the result gets. Default: None, the memory
            format of ``x``.

    Returns:
        ``x`` itself where possible, else a copy.

    Raises:
        ValueError: The map has too many positions for the kernels.
    """
    if x.shape[2] * x.shape[3] > _MAX_POSITIONS:
        raise ValueError(
            f'a map of {x.shape[2]} x {x.shape[3]} positions is too large for the '
            f'Triton kernels, which take up to {_MAX_POSITIONS} positions. Set '
            f'PRM_MMDET_BACKEND=torch'
        )
    return x.contiguous(memory_format=memory_format(x if like is None else like))


def strides(x: Tensor) -> tuple[int, int]:
    """Elements between neighbouring channels and positions of a dense map.

    ``x.stride`` cannot be used: it is undefined for a dimension of size 1.
    """
    if x.is_contiguous():
        return x.shape[2] * x.shape[3], 1
    return 1, x.shape[1]


def wide(x: Tensor) -> bool:
    """Whether offsets within a sample of a map need 64 bits."""
    # The limit is below 2^31, because blocks may reach beyond the map.
    return x[:1].numel() >= 2**30


def processors(x: Tensor) -> int:
    """Multiprocessors of the GPU that holds a tensor; 0 in Triton's interpreter."""
    if not x.is_cuda:
        return 0
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def allocator(x: Tensor, parts: int) -> Callable[..., Tensor]:
    """Return a function that makes tensors (B, parts, *size), without writing to them.

    Their dtype is the dtype of accumulation unless the call names another. If ``x`` is
    empty, no kernel runs, and the tensors are zero.
    """
    make = x.new_empty if x.numel() else x.new_zeros

    def new(*size, dtype=None):
        return make((len(x), parts, *size), dtype=dtype or accumulation_dtype(x))

    return new


def launch(
    kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **options: Any
) -> None:
    """Start a kernel on the device of ``x``, unless ``x`` is empty."""
    if x.numel() == 0:
        return
    device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with device:
        # Without contraction to fused multiply-adds, one formula rounds the same way
        # wherever a kernel computes it. PRM requires this, because it divides the score
        # by as little as 1e-5.
        kernel[grid](*arguments, **options, enable_fp_fusion=False)


@triton.jit
def pointers(tensor, sample, c, n, C, N, stride_c, stride_n, WIDE: tl.constexpr):
    """Addresses of channels c at positions n of one sample, (len(c), len(n)).

    ``WIDE`` says that offsets within a sample need 64 bits. Narrow offsets occupy half
    the registers.
    """
    if WIDE:
        c, n = c.to(tl.int64), n.to(tl.int64)
    start = sample.to(tl.int64) * C * N
    return tensor + start + (c[:, None] * stride_c + n[None, :] * stride_n)
