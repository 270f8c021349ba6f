# The 1.x protocol of the paper; '../_base_/v3/...' gives MMDetection 3's defaults.
_base_ = ['../_base_/v1/retinanet_r50_fpn.py', '../_base_/schedules/2x.py']
# RetinaNet learns at half the rate of the two-stage detectors in MMDetection.
optim_wrapper = dict(optimizer=dict(lr=0.01))
