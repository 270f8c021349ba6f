"""What the blocks' equations predict, written before any block was trained here.

A probe is a data set. In each probe but ``control``, only a far cue shows the class of
the objects. A base is a network without a block, trained on ``control``, whose weights
other networks start from. A trial trains one network on one probe.

A prediction concerns the mean over seeds at the configs' learning rate. A cue is seen
if the mean AP50 is above :data:`SEEN`. On ``control``, a block does no harm if its AP
is at most :data:`HARM` below the AP of the network without a block.

The equations are in :mod:`prm_mmdet.ops.reference`, and in the docstrings of the
compared blocks. When the predictions were written, one trial of far-cue was known, with
other images and settings. Its AP was 0.43 without a block, 0.85 with SAC, 0.43 with PRM
and 0.45 with LCT. Guessing gives about 0.43.

Other runs came before the trials on the page of results, and have no records. Their
images differed. Their networks were trained from scratch, or started from bases that
were trained on other versions of ``control``. After these runs, two probes were changed
so that the networks learn something at all: ``control`` and ``scene``. In ``scene``,
the fractions of tiles with each of two tints were changed. With the fractions 0.44 and
0.56, neither SE nor SAC saw the cue. Some bases gave the two hues of every cue the same
class. From such a base, SAC saw the cue of far-cue in 960 steps, but not the cue of
which-context.

After the trials, some reasons below were corrected, and the predictions of
``sac-bottleneck`` were added. :data:`SEEN` was raised from 0.65 to 0.92, and after the
first seed to 0.95, which changed no verdict. No prediction was changed.
"""

#: AP50 of a network that detects every object and guesses which of two classes it has.
#: A guess is right with a chance of 0.5, but AP50 is higher. The reason is that COCO
#: uses, for each recall, the best precision at this recall or at a higher one.
CHANCE = 0.54
#: A cue is seen if AP50 is above this number. In the probe which-context, each of the
#: two kinds of objects has its own marker (cue). If a network does not choose between
#: the markers, its AP50 is lower. For example, GC reaches 0.91 in twelve epochs.
SEEN = 0.95
HARM = 0.05

_BLIND = (
    'its outputs at an object do not depend on the cue (tests/test_receptive_field.py)'
)
_VISIBLE = (
    'the class is in the object, and what a gate scales, training can make up for'
)
_MEAN = 'its gate is a function of the mean over all positions'
_NO_PLACE = (
    'neither its weights nor its contexts contain positions; what zero padding tells '
    'of them is not counted on'
)
_SHARED = (
    'one context for all positions holds both markers, in different channels; choosing '
    'by the kind of object is left to the layers that follow, which can'
)

#: By (network, probe): whether the network will see the cue, and why.
PREDICTIONS = {}


def _predict(network, **probes):
    for probe, (seen, why) in probes.items():
        PREDICTIONS[network, probe.replace('_', '-')] = seen, why
    PREDICTIONS[network, 'control'] = True, _VISIBLE


for _network in ('none', 'none-wide'):
    _predict(
        _network,
        far_cue=(False, _BLIND),
        scene=(False, _BLIND),
        relative_position=(False, _BLIND),
        which_context=(False, _BLIND),
    )
_predict(
    'se',
    far_cue=(
        True,
        f'{_MEAN}, a small part of which is the marker, and two layers can enlarge it',
    ),
    scene=(True, f'{_MEAN}, which is what tells the class'),
    relative_position=(False, _NO_PLACE),
    which_context=(True, _SHARED),
)
_predict(
    'cbam',
    far_cue=(
        True,
        'its channel gate takes the maximum, which a marker can be; the 7x7 of its '
        'spatial gates reaches farther block by block, too',
    ),
    scene=(True, f'{_MEAN}, which is what tells the class'),
    relative_position=(
        False,
        'its channel gate has no positions; its spatial gates reach the landmark only '
        'through all ten blocks',
    ),
    which_context=(True, _SHARED),
)
_predict(
    'gc',
    far_cue=(True, 'its softmax over positions can select the marker'),
    scene=(True, 'with equal weights its context is the mean'),
    relative_position=(False, _NO_PLACE),
    which_context=(True, _SHARED),
)
_predict(
    'non-local',
    far_cue=(True, 'every position can attend to the marker'),
    scene=(True, 'with equal weights its contexts are the mean'),
    relative_position=(False, _NO_PLACE),
    which_context=(True, 'the attention depends on the position that asks'),
)
_predict(
    'prm',
    far_cue=(
        False,
        'Eqs. 6 and 7 leave a group of channels a gate of zero mean over positions '
        'before its bias: the marker as query changes the pattern, which at an object '
        'is its own similarity to the marker; alpha starts at 0, lambda too',
    ),
    scene=(True, 'beta starts at 1: the similarity to the mean differs with the tint'),
    relative_position=(
        False,
        'Eq. 5 is a Gaussian of theta times cells: at 12 and more columns of c4, with '
        "theta from 0 to 1 and sigma 1, its half along x and that half's gradient are "
        'zero in a block, unless its theta happens to start below about 0.2',
    ),
    which_context=(
        False,
        'a group of channels has one query; several groups can have several, but see '
        'far-cue',
    ),
)
_predict(
    'lct',
    far_cue=(
        False,
        f'{_MEAN}, of the channel itself within its group: the marker is a small part '
        'of it, no layer enlarges that, and the gain starts at 0',
    ),
    scene=(True, 'within a group, the channels of either tint differ in their means'),
    relative_position=(False, _NO_PLACE),
    which_context=(False, 'as with the far cue'),
)
_predict(
    'sac',
    far_cue=(True, 'Eq. 2 selects the marker, Eq. 3 brings it to objects alone'),
    scene=(True, 'with equal weights its contexts are the mean'),
    relative_position=(False, _NO_PLACE),
    which_context=(True, 'Eqs. 2 and 3: a context a marker, weights by kind of object'),
)
_predict(
    'prm-no-position',
    far_cue=(False, 'as PRM'),
    relative_position=(False, 'D = 1: no distance in any equation'),
)
_predict(
    'sac-softmax',
    far_cue=(True, 'Eq. 2 is the same'),
    which_context=(True, 'weights that sum to 1 still choose a context'),
)
_predict(
    'sac-bottleneck',
    far_cue=(True, 'as SAC'),
    which_context=(True, 'as SAC'),
)
_predict(
    'sac-one-context',
    far_cue=(True, 'one context is enough'),
    which_context=(True, f'{_SHARED}; the weight of the context depends on the kind'),
)
