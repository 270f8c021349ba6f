"""Models as ONNX files, and what onnxruntime makes of them."""

import io

import onnxruntime
import torch

OPSET = 18  # what the README names
# Batch, height and width.
AXES = (0, 2, 3)


def exercise(model):
    """A model in evaluation mode, its plugins' parameters random."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if type(m).__module__.startswith('prm_mmdet.'):
            for p in m.parameters():
                deviation = 0.3 if p.dim() < 2 else p[0].numel() ** -0.5
                p.data.normal_(std=deviation, generator=generator)
    model.eval()
    return model


def to_onnx(model, inputs, opset=OPSET):
    """Bytes of a file by the TorchScript exporter, for any batch, height and width."""
    count = 1 if isinstance(inputs, torch.Tensor) else len(inputs)
    with torch.no_grad():
        outputs = model(inputs)
        maps = 1 if isinstance(outputs, torch.Tensor) else len(outputs)
        ins, outs = [f'x{i}' for i in range(count)], [f'y{i}' for i in range(maps)]
        file = io.BytesIO()
        torch.onnx.export(
            model,
            (inputs,),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=ins,
            output_names=outs,
            dynamic_axes={name: list(AXES) for name in (*ins, *outs)},
        )
    return file.getvalue()


def session(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what fails raises
    return onnxruntime.InferenceSession(file, options)


def agree(runner, model, inputs):
    """Whether the maps of onnxruntime are PyTorch's, to 1e-4 of the largest value.

    Raises:
        Exception: onnxruntime's, if the file cannot take the inputs.
    """
    given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    names = [i.name for i in runner.get_inputs()]
    maps = runner.run(None, {n: x.numpy() for n, x in zip(names, given)})
    with torch.no_grad():
        expected = model(inputs)
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    assert len(maps) == len(expected)
    return all(
        y.shape == e.shape
        and e.isfinite().all()
        and (torch.from_numpy(y) - e).abs().max() <= 1e-4 * e.abs().max()
        for y, e in zip(maps, expected)
    )
