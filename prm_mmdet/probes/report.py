"""The page of the probes, drawn from the records alone."""

import csv
import io
from collections import defaultdict
from pathlib import Path
from statistics import mean

from ..datasets.generated import write_file
from ..datasets.probes import PROBES
from ..inspection.figures import save_png
from .cells import NETWORKS, OTHER_RATE, RATE, all_cells
from .figures import chart, examples
from .predictions import CHANCE, PREDICTIONS, SEEN
from .run import read_records

_PAGE = """# What each block lets a detector see

{intro}

| probe | an object's class is |
|---|---|
| far-cue | the hue of a small far marker |
| scene | the tint that most tiles of the image have |
| relative-position | whether a far landmark is nearer or farther |
| which-context | the hue of the far marker of its kind; there are two kinds |
| control | its own hue |

Each network starts from the weights of a small Faster R-CNN without blocks that was
trained on the control, as detectors start from a pretrained network. Blocks stand in
its last two stages, where their papers have them, and start as they do there.

Whatever tells the class in the first four lies at least 170 pixels from every object.
The network without a block sees 154 pixels: changing the cue leaves its outputs at the
objects the same bit for bit (`tests/test_probes/test_receptive_field.py`). In
relative-position the objects stand near one end of the image, so that the landmark's
distance from the other end tells the class as well, to a network that brings it to the
objects.

{tables}
![AP50 by block and probe](ap50.png)

{examples}
## What the equations predict

Written before the runs, with the reasons, in `prm_mmdet/probes/predictions.py`: whether
AP50 will be above {seen} (guessing gives {chance}).

{predictions}
## How it was measured

```bash
make probes         # all runs; goes on where it was stopped
make probes-short   # one seed of no block, PRM, LCT and SAC
```

{provenance}
"""

_INTRO = (
    'Small detectors, trained on generated images in which the class of an object is '
    'told far away from it. COCO AP50 and AP, mean over seeds, and the least and '
    'largest AP50 where there are several.'
)


def write_report(folder):
    """Write ``README.md``, ``table.csv``, ``ap50.png`` and ``examples.png`` into a
    folder, from its ``records``.

    Raises:
        ValueError: There are no records of the present configs.
    """
    folder = Path(folder)
    found = read_records(folder / 'records').values()
    records = [r for r in found if r['network'] in NETWORKS]  # bases are left out
    if not records:
        raise ValueError(
            f'{folder / "records"} holds no record of the present configs: run '
            'tools/probes.py'
        )
    cells = collect(records)
    drawn = examples(records)
    if drawn is not None:
        save_png(drawn, folder / 'examples.png')
    save_png(chart(cells), folder / 'ap50.png')
    write_file(str(folder / 'table.csv'), _csv(records).encode())
    page = _PAGE.format(
        intro=_INTRO,
        tables=''.join(_table(cells, rate) for rate in (RATE, OTHER_RATE)),
        examples='' if drawn is None else f'{_EXAMPLES}\n\n',
        seen=SEEN,
        chance=CHANCE,
        predictions=_predictions(cells),
        provenance=_provenance(records),
    )
    write_file(str(folder / 'README.md'), page.encode())


_EXAMPLES = (
    'A validation image of each probe: ground truth, and what two networks find '
    '(orange: first class, blue: second).\n\n![examples](examples.png)'
)


def collect(records):
    """Records by (probe, network, rate), a list in the order of seeds."""
    cells = defaultdict(list)
    for record in sorted(records, key=lambda r: r['seed']):
        cells[record['probe'], record['network'], record['rate']].append(record)
    return dict(cells)


def verdict(cells, probe, network):
    """Whether the cue is seen, by mean AP50 at the configs' learning rate; None if that
    was not measured."""
    found = cells.get((probe, network, RATE))
    return mean(r['ap50'] for r in found) > SEEN if found else None


def _table(cells, rate):
    if not any(key[2] == rate for key in cells):
        return ''
    lines = [f'AP50 (AP) at a learning rate of {rate:g}:', '']
    lines.append(f'| | {" | ".join(PROBES)} | parameters |')
    lines.append('|---' * (len(PROBES) + 2) + '|')
    for network, title in NETWORKS.items():
        found = [cells.get((probe, network, rate)) for probe in PROBES]
        if any(found):
            size = next(records for records in found if records)[0]['parameters']
            texts = [*map(_cell, found), f'{size / 1e6:.2f} M']
            lines.append(f'| {title} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n\n'


def _cell(records):
    if not records:
        return ''
    ap50 = [r['ap50'] for r in records]
    text = f'{mean(ap50):.2f} ({mean(r["ap"] for r in records):.2f})'
    if len(ap50) > 1:
        text += f', {min(ap50):.2f}-{max(ap50):.2f}'
    return text


def _predictions(cells):
    lines = ['| network | probe | predicted | because | measured |', '|---' * 5 + '|']
    words = {True: 'above', False: 'not above', None: 'not run'}
    for (network, probe), (predicted, why) in PREDICTIONS.items():
        measured = verdict(cells, probe, network)
        text = words[measured]
        if measured is not None:
            text += ', agreed' if measured == predicted else ', **not agreed**'
        title = NETWORKS[network]
        lines.append(f'| {title} | {probe} | {words[predicted]} | {why} | {text} |')
    return '\n'.join(lines) + '\n'


def _provenance(records):
    dates = sorted({r['date'] for r in records})
    versions = {f'{k} {v}' for r in records for k, v in r['versions'].items()}
    hours = sum(r['seconds'] for r in records) / 3600
    seeds = ', '.join(map(str, sorted({r['seed'] for r in records})))
    runs = f'{len(records)} of {len(all_cells())} runs'
    return (
        f'{runs} (seeds: {seeds}), {hours:.1f} hours of training in all; '
        f'{dates[0]} to {dates[-1]}; {", ".join(sorted(versions))}. '
        'The configs are those of `configs/probes`; the recipe is the same for all, '
        'and so is the base, one for each seed. Each run is a file in `records/`, '
        '`table.csv` has them all.'
    )


def _csv(records):
    names = ('probe', 'network', 'rate', 'seed', 'ap', 'ap50', 'parameters', 'seconds')
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
