"""Draw docs/images/blocks.png: where each block is placed in a bottleneck of ResNet.

Run it from the repository: ``python docs/draw_blocks.py``.
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

LAYERS = ('1×1 conv, norm, ReLU', '3×3 conv, norm, ReLU', '1×1 conv, norm')
# Title, layer that the block follows, colour, and what the block does, step by step.
BLOCKS = (
    (
        'SAC',
        1,
        '#0072B2',
        (
            'K attention maps, each a softmax over positions',
            'K contexts: sums of x weighted by a map',
            'at each position: its own mixture of the contexts',
            'x + 1×1 conv of the mixture',
        ),
    ),
    (
        'PRM',
        2,
        '#D55E00',
        (
            'in each group, q is the most salient position:',
            'similarity to q, weighted by the distance to q,',
            '+ similarity to the mean, normalised',
            'x × one gate for each position',
        ),
    ),
    (
        'LCT',
        2,
        '#009E73',
        (
            'mean of each channel over positions',
            'normalised within a group of channels',
            'one weight and one bias for each channel',
            'x × one gate for each channel',
        ),
    ),
)
WIDTH, HEIGHT, STEP = 3.4, 0.5, 0.8


def box(axis, x, y, text, face, edge, size=9.5, height=HEIGHT, colour='black'):
    patch = FancyBboxPatch(
        (x - WIDTH / 2, y - height / 2),
        WIDTH,
        height,
        boxstyle='round,pad=0.02,rounding_size=0.08',
        facecolor=face,
        edgecolor=edge,
        linewidth=1.3,
    )
    axis.add_patch(patch)
    axis.text(x, y, text, ha='center', va='center', fontsize=size, color=colour)


def arrow(axis, x, start, end):
    style = dict(arrowstyle='-|>', color='#555555', shrinkA=0, shrinkB=0)
    axis.annotate('', (x, end), (x, start), arrowprops=style)


def bottleneck(axis, x, title, follows, colour, steps):
    """Draw one bottleneck, from its input at the top to its output at the bottom."""
    y = 0.0
    axis.text(x, y, 'x', ha='center', va='center', fontsize=10, style='italic')
    shortcut = y
    for i, layer in enumerate(LAYERS):
        arrow(axis, x, y - 0.15 if i == 0 else y - HEIGHT / 2, y - STEP + HEIGHT / 2)
        y -= STEP
        box(axis, x, y, layer, '#f2f2f2', '#999999')
        if i == follows:
            height = 1.55
            top = y - HEIGHT / 2
            y = top - (STEP - HEIGHT) - height / 2
            arrow(axis, x, top, y + height / 2)
            box(axis, x, y, '', 'white', colour, height=height)
            axis.text(
                *(x, y + height / 2 - 0.22, title),
                **dict(ha='center', va='center', fontsize=12, weight='bold'),
                color=colour,
            )
            for j, step in enumerate(steps):
                axis.text(
                    *(x, y + height / 2 - 0.52 - 0.27 * j, step),
                    **dict(ha='center', va='center', fontsize=7.3),
                )
            y -= height / 2 - HEIGHT / 2
    arrow(axis, x, y - HEIGHT / 2, y - STEP + 0.17)
    y -= STEP
    axis.text(x, y, '⊕', ha='center', va='center', fontsize=15)
    side = x + WIDTH / 2 + 0.28
    axis.plot([x + 0.2, side, side], [shortcut, shortcut, y], color='#555555', lw=1)
    style = dict(arrowstyle='-|>', color='#555555', shrinkA=0, shrinkB=0)
    axis.annotate('', (x + 0.17, y), (side, y), arrowprops=style)
    arrow(axis, x, y - 0.17, y - 0.5)
    axis.text(x, y - 0.66, 'ReLU', ha='center', va='center', fontsize=9.5)
    return y - 0.85


def main():
    figure = Figure(figsize=(11, 5.2))
    axis = figure.add_axes((0, 0, 1, 1))
    for i, block in enumerate(BLOCKS):
        bottom = bottleneck(axis, 4.6 * i, *block)
    axis.set_xlim(-2.1, 4.6 * 2 + 2.4)
    axis.set_ylim(bottom, 0.3)
    axis.axis('off')
    out = Path(__file__).parent / 'images' / 'blocks.png'
    figure.savefig(out, dpi=110, facecolor='white')
    print(f'wrote {out}')


if __name__ == '__main__':
    main()
