"""The trials: which networks are trained on which probes (data sets)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .images import PROBES

CONFIGS = Path(__file__).parents[1] / 'configs'
#: Titles of the networks on the page of results, by the names of their configs.
NETWORKS = {
    'none': 'none',
    'none-wide': 'none, wider',
    'se': 'SE',
    'cbam': 'CBAM',
    'gc': 'GC',
    'non-local': 'NonLocal2d',
    'prm': 'PRM',
    'lct': 'LCT',
    'sac': 'SAC',
    'prm-no-position': 'PRM, no position encoding',
    'sac-softmax': 'SAC, softmax',
    'sac-one-context': 'SAC, K = 1',
    'sac-bottleneck': 'SAC, bottleneck, after the last 1x1',
}
#: A network starts from the weights of its base network. Most networks start from
#: :data:`BASE`. These networks have another base network, which is given here.
BASES = {'none-wide': 'base-wide'}
BASE = 'base'
#: Variants of a block, and the only probes on which they are trained.
VARIANTS = {
    'prm-no-position': ('far-cue', 'relative-position', 'control'),
    'sac-softmax': ('far-cue', 'which-context', 'control'),
    'sac-one-context': ('far-cue', 'which-context', 'control'),
    'sac-bottleneck': ('far-cue', 'which-context', 'control'),
}
MAIN_NETWORKS = ('none', 'prm', 'lct', 'sac')

RATE = 3e-3  # learning rate in the networks' configs
BASE_RATE = 2e-3  # learning rate for training the weights that networks start from
OTHER_RATE = 1e-3  # a second learning rate, for all networks alike
SEEDS = (0, 1, 2)
EPOCHS = 6  # number of training epochs in all configs
#: Trials of twice the epochs, as (probe, network, seeds). If a network failed to see
#: a predicted cue with some seed, one seed is trained for twice the epochs. On the
#: probe which-context, all seeds of SAC and GC are trained so, to compare the two.
LONGER = (
    ('which-context', 'sac', SEEDS),
    ('which-context', 'gc', SEEDS),
    ('far-cue', 'gc', (1,)),
    ('far-cue', 'cbam', (1,)),
    ('far-cue', 'se', (0,)),
    ('scene', 'prm', (0,)),
    ('scene', 'lct', (0,)),
    ('scene', 'se', (1,)),
    ('scene', 'cbam', (0,)),
    ('far-cue', 'non-local', (1,)),
    ('which-context', 'non-local', (0,)),
    ('which-context', 'sac-softmax', (1,)),
    ('which-context', 'sac-one-context', (0,)),
    ('which-context', 'sac-bottleneck', (0,)),
    ('far-cue', 'sac-one-context', (1,)),
    ('far-cue', 'sac-bottleneck', (1,)),
    ('which-context', 'se', (0,)),
    ('which-context', 'cbam', (0,)),
)


@dataclass(frozen=True)
class Trial:
    """A network that is trained and evaluated on a probe."""

    probe: str  # name in PROBES
    network: str  # name in NETWORKS, or the name of a base network
    rate: float = RATE
    # Seed of the initial weights and of the order of images. The trial of the base
    # network, from whose weights this trial starts, has the same seed.
    seed: int = 0
    epochs: int = EPOCHS

    @property
    def name(self) -> str:
        name = f'{self.probe}_{self.network}_lr{self.rate:g}_seed{self.seed}'
        return name if self.epochs == EPOCHS else f'{name}_epochs{self.epochs}'

    @property
    def base(self) -> Trial | None:
        """The trial whose weights this trial starts from. None for a base network."""
        if self.network not in NETWORKS:
            return None
        network = BASES.get(self.network, BASE)
        return Trial('control', network, BASE_RATE, self.seed)


def all_trials() -> list[Trial]:
    """Every trial, in this order: the first seed of all networks, the other seeds, the
    first seed at the other learning rate, and the longer trials (:data:`LONGER`). Among
    the trials of a seed and a rate, :data:`MAIN_NETWORKS` come first."""
    groups = [(RATE, seed) for seed in SEEDS] + [(OTHER_RATE, SEEDS[0])]
    trials = [
        Trial(probe, network, rate, seed)
        for rate, seed in groups
        for network in sorted(NETWORKS, key=lambda name: name not in MAIN_NETWORKS)
        for probe in VARIANTS.get(network, PROBES)
    ]
    return trials + [
        Trial(probe, network, seed=seed, epochs=2 * EPOCHS)
        for probe, network, seeds in LONGER
        for seed in seeds
    ]


def main_trials() -> list[Trial]:
    """The trials of :data:`MAIN_NETWORKS` with the first seed, on every probe (data
    set)."""
    return [Trial(probe, network) for network in MAIN_NETWORKS for probe in PROBES]
