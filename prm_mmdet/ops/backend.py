"""Which implementation of the operators runs, and the one variable that forces it.

``PRM_MMDET_BACKEND`` in the environment, read at every call:

- unset or empty: ``triton`` for CUDA tensors when triton can be imported and the
  operator has kernels for their dtype, ``torch`` for all others;
- ``reference``: the equations line by line (``ops/reference.py``), slow;
- ``torch``: vectorised PyTorch, on any device;
- ``triton``: Triton kernels; for tensors that are not on CUDA only through Triton's
  interpreter (``TRITON_INTERPRET=1``), which is slow and meant for tests.
"""

import importlib.util
import os

import torch

VARIABLE = 'PRM_MMDET_BACKEND'
BACKENDS = ('reference', 'torch', 'triton')
# What kernels are written for; more precise inputs take the torch path by default.
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
try:
    _HAS_TRITON = importlib.util.find_spec('triton') is not None
except ValueError:  # a stand-in for it that some package has put in place
    _HAS_TRITON = False


def backend(x, kernels=True):
    """Name the implementation that an operator runs for a tensor.

    Args:
        x (Tensor): The operator's input; its device and dtype count.
        kernels (bool): Whether the operator has Triton kernels; without them
            'triton' means 'torch'. Default: True.

    Returns:
        str: 'reference', 'torch' or 'triton'.

    Raises:
        ValueError: The variable holds an unknown name.
        RuntimeError: It demands Triton, and Triton is missing or cannot run on the
            tensor's device.
    """
    forced = os.environ.get(VARIABLE, '')
    if not forced:
        usable = kernels and _HAS_TRITON and x.is_cuda and x.dtype in _KERNEL_DTYPES
        return 'triton' if usable else 'torch'
    if forced not in BACKENDS:
        raise ValueError(
            f'{VARIABLE}={forced!r}: no such backend, choose one of '
            f'{", ".join(BACKENDS)} or unset it'
        )
    if x.is_meta:  # has no values, only its shape counts
        return 'torch'
    if forced != 'triton':
        return forced
    if not _HAS_TRITON:
        raise RuntimeError(
            f'{VARIABLE}=triton, but triton cannot be imported: pip install triton, '
            f'or unset the variable'
        )
    if not x.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        raise RuntimeError(
            f'{VARIABLE}=triton, but the input is on {x.device.type}: Triton runs on '
            f'CUDA, elsewhere only its interpreter does (TRITON_INTERPRET=1)'
        )
    return 'triton' if kernels else 'torch'
