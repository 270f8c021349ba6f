# Multi-scale training and single-scale test. The paper names no scales. These are
# MMDetection's.
_base_ = 'cascade-mask-rcnn_x101-32x4d-dconv-c3-c5-sac-c3-c5_fpn_4xb2-1x_coco.py'
resize = dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)
train_pipeline = [
    resize if step['type'] == 'Resize' else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
