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

# Indices of positions have 32 bits in the kernels. The limit is below 2^31, because a
# kernel's last block may reach beyond the last position.
_MAX_POSITIONS = 2**31 - 2**16


def dense(x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """Return a map (B, C, H, W) in a format that the kernels read.

    The format is contiguous or channels_last. If ``like`` is given, the format is that
    of ``like``. If ``x`` has another format, the result is a copy.

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
    """Strides of channels and of positions in a dense map, in elements.

    ``x.stride`` cannot be used: it is undefined for a dimension of size 1.
    """
    if x.is_contiguous():
        return x.shape[2] * x.shape[3], 1
    return 1, x.shape[1]


def wide(x: Tensor) -> bool:
    """Whether offsets within a sample of a map need 64 bits."""
    # The limit is 2^30 instead of 2^31, because blocks can reach beyond the map.
    return x[:1].numel() >= 2**30


def processors(x: Tensor) -> int:
    """Number of multiprocessors of the GPU that holds a tensor. It is 0 if the tensor
    is on the CPU (in Triton's interpreter)."""
    if not x.is_cuda:
        return 0
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def allocator(x: Tensor, parts: int) -> Callable[..., Tensor]:
    """Return a function ``new(*size)`` that makes tensors of shape (B, parts, size).

    B is the batch size of ``x``. ``parts`` is the number of its groups or channels.

    The tensors' default dtype is :func:`accumulation_dtype` of ``x``. They are not
    initialised. If ``x`` is empty, they are zero, because no kernel fills them.
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
        # Without fused multiply-adds, a formula rounds in the same way wherever kernels
        # compute it. PRM requires this: it subtracts scores that may be equal, and
        # divides the difference by as little as 1e-5.
        kernel[grid](*arguments, **options, enable_fp_fusion=False)


@triton.jit
def pointers(tensor, sample, c, n, C, N, stride_c, stride_n, WIDE: tl.constexpr):
    """Addresses of channels c at positions n of one sample, (len(c), len(n)).

    If ``WIDE`` is True, offsets within a sample have 64 bits, else 32 bits. Offsets of
    32 bits occupy half the registers.
    """
    if WIDE:
        c, n = c.to(tl.int64), n.to(tl.int64)
    start = sample.to(tl.int64) * C * N
    return tensor + start + (c[:, None] * stride_c + n[None, :] * stride_n)
