"""What a comparison found: as data, as text for the terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..experiments import read_record
from .blocks import CONTROL
from .intervals import Interval, Sample, paired_difference
from .plan import Comparison, Variant

_PERCENT = ('AP', 'AR')  # metrics that are shares, shown times 100
_LOWER_IS_BETTER = ('loss', 'error', 'MR')


def collect(comparison: Comparison, cost: dict | None = None) -> dict:
    """All that is known of a comparison, as JSON takes it.

    Metrics are the evaluator's own numbers. A block's ``verdict`` follows from the 95%
    interval of its paired difference to the control.

    Args:
        comparison: The comparison. Runs may be unfinished or missing.
        cost: From :func:`prm_mmdet.comparison.cost.measure_costs`. Default: None.
    """
    records = {
        (variant.name, seed): _finished(comparison.cell_dir(variant, seed))
        for variant in comparison.variants
        for seed in comparison.seeds
    }
    metrics = list(comparison.metrics) or sorted(
        {name for record in records.values() for name in record.get('metrics', {})}
    )
    metric = comparison.metric or next(
        (m for m in metrics if m.endswith('mAP')), next(iter(metrics), '')
    )
    compared = [v for v in comparison.variants if v.label != CONTROL]
    entries = []
    for variant in comparison.variants:
        control = next(
            v for v in comparison.variants if v.label == CONTROL and v.lr == variant.lr
        )
        entry = _described(variant)
        entry['runs'] = [
            _run(comparison, variant, seed, records[variant.name, seed])
            for seed in comparison.seeds
        ]
        entry['metrics'] = {}
        for name in metrics:
            own = _values(records, variant, comparison.seeds, name)
            base = _values(records, control, comparison.seeds, name)
            entry['metrics'][name] = _compared(
                own, base, len(compared), variant is control
            )
        if variant is not control:
            entry['verdict'] = verdict(variant.label, metric, entry['metrics'])
            # The same network at another rate costs the same.
            if cost and variant.label in cost['blocks']:
                entry['cost'] = cost['blocks'][variant.label]
        entries.append(entry)
    return dict(
        config=str(comparison.config),
        load_from=comparison.load_from,
        seeds=comparison.seeds,
        metric=metric,
        metrics=metrics,
        comparisons=len(compared),
        cost={k: v for k, v in cost.items() if k != 'blocks'} if cost else None,
        other_data=_other_data(comparison, records),
        entries=entries,
    )


def _finished(work_dir: Path) -> dict:
    record = read_record(work_dir) or {}
    return record if 'metrics' in record else {}


def _described(variant: Variant) -> dict:
    entry: dict = dict(label=variant.label, name=variant.name, lr=variant.lr)
    if variant.placed:
        entry.update(
            where=variant.placed.where,
            channels=variant.placed.channels,
            chosen=variant.placed.chosen,
        )
    if variant.rehearsed:
        entry.update(asdict(variant.rehearsed))
    return entry


def _run(comparison: Comparison, variant: Variant, seed: int, record: dict) -> dict:
    kept = ('metrics', 'evaluations', 'unit', 'step', 'seconds', 'measured')
    return dict(
        seed=seed,
        work_dir=str(comparison.cell_dir(variant, seed)),
        finished=bool(record),
        **{name: record[name] for name in kept if name in record},
    )


def _values(
    records: Mapping, variant: Variant, seeds: Sequence[int], name: str
) -> dict[int, float]:
    """A metric by seed. COCO's -1 says that there are no such objects."""
    found = {}
    for seed in seeds:
        value = records[variant.name, seed].get('metrics', {}).get(name)
        if value is not None and math.isfinite(value) and value != -1:
            found[seed] = value
    return found


def _compared(
    own: dict[int, float], base: dict[int, float], comparisons: int, is_control: bool
) -> dict:
    entry: dict = dict(values=own)
    if own:
        entry.update(asdict(Sample.of(list(own.values()))))
    if not is_control:
        difference = paired_difference(own, base, comparisons)
        entry['difference'] = asdict(difference) if difference else None
    return entry


def _other_data(comparison: Comparison, records: Mapping) -> list[str]:
    """Runs that saw other data than the control of their seed and rate."""
    others = []
    for variant in comparison.variants:
        for seed in comparison.seeds:
            control = next(
                v
                for v in comparison.variants
                if v.label == CONTROL and v.lr == variant.lr
            )
            seen = [
                records[v.name, seed].get('measured', {}).get('data_seen')
                for v in (variant, control)
            ]
            if None not in seen and seen[0] != seen[1]:
                others.append(f'{variant.name}, seed {seed}')
    return others


