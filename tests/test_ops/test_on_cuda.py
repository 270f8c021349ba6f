"""The operators on a GPU: what neither the CPU nor Triton's interpreter can show."""

import itertools

import pytest
import torch
from operator_cases import check_close, convert, evaluate, sac_parameters

from prm_mmdet import ops
from prm_mmdet.ops import reference
from prm_mmdet.ops.backend import backend

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs an NVIDIA GPU'
)


def prm_inputs(channels, groups=8, k=0):
    return [*torch.randn(4, groups).unbind(), torch.rand(2), torch.tensor(0.7)]


def lct_inputs(channels, groups=8, k=0):
    return list(torch.randn(2, channels).unbind())


def sac_inputs(channels, groups=0, k=4):
    return sac_parameters(channels, k)


def lct(function, groups=8):
    return lambda *inputs: function(*inputs, groups)


BLOCKS = {
    'prm': (ops.prm, reference.prm, prm_inputs),
    'lct': (lct(ops.lct), lct(reference.lct), lct_inputs),
    'sac': (ops.sac, reference.sac, sac_inputs),
}
every_block = pytest.mark.parametrize('block', list(BLOCKS))


def results(function, x, inputs, gradient, autocast=None):
    """The output, and the gradients of x and of the other inputs."""

    def call(*inputs):
        with torch.autocast('cuda', autocast, enabled=autocast is not None):
            return function(*inputs)

    return evaluate(call, [x, *inputs], gradient)


def random_case(block, shape, dtype, layout=torch.contiguous_format):
    x, gradient = (
        # Multiples of 1/16, so that all forms agree on the position of PRM's query.
        torch.randint(-64, 65, shape, device='cuda').div(16).to(dtype)
        for _ in range(2)
    )
    x = x.contiguous(memory_format=layout)
    inputs = [t.cuda() for t in BLOCKS[block][2](shape[1])]
    return x, inputs, gradient


def exact_results(block, x, inputs, gradient):
    return results(
        BLOCKS[block][1], x.double(), convert(inputs, torch.float64), gradient
    )


BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


# Many slabs, few slabs, odd sizes, a single position.
SHAPES = [(4, 64, 50, 76), (1, 64, 100, 152), (2, 40, 37, 23), (3, 64, 1, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
CASES = list(itertools.product(SHAPES, LAYOUTS, [torch.float32]))
CASES += itertools.product(SHAPES[:2], LAYOUTS[:1], [torch.float16, torch.bfloat16])


@every_block
@pytest.mark.parametrize('shape, layout, dtype', CASES, ids=str)
def test_against_the_reference(block, shape, layout, dtype):
    case = random_case(block, shape, dtype, layout)
    # PRM and LCT run their kernels, SAC runs PyTorch's products.
    assert backend(case[0]) == 'triton'
    ours = results(BLOCKS[block][0], *case)
    assert ours[0].dtype == ours[1].dtype == dtype
    assert ours[0].is_contiguous(memory_format=layout)
    check_close(ours, exact_results(block, *case), BOUNDS[dtype])


@every_block
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(block, dtype):
    x, inputs, gradient = random_case(block, (2, 64, 40, 60), dtype)
    ours = results(BLOCKS[block][0], x, inputs, gradient, autocast=dtype)
    assert ours[0].dtype == dtype
    assert all(g.dtype == torch.float32 for g in ours[2:])
    check_close(ours, exact_results(block, x, inputs, gradient), BOUNDS[dtype])


@every_block
def test_two_million_positions(block):
    case = random_case(block, (1, 32, 1, 2_000_000), torch.float32)
    ours = results(BLOCKS[block][0], *case)
    check_close(ours, exact_results(block, *case), 1e-3)


@every_block
@pytest.mark.parametrize('shape', [(4, 64, 50, 76), (1, 64, 100, 152)])
def test_two_runs_give_the_same_bits(block, shape):
    case = random_case(block, shape, torch.float32)
    first, second = (results(BLOCKS[block][0], *case) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_ties_go_to_the_first_across_programs():
    # One slab, which many programs share; equal maxima lie far apart.
    x = torch.zeros(1, 4, 500, 500, device='cuda')
    for place in (77_003, 77_004, 120_000, 249_999):
        x.view(4, -1)[:, place] = 1
    inputs = [t.cuda() for t in prm_inputs(4, groups=1)]
    index = torch.ops.prm_mmdet.prm(x, *inputs, 'dot', True)[1]
    assert index.item() == 77_003


@every_block
def test_another_stream(block):
    x, inputs, gradient = random_case(block, (2, 64, 50, 76), torch.float32)
    expected = results(BLOCKS[block][0], x, inputs, gradient)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        ours = results(BLOCKS[block][0], x, inputs, gradient)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


@every_block
def test_cuda_graphs(block):
    function = BLOCKS[block][0]
    compiled = torch.compile(function, mode='reduce-overhead')
    x, inputs, gradient = random_case(block, (2, 64, 50, 76), torch.float32)
    for scale in (1.0, 0.5, 0.25, 2.0):  # The first calls record, the others replay.
        torch.compiler.cudagraph_mark_step_begin()
        ours = results(compiled, scale * x, inputs, gradient)
        expected = results(function, scale * x, inputs, gradient)
        for a, b in zip(ours, expected):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def large(shape, layout):
    needed = 5 * 2 * torch.Size(shape).numel()  # five maps of two bytes an element
    free, _ = torch.cuda.mem_get_info()
    if needed > free:
        pytest.skip(f'needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free')
    x = torch.empty(shape, dtype=torch.bfloat16, device='cuda', memory_format=layout)
    return x.normal_()


@pytest.mark.parametrize('block', ['prm', 'lct'])
@pytest.mark.parametrize('layout', LAYOUTS)
# One sample of 2^31 elements and more; samples that begin beyond 2^31 elements.
@pytest.mark.parametrize('shape', [(1, 512, 2048, 2080), (5, 256, 1024, 2048)])
def test_more_than_two_to_the_31_elements(block, layout, shape):
    x = large(shape, layout)
    assert x.numel() > 2**31
    gradient = x.flip(1) if layout == torch.contiguous_format else x
    inputs = [t.cuda() for t in BLOCKS[block][2](shape[1])]
    y, gx, *_ = results(BLOCKS[block][0], x, inputs, gradient)
    # Groups are independent: the last group of the last sample, by itself.
    k = shape[1] // 8
    part = (slice(-1, None), slice(-k, None))
    alone = [t[-1:] if block == 'prm' and t.numel() == 8 else t for t in inputs]
    function = ops.prm
    if block == 'lct':
        alone = [t[-k:] for t in inputs]
        function = lct(ops.lct, 1)
    y_alone, gx_alone, *_ = results(function, x[part], alone, gradient[part])
    for whole, own in ((y[part], y_alone), (gx[part], gx_alone)):
        torch.testing.assert_close(
            whole.contiguous(), own.contiguous(), rtol=2e-2, atol=2e-2
        )
