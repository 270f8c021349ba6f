"""The classifier, and the way from it to a detector."""

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch.nn import functional as F

register_all_modules()

RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False)
SAC = dict(cfg=dict(type='prm_mmdet.SAC'), at=r'layer[1-3]\.\d+', blocks='last')
NORMALISE = dict(
    type='mmengine.ImgDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
)


def build(backbone, **kwargs):
    kwargs.setdefault('num_classes', 7)
    return MODELS.build(
        dict(type='prm_mmdet.ImageClassifier', backbone=backbone, **kwargs)
    )


@pytest.mark.parametrize(
    ('backbone', 'channels'),
    [
        (RESNET, 64),
        (dict(RESNET, out_indices=(3,)), 64),
        (dict(RESNET, out_indices=(1,)), 16),
        (dict(type='prm_mmdet.Plugged', model=RESNET, plugins=[SAC]), 64),
        (dict(type='mmdet.MobileNetV2', widen_factor=0.25, out_indices=(7,)), 1280),
        (dict(type='mmdet.CSPNeXt', widen_factor=0.125, deepen_factor=0.167), 128),
    ],
)
def test_backbones(backbone, channels):
    model = build(backbone)
    assert model.fc.in_features == channels
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    maps = model.backbone(images)
    expected = maps[-1].mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(images), expected)


def test_channels_that_cannot_be_found_can_be_given():
    infrared = dict(RESNET, in_channels=5)
    with pytest.raises(ValueError, match=r'it.* Set in_channels'):
        build(infrared)
    assert build(infrared, in_channels=64).fc.in_features == 64


def test_images_are_normalised_and_the_loss_is_the_cross_entropy():
    model = build(RESNET, data_preprocessor=NORMALISE)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 6, 3, 3])
    batch = model.data_preprocessor(dict(inputs=images, data_samples=labels), True)
    mean = torch.tensor(NORMALISE['mean'])[:, None, None]
    std = torch.tensor(NORMALISE['std'])[:, None, None]
    torch.testing.assert_close(batch['inputs'], (images.flip(1) - mean) / std)
    model.eval()  # running statistics: the same at each call
    logits = model(batch['inputs'])
    chosen = logits.exp()[torch.arange(4), labels] / logits.exp().sum(1)
    loss = model(**batch, mode='loss')['loss']
    torch.testing.assert_close(loss, -chosen.log().mean())


def test_mixed_precision():
    model = build(RESNET, data_preprocessor=NORMALISE).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    batch = dict(inputs=images, data_samples=torch.tensor([0, 1]))
    full = model.val_step(batch)
    with torch.autocast('cpu', torch.bfloat16):
        half = model.val_step(batch)
        loss = model(**model.data_preprocessor(batch), mode='loss')['loss']
    assert loss.dtype == half[0]['pred_scores'].dtype == torch.float32
    for results in zip(full, half):
        a, b = (result['pred_scores'] for result in results)
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)


def test_predictions_and_modes():
    model = build(RESNET).eval()
    images = torch.randn(3, 3, 32, 32)
    results = model(images, torch.tensor([4, -1, 0]), mode='predict')
    assert [r['gt_label'] for r in results] == [4, -1, 0]
    expected = F.softmax(model(images), 1)
    for result, row in zip(results, expected):
        torch.testing.assert_close(result['pred_scores'], row)
        assert result['pred_label'] == row.argmax()
    assert 'gt_label' not in model(images, mode='predict')[0]
    with pytest.raises(ValueError, match="got 'train'"):
        model(images, mode='train')


def test_a_step_trains_all_of_it():
    backbone = dict(RESNET, zero_init_residual=False)
    model = build(backbone, data_preprocessor=NORMALISE)
    model.init_weights()
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = dict(optimizer=dict(type='SGD', lr=0.1))
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = dict(inputs=images, data_samples=torch.tensor([0, 1, 2, 3]))
    model.train_step(batch, build_optim_wrapper(model, optimizer))
    assert not [k for k, v in model.named_parameters() if torch.equal(v, before[k])]


def config(name):
    return Config.fromfile(ROOT / 'configs' / name)


def test_imagenet_backbones_are_trained_whole():
    model = MODELS.build(config('imagenet/resnet50_8xb32-100e_imagenet.py').model)
    model.train()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 25.557
    # torchvision's names, but for the prefix.
    names = {k.removeprefix('backbone.') for k in model.state_dict()}
    assert {'conv1.weight', 'layer4.2.bn3.running_var', 'fc.bias'} <= names


@pytest.mark.parametrize(
    ('pretraining', 'detector'),
    [
        (
            'imagenet/resnet50-prm-c2-c5_8xb32-100e_imagenet.py',
            'prm/retinanet_r50-prm-c2-c5_fpn_2x_coco.py',
        ),
        ('demo/resnet50-sac_demo.py', 'demo/mask-rcnn_r50-sac_fpn_demo.py'),
        ('demo/resnet50_demo.py', 'demo/mask-rcnn_r50_fpn_demo.py'),
    ],
)
def test_a_detector_starts_from_a_checkpoint(
    pretraining, detector, tmp_path, caplog, capfd
):
    classifier = MODELS.build(config(pretraining).model)
    for value in classifier.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    path = str(tmp_path / 'pretrained.pth')
    torch.save(dict(meta={}, state_dict=classifier.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    backbone = MODELS.build(dict(config(detector).model.backbone, init_cfg=init_cfg))
    backbone.init_weights()
    said = caplog.text + ''.join(capfd.readouterr())
    assert 'missing keys' not in said and 'unexpected key' not in said
    found, expected = backbone.state_dict(), classifier.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
