"""One operator from a forward and a backward that are written by hand."""

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .common import memory_format

NAMESPACE = 'prm_mmdet'


def _refuse_tangents(name, tensors):
    """A custom operator would silently lose them."""
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f'{NAMESPACE}::{name} has no forward-mode derivative. With '
                f'PRM_MMDET_BACKEND=reference in the environment it runs in plain '
                f'operators, which have one'
            )


def operator(name, forward, backward, shapes, tensors, flops=()):
    """Join two functions to an operator that autograd and ``torch.compile`` take whole.

    The operator refuses a second differentiation.

    Args:
        name (str): The operator is ``torch.ops.prm_mmdet.<name>``, its backward
            ``<name>_backward``.
        forward (callable): Of tensors, the first of which is x (B, C, H, W) and any
            other of which may be None, and of switches; annotated as
            ``torch.library.custom_op`` needs it. Returns a tuple of the output and
            the tensors that backward keeps.
        backward (callable): Of the output's gradient, the tensors, what forward kept,
            and the switches. Returns a gradient for each tensor, an empty one for
            None.
        shapes (callable): Of what ``forward`` takes; returns empty tensors like its
            results.
        tensors (int): How many of the arguments are tensors.
        flops (tuple): Two callables of shapes, forward's and backward's, returning
            the floating point operations of matrix products, which are what torch's
            counter counts: a multiplication and an addition are two. Default: (), none.

    Returns:
        callable: Of what ``forward`` takes; returns the output alone.
    """

    def keep(ctx, inputs, output):
        ctx.switches = inputs[tensors:]
        ctx.save_for_backward(*inputs[:tensors], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, gradient, *_):
        if gradient is None:
            return (None,) * (tensors + len(ctx.switches))
        saved = ctx.saved_tensors  # once: checkpointing frees them at the first read
        gradients = differentiator(gradient, *saved, *ctx.switches)
        return (
            *(None if t is None else g for t, g in zip(saved[:tensors], gradients)),
            *(None for _ in ctx.switches),
        )

    def gradient_shapes(gradient, x, *inputs):
        return (
            torch.empty_like(x, memory_format=memory_format(x)),
            *(
                x.new_empty(0) if t is None else torch.empty_like(t)
                for t in inputs[: tensors - 1]
            ),
        )

    def refuse(ctx, *_):
        raise RuntimeError(
            f'{NAMESPACE}::{name} has no second derivative. With '
            f'PRM_MMDET_BACKEND=reference in the environment it runs in plain '
            f'operators, which have one'
        )

    if hasattr(torch.library, 'custom_op'):
        from torch.utils.flop_counter import register_flop_formula

        define = torch.library.custom_op
        whole = define(f'{NAMESPACE}::{name}', forward, mutates_args=())
        differentiator = define(
            f'{NAMESPACE}::{name}_backward', backward, mutates_args=()
        )
        whole.register_fake(shapes)
        differentiator.register_fake(gradient_shapes)
        whole.register_autograd(differentiate, setup_context=keep)
        differentiator.register_autograd(refuse)
        packets = getattr(torch.ops, NAMESPACE)
        for suffix, formula in zip(('', '_backward'), flops):
            register_flop_formula(getattr(packets, name + suffix))(formula)

        def call(*inputs):
            _refuse_tangents(name, inputs[:tensors])
            return whole(*inputs)[0]

        return call

    # torch < 2.4
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

    differentiator = backward
    return lambda *inputs: Whole.apply(*inputs)[0]
