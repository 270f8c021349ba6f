"""Checkpoints on torch >= 2.6, and weights named by torchvision's scheme."""

import io
import pickle

import mmengine
import numpy as np
import pytest
import torch
import yaml
from conftest import Touch
from mmengine.config import utils as config_utils
from mmengine.fileio.io import file_handlers
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.structures import InstanceData

import prm_mmdet.compat as compat
from prm_mmdet import load_config
from prm_mmdet.files.checkpoints import CheckpointError, read_checkpoint
from prm_mmdet.files.plain_pickle import load_plain_pickle


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


class Pickled:
    """Unpickled, calls a function with arguments, and gives the result a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def dtype(code, *state, copy=True):
    """A NumPy dtype that says of itself what is not true."""
    return Pickled(np.dtype, (code, False, copy), state)


def array(dtype, content):
    rebuild = np.zeros(1).__reduce__()[0]
    return Pickled(rebuild, (np.ndarray, (0,), b'b'), (1, (1,), dtype, False, content))


def scalar(dtype, content):
    return Pickled(np.float64(0).__reduce__()[0], (dtype, content))


EVIL = [
    Pickled(getattr, (HistoryBuffer, '__init__')),
    Pickled(getattr, (np.ndarray, 'tofile')),
]


@pytest.mark.parametrize('evil', EVIL)
def test_a_checkpoint_cannot_reach_further(tmp_path, evil):
    torch.save(dict(evil=evil), tmp_path / 'checkpoint.pth')
    with pytest.raises(pickle.UnpicklingError, match='refused'):
        torch.load(tmp_path / 'checkpoint.pth', weights_only=True)


USUAL = (3, '<', None, None, None, -1, -1)
ADDRESS = b'AAAAAAAA'
CORRUPTING = [
    # The first four ended the process in NumPy: numbers of the file became addresses.
    array(dtype('O8', 3, '|', None, None, None, -1, -1, 0), ADDRESS),
    array(dtype('f8', *USUAL, 63), [1.0]),
    array(dtype('f8', *USUAL, 63, copy=False), [1.0]),
    scalar(dtype('O8', 3, '|', None, None, None, -1, -1, 0), ADDRESS),
    array(dtype('f8', 3, '<', (dtype('f8', *USUAL, 0), (9,)), *USUAL[3:], 0), ADDRESS),
    array(dtype('O8', 3, '|', None, None, None, -1, -1, 63), [[]]),
    array(dtype('V8', 3, '|', None, None, None, 8, 1, 0), ADDRESS),
]


@pytest.mark.parametrize('evil', CORRUPTING)
def test_arrays_that_corrupt_memory_are_refused(tmp_path, evil):
    with pytest.raises(pickle.UnpicklingError, match=r'array|scalar'):
        load_plain_pickle(io.BytesIO(pickle.dumps([evil], protocol=2)))
    torch.save(dict(evil=evil), tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match='more than weights'):
        read_checkpoint(tmp_path / 'checkpoint.pth')
    if not hasattr(checkpoint, '_safe_torch_load'):  # onedl-mmengine allows them itself
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / 'checkpoint.pth', weights_only=True)


@pytest.mark.parametrize('code', ['f8', '>f4', '?', 'i2', 'u1', 'c8', 'U3', 'S3', 'f2'])
def test_usual_arrays_are_read_and_saved_again(tmp_path, code):
    usual = np.array([[0, 1], [1, 0]]).astype(code)
    saved = [usual, np.asfortranarray(usual), usual[0], usual[0, 0]]
    loaded = load_plain_pickle(io.BytesIO(pickle.dumps(saved, protocol=2)))
    torch.save(saved, tmp_path / 'a.pth')
    from_torch = read_checkpoint(tmp_path / 'a.pth')
    again = pickle.loads(pickle.dumps(loaded))
    for found in (loaded, from_torch, again):
        for expected, value in zip(saved, found):
            assert value.dtype == expected.dtype.newbyteorder('=')
            assert value.shape == expected.shape
            assert value.tolist() == expected.tolist()
    assert {type(a) for a in again[:3]} == {np.ndarray}


@pytest.fixture
def tool(monkeypatch):
    """What a tool changes in MMEngine, until the test ends."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    for name in {'_safe_torch_load'} & vars(checkpoint).keys():
        monkeypatch.setattr(checkpoint, name, getattr(checkpoint, name))
    loader = vars(CheckpointLoader)['load_checkpoint']
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', loader)
    for name, handler in file_handlers.items():
        monkeypatch.setitem(file_handlers, name, handler)
    compat.load_weights_only()


@pytest.mark.parametrize('evil', EVIL)
def test_nor_can_it_through_mmengine_in_a_tool(tmp_path, tool, evil):
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(evil=evil), path)
    with pytest.raises(ValueError, match=r'checkpoint\.pth is .*refused'):
        CheckpointLoader.load_checkpoint(str(path))


def test_mmengine_reads_pickle_and_yaml_as_data_in_a_tool(tmp_path, tool):
    path = tmp_path / 'results.pkl'
    held = dict(
        boxes=torch.arange(4.0),
        mask=dict(size=[2, 3], counts=b'abc'),
        array=np.arange(3, dtype=np.float32),
        scalar=np.float64(2),
        proposals=InstanceData(scores=torch.ones(2)),
    )
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps([held], protocol=protocol))
        (loaded,) = mmengine.load(path)
        assert torch.equal(loaded['boxes'], held['boxes'])
        assert loaded['mask'] == held['mask'] and loaded['scalar'] == 2
        assert loaded['array'].tolist() == [0, 1, 2]
        assert loaded['proposals'].scores.tolist() == [1, 1]
    storage = torch.storage._load_from_bytes
    for evil in (Touch(tmp_path / 'run'), EVIL[1]):
        inner = io.BytesIO()
        torch.save(evil, inner)
        for content in (evil, Pickled(storage, (inner.getvalue(),))):
            path.write_bytes(pickle.dumps([content]))
            with pytest.raises(pickle.UnpicklingError):
                mmengine.load(path)
    path = tmp_path / 'annotations.yaml'
    path.write_text(f'!!python/object/apply:os.mkdir [{str(tmp_path / "run")!r}]')
    with pytest.raises(yaml.YAMLError):
        mmengine.load(path)
    assert not (tmp_path / 'run').exists()


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


def test_metafiles_are_parsed_once():
    name = 'demo/mask-rcnn_r50_fpn_demo.py'
    load_config(name)
    parsed = config_utils.load.cache_info().misses
    load_config(name)
    assert config_utils.load.cache_info().misses == parsed > 50
