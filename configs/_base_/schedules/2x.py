# The PRM paper's 24 epochs; it names no batch size, so MMDetection's 8 GPUs x 2 images.
_base_ = 'mmdet::_base_/schedules/schedule_2x.py'
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22]),
]
