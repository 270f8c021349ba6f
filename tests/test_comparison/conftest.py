import pytest
from mmengine.config import Config

from prm_mmdet.config import config_path


@pytest.fixture(scope='session')
def user_config(demo_data, tmp_path_factory):
    """A config file of another project: a detector and four training images."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        persistent_workers=False,
        dataset=dict(data_root=f'{demo_data}/'),
    )
    annotations = f'{demo_data}/annotations/instances_val.json'
    path = tmp_path_factory.mktemp('user') / 'my_config.py'
    path.write_text(
        f'_base_ = {config_path("demo/mask-rcnn_r50_fpn_demo.py")!r}\n'
        f'train_dataloader = dict(**{loader!r})\n'
        'train_dataloader["dataset"]["indices"] = 4\n'
        f'val_dataloader = {loader!r}\n'
        f'test_dataloader = {loader!r}\n'
        f'val_evaluator = dict(ann_file={annotations!r})\n'
        'test_evaluator = val_evaluator\n'
        'train_cfg = dict(max_epochs=2, val_interval=1)\n'
    )
    return path


@pytest.fixture(scope='session')
def user_cfg(user_config):
    return Config.fromfile(user_config)
