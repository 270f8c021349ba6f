_base_ = 'mmdet::_base_/default_runtime.py'
# Makes the blocks' plain names known, and checkpoints readable on torch >= 2.6, in
# MMDetection's own scripts too.
custom_imports = dict(imports=['prm_mmdet'], allow_failed_imports=False)
