"""Labels of images that stand in one folder, as ImageNet's validation images do."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The first validation image of ILSVRC 2012, and its class: a sea snake.
KNOWN = ('ILSVRC2012_val_00000001', 'n01751748')


def read_labels(path: str, classes: Sequence[str]) -> dict[str, int]:
    """Read which class each image belongs to.

    A line names an image, with or without extension, then its class; words after the
    name of a class are ignored. A space or a comma separates them, so that
    ``LOC_val_solution.csv``, which comes with ImageNet on Kaggle, can be read as it is.
    A class is one of ``classes``, or all lines have an index into them, from 0.

    Args:
        path (str): The file, in UTF-8.
        classes (Sequence[str]): Names of the classes, by index.

    Returns:
        dict: Names of images, as they stand there, to indices of classes.

    Raises:
        ValueError: A label is missing, unknown or could mean two classes, more follows
            an index, or the file is in another encoding. The
            ``ILSVRC2012_validation_ground_truth.txt`` of ImageNet's development kit is
            refused, since its numbers count from 1 in another order.
    """
    words: dict[str, str] = {}
    for number, line in enumerate(_read(path).split('\n'), 1):
        fields = re.split(r'[\s,]+', line.strip(' \t\r\n,'))
        if fields == [''] or fields[:2] == ['ImageId', 'PredictionString']:
            continue
        if len(fields) < 2:
            raise ValueError(
                f'{path}, line {number}: {line.strip()!r} is not an image and its '
                f'class.{_CURE}'
            )
        name, word = fields[:2]
        if _is_index(word) and len(fields) > 2:
            raise ValueError(
                f'{path}, line {number}: more follows the number of a class in '
                f'{line.strip()!r}, which may be a column for each class.{_CURE}'
            )
        if words.setdefault(name, word) != word:
            raise ValueError(
                f'{path}, line {number}: {name} is of class {word}, but above of '
                f'class {words[name]}'
            )
    if not words:
        raise ValueError(f'{path} holds no labels')
    known = {c: i for i, c in enumerate(classes)}
    if any(map(_is_index, words.values())) and any(
        _is_index(c) and int(c) != i for c, i in known.items()
    ):
        raise ValueError(
            f'{path}: names of classes are numbers, and not their own indices, so '
            'that a label could mean two classes; rename the folders of the classes'
        )
    if all(word in known for word in words.values()):
        labels = {name: known[word] for name, word in words.items()}
    elif all(map(_is_index, words.values())):
        labels = _indices(path, words, len(classes))
    else:
        unknown = [(n, w) for n, w in words.items() if w not in known]
        # Indices among names are wrong only if nothing else is.
        name, word = min(unknown, key=lambda pair: _is_index(pair[1]))
        raise ValueError(
            f'{path}: {name} is of class {word}, which is none of the {len(classes)} '
            f'classes ({classes[0]}, ..., {classes[-1]}).{_CURE}'
        )
    _check_known_image(path, labels, known)
    return labels


_CURE = (
    ' Each line has to name an image and its class by wnid, as in '
    '"ILSVRC2012_val_00000001.JPEG n01751748", or by its index in the sorted wnids, '
    'from 0, as in "ILSVRC2012_val_00000001.JPEG 65". The development kit\'s '
    'ILSVRC2012_validation_ground_truth.txt counts from 1 in another order: its '
    'meta.mat has the wnids.'
)


def _read(path):
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not in UTF-8 ({error}): save it as such'
        ) from error


def _is_index(word):
    return re.fullmatch('[0-9]+', word) is not None


def _indices(path, words, count):
    labels = {name: int(word) for name, word in words.items()}
    low, high = min(labels.values()), max(labels.values())
    if high >= count or low > 0:
        reason = (
            f'there are {count} classes, whose indices end at {count - 1}'
            if high >= count
            else 'they may count from 0 or from 1'
        )
        raise ValueError(
            f'{path} has numbers from {low} to {high} for classes, and {reason}.{_CURE}'
        )
    return labels


def _check_known_image(path, labels, known):
    name, wnid = KNOWN
    found = labels.get(name, labels.get(f'{name}.JPEG'))
    if found is not None and wnid in known and found != known[wnid]:
        raise ValueError(
            f'{path} says that {name} is of class {found}; it is a sea snake, {wnid}, '
            f'which is class {known[wnid]}. So the file counts in another order.{_CURE}'
        )
