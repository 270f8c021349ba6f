"""Write the page of results from the records of the trials alone."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from pathlib import Path
from statistics import mean

from mmengine.config import Config

from prm_mmdet.files.atomic import write_file
from prm_mmdet.inspection.figure_files import save_png

from .expected import CHANCE, HARM, PREDICTIONS, SEEN
from .findings import FINDINGS
from .images import DISTANCE, PROBES
from .probe_figures import chart, examples
from .records import NUM_TRAIN, RECORDS, read_records, trial_of
from .trials import (
    CONFIGS,
    EPOCHS,
    NETWORKS,
    OTHER_RATE,
    RATE,
    SEEDS,
    Trial,
    all_trials,
)

_PAGE = """<!-- Written by "python projects/context_probes/run.py --report". -->
# What each block lets a detector see: the figures

Small detectors were trained on generated images in which something far away from an
object decides its class. Tables show COCO AP50 and, in parentheses, AP, as means over
seeds, then the least and the largest AP50 if there are several seeds. Seeds differ in
the initial weights, those of the base included, and in the order of images. All seeds
use the same images.

| probe | the class of an object is |
|---|---|
| far-cue | the hue of a small far marker |
| scene | the tint of most tiles; near the objects both tints are equally frequent |
| relative-position | whether a far landmark is nearer or farther |
| which-context | the hue of the far marker of the object's kind; there are two kinds |
| control | the hue of the object; each class has two hues |

In the first four probes, the cue lies at least {distance} pixels from every object. The
network without a block sees 158 pixels from a region. If the cue changes, its outputs
at the objects stay the same, bit for bit, in inference
(`tests/test_receptive_field.py`).

Each network starts from the weights of a small Faster R-CNN without blocks, as
detectors start from a pretrained network. That base was trained on the control, where
the hues of the cues are hues of the other class. So the base distinguishes the hues.
This matters: from a base that did not, SAC did not learn which-context
(`context_probes/expected.py`). c1 and c2 are frozen. Blocks are placed in the
bottlenecks of c3 and c4, SAC after the 3x3 convolution and the others after the last
1x1. SAC, GC and NonLocal2d start as the identity. The gates of the others scale the
features.

"Not seen" means not learned in {steps} steps. At a learning rate of {rate:g}, these
steps move a parameter by about {budget:.2f} at most, and the gates of PRM and LCT start
from parameters that are zero.

{tables}
![AP50 by block and probe](ap50.png)

{examples}
## What the equations predict

The predictions were written before any block was trained. `context_probes/expected.py`
says what was corrected since. A cue counts as seen if the mean AP50 is above {seen};
guessing gives {chance}. On the control, a block does no harm if the AP is at most
{harm} below the AP without a block.

{predictions}
{reasons}
{findings}## How it was measured

```bash
make probes         # all trials; goes on where it was stopped
make probes-short   # one seed of no block, PRM, LCT and SAC
```

{provenance}
"""


def write_report(folder: str | Path, path: str | Path = RECORDS) -> None:
    """Write ``probes.md``, ``table.csv``, ``ap50.png`` and ``examples.png``.

    Args:
        folder: Folder to write to.
        path: File of the records.

    Raises:
        ValueError: No record in the file was made with the current configs.
    """
    folder = Path(folder)
    found = read_records(path).values()
    # The page does not show base networks, from whose weights other networks start.
    records = [r for r in found if r['network'] in NETWORKS]
    if not records:
        raise ValueError(f'{path} has no record of a present config: run run.py')
    trials = collect(records)
    drawn = examples(records)
    if drawn is not None:
        save_png(drawn, folder / 'examples.png')
    save_png(chart(trials), folder / 'ap50.png')
    write_file(folder / 'table.csv', _csv(records))
    page = _PAGE.format(
        tables=''.join(_table(trials, rate) for rate in (RATE, OTHER_RATE)),
        examples='' if drawn is None else f'{_EXAMPLES}\n',
        distance=DISTANCE,
        **_budget(),
        seen=SEEN,
        chance=CHANCE,
        harm=HARM,
        predictions=_predictions(trials),
        reasons=_reasons(),
        findings=_findings(trials),
        provenance=_provenance(records),
    )
    write_file(folder / 'probes.md', page)


_EXAMPLES = (
    'A validation image of each probe: the ground truth, and what two networks detect '
    '(orange: first class, blue: second).\n\n![examples](examples.png)'
)


def collect(records):
    """Group the records of trials that differ in the seed only. The keys are the trials
    with the first seed, and the values are records in the order of seeds."""
    trials = defaultdict(list)
    for record in sorted(records, key=lambda r: r['seed']):
        trials[dataclasses.replace(trial_of(record), seed=SEEDS[0])].append(record)
    return dict(trials)


def verdict(trials, probe, network):
    """Whether a network sees the cue. On the probe ``control``: whether it does no
    harm. Means over seeds, at the configs' learning rate, decide. If trials that are
    needed to decide are missing, the result is None."""
    found, plain = (trials.get(Trial(probe, name)) for name in (network, 'none'))
    if not found:
        return None
    if probe != 'control':
        return mean(r['ap50'] for r in found) > SEEN
    if not plain:
        return None
    return mean(r['ap'] for r in found) >= mean(r['ap'] for r in plain) - HARM


def _table(trials, rate):
    if not any(trial.rate == rate for trial in trials):
        return ''
    lines = [f'AP50 (AP) at a learning rate of {rate:g}:', '']
    lines.append(f'| | {" | ".join(PROBES)} | parameters |')
    lines.append('|---' * (len(PROBES) + 2) + '|')
    for network, title in NETWORKS.items():
        found = [trials.get(Trial(probe, network, rate)) for probe in PROBES]
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


def _predictions(trials):
    lines = [f'| | {" | ".join(PROBES)} |', '|---' * (len(PROBES) + 1) + '|']
    for network, title in NETWORKS.items():
        texts = []
        for probe in PROBES:
            predicted, _ = PREDICTIONS.get((network, probe), (None, ''))
            texts.append(_compared(predicted, verdict(trials, probe, network), probe))
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
    """A Markdown list of the predictions' reasons. Each reason names its networks."""
    lines = []
    for probe in PROBES:
        titles = defaultdict(list)
        for (network, name), (_, why) in PREDICTIONS.items():
            if name == probe:
                titles[why].append(NETWORKS[network])
        parts = [f'  - {"; ".join(names)}: {why}.' for why, names in titles.items()]
        lines += [f'- {probe}', *parts]
    return '\n'.join(lines) + '\n'


