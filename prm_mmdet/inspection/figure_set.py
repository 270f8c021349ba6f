"""The figures of a model with blocks, with headings and captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmdet.structures.mask import encode_mask_results
from torch import nn
from tqdm import tqdm

from ..pretraining import ImageClassifier
from .capture import SATURATED, capture
from .gate_figures import gate_statistics
from .geometry import Frame
from .gradcam import class_cam, draw_cam
from .lct_figures import attention_by_context, context_change
from .loading import Images
from .page import Entry
from .prediction_figures import (
    compare_classes,
    compare_predictions,
    detections,
    truth,
    unmatched,
)
from .prm_figures import contribution_rates, query_points
from .quantities import kind as kind_of
from .sac_figures import attention_maps, feature_norms, shown_block, weight_similarity
from .style import class_name

_PRM = 'Ma and Fu, IJCAI 2020'
_LCT = 'Ruan et al., AAAI 2020'
_SAC = 'Ruan et al., IEEE TIP 2021'


def figures(
    model: nn.Module,
    images: Images,
    other: tuple[nn.Module, Images] | None = None,
    titles: Sequence[str] = ('predictions',),
    score_thr: float = 0.3,
    rank: int = 0,
) -> list[Entry]:
    """Run a model on images, and draw the figures of its blocks and its predictions.

    For a classifier, the figures show images as its test pipeline crops them.

    Args:
        model: A detector or classifier with blocks, in evaluation mode.
        images: Images for the figures.
        other: A second model and its images, which must be the same images. If it is
            given, predictions are drawn for the images on which the models differ most.
            If one model has SAC with softmax and the other has SAC without, both models
            are compared in the figure of the contexts' weights. Default: None.
        titles: Titles of the models above their predictions.
        score_thr: Lowest score of the detections drawn. Default: 0.3.
        rank: Which detection or class of each image Grad-CAM explains. 0 is the first
            detection that the model returns, or the most probable class. Default: 0.

    Returns:
        The figures. Their selection depends on the model's blocks.

    Raises:
        ValueError: The model has no block, an image cannot be read, the models have
            different classes, or a detector's pipeline does more than resize and pad.
    """
    if other is not None and _described(other[1]) != _described(images):
        raise ValueError(
            'the two configs have different classes or images. Compare models with '
            'the same classes, on the same images'
        )
    with capture(model, images.drawn) as records:
        found, frames, pixels = _predictions(model, images, score_thr)
    cams = [
        class_cam(model, images.data(i), rank)
        for i in tqdm(range(images.drawn), desc='Grad-CAM', unit='image')
    ]
    both, others = [found], []
    if other is not None:
        has_blocks = any(kind_of(m) for m in other[0].modules())
        recording: Any = capture(other[0]) if has_blocks else nullcontext([])
        with recording as others:
            both.append(_predictions(*other, score_thr)[0])
    seen = f'{len(images)} image{"s" * (len(images) > 1)}'
    shown = _of_classes if isinstance(model, ImageClassifier) else _of_predictions
    return [
        *_of_prm([r for r in records if r.kind == 'PRM'], pixels, frames),
        *_of_channel_gates([r for r in records if r.channel_gate is not None], seen),
        *_of_contexts(records, others, pixels, frames, seen),
        *_of_gates([r for r in records if r.gates], seen),
        *_of_cams(cams, pixels, frames, images.classes, rank),
        shown(images, pixels, both, titles, score_thr, _without_cam(cams, rank)),
    ]


def _described(images):
    return list(images.classes), [images.path(i) for i in range(len(images))]


def _predictions(model, images, score_thr):
    """Predictions for all images, and a Frame and the pixels for each image to draw. A
    Frame converts positions in the network's input to pixels."""
    found, frames, pixels = [], [], []
    classifies = isinstance(model, ImageClassifier)
    for i in tqdm(range(len(images)), desc='images', unit='image'):
        data = images.data(i)
        with torch.no_grad():
            sample = model.test_step(data)[0]
        if not classifies and 'pred_instances' not in sample:
            raise ValueError(
                f'{type(model).__name__} is neither a detector nor a classifier. Use '
                'prm_mmdet.inspection.capture to record its blocks'
            )
        if i < images.drawn and classifies:
            picture = data['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1]
            shape = picture.shape[:2]
            frames.append(Frame(dict(ori_shape=shape, img_shape=shape)))
            pixels.append(picture)
        elif i < images.drawn:
            frames.append(Frame(sample.metainfo))
            pixels.append(images.pixels(i))
        found.append(sample if classifies else _compact(sample, score_thr))
    return found, frames, pixels


def _compact(sample, score_thr):
    """The predicted objects with a score of at least ``score_thr``. To save memory,
    their masks are run-length encoded."""
    instances = sample.pred_instances.cpu()
    instances = instances[instances.scores >= score_thr]
    result = {key: instances[key] for key in ('bboxes', 'labels', 'scores')}
    if 'masks' in instances:
        result['masks'] = encode_mask_results(instances.masks.numpy())
    return result


def _of_prm(records, pixels, frames):
    if not records:
        return
    yield Entry(
        'prm_contribution_rates',
        'Contribution rate of the query point',
        'For each PRM, the mean over its groups of |alpha| / (|alpha| + |beta|). This '
        'is the share of the similarity to the most salient position; the rest is the '
        'similarity to the mean of all positions. At 0 the block ignores the query '
        f'point, as a fresh block does. As {_PRM}, Figure 3.',
        contribution_rates(records),
    )
    drawn = len(pixels) if any(record.maps for record in records) else 0
    for i, (image, frame) in enumerate(zip(pixels[:drawn], frames)):
        yield Entry(
            f'prm_query_points_{i + 1}',
            f'Query points and positional mask, image {i + 1}',
            'Top: the query position of each group in the last PRM of a stage. A '
            'larger dot is the query of more groups. Bottom: the position encoding D, '
            'which weights the similarity by distance, averaged over groups. All '
            f'stages have one scale. As {_PRM}, Figure 5, top and middle.',
            query_points(records, i, image, frame),
        )


def _of_channel_gates(records, seen):
    for kind in dict.fromkeys(record.kind for record in records):
        of_kind = [record for record in records if record.kind == kind]
        name = kind.lower()
        yield Entry(
            f'{name}_attention_by_context',
            f'Attention by global context: {kind}',
            f'For the first {kind} of each stage, averaged over {seen}. Top: the gate '
            "of each channel. Bottom: the channel's mean over positions, before and "
            'after the block. Channels are sorted by this mean before the block. The '
            'paper finds that channels with a mean far from 0 have smaller gates. As '
            f'{_LCT}, Figures 1 and 3.',
            attention_by_context(of_kind),
        )
        yield Entry(
            f'{name}_context_change',
            f'Change of the global context: {kind}',
            'The absolute difference between the two lower curves of the previous '
            'figure, by channel in the same order. Each stage has its own scale. As '
            f'{_LCT}, Figure 4.',
            context_change(of_kind),
        )


def _of_contexts(records, others, pixels, frames, seen):
    records = [record for record in records if record.maps and record.kind != 'PRM']
    for kind in dict.fromkeys(record.kind for record in records):
        of_kind = [record for record in records if record.kind == kind]
        record, name = shown_block(of_kind), kind.lower()
        where = f'{record.name} ({record.stage})'
        if record.maps[0].attention is not None:
            yield Entry(
                f'{name}_attention_maps',
                f'Attention maps: {kind}',
                f'Where {where} gathers its contexts. The contexts shown attend to '
                'different places. If all positions had the same attention, all values '
                f'would be 1. As {_SAC}, Figure 4.',
                attention_maps(record, pixels, frames),
            )
        if record.maps[0].norm_added is not None:
            yield Entry(
                f'{name}_feature_norms',
                f'Features before the block, and what it adds: {kind}',
                f'The length of the feature vectors before {where}, |X|, and of the '
                'vectors that the block adds, |Z - X|. Each has its own scale. Over '
                f'all images, |Z - X| is {record.added:.2g} times |X| (root mean '
                f'square). As {_SAC}, Figure 5.',
                feature_norms(record, pixels, frames),
            )
        if record.cosines:
            rivals = [r for r in others if r.kind == kind and r.cosines]
            trained = {getattr(r.block, 'softmax', None) for r in (record, *rivals)}
            if trained != {False, True}:
                rivals = []
            how = (
                'Each network is drawn with the softmax setting of its training'
                if rivals
                else 'Both curves are of one network: the softmax was added for this '
                'figure. To compare two trained networks as the paper does, use '
                '--compare'
            )
            yield Entry(
                f'{name}_weight_similarity',
                f"Similarity of positions' weights of the contexts: {kind}",
                'Cosine between the weights beta that two positions of an image give '
                'the contexts, for the last block of each stage, without and with '
                f'softmax over the contexts. {how}. The figure has {seen}, and at most '
                f'512 evenly spaced positions of each. As {_SAC}, Figure 3.',
                weight_similarity(of_kind, rivals),
            )


def _of_gates(records, seen):
    if not records:
        return
    low, high = SATURATED
    yield Entry(
        'gates',
        'Gates by depth',
        'Mean and standard deviation of each gate over all positions, channels and '
        f'{seen} (top), and the share of it below {low} or above {high}, where a '
        'sigmoid passes little gradient (bottom).',
        gate_statistics(records),
    )


def _of_cams(cams, pixels, frames, classes, rank):
    for i, (cam, image, frame) in enumerate(zip(cams, pixels, frames)):
        if cam is None:
            continue
        what, where = (
            ('an image class', 'raise the logit of the class named')
            if cam.box is None
            else ('a detection', 'raise the class score of the box drawn')
        )
        yield Entry(
            f'gradcam_{i + 1}',
            f'Grad-CAM of {what}, image {i + 1}',
            f'Places that {where}, number {rank + 1} of the model, at each stage of '
            'the backbone. Channels are weighted by their mean gradient, so other '
            'places where the same channels are active light up, too. Each panel has '
            f'its own scale. As {_PRM}, Figure 5, bottom.',
            draw_cam(cam, image, frame, classes),
        )


def _without_cam(cams, rank):
    missing = [str(i) for i, cam in enumerate(cams, 1) if cam is None]
    note = (
        f' There is no Grad-CAM for image {", ".join(missing)}: it has no detection or '
        f'class number {rank + 1}, or its score is 0 or 1 and has no gradient.'
    )
    return note if missing else ''


def _of_classes(images, pixels, found, titles, score_thr, note):
    labels = [of_image['gt_label'] for of_image in found[0]]
    known = [i for i, label in enumerate(labels) if label >= 0]
    caption = 'The most probable classes of the images drawn'
    for title, of_model in zip(titles, found):
        right = sum(of_model[i]['pred_label'] == labels[i] for i in known)
        if known:
            caption += f'. {title}: {right} of {len(known)} images are right'
    classes = images.classes
    truths = [class_name(classes, k) if k >= 0 else '' for k in labels[: len(pixels)]]
    probabilities = [[f['pred_scores'].cpu().numpy() for f in m] for m in found]
    return Entry(
        'predictions',
        'Predicted classes',
        f'{caption}.{note}',
        compare_classes(pixels, truths, probabilities, titles, classes),
    )


def _of_predictions(images, pixels, found, titles, score_thr, note):
    classes = images.classes
    listed = [[list(detections(f, classes, score_thr)) for f in m] for m in found]
    shown = list(range(len(images)))
    caption = f'Predictions with a score of at least {score_thr}'
    if len(listed) == 2:
        differ = [len(unmatched(a, b)) + len(unmatched(b, a)) for a, b in zip(*listed)]
        shown.sort(key=lambda i: -differ[i])
        caption += (
            ', for the images on which the two models differ most. A thick box has no '
            'match of the same class with an IoU of 0.5 or more in the other model: '
            f'{sum(differ)} on {len(images)} images'
        )
    shown = shown[: images.drawn]
    truths = [
        None if images.info(i) is None else list(truth(images.info(i), classes))
        for i in shown
    ]
    return Entry(
        'predictions',
        'Predictions beside ground truth' if truths[0] is not None else 'Predictions',
        f'{caption}.{note}',
        compare_predictions(
            [images.pixels(i) for i in shown],
            truths,
            [[of_model[i] for i in shown] for of_model in listed],
            titles,
            [_readable(os.path.basename(images.path(i))) for i in shown],
        ),
    )


def _readable(name):
    """A file name as text. Bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode(errors='replace')