def verdict(label: str, metric: str, metrics: Mapping[str, dict]) -> str:
    """What the seeds show of a block, in a sentence.

    Args:
        label: The block's.
        metric: Name of the metric that decides.
        metrics: By name, as :func:`collect` has them.
    """
    found = metrics.get(metric) or {}
    difference = found.get('difference')
    if not difference:
        return f'{label}: no seed has both this block and the control yet.'
    count = difference['sample']['count']
    unit = unit_of(metric)
    mean = points(metric, difference['sample']['mean'])
    if difference['interval'] is None:
        return (
            f'{label}: {mean:+.1f} {unit} with one seed. One seed shows no interval, '
            'so that there is no verdict. Use at least two seeds.'
        )
    interval = Interval(**difference['interval'])
    low, high = (points(metric, bound) for bound in (interval.low, interval.high))
    better = -1 if lower_is_better(metric) else 1
    sign = interval.sign * better
    if sign == 0:
        return (
            f'{label}: no difference that {_in_words(count)} seeds can show '
            f'({mean:+.1f} {unit}, {low:+.1f} to {high:+.1f}).'
        )
    if better > 0:
        text = f'{label} {"gains" if sign > 0 else "loses"}'
    else:
        text = f'{label} {"improves by" if sign > 0 else "worsens by"}'
    if mean < 0:
        low, high = -high, -low
    text += f' {abs(mean):.1f} {unit} ({low:.1f} to {high:.1f})'
    if Interval(**difference['corrected']).sign == 0:
        text += ', but not after the correction for several blocks'
    return f'{text}.'


def _in_words(count: int) -> str:
    return {2: 'two', 3: 'three', 4: 'four', 5: 'five'}.get(count, str(count))


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one, by its name."""
    name = metric.rpartition('/')[2]
    return any(word in name for word in _LOWER_IS_BETTER)


def points(metric: str, value: float) -> float:
    """A value as it is shown: shares such as AP times 100."""
    return value * 100 if _is_share(metric) else value


def unit_of(metric: str) -> str:
    """What a metric's shown values are, such as 'AP'."""
    name = metric.rpartition('/')[2]
    names = {'bbox_mAP': 'AP', 'segm_mAP': 'mask AP', 'mAP': 'AP'}
    return names.get(
        name, name.replace('bbox_mAP', 'AP').replace('segm_mAP', 'mask AP')
    )


def _is_share(metric: str) -> bool:
    return any(word in metric.rpartition('/')[2] for word in _PERCENT)


# Text.


def as_text(found: dict, markdown: bool = False) -> str:
    """A report for the terminal, or as Markdown.

    Args:
        found: From :func:`collect`.
        markdown: Whether tables and headings are Markdown's. Default: False.
    """
    parts = [f'# {title_of(found)}' if markdown else title_of(found)]
    for lr in dict.fromkeys(entry['lr'] for entry in found['entries']):
        entries = [entry for entry in found['entries'] if entry['lr'] == lr]
        if lr is not None:
            parts.append(
                f'## Learning rate {lr:g}' if markdown else f'learning rate {lr:g}'
            )
        verdicts = [entry['verdict'] for entry in entries if 'verdict' in entry]
        parts.append('\n'.join(f'- {text}' if markdown else text for text in verdicts))
        parts += [_table(rows, markdown) for rows in tables(found, entries)]
    parts.append('\n'.join(f'- {n}' if markdown else f'* {n}' for n in notes(found)))
    return '\n\n'.join(part for part in parts if part) + '\n'


def title_of(found: dict) -> str:
    """Title of a report."""
    return f'Blocks compared on {Path(found["config"]).name}'


def tables(found: dict, entries: list[dict]) -> list[list[list[str]]]:
    """The tables of one learning rate, as rows of text, the first of them the header:
    the main metric, all metrics, and costs. A table with nothing to show is empty."""
    return [
        _main_rows(found, entries),
        _metric_rows(found, entries),
        _cost_rows(entries),
    ]


def _main_rows(found: dict, entries: list[dict]) -> list[list[str]]:
    metric = found['metric']
    unit = unit_of(metric)
    rows = [['block', f'{unit}, mean ± deviation', 'seeds', 'difference to control']]
    rows[0] += ['95% interval', 'corrected interval']
    for entry in entries:
        own = entry['metrics'].get(metric, {})
        row = [entry['label'], _mean(metric, own), str(own.get('count', 0))]
        difference = own.get('difference')
        if difference:
            row.append(f'{points(metric, difference["sample"]["mean"]):+.1f}')
            row += [_range(metric, difference[k]) for k in ('interval', 'corrected')]
        else:
            row += ['', '', '']
        rows.append(row)
    return rows


