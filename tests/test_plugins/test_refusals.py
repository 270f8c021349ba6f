"""Each refusal names the block, the argument, the value and what would be right."""

import pytest
import torch

from prm_mmdet import LCT, PRM, SAC


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: PRM(96), ['PRM', 'groups=64', 'in_channels=96', 'groups=32 or 48']),
        (lambda: LCT(96), ['LCT', 'groups=64', 'in_channels=96', 'groups=24 or 32']),
        (lambda: LCT(64), ['LCT', 'groups=64', '1 channel a group', '16 or 32']),
        (lambda: LCT(1, groups=1), ['LCT', '1 channel a group', 'at least 2 input']),
        (
            lambda: PRM(64, similarity='cos'),
            ['PRM', 'similarity', "'cos'", "'dot', 'l1', 'cosine'"],
        ),
        (lambda: PRM(64, groups=0), ['PRM', 'groups', 'positive integer', '0']),
        (lambda: PRM(64, groups=-2), ['PRM', 'groups', 'positive integer', '-2']),
        (lambda: PRM(64, groups=8.0), ['PRM', 'groups', 'positive integer', '8.0']),
        (lambda: LCT(64, groups=0), ['LCT', 'groups', 'positive integer', '0']),
        (lambda: LCT(64, groups=8, eps=0), ['LCT', 'eps', 'positive', '0']),
        (lambda: LCT(64, groups=8, eps='a'), ['LCT', 'eps', 'positive', "'a'"]),
        (
            lambda: LCT(64, groups=8, eps=float('nan')),
            ['LCT', 'eps', 'positive', 'nan'],
        ),
        (lambda: SAC(64, reduction=0), ['SAC', 'reduction', 'positive integer', '0']),
        (lambda: SAC(64, reduction=-32), ['SAC', 'reduction', '-32']),
        (lambda: SAC(0), ['SAC', 'in_channels', 'positive integer', '0']),
        (
            lambda: SAC(64, transform='linear'),
            ['SAC', 'transform', "'linear'", "'conv', 'bottleneck'"],
        ),
    ],
)
def test_arguments(build, words):
    with pytest.raises(ValueError) as error:
        build()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('block', [PRM(64), LCT(64, groups=8), SAC(64)])
def test_integer_inputs(block):
    with pytest.raises(ValueError, match=r'floating dtype, got torch\.int64'):
        block(torch.ones(1, 64, 2, 2, dtype=torch.int64))


def test_groups_of_one_channel_are_fine_where_nothing_is_normalised():
    LCT(64, normalization=False)(torch.ones(1, 64, 2, 2))


@pytest.mark.parametrize('block', [PRM(64), LCT(64, groups=8), SAC(64)])
@pytest.mark.parametrize(
    'shape', [(64, 8, 8), (1, 2, 64, 8, 8), (2, 32, 8, 8), (2, 64, 0, 8), (2, 64, 8, 0)]
)
def test_inputs(block, shape):
    with pytest.raises(ValueError) as error:
        block(torch.zeros(shape))
    name = type(block).__name__
    for word in (name, 'input', '(B, 64, H, W)', str(shape)):
        assert word in str(error.value)
