"""Checkpoints on torch >= 2.6, and weights named by torchvision's scheme."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

import prm_mmdet.compat as compat


@pytest.fixture(autouse=True)
def allowed():
    compat.allow_mmengine_checkpoints()  # which onedl-mmengine's loading takes back


def test_a_training_history_survives_weights_only_loading(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    history.update(np.float64(5.0))
    saved = dict(loss=history, step=np.int64(3), array=np.arange(4, dtype=np.float32))
    torch.save(saved, tmp_path / 'checkpoint.pth')
    loaded = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
    assert loaded['loss'].mean() == pytest.approx(3.0)
    assert loaded['loss'].statistics('max') == 5.0
    assert loaded['step'] == 3
    np.testing.assert_array_equal(loaded['array'], saved['array'])


class _Reaches:
    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


EVIL = [_Reaches(HistoryBuffer, '__init__'), _Reaches(np.ndarray, 'tofile')]


@pytest.mark.parametrize('evil', EVIL)
def test_a_checkpoint_cannot_reach_further(tmp_path, evil):
    torch.save(dict(evil=evil), tmp_path / 'checkpoint.pth')
    with pytest.raises(pickle.UnpicklingError, match='refused'):
        torch.load(tmp_path / 'checkpoint.pth', weights_only=True)


@pytest.mark.parametrize('evil', EVIL)
def test_nor_can_it_through_mmengine_in_a_tool(tmp_path, monkeypatch, evil):
    # What the call changes is put back afterwards.
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    for name in {'_safe_torch_load'} & vars(checkpoint).keys():
        monkeypatch.setattr(checkpoint, name, getattr(checkpoint, name))
    compat.load_weights_only()
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(evil=evil), path)
    with pytest.raises(pickle.UnpicklingError, match='refused'):
        CheckpointLoader.load_checkpoint(str(path))


def test_torchvision_scheme_names_a_download(monkeypatch):
    asked = []
    monkeypatch.setattr(
        compat, 'load_from_http', lambda url, **_: asked.append(url) or {}
    )
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: None)
    compat._find_torchvision_weights_without_torchvision()
    CheckpointLoader.load_checkpoint('torchvision://resnet50')
    assert [url.rsplit('/')[-1] for url in asked] == ['resnet50-0676ba61.pth']
    with pytest.raises(FileNotFoundError, match='torchvision://resnet5000'):
        CheckpointLoader.load_checkpoint('torchvision://resnet5000')


def test_weights_url():
    x101 = compat.weights_url('open-mmlab://resnext101_32x4d')
    assert x101.endswith('/resnext101_32x4d-a5af3160.pth')
    assert compat.weights_url('https://a.b/c.pth') == 'https://a.b/c.pth'
    assert compat.weights_url('work_dirs/c.pth') is None
