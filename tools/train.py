"""Train a detector, with the flags of MMDetection's train.py. The data are checked
before the start. If there is no GPU, torchrun can run several processes on CPUs."""

from prm_mmdet.launch import run_tool

if __name__ == '__main__':
    run_tool('train.py')
