"""The page of the probes, drawn from the records alone."""

import csv
import dataclasses
import io
from collections import defaultdict
from pathlib import Path
from statistics import mean

from mmengine.config import Config

from prm_mmdet.config import config_path
from prm_mmdet.files.atomic import write_file
from prm_mmdet.inspection.figure_files import save_png

from .cells import EPOCHS, NETWORKS, OTHER_RATE, RATE, SEEDS, Cell, all_cells
from .expected import CHANCE, HARM, PREDICTIONS, SEEN
from .findings import FINDINGS
from .images import DISTANCE, PROBES
from .probe_figures import chart, examples
from .records import NUM_TRAIN, cell_of, read_records

_PAGE = """# What each block lets a detector see

{intro}

| probe | an object's class is |
|---|---|
| far-cue | the hue of a small far marker |
| scene | the tint of more of the tiles; near the objects both have as many |
| relative-position | whether a far landmark is nearer or farther |
| which-context | the hue of the far marker of its kind; there are two kinds |
| control | its own hue, of two for each class |

Whatever tells the class in the first four lies at least {distance} pixels from every
object. The network without a block sees 158 pixels from a region: changing the cue
leaves its outputs at the objects the same bit for bit, in inference
(`tests/test_probes/test_receptive_field.py`).

Each network starts from the weights of a small Faster R-CNN without blocks that was
trained on the control, as detectors start from a pretrained network; there the hues of
cues are those of the other class. That it tells these hues apart matters: from a base
that did not, SAC did not learn which-context (`prm_mmdet/probes/predictions.py`). c1
and c2 are frozen. Blocks stand in the bottlenecks of c3 and c4, SAC after the 3x3 and
the others after the last 1x1; SAC, GC and NonLocal2d start as the identity, the gates
of the others scale the features.

What is not seen was not learned in {steps} steps; at a learning rate of {rate:g} these
move a number by about {budget:.2f} at most, and the gates of PRM and LCT start from
numbers that are zero.

{tables}
![AP50 by block and probe](ap50.png)

{examples}
## What the equations predict

Written before any block was trained, in `prm_mmdet/probes/predictions.py`, which says
what was corrected since: whether the cue is seen, which is a mean AP50 above {seen}
(guessing gives {chance}); on the control, whether a block does no harm, which is an AP
at most {harm} below that without one.

{predictions}
{reasons}
{findings}## How it was measured

```bash
make probes         # all runs; goes on where it was stopped
make probes-short   # one seed of no block, PRM, LCT and SAC
```

{provenance}
"""

_INTRO = (
    'Small detectors, trained on generated images in which the class of an object is '
    'told far away from it. COCO AP50 and AP, mean over seeds, and the least and '
    'largest AP50 where there are several. Seeds are of the initial weights, those of '
    'the base included, and of the order of images; the images are the same.'
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
        distance=DISTANCE,
        **_budget(),
        seen=SEEN,
        chance=CHANCE,
        harm=HARM,
        predictions=_predictions(cells),
        reasons=_reasons(),
        findings=_findings(cells),
        provenance=_provenance(records),
    )
    write_file(str(folder / 'README.md'), page.encode())


_EXAMPLES = (
    'A validation image of each probe: ground truth, and what two networks find '
    '(orange: first class, blue: second).\n\n![examples](examples.png)'
)


def collect(records):
    """Records by the cell of the first seed, a list in the order of seeds."""
    cells = defaultdict(list)
    for record in sorted(records, key=lambda r: r['seed']):
        cells[dataclasses.replace(cell_of(record), seed=SEEDS[0])].append(record)
    return dict(cells)


def verdict(cells, probe, network):
    """Whether the cue is seen, or no harm is done on the control, by the mean of
    the configs' recipe; None if that was not measured."""
    found, plain = (cells.get(Cell(probe, name)) for name in (network, 'none'))
    if not found:
        return None
    if probe != 'control':
        return mean(r['ap50'] for r in found) > SEEN
    if not plain:
        return None
    return mean(r['ap'] for r in found) >= mean(r['ap'] for r in plain) - HARM


