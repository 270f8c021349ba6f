# The 1.x protocol of the paper; '../_base_/v3/...' gives MMDetection 3's defaults.
_base_ = ['../_base_/v1/cascade-rcnn_r50_fpn.py', '../_base_/schedules/4xb2-1x.py']
