# The SAC paper's recipe, which adds five epochs of linear warm-up.
_base_ = 'imagenet_100e.py'
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.01, begin=0, end=5, convert_to_iter_based=True
    ),
    dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1),
]
