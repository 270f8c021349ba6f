"""Checks that a generated data set overwrites no other files."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

#: The largest seed. The random numbers of an image are seeded with several integers,
#: such as (seed, split, index). NumPy splits an integer above 2**32 - 1 into parts.
#: Then two different lists of integers could give the same random numbers.
MAX_SEED = 2**32 - 1

_CURE = 'remove the folder or choose another one'


def check_integers(**limits: tuple[Any, int, int | None]) -> dict[str, int]:
    """Arguments as plain ints, which JSON can record.

    Args:
        limits: For each argument, a tuple (value, smallest, largest). If ``largest`` is
            None, the value has no upper limit.

    Raises:
        ValueError: An argument is no integer, or is outside of its limits.
    """
    parameters = {}
    for name, (value, low, high) in limits.items():
        integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not integral or value < low or (high is not None and value > high):
            upper = '' if high is None else f' and at most {high}'
            raise ValueError(
                f'{name} must be an integer of at least {low}{upper}, got {value!r}'
            )
        parameters[name] = int(value)
    return parameters


def is_there(folder: str, names: set[str]) -> bool:
    """Whether a folder holds all files of these names.

    Raises:
        ValueError: The folder holds other files.
    """
    present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    # An interrupted run may leave files under temporary names. They are no error.
    strangers = present - names - {f'{name}.tmp' for name in names}
    if strangers:
        raise ValueError(
            f'{folder!r} holds {len(strangers)} file(s) that are no part of this data '
            f'set, such as {min(strangers)!r}: {_CURE}'
        )
    return names <= present


def check_recorded(path: str, root: str, parameters: Mapping[str, Any]) -> None:
    """Check that a data set was generated with the same parameters.

    Args:
        path: JSON file with the parameters under ``info``.
        root: Folder of the data set, which the message names.
        parameters: The parameters asked for.

    Raises:
        ValueError: The file records other parameters, or none.
    """
    try:
        with open(path, encoding='utf-8') as file:
            recorded = dict(json.load(file)['info']['parameters'])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path!r} was not written by this generator: {_CURE}'
        ) from error
    if recorded != parameters:
        names = sorted(set(recorded) | set(parameters))
        different = ', '.join(
            f'{name} (there: {recorded.get(name)}, asked for: {parameters.get(name)})'
            for name in names
            if recorded.get(name) != parameters.get(name)
        )
        raise ValueError(
            f'{root!r} holds a data set of other parameters: {different}; {_CURE}'
        )