def _findings(trials):
    """A Markdown list of the predictions that the trials contradict, and why."""
    lines = []
    for (network, probe), (predicted, _) in PREDICTIONS.items():
        if verdict(trials, probe, network) in (None, predicted):
            continue
        found = FINDINGS.get((network, probe), 'not investigated.')
        lines.append(f'- {NETWORKS[network]}, {probe}: {found}')
        largest = trials[Trial(probe, network)][0]['largest']
        numbers = ', '.join(f'{name} {value:g}' for name, value in largest.items())
        lines.append(f'  Largest magnitudes after training, first seed: {numbers}.')
    if not lines:
        return ''
    lines = ['### Where they did not agree', '', *_longer(trials), *lines]
    return '\n'.join(lines) + '\n\n'


def _longer(trials):
    """Lines of a table that compares trials of twice the epochs with the same trials of
    six epochs."""
    lines = []
    for trial, records in trials.items():
        if trial.epochs == EPOCHS:
            continue
        usual = trials.get(dataclasses.replace(trial, epochs=EPOCHS), [])
        usual = {r['seed']: f'{r["ap50"]:.2f}' for r in usual}
        for r in records:
            texts = [f'{NETWORKS[trial.network]}, {trial.probe}', str(r['seed'])]
            texts += [usual.get(r['seed'], ''), f'{r["ap50"]:.2f}']
            counts = r['right']['one'], r['right']['two']
            texts += [f'{right} of {n}' for right, n in counts]
            lines.append(f'| {" | ".join(texts)} |')
    return [_LONGER, *lines, ''] if lines else []


_LONGER = f"""Seeds that did not see a predicted cue, and what they see in twice the
epochs. For which-context, all seeds of SAC and GC are shown. The last two columns count
objects whose best detection has their class: in validation images whose objects are of
one class, and in images with both classes.

| | seed | AP50, {EPOCHS} epochs | AP50, {2 * EPOCHS} epochs | one class | both |
|---|---|---|---|---|---|"""


def _budget():
    """The number of training steps, the learning rate, and the sum of the learning
    rates of all steps."""
    cfg = Config.fromfile(CONFIGS / 'none.py')
    steps = NUM_TRAIN // cfg.train_dataloader.batch_size * cfg.train_cfg.max_epochs
    # RATE is the highest rate of a cosine schedule, so the mean rate is half of RATE.
    return dict(steps=steps, rate=RATE, budget=steps * RATE / 2)


def _provenance(records):
    dates = sorted({r['date'] for r in records})
    versions = {f'{k} {v}' for r in records for k, v in r['versions'].items()}
    hours = sum(r['seconds'] for r in records) / 3600
    seeds = ', '.join(map(str, sorted({r['seed'] for r in records})))
    bases = len({r['base'] for r in records})
    return (
        f'{len(records)} of {len(all_trials())} trials (seeds: {seeds}) from {bases} '
        f'bases took {hours:.1f} hours of one core, without the bases, from {dates[0]} '
        f'to {dates[-1]}. Versions: {", ".join(sorted(versions))}. `configs/` has the '
        'configs; the recipe is the same for all networks. `records.jsonl` has a '
        'record in each line, `table.csv` has their numbers.'
    )


def _csv(records):
    names = ('probe', 'network', 'rate', 'seed', 'epochs', 'ap', 'ap50', 'parameters')
    text = io.StringIO()
    how = dict(restval=EPOCHS, extrasaction='ignore', lineterminator='\n')
    writer = csv.DictWriter(text, (*names, 'seconds'), **how)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
