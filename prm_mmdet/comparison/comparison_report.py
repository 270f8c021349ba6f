"""The results of a comparison, as data and as Markdown for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..experiments import read_record
from .blocks import CONTROL
from .intervals import paired_difference, sign, summary
from .plan import Comparison, Variant, main_metric

# If a metric's name contains one of these texts, the metric is shown in percent.
_PERCENT = ('AP', 'AR')
_LOWER_IS_BETTER = ('loss', 'error', 'MR')
_SHORT = {'bbox_mAP': 'AP', 'segm_mAP': 'mask AP', 'mAP': 'AP'}
#: A report contains these entries of a run's record (see
#: :mod:`prm_mmdet.experiments.records`).
_KEPT = ('metrics', 'evaluations', 'unit', 'step', 'seconds', 'measured')


def collect(comparison: Comparison, cost: dict | None = None) -> dict:
    """The results of a comparison, as data that can be written as JSON.

    Metrics are the evaluator's own numbers. A block's ``verdict`` follows from the 95%
    interval of its paired difference to the control.

    Args:
        comparison: The comparison. Runs may be unfinished or missing.
        cost: Result of :func:`prm_mmdet.comparison.cost.costs_of`. Default: None.

    Raises:
        ValueError: No finished run has the metric that the user chose.
    """
    runs = {
        variant.name: {
            seed: _run(comparison.cell_dir(variant, seed)) for seed in comparison.seeds
        }
        for variant in comparison.variants
    }
    each = [run for by_seed in runs.values() for run in by_seed.values()]
    metrics = list(dict.fromkeys(k for run in each for k in run.get('metrics', {})))
    metric = main_metric(comparison.metric, metrics)
    blocks = [v for v in comparison.variants if v.label != CONTROL]
    entries = []
    for variant in comparison.variants:
        # ``variants`` is grouped by learning rate. Each group begins with its control,
        # and the blocks of the group are compared with this control.
        if variant.label == CONTROL:
            control = runs[variant.name]
        own = runs[variant.name]
        entry = _described(variant)
        entry['runs'] = [dict(seed=seed, **run) for seed, run in own.items()]
        entry['metrics'] = {}
        for name in metrics:
            values = _values(own, name)
            found: dict = dict(values=values)
            if values:
                found.update(summary([*values.values()]))
            if own is not control:
                base = _values(control, name)
                found['difference'] = paired_difference(values, base, len(blocks))
            entry['metrics'][name] = found
        if own is not control:
            entry['other_data'] = [
                seed for seed in own if _other_data(own[seed], control[seed])
            ]
            entry['verdict'] = verdict(variant.label, metric, entry['metrics'])
            # The cost is measured at one learning rate only, because the learning rate
            # does not change the cost.
            if cost and variant.label in cost['blocks']:
                entry['cost'] = cost['blocks'][variant.label]
        entries.append(entry)
    return dict(
        config=str(comparison.config),
        load_from=comparison.load_from,
        seeds=comparison.seeds,
        metric=metric,
        metrics=metrics,
        comparisons=len(blocks),
        cost={k: v for k, v in cost.items() if k != 'blocks'} if cost else None,
        entries=entries,
    )


def _run(work_dir: Path) -> dict:
    record = read_record(work_dir) or {}
    finished = 'metrics' in record
    kept = {name: record[name] for name in _KEPT if finished and name in record}
    return dict(work_dir=str(work_dir), finished=finished, **kept)


def _described(variant: Variant) -> dict:
    entry: dict = dict(label=variant.label, name=variant.name, lr=variant.lr)
    if variant.placed:
        entry.update(where=variant.placed.where, chosen=variant.placed.chosen)
    if variant.rehearsed:
        entry.update(asdict(variant.rehearsed))
    return entry


def _values(runs: Mapping[int, dict], metric: str) -> dict[int, float]:
    """The values of a metric, by seed. COCO's value -1 is left out, because it means
    that the data set has no such objects."""
    found = {seed: run.get('metrics', {}).get(metric, -1) for seed, run in runs.items()}
    return {seed: v for seed, v in found.items() if math.isfinite(v) and v != -1}


def _other_data(run: dict, control: dict) -> bool:
    """Whether a run was trained on other data than the control with the same seed."""
    seen = [r.get('measured', {}).get('data_seen') for r in (run, control)]
    return None not in seen and seen[0] != seen[1]


def verdict(label: str, metric: str, metrics: Mapping[str, dict]) -> str:
    """The verdict on a block, as one sentence.

    Args:
        label: Name of the block.
        metric: The metric that decides the verdict.
        metrics: Results by metric, as in an entry of :func:`collect`.
    """
    difference = metrics.get(metric, {}).get('difference')
    if not difference:
        return f'{label}: no seed has both this block and the control yet.'
    if metrics[metric]['mean'] == difference['mean'] == 0:
        return (
            f'{label}: {metric} is 0 in all runs, with the block and without, so that '
            'they show nothing. Train for longer.'
        )
    unit = unit_of(metric)
    mean = points(metric, difference['mean'])
    if difference['interval'] is None:
        return (
            f'{label}: {mean:+.1f} {unit} with one seed. One seed shows no interval, '
            'so that there is no verdict. Use at least two seeds.'
        )
    low, high = (points(metric, bound) for bound in difference['interval'])
    lower = any(word in metric.rpartition('/')[2] for word in _LOWER_IS_BETTER)
    better = sign(difference['interval']) * (-1 if lower else 1)
    if not better:
        count = difference['count']
        seeds = {2: 'two', 3: 'three', 4: 'four', 5: 'five'}.get(count, count)
        return (
            f'{label}: no difference that {seeds} seeds can show '
            f'({mean:+.1f} {unit}, {low:+.1f} to {high:+.1f}).'
        )
    verbs = ('improves by', 'worsens by') if lower else ('gains', 'loses')
    if mean < 0:
        low, high = -high, -low
    text = (
        f'{label} {verbs[better < 0]} {abs(mean):.1f} {unit} ({low:.1f} to {high:.1f})'
    )
    if not sign(difference['corrected']):
        text += ', but not after the correction for several blocks'
    return f'{text}.'


def points(metric: str, value: float) -> float:
    """A value as it is shown: AP and AR are multiplied by 100."""
    name = metric.rpartition('/')[2]
    return value * 100 if any(word in name for word in _PERCENT) else value


def unit_of(metric: str) -> str:
    """A metric's name in tables and axes, such as 'AP' or 'mask AP_50'."""
    name = metric.rpartition('/')[2]
    for long, short in _SHORT.items():
        if name == long or name.startswith(f'{long}_'):
            return short + name[len(long) :]
    return name


