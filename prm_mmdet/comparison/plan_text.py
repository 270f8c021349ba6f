"""What a comparison will do, in words, before it starts."""

from __future__ import annotations

from .blocks import CONTROL
from .plan import Comparison


def describe(comparison: Comparison) -> str:
    """The plan of a comparison as text: its runs, and the place and size of each block.
    The comparison must have been made with ``rehearse=True``."""
    key = 'max_epochs' if 'max_epochs' in comparison.cfg.train_cfg else 'max_iters'
    length = comparison.changes.get(f'train_cfg.{key}', comparison.cfg.train_cfg[key])
    unit = 'epoch' if key == 'max_epochs' else 'iteration'
    unit += 's' if length > 1 else ''
    rates = list(dict.fromkeys(variant.lr for variant in comparison.variants))
    runs = len(comparison.variants) * len(comparison.seeds)
    start = comparison.load_from or "the config's own initial weights"
    lines = [
        f'{comparison.config}: {runs} runs of {length} {unit}, from {start}',
        f'seeds {", ".join(map(str, comparison.seeds))}; verdicts on '
        f'{comparison.metric}; results in {comparison.work_dir}',
    ]
    if rates != [None]:
        lines.append(f'learning rates {", ".join(f"{lr:g}" for lr in rates)}')
    lines += [f'warning: {text}' for text in comparison.warnings]
    for variant in comparison.variants:
        if variant.lr != rates[0] or variant.rehearsed is None:
            continue
        shown = variant.rehearsed
        size = (
            f'{shown.parameters / 1e6:.2f} M parameters, '
            f'{shown.multiply_adds / 1e9:.2f} G multiply-adds'
        )
        if variant.label == CONTROL:
            control = shown
            lines.append(f'{CONTROL}: the detector of the config; {size}')
            continue
        assert variant.placed is not None
        more = shown.parameters - control.parameters
        work = shown.multiply_adds - control.multiply_adds
        lines.append(
            f'{variant.label}: {variant.placed.where}, '
            f'{variant.placed.count} blocks; {size} '
            f'(+{more / control.parameters:.1%}, +{work / control.multiply_adds:.1%})'
        )
        for name, value in variant.placed.chosen.items():
            lines.append(f'  {name}={value}, which fits the channels')
        if comparison.load_from:
            lines.append(f'  start: {shown.start}')
            lines += [f'  warning: {text}' for text in shown.changed[:3]]
            if len(shown.changed) > 3:
                lines.append(f'  warning: {len(shown.changed) - 3} more such blocks')
    return '\n'.join(lines)
