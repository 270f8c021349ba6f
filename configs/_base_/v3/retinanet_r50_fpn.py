# RetinaNet as MMDetection 3 has it, without a schedule.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../datasets/coco_detection.py',
    '../default_runtime.py',
]
