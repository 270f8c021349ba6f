"""Publishing checkpoints."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Touch
from mmengine.logging import HistoryBuffer

from prm_mmdet.files.publish import publish_checkpoint

TOOL = ROOT / 'tools' / 'publish_checkpoint.py'


def checkpoint(**more):
    weight = torch.arange(1000.0).view(10, 100)
    meta = dict(epoch=3, cfg='model = dict()', dataset_meta=dict(classes=('a', 'b')))
    return dict(
        meta=dict(meta, noise=np.float64(1), history=HistoryBuffer([1], [1])),
        state_dict={'backbone.w': weight[:2].T, 'fc.n': torch.tensor(7)},
        optimizer=dict(state={0: torch.zeros(10)}),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1], [1]))),
        **more,
    )


def test_published_checkpoint(tmp_path):
    torch.save(checkpoint(), tmp_path / 'epoch_3.pth')
    path, left_out = publish_checkpoint(
        str(tmp_path / 'epoch_3.pth'), str(tmp_path / 'new' / 'r50')
    )
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert path == str(tmp_path / 'new' / f'r50-{digest[:8]}.pth')
    assert left_out == ['optimizer', 'message_hub', 'meta.noise', 'meta.history']
    assert [p.name for p in (tmp_path / 'new').iterdir()] == [path.rpartition('/')[2]]
    # A reader who has torch alone allows no types of MMEngine and NumPy.
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        found = torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(before)
    assert set(found) == {'meta', 'state_dict'}
    assert sorted(found['meta']) == ['cfg', 'dataset_meta', 'epoch']
    assert found['meta']['dataset_meta']['classes'] == ('a', 'b')
    assert found['state_dict']['backbone.w'].sum() == torch.arange(200.0).sum()


def test_the_same_weights_give_the_same_file(tmp_path):
    torch.save(checkpoint(), tmp_path / 'a.pth')
    for folder in 'xy':
        publish_checkpoint(str(tmp_path / 'a.pth'), str(tmp_path / folder / 'b'))
    (first,), (second,) = ((tmp_path / f).iterdir() for f in 'xy')
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_views_are_written_alone(tmp_path):
    large = torch.zeros(1_000_000)
    torch.save(dict(state_dict=dict(w=large[:10])), tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').stat().st_size > 1e6
    path, _ = publish_checkpoint(str(tmp_path / 'a.pth'), str(tmp_path / 'b'))
    assert Path(path).stat().st_size < 10_000


def test_what_is_no_checkpoint_is_refused(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'a\.pth: its state dict is empty'):
        publish_checkpoint(str(tmp_path / 'a.pth'), str(tmp_path / 'out' / 'b'))
    assert not (tmp_path / 'out').exists()


def test_the_tool_runs_no_code_and_says_what_it_left_out(run_python, tmp_path):
    torch.save(dict(state_dict=Touch(tmp_path / 'run')), tmp_path / 'evil.pth')
    result = run_python(TOOL, 'evil.pth', 'out', check=False)
    assert result.returncode == 1 and 'Traceback' not in result.stdout
    assert not (tmp_path / 'run').exists()
    torch.save(checkpoint(), tmp_path / 'a.pth')
    result = run_python(TOOL, 'a.pth', 'out.pth')
    assert result.stdout.startswith('left out: optimizer, message_hub, meta.noise')
    assert len(list(tmp_path.glob('out-????????.pth'))) == 1
