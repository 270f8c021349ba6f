"""The two pictures on the context probes' page of results."""

from statistics import mean

from matplotlib.patches import Rectangle

from prm_mmdet.datasets.generated_coco import box_of, image_rng
from prm_mmdet.inspection.figure_files import COLOURS, new_figure

from .expected import CHANCE
from .images import PROBES, draw_image
from .records import trial_of
from .trials import NETWORKS, Trial

CLASS_COLOURS = ('#E69F00', '#56B4E9')
#: Networks whose predictions are shown: without a block, and with SAC.
SHOWN = ('none', 'sac')


def chart(trials):
    """Draw AP50 by probe (data set) and network, and AP on the probe ``control``. Bars
    are means over seeds, and dots are single seeds.

    Args:
        trials (dict): From :func:`context_probes.probe_report.collect`.
    """
    probes = [p for p in PROBES if any(Trial(p, n) in trials for n in NETWORKS)]
    networks = [n for n in NETWORKS if any(Trial(p, n) in trials for p in PROBES)]
    height = 1.1 + 0.22 * len(networks)
    figure, axes = new_figure(
        2.3 * len(probes) + 1.2, height, ncols=len(probes), sharey=True
    )
    for axis, probe in zip(axes[0], probes):
        metric = 'ap' if probe == 'control' else 'ap50'
        for row, network in enumerate(networks):
            found = [r[metric] for r in trials.get(Trial(probe, network), [])]
            if found:
                axis.barh(row, mean(found), 0.7, color=COLOURS[1])
                axis.plot(found, [row] * len(found), 'o', color='black', markersize=3)
            else:
                axis.text(0.02, row, 'not run', fontsize=7, va='center', color='grey')
        axis.set_xlim(0, 1.03)
        axis.set_title(probe, fontsize=9)
        if probe == 'control':
            axis.set_xlabel('AP', fontsize=8)
        else:
            axis.axvline(CHANCE, color=COLOURS[5], linestyle='--', linewidth=1)
            axis.set_xlabel('AP50; dashed: guessing', fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(networks)), [NETWORKS[n] for n in networks])
    axes[0, 0].invert_yaxis()
    return figure


def examples(records):
    """Draw the first validation image of each probe (data set): with the ground truth,
    and with the predictions of the two networks in :data:`SHOWN`. None if no probe has
    records of both networks."""
    by_cell = {trial_of(record): record['example'] for record in records}
    shown = {
        probe: [by_cell.get(Trial(probe, name)) for name in SHOWN] for probe in PROBES
    }
    shown = {probe: found for probe, found in shown.items() if None not in found}
    if not shown:
        return None
    figure, axes = new_figure(12, 1.15 * len(shown) + 0.2, nrows=len(shown), ncols=3)
    titles = ('ground truth', *(NETWORKS[name] for name in SHOWN))
    for row, (probe, found) in zip(axes, shown.items()):
        picture, instances, _ = draw_image(probe, image_rng(0, 'val', 0), 0)
        truth = dict(
            boxes=[_corners(*box_of(i.visible)) for i in instances],
            labels=[i.label for i in instances],
        )
        for axis, title, boxes in zip(row, titles, (truth, *found)):
            _draw(axis, picture[..., ::-1], boxes)
            axis.set_title(f'{probe}: {title}', fontsize=8)
    return figure


def _draw(axis, picture, found):
    axis.imshow(picture)
    axis.axis('off')
    scores = found.get('scores') or [None] * len(found['boxes'])
    for (x1, y1, x2, y2), label, score in zip(found['boxes'], found['labels'], scores):
        colour = CLASS_COLOURS[label]
        frame = Rectangle(
            (x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.5
        )
        axis.add_patch(frame)
        if score is not None:
            axis.annotate(
                f'{score:.2f}',
                # Write the scores of one class above the boxes, and those of the other
                # class below. If a network guesses, it predicts both classes for one
                # object, and the scores would overlap.
                (x1, y2 if label else y1),
                va='top' if label else 'bottom',
                fontsize=7,
                bbox=dict(boxstyle='square,pad=0.1', facecolor=colour, linewidth=0),
                annotation_clip=False,
            )


def _corners(x, y, width, height):
    return x, y, x + width, y + height
