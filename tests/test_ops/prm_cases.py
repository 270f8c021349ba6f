"""Inputs for PRM, and how its results are compared."""

import torch


def grid(*shape):
    """Features whose channel sums are exact in any dtype, so that all agree on the
    query: multiples of 1/16 up to 4."""
    return torch.randint(-64, 65, shape) / 16


def parameters(groups, encoding=True):
    values = [torch.randn(groups) for _ in range(4)]
    values += [torch.rand(2), torch.tensor(-1.3)] if encoding else [None, None]
    return values


def evaluate(function, x, values, cotangent, **switches):
    """The output and all gradients, in that order."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in (x, *values)]
    y = function(*leaves, **switches)
    learned = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, learned, cotangent.to(y.dtype))]


def check_close(results, expected, bound, single=None):
    """Errors relative to each tensor's largest element. ``single``, if given, is what
    the reference makes of it in float32: where that is inexact, eight times its
    error is allowed."""
    for i, (ours, theirs) in enumerate(zip(results, expected)):
        allowed = bound * (theirs.abs().max() + 1e-3)
        if single is not None:
            allowed += 8 * (single[i].double() - theirs.double()).abs().max()
        error = (ours.double() - theirs.double()).abs().max()
        assert error <= allowed, (i, error, allowed)