def _metric_rows(found: dict, entries: list[dict]) -> list[list[str]]:
    """The other metrics, with a row for each block."""
    rows = [['metric', 'block', 'mean ± deviation', 'difference', '95% interval']]
    for name in found['metrics']:
        measured = [e for e in entries if 'mean' in e['metrics'].get(name, {})]
        for entry in measured if name != found['metric'] else ():
            own = entry['metrics'][name]
            row = [name if entry is measured[0] else '', entry['label']]
            row.append(_mean(name, own))
            difference = own.get('difference')
            if difference:
                row.append(f'{points(name, difference["sample"]["mean"]):+.1f}')
                row.append(_range(name, difference['interval']))
            else:
                row += ['', '']
            rows.append(row)
    return rows if len(rows) > 1 else []


def _cost_rows(entries: list[dict]) -> list[list[str]]:
    if not any('parameters' in entry for entry in entries):
        return []
    rows = [['block', 'parameters', 'multiply-adds']]
    rows[0] += ['training step', 'inference', 'peak memory']
    for entry in entries:
        if 'parameters' not in entry:
            continue
        row = [
            entry['label'],
            f'{entry["parameters"] / 1e6:.2f} M',
            f'{entry["multiply_adds"] / 1e9:.2f} G',
        ]
        cost = entry.get('cost')
        if cost:
            for kind in ('step', 'inference'):
                c = cost[kind]
                row.append(f'x {c["median"]:.2f} ({c["low"]:.2f} to {c["high"]:.2f})')
            row.append(f'x {cost["memory"]:.2f}')
        else:
            row += ['1', '1', '1'] if entry['label'] == CONTROL else ['', '', '']
        rows.append(row)
    if not any('cost' in entry for entry in entries):
        rows = [row[:3] for row in rows]
    return rows


def notes(found: dict) -> list[str]:
    """Sentences that a reader needs to judge the tables."""
    count, blocks = len(found['seeds']), found['comparisons']
    lines = [
        'Every row was trained with the same settings, seeds and data order as the '
        'control "none". A difference is a block minus the control of the same seed, '
        'averaged over the seeds.'
    ]
    if count < 2:
        lines.append(
            'One seed shows no spread. There are no intervals and no verdicts. Use at '
            'least two seeds, and better five.'
        )
    else:
        lines.append(
            f"The 95% interval is Student's t over {count} seeds. It assumes that the "
            'differences are about normally distributed. Few seeds give wide intervals.'
        )
        if blocks > 1:
            lines.append(
                f'{blocks} comparisons were made. The best of many looks better than '
                'it is. The corrected intervals (Bonferroni) hold for all of them at '
                'once with 95%.'
            )
    if found['load_from']:
        lines.append(
            'A gain over the checkpoint that the runs started from is no gain of a '
            'block: the control was trained further, too.'
        )
    unfinished = [
        f'{entry["name"]}, seed {run["seed"]}'
        for entry in found['entries']
        for run in entry['runs']
        if not run['finished']
    ]
    if unfinished:
        lines.append(f'Not finished: {"; ".join(unfinished)}.')
    if found['other_data']:
        lines.append(
            f'Other data than the control of the same seed was seen by: '
            f'{"; ".join(found["other_data"])}. An interrupted run with data workers '
            'can be the reason.'
        )
    if found['cost']:
        cost = found['cost']
        lines.append(
            f'Times are medians and quartiles of the ratio to the control, in '
            f'{cost["rounds"]} interleaved rounds on {cost["device"]}, with batches of '
            f'{cost["batches"][0]} (training) and {cost["batches"][1]} (inference) '
            'images.'
        )
    return lines


def _mean(metric: str, own: dict) -> str:
    if 'mean' not in own:
        return ''
    text = f'{points(metric, own["mean"]):.1f}'
    if own['deviation'] is not None:
        text += f' ± {points(metric, own["deviation"]):.1f}'
    return text


def _range(metric: str, interval: dict | None) -> str:
    if interval is None:
        return 'none'
    low, high = (points(metric, interval[k]) for k in ('low', 'high'))
    return f'{low:+.1f} to {high:+.1f}'


def _table(rows: list[list[str]], markdown: bool) -> str:
    if not rows:
        return ''
    if markdown:
        lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
        lines.insert(1, '|' + ' --- |' * len(rows[0]))
        return '\n'.join(lines)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    )
