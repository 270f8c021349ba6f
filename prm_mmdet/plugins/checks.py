"""Check arguments and inputs of blocks. An error names the block and the argument, and
says what to change.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_positive_int(block: str, **arguments: Any) -> None:
    """Raise ValueError unless every argument is an integer of at least 1."""
    for name, value in arguments.items():
        integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not integral or value < 1:
            raise ValueError(
                f'{block}: {name} must be a positive integer, got {value!r}'
            )


class GroupsError(ValueError):
    """The number of groups does not fit the channels of a block.

    Attributes:
        in_channels: Number of channels of the block.
    """

    def __init__(
        self, block: str, name: str, groups: int, in_channels: int, min_channels: int
    ):
        self.in_channels = in_channels
        self._name, self._groups, self._min_channels = name, groups, min_channels
        if in_channels % groups:
            problem = f'does not divide in_channels={in_channels}'
        else:
            problem = (
                f'leaves {in_channels // groups} channel a group of '
                f'in_channels={in_channels}, where at least {min_channels} are needed'
            )
        self._problem = f'{block}: {name}={groups} {problem}; '
        # A plugin's ``groups`` holds for several stages, but the block knows only its
        # own channels. In most networks, a power of two divides the channels of all
        # stages. So the message also suggests a power of two.
        likely = math.gcd(in_channels, 1 << (int(groups).bit_length() - 1))
        cure = self._cure([in_channels])
        if likely > 1 and in_channels // likely >= min_channels:
            cure += (
                f' (a plugin of several stages needs a number that fits them all, '
                f'often {name}={likely})'
            )
        super().__init__(self._problem + cure)

    def for_all(self, channels: Sequence[int]) -> str:
        """The error's message. It suggests numbers of groups that fit all of the given
        channels."""
        message = self._problem + self._cure(channels)
        if len(channels) > 1:
            message += f', which fits all of {", ".join(map(str, channels))} channels'
        return message

    def _cure(self, channels: Sequence[int]) -> str:
        common = math.gcd(*channels)
        fitting = [
            n
            for n in range(1, common + 1)
            if common % n == 0 and min(channels) >= n * self._min_channels
        ]
        near = sorted(fitting, key=lambda n: abs(n - self._groups))[:3]
        if not near:
            return f'at least {self._min_channels} input channels are needed'
        return f'use {self._name}={" or ".join(map(str, sorted(near)))}'


def check_groups(
    block: str,
    in_channels: int,
    groups: int,
    min_channels: int = 1,
    name: str = 'groups',
) -> None:
    """Raise GroupsError unless ``groups`` divides ``in_channels`` into groups of at
    least ``min_channels`` channels each. ``name`` is the name of the argument in error
    messages, such as 'reduction'."""
    check_positive_int(block, **{'in_channels': in_channels, name: groups})
    if in_channels % groups or in_channels // groups < min_channels:
        raise GroupsError(block, name, groups, in_channels, min_channels)


def check_choice(block: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f'{block}: {name} must be one of {", ".join(map(repr, choices))}, '
            f'got {value!r}'
        )


def check_input(block: str, x: Tensor, in_channels: int) -> None:
    """Raise ValueError unless ``x`` is a floating-point tensor (B, in_channels, H, W)
    with H and W at least 1."""
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
