"""Refusals that the blocks share. Each names the block, the argument and the cure."""

import numbers


def check_positive_int(block, **arguments):
    """Raise ValueError unless every argument is an integer of at least 1."""
    for name, value in arguments.items():
        integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not integral or value < 1:
            raise ValueError(
                f'{block}: {name} must be a positive integer, got {value!r}'
            )


def check_groups(block, in_channels, groups, min_channels=1, name='groups'):
    """Raise ValueError unless ``groups`` equal parts of at least ``min_channels``
    channels make ``in_channels``; ``name`` is what the block calls ``groups``."""
    check_positive_int(block, **{'in_channels': in_channels, name: groups})
    if in_channels % groups == 0 and in_channels // groups >= min_channels:
        return
    fitting = [
        n for n in range(1, in_channels // min_channels + 1) if in_channels % n == 0
    ]
    near = sorted(fitting, key=lambda n: abs(n - groups))[:3]
    problem = (
        f'does not divide in_channels={in_channels}'
        if in_channels % groups
        else f'leaves {in_channels // groups} channel a group of '
        f'in_channels={in_channels}, where at least {min_channels} are needed'
    )
    cure = (
        f'use {name}={" or ".join(str(n) for n in sorted(near))} (a plugin of several '
        'stages needs a number that fits them all)'
        if near
        else f'at least {min_channels} input channels are needed'
    )
    raise ValueError(f'{block}: {name}={groups} {problem}; {cure}')


def check_choice(block, name, value, choices):
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f'{block}: {name} must be one of {", ".join(map(repr, choices))}, '
            f'got {value!r}'
        )


def check_input(block, x, in_channels):
    """Raise ValueError unless ``x`` is (B, in_channels, H, W) with H, W >= 1, of a
    floating dtype."""
    expected = f'(B, {in_channels}, H, W) with H and W at least 1'
    if x.dim() != 4 or x.shape[1] != in_channels or 0 in x.shape[2:]:
        raise ValueError(
            f'{block}: the input must be of shape {expected}, got {tuple(x.shape)}'
        )
    if not x.is_floating_point():
        raise ValueError(
            f'{block}: the input must be of a floating dtype, got {x.dtype}; '
            'convert it with .float()'
        )
