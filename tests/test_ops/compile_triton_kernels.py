"""Compile the Triton kernels of PRM and LCT for NVIDIA GPUs; none is needed.

The interpreter accepts what the compiler rejects, such as a variable that changes its
type in a loop. test_triton_compiles.py runs this file without the interpreter.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Without MMDetection, which takes seconds to import, the package has its operators.
sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmdet')))
from prm_mmdet.ops import lct_triton, prm_triton  # noqa: E402


class Device:
    """Stands in for Triton's driver of a GPU. It can compile, but not launch."""

    def __init__(self, capability):
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


def launch(kernel, grid, x, *arguments, **options):
    """Stands in for triton_launch.launch: does all but the launch."""
    compiled = kernel.warmup(*arguments, grid=grid, **options, enable_fp_fusion=False)
    capability = driver.active.target.arch
    print(kernel.__name__, capability, len(compiled.asm['cubin']))


def new(*size, dtype=torch.float32):
    return torch.empty(size, dtype=dtype, device='meta')


def compile_prm(shape, groups, dtype, similarity, encoded, normalized, processors=132):
    prm_triton.processors = lambda x: processors
    x = new(*shape, dtype=dtype)
    inputs = [x, *(new(groups) for _ in range(4)), None, None]
    if encoded:
        inputs[5:] = new(2), new()
    _, *kept = prm_triton.forward(*inputs, similarity, normalized)
    prm_triton.backward(x, *inputs, *kept, similarity, normalized)


def compile_lct(shape, groups, dtype, transform, normalized):
    x = new(*shape, dtype=dtype)
    switches = (groups, 1e-5, normalized)
    parameters = (new(shape[1]), new(shape[1])) if transform else (None, None)
    _, mean = lct_triton.forward(x, *parameters, *switches)
    lct_triton.backward(x, x, *parameters, mean, *switches)


for module in (prm_triton, lct_triton):
    module.launch = launch
    module._BLOCK //= 4  # less code to compile, of the same kind
driver.set_active(Device(90))
# Several programs to a slab.
compile_prm((1, 48, 50, 76), 8, torch.float32, 'dot', True, True)
# One program to a slab, since the slabs occupy eight processors. Offsets of samples of
# this size have 64 bits.
large = (2, 1024, 1024, 1024)
compile_prm(large, 32, torch.bfloat16, 'cosine', True, False, processors=8)
compile_lct(large, 32, torch.bfloat16, True, True)
compile_lct((1, 48, 25, 38), 1, torch.float32, False, False)
# Numbers that are 1 become constants.
driver.set_active(Device(80))
compile_prm((1, 3, 1, 1), 1, torch.float16, 'l1', False, True)
compile_lct((1, 2, 1, 1), 1, torch.float32, True, True)
