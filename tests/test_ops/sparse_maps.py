"""Maps whose elements lie far apart in memory, in sparse files."""

import torch


def far_apart(path, values, layout):
    """A map (1, C, 1, N) with 2^31 elements or more between some of its elements.

    Returns:
        tuple[Tensor, tuple[int, int]]: A float64 view of a sparse file with the values,
        and the strides of channels and of positions. The space between the elements is
        never touched, so it takes neither memory nor disk.
    """
    _, channels, _, positions = values.shape
    far, near = 2**31, 2**30 + 5
    if layout == 'contiguous':
        stride_c, stride_n = far, 1
    else:
        stride_c, stride_n = 1, near
    size = (channels - 1) * stride_c + (positions - 1) * stride_n + 1
    assert size > 2**31
    storage = torch.from_file(str(path), shared=True, size=size, dtype=torch.float64)
    view = storage.as_strided(values.shape, (size, stride_c, size, stride_n))
    view.copy_(values)
    return view, (stride_c, stride_n)