def sections(found: dict) -> Iterator[tuple[str, Any]]:
    """The parts of a report in order, as pairs of the part's kind and its content.

    Args:
        found: Result of :func:`collect`.

    Yields:
        A pair of one of these forms.

        - 'title' and a text;
        - 'heading' and a text;
        - 'sentences' and a list of texts;
        - 'picture' and a learning rate, or None for the rate in the config;
        - 'table' and rows of texts, with the header as the first row.
    """
    yield 'title', f'Blocks compared on {Path(found["config"]).name}'
    for lr in dict.fromkeys(entry['lr'] for entry in found['entries']):
        entries = [entry for entry in found['entries'] if entry['lr'] == lr]
        if lr is not None:
            yield 'heading', f'Learning rate {lr:g}'
        yield 'sentences', [e['verdict'] for e in entries if 'verdict' in e]
        yield 'picture', lr
        yield 'table', _main_rows(found['metric'], entries)
        if any('parameters' in entry or 'cost' in entry for entry in entries):
            yield 'table', _cost_rows(entries)
        if len(found['metrics']) > 1:
            yield 'table', _metric_rows(found, entries)
    yield 'heading', 'How to read this'
    yield 'sentences', _notes(found)


def _main_rows(metric: str, entries: list[dict]) -> list[list[str]]:
    rows = [['block', f'{unit_of(metric)}, mean ± deviation', 'seeds']]
    rows[0] += ['difference to control', '95% interval', 'corrected interval']
    for entry in entries:
        own = entry['metrics'].get(metric, {})
        row = [entry['label'], _mean(metric, own), str(own.get('count', 0))]
        difference = own.get('difference')
        if difference:
            row.append(f'{points(metric, difference["mean"]):+.1f}')
            row += [_range(metric, difference[k]) for k in ('interval', 'corrected')]
        rows.append([*row, *[''] * (6 - len(row))])
    return rows


