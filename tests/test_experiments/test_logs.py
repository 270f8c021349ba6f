"""What is read from a work dir. Evaluations are read in test_curves.py, too."""

import json
from pathlib import Path

import pytest

from prm_mmdet.experiments.logs import (
    Checkpoint,
    last_checkpoint,
    read_evaluations,
    reason_of_failure,
)


def test_the_step_of_a_test_is_that_of_its_checkpoint(tmp_path):
    for day, line in enumerate(['', "load_from = 'w/iter_500.pth'\n"], 1):
        folder = tmp_path / f'2026010{day}_000000'
        (folder / 'vis_data').mkdir(parents=True)
        (folder / 'vis_data' / 'config.py').write_text(line)
        metrics = {'pascal_voc/mAP': 0.1 * day, 'time': 0.1, 'bad': float('nan')}
        (folder / f'{folder.name}.json').write_text(json.dumps(metrics))
    unknown, known = read_evaluations(tmp_path)
    assert (unknown.step, known.step, known.unit) == (None, 500, 'iteration')
    assert unknown.test and unknown.metrics == {'pascal_voc/mAP': 0.1}
    assert known.when == '20260102_000000'


@pytest.mark.parametrize(
    ('name', 'step'), [('epoch_3.pth', ('epoch', 3)), ('iter_9.pth', ('iteration', 9))]
)
def test_the_newest_checkpoint_is_in_the_work_dir(tmp_path, name, step):
    assert last_checkpoint(tmp_path) is None
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text(f'/where/it/was/{name}')  # the folder was moved since
    assert last_checkpoint(tmp_path) == Checkpoint(tmp_path / name, *step)
    pointer.write_text('')
    assert last_checkpoint(tmp_path) is None


RANKS = """\
[rank0]: Traceback (most recent call last):
[rank0]: KeyError: 'x'
[rank1]: Traceback (most recent call last):
[rank1]: Connection closed
E1120 13:09:26 torch/distributed/elastic failed (exitcode: 1)
"""


def test_the_reason_of_a_failure_is_found_among_what_many_ranks_print():
    rank = "    [rank0]: Traceback (most recent call last):\n    [rank0]: KeyError: 'x'"
    assert reason_of_failure(RANKS + 30 * 'x\n') == rank
    own = 'error: no weights:\n  a file\n'
    assert reason_of_failure(own + RANKS) == '    error: no weights:\n      a file'
    many = reason_of_failure(''.join(f'line {i}\n' for i in range(100)))
    assert many.split() == [w for i in range(85, 100) for w in ('line', str(i))]


def test_a_work_dir_that_is_missing_has_no_evaluations():
    assert read_evaluations(Path('nowhere')) == []
