# The PRM paper names 24 epochs and no batch size. The rest is MMDetection 1.x's 2x:
# 8 GPUs x 2 images.
_base_ = 'mmdet::_base_/schedules/schedule_2x.py'
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22]),
]
