"""What was found where a prediction and the runs do not agree, written after them.

The longer runs are of seed 0, by tools/train.py with the cell's config, ``PROBE_DATA``,
``PROBE_BASE`` and ``--cfg-options train_cfg.max_epochs=N param_scheduler.1.T_max=N``.
One run each. Objects were counted from their predictions, which no tool here does: the
class of the detection with the highest score among those of IoU above 0.5.
"""

#: By (network, probe).
FINDINGS = {
    ('sac', 'which-context'): (
        'slow, not blind: with twice the steps (12 epochs) AP50 is 1.00, and the best '
        'detection at every object of the validation images has the right class, where '
        "the kinds' classes differ (117 objects) as where they do not (139)."
    ),
    ('gc', 'which-context'): (
        'it heeds the markers, not the one that matches. With twice the steps (12 '
        'epochs) AP50 is 0.92; the best detection at an object has the right class '
        "where the kinds' classes agree (100% of 139 objects) and guesses where they "
        'differ (55% of 117). The layers that follow could choose by the kind of '
        'object, but did not learn to.'
    ),
    ('prm', 'scene'): (
        'slow, not blind: AP50 is 1.00 after 12 of 24 epochs. The gate gain starts at '
        'zero, and here alone it grew (0.49; 0.17 to 0.19 on the other probes).'
    ),
    ('lct', 'scene'): (
        'slow, not blind: AP50 is 1.00 with twice the steps (12 epochs). The gain '
        'starts at zero, and here alone it grew (0.53; 0.19 to 0.26 on the other '
        'probes).'
    ),
    ('se', 'far-cue'): 'not with twice the steps (12 epochs) either: AP50 is 0.53.',
}
