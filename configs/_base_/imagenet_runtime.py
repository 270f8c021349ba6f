# For an exponential moving average of the weights, add
# --cfg-options default_hooks.ema.type=EMAHook default_hooks.ema.update_buffers=True
_base_ = 'default_runtime.py'
default_hooks = dict(
    _delete_=True,
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    num_classes=dict(type='prm_mmdet.CheckNumClasses'),
    unreadable=dict(type='prm_mmdet.ReportUnreadableImages'),
)
env_cfg = dict(cudnn_benchmark=True)  # all images have one size
