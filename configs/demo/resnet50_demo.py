# A classifier with the backbone of the demo's Mask R-CNN. It learns the generated
# classes in minutes on two cores.
_base_ = [
    '../_base_/models/imagenet_resnet50.py',
    '../_base_/datasets/demo_classes.py',
    '../_base_/imagenet_runtime.py',
]
model = dict(backbone=dict(base_channels=16), num_classes=8)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1),  # SAC, which is cubic in its input, learns with it
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', T_max=12, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
auto_scale_lr = dict(enable=False, base_batch_size=16)
randomness = dict(seed=0)
