"""Which figures a model gives, and what they show."""

import os

import torch
from mmdet.structures.mask import encode_mask_results
from tqdm import tqdm

from .capture import SATURATED, capture
from .gate_figures import gate_statistics
from .geometry import Frame
from .gradcam import detection_cam, draw_cam
from .lct_figures import attention_by_context, context_change
from .page import Entry
from .prediction_figures import compare_predictions, detections, truth, unmatched
from .prm_figures import contribution_rates, query_points
from .sac_figures import attention_maps, feature_norms, shown_block, weight_similarity

_PRM = 'Ma and Fu, IJCAI 2020'
_LCT = 'Ruan et al., AAAI 2020'
_SAC = 'Ruan et al., IEEE TIP 2021'


def figures(
    model, images, other=None, titles=('predictions',), score_thr=0.3, detection=0
):
    """Run a model on images, and draw what its blocks do and what it finds.

    Args:
        model (nn.Module): A detector with blocks, in evaluation mode.
        images (Images): To look at.
        other (tuple, optional): A second detector and its :class:`Images`, the same
            ones. Then predictions are drawn of those on which the two differ most.
            Default: None.
        titles (Sequence[str]): Of the models, over their predictions.
        score_thr (float): Predictions under this score are left out. Default: 0.3.
        detection (int): Which detection of each image Grad-CAM is of, in the order in
            which the detector returns them. Default: 0.

    Returns:
        list[Entry]: The figures that the blocks of this model have.

    Raises:
        ValueError: The model has no block, an image cannot be read, the second model
            has other classes, or the pipeline does more than resize and pad.
    """
    if other is not None and _described(other[1]) != _described(images):
        raise ValueError(
            'the two configs have different classes or images; compare like with like'
        )
    frames = []
    with capture(model, images.drawn) as records:
        found = _predictions(model, images, score_thr, frames)
    cams = [
        detection_cam(model, images.data(i), detection)
        for i in tqdm(range(images.drawn), desc='Grad-CAM', unit='image')
    ]
    found = [found]
    if other is not None:
        found.append(_predictions(*other, score_thr))
    pixels = [images.pixels(i) for i in range(images.drawn)]
    seen = f'{len(images)} image{"s" * (len(images) > 1)}'
    return [
        *_of_prm([r for r in records if r.kind == 'PRM'], pixels, frames),
        *_of_channel_gates([r for r in records if r.channel_gate is not None], seen),
        *_of_contexts(records, pixels, frames, seen),
        *_of_gates([r for r in records if r.gates], seen),
        *_of_cams(cams, pixels, frames, images.classes, detection),
        _of_predictions(
            images, found, titles, score_thr, _without_cam(cams, detection)
        ),
    ]


def _described(images):
    return images.classes, [images.path(i) for i in range(len(images))]


def _predictions(model, images, score_thr, frames=None):
    """Of each image the instances of some score, with small masks; ``frames`` get those
    of the images to be drawn, which come first."""
    found = []
    for i in tqdm(range(len(images)), desc='images', unit='image'):
        with torch.no_grad():
            sample = model.test_step(images.data(i))[0]
        if 'pred_instances' not in sample:
            raise ValueError(
                f'{type(model).__name__} is no detector; what the blocks of other '
                'models do is recorded by prm_mmdet.inspection.capture'
            )
        if frames is not None and i < images.drawn:
            frames.append(Frame(sample.metainfo))
        instances = sample.pred_instances.cpu()
        instances = instances[instances.scores >= score_thr]
        result = {key: instances[key] for key in ('bboxes', 'labels', 'scores')}
        if 'masks' in instances:
            result['masks'] = encode_mask_results(instances.masks.numpy())
        found.append(result)
    return found


def _of_prm(records, pixels, frames):
    if not records:
        return
    yield Entry(
        'prm_contribution_rates',
        'Contribution rate of the query point',
        'For each PRM, the mean over its groups of |alpha| / (|alpha| + |beta|): how '
        'much of the similarity is to the most salient position, and not to the mean '
        'of all. At 0 the block ignores the query point, as a fresh one does. As '
        f'{_PRM}, Figure 3.',
        contribution_rates(records),
    )
    drawn = len(pixels) if any(record.maps for record in records) else 0
    for i, (image, frame) in enumerate(zip(pixels[:drawn], frames)):
        yield Entry(
            f'prm_query_points_{i + 1}',
            f'Query points and positional mask, image {i + 1}',
            'Top: the position that each group of the last PRM of a stage compares '
            'with; a larger dot is the query of more groups. Bottom: the position '
            'encoding D, which weights that comparison by distance, mean over the '
            f'groups, on one scale. As {_PRM}, Figure 5, top and middle.',
            query_points(records, i, image, frame),
        )


