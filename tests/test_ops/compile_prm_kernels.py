"""Compile PRM's Triton kernels for a GPU of compute capability 9.0; none is needed.

The interpreter forgives what the compiler does not, such as a variable that changes
its type in a loop. Run by test_prm_triton.py, without the interpreter.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from prm_mmdet.ops import prm_triton

FEATURES = ('x', 'y', 'gx', 'gradient')


def compile_kernel(kernel, plan, dtype):
    """``plan`` are the arguments that have values; all others are taken by type."""
    signature, constants = {}, {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr or plan.get(name, 0) is None:
            signature[name], constants[name] = 'constexpr', plan[name]
        elif name in plan or name.endswith(('_sample', '_channel', '_position')):
            signature[name] = 'i32'
        elif name in ('index', 'places'):
            signature[name] = '*i64'
        else:
            signature[name] = f'*{dtype}' if name in FEATURES else '*fp32'
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = dict(num_warps=prm_triton._WARPS, enable_fp_fusion=False)
    return compile(source, target=GPUTarget('cuda', 90, 32), options=options)


for similarity, encoded, normalized, dtype, step in (
    ('dot', True, True, 'fp32', 0),
    ('l1', False, True, 'fp16', 2),
    ('cosine', True, False, 'bf16', 3),
):
    x = torch.empty(2, 48, 25, 38, device='meta')
    _, plan = prm_triton._plan(x, 8, similarity, normalized, encoded)
    plan.update(PASS=step, SPLITS=4 if step else 1)
    if not encoded:
        plan.update(theta=None, sigma=None)
    for kernel in (prm_triton._forward_kernel, prm_triton._backward_kernel):
        size = len(compile_kernel(kernel, plan, dtype).asm['ptx'])
        print(similarity, dtype, kernel.__name__, size, file=sys.stderr)
