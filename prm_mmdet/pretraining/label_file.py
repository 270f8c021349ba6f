"""Read the classes of images from a text file, if all images are in one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The first validation image of ILSVRC 2012, and its class (a sea snake). If a file has
#: another class for this image, the file counts the classes in another order.
KNOWN = ('ILSVRC2012_val_00000001', 'n01751748')

_CURE = (
    ' Each line must have an image and its class: a wnid, as in '
    '"ILSVRC2012_val_00000001.JPEG n01751748", or the index in the sorted wnids, '
    'from 0, as in "ILSVRC2012_val_00000001.JPEG 65". The development kit\'s '
    'ILSVRC2012_validation_ground_truth.txt counts from 1 in another order: its '
    'meta.mat has the wnids.'
)


def read_labels(path: str, classes: Sequence[str]) -> dict[str, int]:
    """Read the class of each image from a text file.

    A line has the name of an image, then its class, separated by spaces or a comma. All
    classes are names from ``classes``, or all are indices into ``classes``, from 0. If
    a number is the name of a class, it is read as this name. Words after the name of a
    class are ignored, so you can use Kaggle's ``LOC_val_solution.csv`` as it is.

    Args:
        path: The file, in UTF-8.
        classes: Names of the classes, by index.

    Returns:
        Index of the class of each image, by the image's name in the file.

    Raises:
        ValueError: A line has no class or an unknown one, an image has two classes,
            the indices do not count from 0 in the order of ``classes``, or the file is
            not in UTF-8.
    """
    known = {name: i for i, name in enumerate(classes)}
    words: dict[str, str] = {}
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read().split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not in UTF-8 ({error}): save it as UTF-8'
        ) from error
    for number, line in enumerate(lines, 1):
        fields = re.split(r'[\s,]+', line.strip(' \t\r\n,'))
        if fields == [''] or fields[:2] == ['ImageId', 'PredictionString']:
            continue
        where = f'{path}, line {number}: {line.strip()!r}'
        # After the name of a class, further words are ignored. After an index, they are
        # an error, because such a line perhaps lists one score for each class.
        if len(fields) < 2 or (len(fields) > 2 and fields[1] not in known):
            raise ValueError(f'{where} is not an image and its class.{_CURE}')
        name, word = fields[:2]
        if words.setdefault(name, word) != word:
            raise ValueError(f'{where}: an earlier line has class {words[name]}')
    if not words:
        raise ValueError(f'{path} has no labels')
    if not any(word in known for word in words.values()):
        known = {str(i): i for i in range(len(classes))}
        if '0' not in words.values():
            raise ValueError(
                f'{path} has no image of class 0, so its numbers may count from '
                f'1.{_CURE}'
            )
    for name, word in words.items():
        if word not in known:
            raise ValueError(
                f'{path}: the class of {name} is {word}, which is none of the '
                f'{len(classes)} classes ({classes[0]}, ..., {classes[-1]}).{_CURE}'
            )
    labels = {name: known[word] for name, word in words.items()}
    image, wnid = KNOWN
    found = labels.get(image, labels.get(f'{image}.JPEG'))
    if wnid in classes and found not in (None, classes.index(wnid)):
        raise ValueError(
            f'{path} has class {found} for {image}, a sea snake, whose class is '
            f'{classes.index(wnid)} ({wnid}). The file counts in another order.{_CURE}'
        )
    return labels
