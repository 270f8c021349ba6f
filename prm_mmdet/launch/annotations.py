"""Faults in the annotations of a config's data sets, found before a run starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.logging import print_log

from ..files.atomic import write_file
from .data_files import (
    class_of,
    datasets_of,
    evaluators_of,
    is_local,
    naming_indices,
)
from .run_errors import RunError

#: Images with more pixels than this take minutes and gigabytes to process.
LARGE = 50_000_000

# Faults that make a run useless or let it crash later. Keys are the faults' names, and
# values are their texts in messages. "{}" in a text becomes the number of cases. A text
# without "{}" is about the whole file.
_REFUSED = {
    'not readable': 'the file cannot be read as annotations',
    'classes are a text': 'metainfo.classes must be a tuple of names, not the text',
    'malformed images': '{} images have a missing or wrong entry',
    'malformed objects': '{} objects have a missing or wrong entry',
    'image ids twice': '{} images have the id of another image',
    'annotation ids twice': '{} annotations have the id of another annotation',
    'category ids twice': '{} categories have the id of another category',
    'category names twice': '{} categories have the name of another category',
    'numbers not finite': '{} annotations have NaN or infinite numbers',
    'without mask': '{} objects have no segmentation, but the config uses masks',
    'files missing': '{} files that the list names are missing',
    'images damaged': '{} images are missing, damaged, or no images',
    'no class matches': 'no class of the config is in the file. The file has',
    'another order': 'the classes are in another order than in',
    'nothing to learn': 'no image has an object that can be learned or found',
}
_WARNED = {
    'no annotations': 'the file has no annotations, so it cannot be evaluated',
    'names shifted': 'MMDetection numbers the classes in the order of the file, so '
    'drawn predictions get wrong names. The file has',
    'unknown images': '{} annotations belong to no image of the file',
    'unknown categories': '{} annotations have a category that the file does not name',
    'classes missing': '{} classes of the config are not in the file',
    'outside': '{} boxes are wholly outside their image',
    'empty': '{} boxes have a width or a height below one pixel',
    'without area': '{} annotations have an area of zero or less',
    'short polygons': '{} objects have a polygon of fewer than three points, or an odd '
    'number of coordinates',
    'annotation ids zero': "{} annotations have the id 0: COCO's evaluation counts "
    'every detection of such an object as false',
    'without objects': '{} images have no object; a training skips them',
    'large images': f'{{}} images have more than {LARGE // 10**6} million pixels',
    'other size': '{} images have another size than the annotations say',
}
# Errors that Python raises if entries are missing or have a wrong type.
_WRONG = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass
class Faults:
    """The faults of one annotation file.

    Attributes:
        path: The annotation file.
        counts: Number of cases by the fault's name.
        examples: One case by the fault's name.
        images: Number of images in the file.
        objects: Number of objects that a training or an evaluation can use.
        labels: Names of the classes in the order in which MMDetection numbers them.
    """

    path: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    images: int = 0
    objects: int = 0
    labels: list[str] = field(default_factory=list)

    def add(self, name: str, example: Any = '', count: int = 1) -> None:
        """Count a fault, and keep the first example."""
        self.counts[name] += count
        text = f'{example}'[:200]
        # The example can come from a file. If it has control codes, they are escaped,
        # so that the terminal only prints them.
        self.examples.setdefault(name, text if text.isprintable() else ascii(text))

    @property
    def refused(self) -> list[str]:
        """Names of the faults that make a run useless or crash later."""
        return [name for name in self.counts if name in _REFUSED]

    def __str__(self) -> str:
        objects = f', {self.objects} objects' if self.objects else ''
        lines = [f'{self.path}: {self.images} images{objects}']
        for name, count in self.counts.items():
            kind = 'error' if name in _REFUSED else 'warning'
            text = _REFUSED.get(name) or _WARNED[name]
            example = self.examples[name]
            if example:
                text += ', such as ' if '{}' in text else ' '
            lines.append(f'  {kind}: {text.format(count)}{example}')
        return '\n'.join(lines)


@dataclass(frozen=True)
class _Source:
    """An annotation file, and what a config uses it for."""

    path: str
    folder: str | None  # folder of Pascal VOC's XML files, None for a COCO file
    classes: tuple[str, ...] | str
    trained: bool  # whether a training uses the file
    scored: bool  # whether an evaluation compares predictions with the file
    masks: bool  # whether the training or the evaluation uses masks
    # Whether CocoDataset's own load_data_list reads the file. This method looks for the
    # config's classes by name.
    by_name: bool


def check_annotations(cfg: Config, *phases: str) -> None:
    """Read the annotations of a config's data sets once, and report their faults.

    Only COCO's JSON files and Pascal VOC's XML files are read. If neither
    the size nor the modification time of a JSON file changed since its last check, the
    file is not read again.

    Args:
        cfg: A complete config.
        phases: One or more of 'train', 'val' and 'test'.

    Raises:
        RunError: Faults make the run useless or crash later. The message lists them.
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
        cfg: A complete config.
        phases: One or more of 'train', 'val' and 'test'.

    Yields:
        One :class:`Faults` for each annotation file, empty if there are no faults.
    """
    first: dict[Any, Faults] = {}
    for source in dict.fromkeys(_sources(cfg, *phases)):
        if isinstance(source.classes, str):
            faults = Faults(source.path)
            faults.add('classes are a text', repr(source.classes))
        elif source.folder is None:
            faults = _cached(source)
            other = first.setdefault(source.classes, faults)
            if not all(a == b for a, b in zip(other.labels, faults.labels)):
                faults.add('another order', other.path)
        else:
            faults = _voc(source, source.folder)
        yield faults


def _sources(cfg: Config, *phases: str) -> Iterator[_Source]:
    """The annotation files of a config that can be checked."""
    for phase in phases:
        evaluators = evaluators_of(cfg, phase)
        scored = phase != 'train' and not any(e.get('format_only') for e in evaluators)
        masks = scored and any('segm' in (e.get('metric') or '') for e in evaluators)
        for _, dataset in datasets_of(phase, cfg.get(f'{phase}_dataloader') or {}):
            source = _source(dataset, phase == 'train', scored, masks)
            if source is None:
                continue
            yield source
            for evaluator in evaluators if source.folder is None else ():
                path = evaluator.get('ann_file')
                if isinstance(path, str) and is_local(path, dataset):
                    yield replace(source, path=os.path.normpath(path))


def _source(dataset: dict, trained: bool, scored: bool, masks: bool) -> _Source | None:
    """The annotation file of a data set's config, or None if it cannot be checked."""
    name, root = dataset.get('ann_file'), dataset.get('data_root') or ''
    kind = class_of(dataset, DATASETS)
    coco, voc = (
        # A class with its own parse_data_info is not checked, because it may accept
        # more than MMDetection's classes do.
        getattr(kind, 'parse_data_info', None) is known.parse_data_info
        for known in (CocoDataset, XMLDataset)
    )
    if not isinstance(name, str) or not name or not (coco or voc):
        return None
    path = os.path.normpath(os.path.join(root, name))
    if not is_local(path, dataset) or not os.path.isfile(path):
        return None
    classes = kind._load_metainfo(dataset.get('metainfo')).get('classes') or ()
    prefix = (dataset.get('data_prefix') or {}).get('sub_data_root') or ''
    subfolder = dataset.get('ann_subdir') or 'Annotations'
    steps = [step for step in dataset.get('pipeline') or () if isinstance(step, dict)]
    return _Source(
        path,
        None if coco else os.path.join(root, prefix, subfolder),
        classes if isinstance(classes, str) else tuple(classes),
        trained,
        scored,
        masks or (trained and any(step.get('with_mask') for step in steps)),
        coco and kind.load_data_list is CocoDataset.load_data_list,
    )


