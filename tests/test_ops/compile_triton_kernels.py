"""Compile the Triton kernels of PRM and LCT for NVIDIA GPUs; none is needed.

The interpreter accepts what the compiler rejects, such as a variable that changes its
type in a loop. test_triton_compiles.py runs this file without the interpreter.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prm_mmdet.ops import lct_triton, prm_triton

CAPABILITY = 90
_TYPES = {
    torch.float32: '*fp32',
    torch.float16: '*fp16',
    torch.bfloat16: '*bf16',
    torch.int64: '*i64',
}


def signature(value, path, constants):
    """Type of a kernel's argument as Triton names it; notes the constants."""
    if isinstance(value, tuple):
        fields = [signature(v, (*path, i), constants) for i, v in enumerate(value)]
        return type(value)(*fields)
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    # As at a launch, None and 1 are constants.
    if value is None or value == 1 or isinstance(value, triton.language.constexpr):
        constants[path] = getattr(value, 'value', value)
        return 'constexpr'
    return 'i32' if abs(value) < 2**31 else 'i64'


def compile_kernel(kernel, arguments, options):
    types, constants = {}, {}
    for i, parameter in enumerate(kernel.params[: len(arguments)]):
        types[parameter.name] = signature(arguments[i], (i,), constants)
    for i, parameter in enumerate(kernel.params[len(arguments) :], len(arguments)):
        types[parameter.name] = 'constexpr'
        constants[(i,)] = options.pop(parameter.name)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    target = GPUTarget('cuda', CAPABILITY, 32)
    compiled = triton.compile(source, target=target, options=options)
    print(kernel.__name__, CAPABILITY, len(compiled.asm['ptx']))


def launch(kernel, grid, x, *arguments, **options):
    """Stands in for triton_launch.launch."""
    compile_kernel(kernel, arguments, dict(options, enable_fp_fusion=False))


def compile_prm(shape, groups, dtype, similarity, encoded, normalized, processors=132):
    def new(*size, dtype=torch.float32):
        return torch.empty(size, dtype=dtype, device='meta')

    prm_triton.processors = lambda x: processors
    x = new(*shape, dtype=dtype)
    inputs = [x, *(new(groups) for _ in range(4)), None, None]
    if encoded:
        inputs[5:] = new(2), new()
    _, *kept = prm_triton.forward(*inputs, similarity, normalized)
    prm_triton.backward(x, *inputs, *kept, similarity, normalized)


def compile_lct(shape, groups, dtype, transform, normalized):
    def new(*size, dtype=torch.float32):
        return torch.empty(size, dtype=dtype, device='meta')

    x = new(*shape, dtype=dtype)
    switches = (groups, 1e-5, normalized)
    parameters = (new(shape[1]), new(shape[1])) if transform else (None, None)
    _, mean = lct_triton.forward(x, *parameters, *switches)
    lct_triton.backward(x, x, *parameters, mean, *switches)


for module in (prm_triton, lct_triton):
    module.launch = launch
# Several programs to a slab.
compile_prm((1, 48, 50, 76), 8, torch.float32, 'dot', True, True)
# One program to a slab, since the slabs occupy eight processors. Offsets of samples of
# this size have 64 bits.
large = (2, 1024, 1024, 1024)
compile_prm(large, 32, torch.bfloat16, 'cosine', True, False, processors=8)
compile_lct(large, 32, torch.bfloat16, True, True)
compile_lct((1, 48, 25, 38), 1, torch.float32, False, False)
# Numbers that are 1 become constants.
CAPABILITY = 80
compile_prm((1, 3, 1, 1), 1, torch.float16, 'l1', False, True)
compile_lct((1, 2, 1, 1), 1, torch.float32, True, True)
