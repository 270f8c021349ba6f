"""Faults in the annotations of a config's data sets, found before a run starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..files.atomic import write_file
from .data_files import datasets_of, is_local
from .run_errors import RunError

#: Pixels above which an image takes minutes and gigabytes.
LARGE = 50_000_000

# A fault's text, and whether the run is refused.
_REFUSED = {
    'not readable': 'the file cannot be read as annotations',
    'image ids twice': 'images have the id of another image',
    'annotation ids twice': 'annotations have the id of another annotation',
    'numbers not finite': 'annotations have NaN or infinite numbers',
    'no class matches': 'no class of the config is in the file. The file has',
    'nothing to learn': 'no image has an object that can be learned or found',
}
#: Faults of a file, not of single annotations: their number means nothing.
_WHOLE_FILE = ('not readable', 'no class matches', 'nothing to learn')
_WARNED = {
    'unknown images': 'annotations belong to no image of the file',
    'unknown categories': 'annotations have a category that the file does not name',
    'classes missing': 'classes of the config are not in the file',
    'outside': 'boxes are wholly outside their image',
    'empty': 'boxes have no width or no height',
    'without area': 'annotations have an area of zero or less; COCO skips them',
    'without box': 'annotations have no box',
    'without objects': 'images have no object; a training skips them',
    'large images': f'images have more than {LARGE // 10**6} million pixels',
    'files missing': 'files that the list names are missing',
}


@dataclass
class Faults:
    """The faults of one annotation file.

    Attributes:
        path: The annotation file.
        counts: Number of cases by the fault's name.
        examples: One case by the fault's name.
        images: Number of images in the file.
        objects: Number of objects that can be learned or found.
    """

    path: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    images: int = 0
    objects: int = 0

    def add(self, name: str, example: Any = '', count: int = 1) -> None:
        """Count a fault, and keep the first example."""
        self.counts[name] += count
        self.examples.setdefault(name, f'{example}')

    @property
    def refused(self) -> list[str]:
        """Names of the faults that make a run useless or crash later."""
        return [name for name in self.counts if name in _REFUSED]

    def __str__(self) -> str:
        lines = [f'{self.path}: {self.images} images, {self.objects} objects']
        for name, count in self.counts.items():
            kind = 'error' if name in _REFUSED else 'warning'
            text = _REFUSED.get(name) or _WARNED[name]
            example = self.examples[name]
            if name not in _WHOLE_FILE:
                text = f'{count} {text}'
                example = example and f'such as {example}'
            lines.append(f'  {kind}: {text}' + (example and f', {example}'))
        return '\n'.join(lines)


def check_annotations(cfg: Config, *phases: str) -> None:
    """Read the annotations of a config's data sets once, and report their faults.

    COCO's JSON files and Pascal VOC's XML files are read; other formats are not. A file
    whose size and time did not change since the last check is not read again.

    Args:
        cfg: A whole config.
        phases: One or more of 'train', 'val' and 'test'.

    Raises:
        RunError: Faults that make the run useless or crash later; the message lists all
            of them.
    """
    found = list(find_faults(cfg, *phases))
    for faults in found:
        if faults.counts and not faults.refused:
            print_log(f'{faults}', 'current')
    refused = [faults for faults in found if faults.refused]
    if refused:
        table = '\n'.join(f'{faults}' for faults in refused)
        raise RunError(
            f'the annotations have faults:\n{table}\nCorrect the files, or name others '
            'in the config. "python tools/check_data.py CONFIG" prints this table'
        )


def find_faults(cfg: Config, *phases: str) -> Iterator[Faults]:
    """Find the faults in the annotations of a config's data sets.

    Args:
        cfg: A whole config.
        phases: One or more of 'train', 'val' and 'test'.

    Yields:
        The faults of each annotation file, without any if there are none.
    """
    seen = set()
    for phase in phases:
        for _, dataset in datasets_of(phase, cfg.get(f'{phase}_dataloader') or {}):
            name, root = dataset.get('ann_file'), dataset.get('data_root') or ''
            if not isinstance(name, str) or not name:
                continue
            path = os.path.join(root, name)
            classes = tuple((dataset.get('metainfo') or {}).get('classes') or ())
            key = (path, classes, phase == 'train')
            if key in seen or not is_local(path, dataset) or not os.path.isfile(path):
                continue
            seen.add(key)
            if path.endswith('.json') and 'Coco' in f'{dataset.get("type")}':
                yield _cached(path, classes, phase == 'train')
            elif path.endswith('.txt') and 'VOC' in f'{dataset.get("type")}':
                prefix = (dataset.get('data_prefix') or {}).get('sub_data_root', '')
                yield _voc(path, os.path.join(root, prefix), classes)


def image_files(cfg: Config, *phases: str) -> Iterator[str]:
    """Paths of the images of a config's data sets, each once.

    Args:
        cfg: A whole config.
        phases: One or more of 'train', 'val' and 'test'.
    """
    seen = set()
    for phase in phases:
        for _, dataset in datasets_of(phase, cfg.get(f'{phase}_dataloader') or {}):
            root = dataset.get('data_root') or ''
            path = os.path.join(root, dataset.get('ann_file') or '')
            prefixes = dataset.get('data_prefix') or {}
            if path.endswith('.json') and os.path.isfile(path):
                folder = os.path.join(root, prefixes.get('img', ''))
                images = json.loads(Path(path).read_text(encoding='utf-8'))['images']
                paths = [os.path.join(folder, image['file_name']) for image in images]
            elif path.endswith('.txt') and 'VOC' in f'{dataset.get("type")}':
                folder = os.path.join(root, prefixes.get('sub_data_root', ''))
                names = Path(path).read_text(encoding='utf-8').split()
                paths = [os.path.join(folder, 'JPEGImages', f'{n}.jpg') for n in names]
            else:
                continue
            for image in paths:
                if image not in seen:
                    seen.add(image)
                    yield image


def _cached(path: str, classes: Sequence[str], trained: bool) -> Faults:
    """The faults of a COCO file, from the cache if the file did not change."""
    status = os.stat(path)
    key = [os.path.abspath(path), status.st_mtime_ns, status.st_size, *classes, trained]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    cache = Path(home, 'prm_mmdet', 'annotations', f'{name}.json')
    try:
        known = json.loads(cache.read_text(encoding='utf-8'))
        known['counts'] = Counter(known['counts'])
        return Faults(**known)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    faults = _coco(path, classes, trained)
    with contextlib.suppress(OSError):  # the cache only saves time
        write_file(cache, json.dumps(vars(faults)))
    return faults


def _coco(path: str, classes: Sequence[str], trained: bool) -> Faults:
    faults = Faults(path)
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        images = {}
        for image in content['images']:
            if image['id'] in images:
                faults.add('image ids twice', image['id'])
            images[image['id']] = (float(image['width']), float(image['height']))
            if image['width'] * image['height'] > LARGE:
                faults.add('large images', image['file_name'])
        names = {category['id']: category['name'] for category in content['categories']}
        annotations = content['annotations']
        faults.images = len(images)
        full = _check_objects(faults, annotations, images, names, classes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f'no {error}' if isinstance(error, KeyError) else f'{error}'
        faults.add('not readable', f'({reason})')
        return faults
    known = set(names.values())
    missing = [name for name in classes if name not in known]
    if classes and len(missing) == len(classes):
        faults.add('no class matches', ', '.join(sorted(map(str, known))[:5]))
    elif missing:
        faults.add('classes missing', missing[0], len(missing))
    elif not full:
        faults.add('nothing to learn')
    without = len(images) - len(full)
    if without and full and trained:
        faults.add('without objects', count=without)
    return faults


def _check_objects(
    faults: Faults,
    annotations: list[dict],
    images: dict[Any, tuple[float, float]],
    names: dict[Any, str],
    classes: Sequence[str],
) -> set:
    """Count the faults of annotations; ids of the images that have a usable object."""
    full, ids = set(), set()
    for annotation in annotations:
        number = f'annotation {annotation["id"]}'
        if annotation['id'] in ids:
            faults.add('annotation ids twice', number)
        ids.add(annotation['id'])
        if annotation['image_id'] not in images:
            faults.add('unknown images', number)
            continue
        if annotation['category_id'] not in names:
            faults.add('unknown categories', number)
            continue
        if 'bbox' not in annotation:
            faults.add('without box', number)
            continue
        polygons = annotation.get('segmentation')
        numbers = [*annotation['bbox'], annotation.get('area', 1)]
        if isinstance(polygons, list):
            numbers += [value for polygon in polygons for value in polygon]
        if not all(map(math.isfinite, numbers)):
            faults.add('numbers not finite', number)
            continue
        x, y, w, h = annotation['bbox']
        width, height = images[annotation['image_id']]
        if w <= 0 or h <= 0:
            faults.add('empty', number)
        elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
            faults.add('outside', number)
        elif annotation.get('area', 1) <= 0:
            faults.add('without area', number)
        elif not annotation.get('iscrowd') and (
            not classes or names[annotation['category_id']] in classes
        ):
            full.add(annotation['image_id'])
            faults.objects += 1
    return full


def _voc(path: str, folder: str, classes: Sequence[str]) -> Faults:
    faults = Faults(path)
    names = Path(path).read_text(encoding='utf-8').split()
    faults.images = len(names)
    known: set[str] = set()
    for name in names:
        file = os.path.join(folder, 'Annotations', f'{name}.xml')
        try:
            root = ElementTree.parse(file).getroot()
        except FileNotFoundError:
            faults.add('files missing', file)
            continue
        except ElementTree.ParseError as error:
            faults.add('not readable', f'({file}: {error})')
            continue
        objects = 0
        for thing in root.findall('object'):
            kind, box = thing.findtext('name') or '', thing.find('bndbox')
            known.add(kind)
            if classes and kind not in classes:
                continue
            try:
                corners = [
                    float(box.findtext(corner))  # type: ignore[union-attr,arg-type]
                    for corner in ('xmin', 'ymin', 'xmax', 'ymax')
                ]
            except (AttributeError, TypeError, ValueError):
                faults.add('without box', file)
                continue
            if not all(map(math.isfinite, corners)):
                faults.add('numbers not finite', file)
            elif corners[2] <= corners[0] or corners[3] <= corners[1]:
                faults.add('empty', file)
            else:
                objects += 1
        faults.objects += objects
        if not objects:
            faults.add('without objects', file)
    missing = [name for name in classes if name not in known]
    if classes and len(missing) == len(classes) and known:
        faults.add('no class matches', ', '.join(sorted(known)[:5]))
    elif missing and known:
        faults.add('classes missing', missing[0], len(missing))
    if not faults.objects and not faults.refused:
        faults.add('nothing to learn')
    return faults