def image_files(cfg: Config, *phases: str) -> dict[str, tuple[int | None, int | None]]:
    """Find the images that a config's data sets use. Images that a data set leaves out
    because of ``indices`` or ``filter_cfg`` are not listed.

    Args:
        cfg: A complete config, whose annotations have no errors.
        phases: One or more of 'train', 'val' and 'test'.

    Returns:
        For each image's path, its (width, height) in the annotations. If the
        annotations have no size, (None, None).
    """
    found: dict[str, tuple[int | None, int | None]] = {}
    for phase in phases:
        for _, data in datasets_of(phase, cfg.get(f'{phase}_dataloader') or {}):
            if is_local('', data):
                # Hide the progress messages that pycocotools prints.
                with contextlib.redirect_stdout(None), naming_indices(data):
                    dataset = DATASETS.build(dict(data, pipeline=[], _scope_='mmdet'))
                for info in map(dataset.get_data_info, range(len(dataset))):
                    size = info.get('width'), info.get('height')
                    found.setdefault(info['img_path'], size)
    return found


def _cached(source: _Source) -> Faults:
    """The faults of a COCO file, from the cache if the file did not change."""
    status = os.stat(source.path)
    key = [os.path.abspath(source.path), status.st_mtime_ns, status.st_size]
    # The cache's key contains the source of this module. After an update of the module,
    # whose rules may be new, the file is checked again.
    key += [source, Path(__file__).read_bytes()]
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    cache = Path(home, 'prm_mmdet', 'annotations', f'{name}.json')
    with contextlib.suppress(*_WRONG, OSError):
        known = json.loads(cache.read_text(encoding='utf-8'))
        return Faults(**{**known, 'counts': Counter(known['counts'])})
    faults = _coco(source)
    # If the cache cannot be written, the next check reads the annotations again.
    with contextlib.suppress(OSError):
        write_file(cache, json.dumps(vars(faults)))
    return faults


