# MMDetection 1.x's settings, as when the paper was written. For MMDetection 3's
# defaults, replace v1 by v3.
_base_ = ['../_base_/v1/retinanet_r50_fpn.py', '../_base_/schedules/2x.py']
# MMDetection trains RetinaNet at half the learning rate of two-stage detectors.
optim_wrapper = dict(optimizer=dict(lr=0.01))