def _metric_rows(found: dict, entries: list[dict]) -> list[list[str]]:
    """Rows of a table of all metrics but the main one. A block's column shows the mean,
    the difference to the control, and the 95% interval of the difference."""
    rows = [['metric', *(entry['label'] for entry in entries)]]
    for name in found['metrics']:
        measured = [entry['metrics'][name] for entry in entries]
        if name == found['metric'] or not any('mean' in own for own in measured):
            continue
        row = [name]
        for own in measured:
            text = _mean(name, own)
            difference = own.get('difference')
            if difference:
                text += f'; {points(name, difference["mean"]):+.1f}'
                if difference['interval']:
                    text += f' ({_range(name, difference["interval"])})'
            row.append(text)
        rows.append(row)
    return rows


def _cost_rows(entries: list[dict]) -> list[list[str]]:
    rows = [['block', 'parameters', 'multiply-adds']]
    timed = any('cost' in entry for entry in entries)
    if timed:
        rows[0] += ['training step', 'inference', 'peak memory']
    for entry in entries:
        row = [entry['label'], '', '']
        if 'parameters' in entry:
            row[1] = f'{entry["parameters"] / 1e6:.2f} M'
            row[2] = f'{entry["multiply_adds"] / 1e9:.3g} G'
        cost = entry.get('cost')
        if cost:
            for kind in ('step', 'inference'):
                c = cost[kind]
                row.append(f'x {c["median"]:.2f} ({c["low"]:.2f} to {c["high"]:.2f})')
            row.append(f'x {cost["memory"]:.2f}')
        elif timed:
            row += ['1' if entry['label'] == CONTROL else ''] * 3
        rows.append(row)
    return rows


def _notes(found: dict) -> list[str]:
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
            'differences are about normally distributed, and includes the rounding of '
            'the metrics. Few seeds give wide intervals.'
        )
        if blocks > 1:
            lines.append(
                f'{blocks} comparisons were made. The best of many looks better than '
                'it is. The corrected intervals (Bonferroni) hold for all of them at '
                'once with 95%.'
            )
    others = (len(found['metrics']) - 1) * blocks
    if count > 1 and others:
        lines.append(
            f'The {others} intervals of the other metrics are not corrected. Without '
            'any difference, one in twenty would exclude zero by chance.'
        )
    if found['load_from']:
        lines.append(
            'A gain over the checkpoint that the runs started from is no gain of a '
            'block: the control was trained further, too.'
        )
    entries = found['entries']
    missing = [
        f'{entry["name"]}, seed {run["seed"]}'
        for entry in entries
        for run in entry['runs']
        if not run['finished']
    ]
    if missing:
        lines.append(
            f'Not finished: {"; ".join(missing)}. Until then, a mean is over the '
            "row's own seeds, and a difference is over the seeds that the control has, "
            'too. So a difference may not equal the difference of two means.'
        )
    changed = [
        f'{entry["name"]}, seed {seed}'
        for entry in entries
        for seed in entry.get('other_data', [])
    ]
    if changed:
        lines.append(
            f'Other data than the control of the same seed was seen by: '
            f'{"; ".join(changed)}. Do not trust their differences.'
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


def _range(metric: str, interval: list[float] | None) -> str:
    if interval is None:
        return 'none'
    low, high = (points(metric, bound) for bound in interval)
    return f'{low:+.1f} to {high:+.1f}'


def picture_name(lr: float | None) -> str:
    """File name of the picture for a learning rate."""
    return 'report.png' if lr is None else f'report_lr{lr:g}.png'


def as_markdown(found: dict, pictures: bool = True) -> str:
    """A result of :func:`collect` as Markdown with aligned tables. Unless ``pictures``
    is false, the Markdown text links to the pictures."""
    parts = []
    for kind, content in sections(found):
        if kind == 'table':
            parts.append(_table(content))
        elif kind == 'sentences':
            parts.append('\n'.join(f'- {text}' for text in content))
        elif kind != 'picture':
            parts.append(f'{"#" if kind == "title" else "##"} {content}')
        elif pictures:
            parts.append(f'![metric by step]({picture_name(content)})')
    return '\n\n'.join(parts) + '\n'


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ['-' * width for width in widths]
    lines = [
        ' | '.join(cell.ljust(width) for cell, width in zip(row, widths))
        for row in (rows[0], rule, *rows[1:])
    ]
    return '\n'.join(f'| {line} |' for line in lines)
