"""The experiment: which networks are trained on which probes."""

from dataclasses import dataclass

from .images import PROBES

#: Networks by their config in ``configs/probes``, as the report names them.
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
#: What networks start from, if not from :data:`BASE`.
BASES = {'none-wide': 'base-wide'}
BASE = 'base'
#: Names of the configs in ``configs/probes``.
CONFIGS = {*NETWORKS, BASE, *BASES.values()}
#: Switches are run on the probes that speak about them, and on the control.
SWITCHES = {
    'prm-no-position': ('far-cue', 'relative-position', 'control'),
    'sac-softmax': ('far-cue', 'which-context', 'control'),
    'sac-one-context': ('far-cue', 'which-context', 'control'),
    'sac-bottleneck': ('far-cue', 'which-context', 'control'),
}
MAIN_NETWORKS = ('none', 'prm', 'lct', 'sac')

RATE = 3e-3  # of the networks' configs
BASE_RATE = 2e-3  # of the bases' configs
OTHER_RATE = 1e-3  # one more, for all networks alike
SEEDS = (0, 1, 2)
EPOCHS = 6  # of all configs
#: Run for twice the epochs, too: what was predicted to be seen and was not by every
#: seed. (probe, network, seeds): seeds that did not see it, and all of them for the
#: context that SAC customises and GC does not.
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
class Cell:
    """One run: a network, trained and evaluated on a probe.

    Args:
        probe (str): Of :data:`context_probes.images.PROBES`.
        network (str): Of :data:`NETWORKS`, or a base.
        rate (float): Learning rate.
        seed (int): Of the initial weights, the base's too, and the order of images.
        epochs (int): Of training.
    """

    probe: str
    network: str
    rate: float = RATE
    seed: int = 0
    epochs: int = EPOCHS

    @property
    def name(self):
        name = f'{self.probe}_{self.network}_lr{self.rate:g}_seed{self.seed}'
        return name if self.epochs == EPOCHS else f'{name}_epochs{self.epochs}'

    @property
    def base(self):
        """The cell whose weights this one starts from; None if it is a base."""
        if self.network not in NETWORKS:
            return None
        network = BASES.get(self.network, BASE)
        return Cell('control', network, BASE_RATE, self.seed)


def all_cells():
    """Every run, the most telling ones first: the first seed of all networks, the
    other seeds, then the first seed at the other learning rate; of each, those of
    :data:`MAIN_NETWORKS` before the others. Then those of :data:`LONGER`."""
    runs = [(RATE, seed) for seed in SEEDS] + [(OTHER_RATE, SEEDS[0])]
    cells = [
        Cell(probe, network, rate, seed)
        for rate, seed in runs
        for network in sorted(NETWORKS, key=lambda name: name not in MAIN_NETWORKS)
        for probe in SWITCHES.get(network, PROBES)
    ]
    return cells + [
        Cell(probe, network, seed=seed, epochs=2 * EPOCHS)
        for probe, network, seeds in LONGER
        for seed in seeds
    ]


def main_cells():
    """One seed of no block and of the three blocks of this package, on every probe."""
    return [Cell(probe, network) for network in MAIN_NETWORKS for probe in PROBES]
