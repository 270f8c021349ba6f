# ResNeXt-101 32x4d, which replaces a detector's ResNet-50.
resnext101_32x4d = dict(
    type='ResNeXt',
    depth=101,
    groups=32,
    base_width=4,
    init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d'),
)