def _coco(source: _Source) -> Faults:
    """The faults of a COCO file."""
    faults = Faults(source.path)
    try:
        content = json.loads(Path(source.path).read_text(encoding='utf-8'))
        for name in ('images', 'categories', 'annotations'):
            if name == 'annotations' and name not in content and not source.trained:
                # A file for tests needs no annotations: COCO's test-dev has none. So
                # this fault is a warning.
                faults.add('no annotations')
            elif not isinstance(content[name], list):
                raise TypeError(f'{name!r} is no list')
        names = _read_categories(faults, content['categories'])
    except (*_WRONG, OSError, RecursionError) as error:
        faults.add('not readable', f'({_reason(error)})')
        return faults
    images = _read_images(faults, content['images'], source.by_name)
    faults.images = len(content['images'])
    objects = content.get('annotations', [])
    full = _read_objects(faults, objects, images, names, source)
    _compare_classes(faults, source, list(names.values()))
    if 'no annotations' in faults.counts:
        return faults
    if not full and not faults.refused and (source.trained or source.scored):
        faults.add('nothing to learn')
    without = len(images) - len(full)
    if without and full and source.trained:
        faults.add('without objects', count=without)
    return faults


def _reason(error: Exception) -> str:
    return f'no {error}' if isinstance(error, KeyError) else f'{error}'


def _compare_classes(faults: Faults, source: _Source, known: list[str]) -> None:
    """Compare the names and the order of a file's classes with those in the config."""
    classes = source.classes
    if not classes or not known:
        return
    missing = [name for name in classes if name not in known]
    if len(missing) == len(classes):
        faults.add('no class matches', ', '.join(known[:5]))
        return
    if missing:
        faults.add('classes missing', missing[0], len(missing))
    if source.by_name:
        faults.labels = [name for name in known if name in classes]
        if faults.labels != list(classes[: len(faults.labels)]):
            faults.add('names shifted', ', '.join(faults.labels[:5]))


def _read_categories(faults: Faults, categories: list) -> dict[Any, str]:
    """Names of the categories by their ids."""
    names: dict[Any, str] = {}
    for category in categories:
        number, name = category['id'], category['name']
        if not isinstance(name, str):
            raise TypeError(f'the category {number} has the name {name!r}')
        if number in names:
            faults.add('category ids twice', number)
        if name in names.values():
            faults.add('category names twice', name)
        names[number] = name
    return names


def _read_images(
    faults: Faults, images: list, named: bool
) -> dict[Any, tuple[float, float]]:
    """(width, height) of the images by their ids."""
    sizes: dict[Any, tuple[float, float]] = {}
    for index, image in enumerate(images):
        try:
            number, width, height = image['id'], image['width'], image['height']
            twice = number in sizes
            # If an entry is a text, the comparisons raise TypeError (caught below).
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise ValueError(f'width {width} and height {height}')
            if named and not isinstance(image['file_name'], str):
                raise TypeError(f'the file_name {image["file_name"]!r}')
        except _WRONG as error:
            faults.add('malformed images', f'number {index} ({_reason(error)})')
            continue
        if twice:
            faults.add('image ids twice', number)
        sizes[number] = (width, height)
        if width * height > LARGE:
            faults.add('large images', image.get('file_name', number))
    return sizes


def _read_objects(
    faults: Faults,
    objects: list,
    images: dict[Any, tuple[float, float]],
    names: dict[Any, str],
    source: _Source,
) -> set:
    """Count the faults of objects. Return the ids of images with usable objects."""
    full, ids = set(), set()
    classes = set(source.classes or names.values())
    wanted = {category for category, name in names.items() if name in classes}
    for index, thing in enumerate(objects):
        number = f'number {index}'
        try:
            number = f'annotation {thing["id"]}'
            if thing['id'] in ids:
                faults.add('annotation ids twice', number)
            ids.add(thing['id'])
            if source.scored and not isinstance(thing['id'], int):
                raise TypeError('its id is no whole number')
            if source.scored and thing['id'] == 0:
                faults.add('annotation ids zero', number)
            fault = _fault_of(thing, images, names, source.masks)
            if fault:
                faults.add(fault, number)
            usable = fault in ('', 'short polygons') and not thing.get('iscrowd')
            if usable and thing['category_id'] in wanted:
                full.add(thing['image_id'])
                faults.objects += 1
        except OverflowError:  # The object has an integer too large for a float.
            faults.add('numbers not finite', number)
        except _WRONG as error:
            faults.add('malformed objects', f'{number} ({_reason(error)})')
    return full