def _of_channel_gates(records, seen):
    for kind in dict.fromkeys(record.kind for record in records):
        of_kind = [record for record in records if record.kind == kind]
        name = kind.lower()
        yield Entry(
            f'{name}_attention_by_context',
            f'Attention by global context: {kind}',
            f'For the first {kind} of each stage, the gate of each channel (top) and '
            'its mean over positions before and after the block (bottom), averaged '
            f'over {seen}; channels are sorted by that mean before the block. The '
            'paper finds that channels far from 0 get smaller gates. As '
            f'{_LCT}, Figures 1 and 3.',
            attention_by_context(of_kind),
        )
        yield Entry(
            f'{name}_context_change',
            f'Change of the global context: {kind}',
            'The absolute difference between the two lower curves of the figure above, '
            'by channel, in the same order; each stage has its own scale. As '
            f'{_LCT}, Figure 4.',
            context_change(of_kind),
        )


def _of_contexts(records, pixels, frames, seen):
    records = [record for record in records if record.maps and record.kind != 'PRM']
    for kind in dict.fromkeys(record.kind for record in records):
        of_kind = [record for record in records if record.kind == kind]
        record, name = shown_block(of_kind), kind.lower()
        where = f'{record.name} ({record.stage})'
        if record.maps[0].attention is not None:
            yield Entry(
                f'{name}_attention_maps',
                f'Attention maps: {kind}',
                f'Where {where} gathers its contexts from, for contexts that attend to '
                'different places. 1 is the attention of a position if all have the '
                f'same. As {_SAC}, Figure 4.',
                attention_maps(record, pixels, frames),
            )
        if record.maps[0].norm_added is not None:
            yield Entry(
                f'{name}_feature_norms',
                f'Features before the block, and what it adds: {kind}',
                f'The length of the feature vector that {where} gets, |X|, and of what '
                'it adds to it, |Z - X|, each on its own scale. Over all images, what '
                f'is added is {record.added:.2g} times as long (root mean square). As '
                f'{_SAC}, Figure 5.',
                feature_norms(record, pixels, frames),
            )
        if record.cosines:
            yield Entry(
                f'{name}_weight_similarity',
                f"Similarity of positions' weights of the contexts: {kind}",
                'How alike the mixtures of contexts are that two positions of an image '
                'take, for the last block of each stage: cosine of their weights beta, '
                'before any softmax, and after a softmax over the contexts (applied '
                'here to the same weights; the paper trained a network with each), '
                f'from {seen}, 512 evenly spaced positions of each at most. As {_SAC}, '
                'Figure 3.',
                weight_similarity(of_kind),
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


def _of_cams(cams, pixels, frames, classes, detection):
    for i, (cam, image, frame) in enumerate(zip(cams, pixels, frames)):
        if cam is not None:
            yield Entry(
                f'gradcam_{i + 1}',
                f'Grad-CAM of a detection, image {i + 1}',
                'Which places raise the class score of the box drawn, number '
                f'{detection + 1} that the detector returns, at each map that the '
                'backbone returns. Channels are weighted by their mean gradient, so '
                'that places outside the box light up, too, where the same channels '
                'are active. Each panel is scaled to its own maximum. As '
                f'{_PRM}, Figure 5, bottom.',
                draw_cam(cam, image, frame, classes),
            )


def _without_cam(cams, detection):
    missing = [str(i) for i, cam in enumerate(cams, 1) if cam is None]
    if not missing:
        return ''
    return (
        f' There is no Grad-CAM for image {", ".join(missing)}: it has no detection '
        f'number {detection + 1}, or its score is at the end of the range, where it '
        'has no gradient.'
    )


def _of_predictions(images, found, titles, score_thr, note):
    listed = [
        [list(detections(f, images.classes, score_thr)) for f in of_model]
        for of_model in found
    ]
    shown = list(range(len(images)))
    caption = f'Predictions of a score of {score_thr} or more'
    if len(listed) == 2:
        differ = [len(unmatched(a, b)) + len(unmatched(b, a)) for a, b in zip(*listed)]
        shown.sort(key=lambda i: -differ[i])
        caption += (
            ', of the images on which the two models differ most. Thick boxes have no '
            'counterpart of the same class and an IoU of 0.5 in the other model: '
            f'{sum(differ)} on {len(images)} images'
        )
    shown = shown[: images.drawn]
    truths = [
        None if images.info(i) is None else list(truth(images.info(i), images.classes))
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
    """A file's name, which can be any bytes, as text that can be drawn."""
    return os.fsencode(name).decode(errors='replace')
