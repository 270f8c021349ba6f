_base_ = ['../_base_/v3/retinanet_r50_fpn.py', 'mmdet::_base_/schedules/schedule_1x.py']
block = dict(type='prm_mmdet.LCT')
plugin = dict(cfg=block, stages=(False, True, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
# MMDetection trains RetinaNet at half the learning rate of two-stage detectors.
optim_wrapper = dict(optimizer=dict(lr=0.01))
