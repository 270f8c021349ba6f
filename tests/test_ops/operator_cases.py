"""Inputs for the operators, and how their results are compared."""

import torch

LAYOUTS = ('contiguous', 'channels_last', 'sliced', 'transposed', 'expanded')


def grid(*shape):
    """Features whose channel sums are exact in any dtype, so that all agree on PRM's
    query: multiples of 1/16 up to 4."""
    return torch.randint(-64, 65, shape) / 16


def prm_parameters(groups, encoding=True):
    values = [torch.randn(groups) for _ in range(4)]
    return values + ([torch.rand(2), torch.tensor(-1.3)] if encoding else [None, None])


def sac_parameters(channels, contexts):
    c, k = channels, contexts
    shapes = [(k, c), (k,), (k, c), (k,), (c, c), (c,)]
    return [torch.randn(shape) / shape[-1] for shape in shapes]


def lay_out(x, layout):
    """The same values at other strides."""
    b, c, h, w = x.shape
    if layout == 'channels_last':
        return x.contiguous(memory_format=torch.channels_last)
    if layout == 'sliced':
        room = x.new_full((b, c + 2, h, 2 * w), float('nan'))
        room[:, 1:-1, :, ::2] = x
        return room[:, 1:-1, :, ::2]
    if layout == 'transposed':
        return x.mT.contiguous().mT
    if layout == 'expanded':
        return x[:1, :, :1].expand(b, c, h, w)
    return x


def convert(inputs, *arguments, **options):
    """The same inputs, tensors among them by ``Tensor.to``."""
    return [v.to(*arguments, **options) if torch.is_tensor(v) else v for v in inputs]


def evaluate(function, inputs, cotangent=None, **switches):
    """The output, and the gradients of all tensors among the inputs: for a cotangent of
    the output, or of the sum of the output's squares."""
    inputs = [v.detach().requires_grad_() if torch.is_tensor(v) else v for v in inputs]
    y = function(*inputs, **switches)
    cotangent = 2 * y.detach() if cotangent is None else cotangent.to(y.dtype)
    tensors = [v for v in inputs if torch.is_tensor(v)]
    return [y.detach(), *torch.autograd.grad(y, tensors, cotangent)]


def check_close(results, expected, bound, single=None):
    """Errors relative to each tensor's largest element.

    Sums over positions cancel, that of SAC's attention bias wholly, so errors are also
    relative to a millionth of the largest element of all gradients. ``single``, if
    given, is what the reference makes of it in float32: where that is inexact, eight
    times its error is allowed.
    """
    largest = max(t.abs().max().double() for t in expected[1:])
    for i, (ours, theirs) in enumerate(zip(results, expected)):
        assert ours.shape == theirs.shape
        scale = torch.maximum(theirs.abs().max().double(), 1e-6 * largest + 1e-3)
        allowed = bound * scale
        if single is not None:
            allowed += 8 * (single[i].double() - theirs.double()).abs().max()
        error = (ours.double() - theirs.double()).abs().max()
        assert error <= allowed, (i, error, allowed)


def far_apart(monkeypatch, module, folder, values, layout):
    """Four maps (1, C, 1, N) with 2^31 elements or more between some of their elements:
    views of sparse files, which take neither memory nor disk.

    A module of Triton kernels gets their strides, and writes its results to them.

    Returns:
        tuple[Tensor]: x and the gradient of y, both with these values, then y and the
        gradient of x, which are still to be computed. In float64.
    """
    _, channels, _, positions = values.shape
    far, near = 2**31, 2**30 + 5
    strides = (far, 1) if layout == 'contiguous' else (1, near)
    size = (channels - 1) * strides[0] + (positions - 1) * strides[1] + 1
    assert size > 2**31
    maps = []
    for i in range(4):
        file = str(folder / f'{i}')
        storage = torch.from_file(file, shared=True, size=size, dtype=torch.float64)
        maps.append(
            storage.as_strided(values.shape, (size, strides[0], size, strides[1]))
        )
        maps[i].copy_(values)
    results = iter(maps[2:])
    monkeypatch.setattr(module, 'wide', lambda x: True)
    monkeypatch.setattr(module, 'strides', lambda x: strides)
    monkeypatch.setattr(module, 'dense', lambda x, like=None: x)
    monkeypatch.setattr(torch, 'empty_like', lambda *_, **__: next(results))
    return maps
