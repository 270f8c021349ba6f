"""Make one function from a block's kernels and the block's plain PyTorch version."""

from __future__ import annotations

import importlib
from typing import Any, Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .backend import VARIABLE, backend, kernels_for
from .common import (
    accumulation_dtype,
    exporting,
    is_compiling,
    memory_format,
    without_autocast,
)

NAMESPACE = 'prm_mmdet'


def operator(
    name: str,
    tensors: str,
    switches: str,
    kept: str,
    plain: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    shapes: Callable[..., tuple[Tensor, ...]],
    flops: tuple[Callable[..., int], ...] = (),
    kernels: tuple[str, ...] = ('cpp', 'triton'),
) -> Callable[..., Tensor]:
    """A function that runs a block on the backend chosen by :func:`.backend.backend`.

    Kernels are in the modules ``<name>_<backend>`` beside this module:

    - ``forward(*tensors, *switches)`` returns the output y, and the tensors kept for
      backward;
    - ``backward(gradient, *tensors, *kept, *switches)`` returns a gradient for each of
      ``tensors``. If one of the tensors is None, its gradient is an empty tensor.

    Autograd and ``torch.compile`` see the kernels as one operator
    ``torch.ops.prm_mmdet.<name>``, which has no second derivative.

    ``plain`` consists of PyTorch operators. It runs where there are no kernels,
    and where a custom operator fails: in exported models, under the transforms of
    ``torch.func``, and in forward-mode differentiation.

    Args:
        name: Name of the block.
        tensors: The tensors that a call takes, in the language of PyTorch's operator
            schemas. The first tensor is x (B, C, H, W). Others may be None.
        switches: The other arguments of a call, in the same schema language.
        kept: The tensors that forward keeps for backward, in the same schema language.
        plain: The block in PyTorch operators.
        reference: The block's equations line by line, in the dtype of its input.
        shapes: Function of the arguments of a call. It returns empty tensors with the
            shapes and dtypes of y and of the tensors kept for backward.
        flops: Two functions for PyTorch's counter, for forward and for backward. From
            the shapes of the arguments, each function computes the number of floating
            point operations in matrix products. A multiplication and an addition are
            two operations. Default: none are counted.

    Returns:
        A function of the tensors and the switches. It returns y in the dtype of x.
    """
    count = len(tensors.split(','))
    whole = _join(name, tensors, switches, kept, shapes, flops)

    def call(*inputs: Any) -> Tensor:
        x = inputs[0]
        form = backend(x, kernels)
        if form == 'reference':
            dtype = accumulation_dtype(x)
            values = (t if t is None else t.to(dtype) for t in inputs[:count])
            with without_autocast(x):
                return reference(*values, *inputs[count:]).to(x.dtype)
        # Export ``plain``, because every export format knows PyTorch's own operators.
        if exporting():
            with without_autocast(x):
                return plain(*inputs)
        if form == 'torch' or _transformed(inputs[:count]):
            with without_autocast(x):
                return plain(*inputs).contiguous(memory_format=memory_format(x))
        return whole(*inputs)[0]

    return call


def _transformed(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether torch.func or forward-mode differentiation acts on the tensors. A custom
    operator fails in torch.func, and has no forward-mode derivative."""
    if is_compiling():
        return False
    given = [t for t in tensors if t is not None]
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, given)) or (
        forward_ad._current_level >= 0
        and any(forward_ad.unpack_dual(t).tangent is not None for t in given)
    )


def _join(name, tensors, switches, kept, shapes, flops):
    """Return one PyTorch operator that calls a block's kernels. Its arguments are the
    features, the block's parameters, and settings such as ``softmax``. It returns the
    output y, and the tensors that backward needs."""
    count = len(tensors.split(','))

    def run(direction, x, *inputs):
        form = kernels_for(x)
        module = importlib.import_module(f'.{name}_{form}', __package__)
        with without_autocast(x):
            return getattr(module, direction)(x, *inputs)

    def forward(*inputs):
        return run('forward', *inputs)

    def backward(*inputs):
        return run('backward', *inputs)

    def keep(ctx, inputs, output):
        ctx.switches = inputs[count:]
        ctx.save_for_backward(*inputs[:count], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, gradient, *_):
        if gradient is None:
            return (None,) * (count + len(ctx.switches))
        # Read the saved tensors only once, because activation checkpointing frees them
        # after the first read.
        saved = ctx.saved_tensors
        gradients = differentiator(gradient, *saved, *ctx.switches)
        return (
            *(None if t is None else g for t, g in zip(saved[:count], gradients)),
            *(None for _ in ctx.switches),
        )

    # torch < 2.4 has no custom_op. There, an autograd.Function runs the kernels.
    if not hasattr(torch.library, 'custom_op'):
        differentiator = backward

        class Whole(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                output = forward(*inputs)
                keep(ctx, inputs, output)
                return output

            @staticmethod
            @once_differentiable
            def backward(ctx, *gradients):
                return differentiate(ctx, *gradients)

        return Whole.apply

    def gradient_shapes(gradient, x, *inputs):
        return (
            torch.empty_like(x, memory_format=memory_format(x)),
            *(
                x.new_empty(0) if t is None else torch.empty_like(t)
                for t in inputs[: count - 1]
            ),
        )

    def refuse(ctx, *_):
        raise RuntimeError(
            f'{NAMESPACE}::{name} has no second derivative. Set {VARIABLE}=torch in '
            f'the environment: the block then runs in PyTorch operators, which have one'
        )

    results = ', '.join(['Tensor'] * (1 + len(kept.split(','))))
    gradients = ', '.join(['Tensor'] * count)
    packets = getattr(torch.ops, NAMESPACE)
    define = torch.library.custom_op
    whole = define(
        f'{NAMESPACE}::{name}',
        forward,
        mutates_args=(),
        schema=f'({tensors}, {switches}) -> ({results})',
    )
    differentiator = define(
        f'{NAMESPACE}::{name}_backward',
        backward,
        mutates_args=(),
        schema=f'(Tensor gradient, {tensors}, {kept}, {switches}) -> ({gradients})',
    )
    whole.register_fake(shapes)
    differentiator.register_fake(gradient_shapes)
    whole.register_autograd(differentiate, setup_context=keep)
    differentiator.register_autograd(refuse)
    if flops:
        from torch.utils.flop_counter import register_flop_formula

        for suffix, formula in zip(('', '_backward'), flops):
            register_flop_formula(getattr(packets, name + suffix))(formula)
    return whole