def _fault_of(
    thing: dict,
    images: dict[Any, tuple[float, float]],
    names: dict[Any, str],
    masks: bool,
) -> str:
    """Name of an object's fault, or ''. If an entry is malformed, one of the errors in
    ``_WRONG`` is raised."""
    if thing['image_id'] not in images:
        return 'unknown images'
    if thing['category_id'] not in names:
        return 'unknown categories'
    x, y, w, h = thing['bbox']
    area, polygons = thing['area'], thing.get('segmentation')
    if not all(map(math.isfinite, (x, y, w, h, area))):
        return 'numbers not finite'
    width, height = images[thing['image_id']]
    fault = ''
    if isinstance(polygons, list):
        for polygon in polygons:
            if not isinstance(polygon, list):
                raise TypeError(f'a polygon is no list, but {polygon!r:.40}')
            if not all(map(math.isfinite, polygon)):
                return 'numbers not finite'
            if len(polygon) < 6 or len(polygon) % 2:
                fault = 'short polygons'
    elif polygons is not None and masks:
        _check_rle(polygons, (height, width))
    if masks and not polygons:
        return 'without mask'
    if w < 1 or h < 1:
        return 'empty'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return 'outside'
    return 'without area' if area <= 0 else fault


def _check_rle(mask: dict, size: tuple[float, float]) -> None:
    """Raise ValueError unless a run-length encoded mask fits an image of this size."""
    runs = mask['counts']
    if isinstance(runs, str):
        runs = _decoded(runs)
    if list(mask['size']) != list(size):
        raise ValueError(f'its mask has the size {mask["size"]}, not {list(size)}')
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError('the runs of its mask do not cover the image')


def _decoded(text: str) -> list[int]:
    """Decode the run lengths of a compressed COCO mask (see pycocotools' maskApi.c)."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError('the text of its mask is cut off')
    return runs


def _voc(source: _Source, folder: str) -> Faults:
    """The faults of the Pascal VOC files that an annotation file lists."""
    faults = Faults(source.path)
    try:
        names = Path(source.path).read_text(encoding='utf-8').splitlines()
    except (OSError, ValueError) as error:
        faults.add('not readable', f'({error})')
        return faults
    faults.images = len(names)
    known: dict[str, None] = {}
    for name in names:
        file = os.path.join(folder, f'{name}.xml')
        objects = 0
        try:
            for kind, corners in _read_voc(file):
                known[kind] = None
                if source.classes and kind not in source.classes:
                    continue
                if not all(map(math.isfinite, corners)):
                    faults.add('numbers not finite', file)
                elif corners[2] <= corners[0] or corners[3] <= corners[1]:
                    faults.add('empty', file)
                else:
                    objects += 1
        except FileNotFoundError:
            faults.add('files missing', file)
            continue
        except (*_WRONG, OSError, expat.ExpatError, ElementTree.ParseError) as error:
            faults.add('malformed objects', f'{file} ({_reason(error)})')
            continue
        faults.objects += objects
        if not objects and source.trained:
            faults.add('without objects', file)
    _compare_classes(faults, source, list(known))
    if not faults.objects and not faults.refused:
        faults.add('nothing to learn')
    return faults


def _read_voc(path: str) -> Iterator[tuple[str, list[float]]]:
    """Class and corners (left, top, right, bottom) of each object in an XML file.

    Raises:
        ValueError: The file has a DOCTYPE, which could make its text grow without
            limit.
    """
    content = Path(path).read_bytes()
    scanner = expat.ParserCreate()
    scanner.StartDoctypeDeclHandler = _refuse_doctype
    scanner.Parse(content, True)
    for thing in ElementTree.fromstring(content).iter('object'):
        box = thing.find('bndbox')
        corners = [
            float(box.findtext(corner))  # type: ignore[union-attr,arg-type]
            for corner in ('xmin', 'ymin', 'xmax', 'ymax')
        ]
        yield thing.findtext('name') or '', corners


def _refuse_doctype(*_: Any) -> None:
    raise ValueError('it has a DOCTYPE, which Pascal VOC does not use')
