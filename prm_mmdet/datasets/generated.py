"""Files of generated data sets: written whole, and never over those of others."""

import json
import numbers
import os

#: A larger seed would take two words of numpy's seed sequence, and two different
#: (seed, split, index) could then start the same stream.
MAX_SEED = 2**32 - 1

_CURE = 'remove the folder or choose another one'


def check_integers(**limits):
    """Arguments as plain ints, as a data set records them.

    Args:
        limits (tuple): By name: the value, the least and the largest that it may have;
            None for no largest.

    Raises:
        ValueError: One is no integer, or out of its limits.
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


def is_there(folder, names):
    """Whether a folder holds all files of these names.

    Raises:
        ValueError: It holds others.
    """
    present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    # Half-written files of an interrupted run are no strangers.
    strangers = present - names - {f'{name}.tmp' for name in names}
    if strangers:
        raise ValueError(
            f'{folder!r} holds {len(strangers)} file(s) that are no part of this data '
            f'set, such as {min(strangers)!r}: {_CURE}'
        )
    return names <= present


def check_recorded(path, root, parameters):
    """Raise ValueError unless the JSON at ``path`` records the same parameters, in
    ``info``, for the data set in ``root``."""
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
