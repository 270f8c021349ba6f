# The SAC paper's schedule: 4 GPUs x 2 images, 12 epochs, one learning rate for all
# detectors. Warm-up and gradient clipping are MMDetection 1.x's.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
optim_wrapper = dict(optimizer=dict(lr=0.01), clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11]),
]
auto_scale_lr = dict(base_batch_size=8)