def _table(cells, rate):
    if not any(cell.rate == rate for cell in cells):
        return ''
    lines = [f'AP50 (AP) at a learning rate of {rate:g}:', '']
    lines.append(f'| | {" | ".join(PROBES)} | parameters |')
    lines.append('|---' * (len(PROBES) + 2) + '|')
    for network, title in NETWORKS.items():
        found = [cells.get(Cell(probe, network, rate)) for probe in PROBES]
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
    lines = [f'| | {" | ".join(PROBES)} |', '|---' * (len(PROBES) + 1) + '|']
    for network, title in NETWORKS.items():
        texts = []
        for probe in PROBES:
            predicted, _ = PREDICTIONS.get((network, probe), (None, ''))
            texts.append(_compared(predicted, verdict(cells, probe, network), probe))
        lines.append(f'| {title} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n'


def _compared(predicted, measured, probe):
    if predicted is None:
        return ''
    yes, no = ('no harm', 'harm') if probe == 'control' else ('seen', 'not seen')
    text = yes if predicted else no
    if measured is None:
        return f'{text}; not measured'
    return f'{text}; agreed' if measured == predicted else f'{text}; **not agreed**'


def _reasons():
    """The reasons of the predictions, each with the networks that it is given for."""
    lines = []
    for probe in PROBES:
        titles = defaultdict(list)
        for (network, name), (_, why) in PREDICTIONS.items():
            if name == probe:
                titles[why].append(NETWORKS[network])
        parts = [f'  - {"; ".join(names)}: {why}.' for why, names in titles.items()]
        lines += [f'- {probe}', *parts]
    return '\n'.join(lines) + '\n'


def _findings(cells):
    """What is to be said of predictions that the runs do not agree with."""
    lines = []
    for (network, probe), (predicted, _) in PREDICTIONS.items():
        if verdict(cells, probe, network) in (None, predicted):
            continue
        found = FINDINGS.get((network, probe), 'not looked into.')
        lines.append(f'- {NETWORKS[network]}, {probe}: {found}')
        largest = cells[Cell(probe, network)][0]['largest']
        numbers = ', '.join(f'{name} {value:g}' for name, value in largest.items())
        lines.append(f'  Largest magnitudes after training, first seed: {numbers}.')
    if not lines:
        return ''
    lines = ['### Where they did not agree', '', *_longer(cells), *lines]
    return '\n'.join(lines) + '\n\n'


def _longer(cells):
    """A table of the longer runs, beside those of the configs."""
    lines = []
    for cell, records in cells.items():
        if cell.epochs == EPOCHS:
            continue
        usual = cells.get(dataclasses.replace(cell, epochs=EPOCHS), [])
        usual = {r['seed']: f'{r["ap50"]:.2f}' for r in usual}
        for r in records:
            texts = [f'{NETWORKS[cell.network]}, {cell.probe}', str(r['seed'])]
            texts += [usual.get(r['seed'], ''), f'{r["ap50"]:.2f}']
            counts = r['right']['one'], r['right']['two']
            texts += [f'{right} of {n}' for right, n in counts]
            lines.append(f'| {" | ".join(texts)} |')
    return [_LONGER, *lines, ''] if lines else []


_LONGER = f"""Seeds that did not see what was predicted, and what they do in twice the
epochs; for which-context all seeds of SAC and GC. The last columns: at how many objects
the detection with the highest score is of their class, in validation images whose
objects are all of one class, and in the others.

| | seed | AP50, {EPOCHS} epochs | AP50, {2 * EPOCHS} epochs | one class | both |
|---|---|---|---|---|---|"""


def _budget():
    """How many steps there are, and the sum of their learning rates."""
    cfg = Config.fromfile(config_path('probes/none.py'))
    steps = NUM_TRAIN // cfg.train_dataloader.batch_size * cfg.train_cfg.max_epochs
    # Half of the rate on average: a cosine.
    return dict(steps=steps, rate=RATE, budget=steps * RATE / 2)


def _provenance(records):
    dates = sorted({r['date'] for r in records})
    versions = {f'{k} {v}' for r in records for k, v in r['versions'].items()}
    hours = sum(r['seconds'] for r in records) / 3600
    seeds = ', '.join(map(str, sorted({r['seed'] for r in records})))
    runs = f'{len(records)} of {len(all_cells())} runs'
    bases = len({r['base'] for r in records})
    return (
        f'{runs} (seeds: {seeds}) from {bases} bases, {hours:.1f} hours of one core in '
        'all, without the bases; '
        f'{dates[0]} to {dates[-1]}; {", ".join(sorted(versions))}. '
        'The configs are those of `configs/probes`, the recipe is the same for all. '
        'Each run is a file in `records/`, `table.csv` has them all.'
    )


def _csv(records):
    names = ('probe', 'network', 'rate', 'seed', 'epochs', 'ap', 'ap50', 'parameters')
    text = io.StringIO()
    how = dict(restval=EPOCHS, extrasaction='ignore', lineterminator='\n')
    writer = csv.DictWriter(text, (*names, 'seconds'), **how)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
