"""What comes before a block, and what else uses it: read from the autograd graph that
one forward leaves."""

import contextlib
from collections import defaultdict
from dataclasses import dataclass

import torch

from .channels import run_as_in_inference, tensors

# f(s x) = s f(x) for positive s, one for each channel.
_HOMOGENEOUS = {
    *('Relu', 'LeakyRelu', 'MaxPool2DWithIndices', 'AvgPool2D', 'AdaptiveAvgPool2D'),
    *('UpsampleNearest2D', 'UpsampleBilinear2D', 'Permute', 'Transpose'),
    *('Clone', 'ToCopy', 'View', 'UnsafeView', 'ReshapeAlias'),
}
# Their inputs are x, weight and bias, the last two one number or row a channel.
_AFFINE = {
    *('NativeBatchNorm', 'CudnnBatchNorm', 'MiopenBatchNorm'),
    *('NativeGroupNorm', 'NativeLayerNorm', 'Convolution'),
}
USED_ELSEWHERE = 'what comes before it is used elsewhere, too'


class CannotScaleError(Exception):
    """Why nothing before a block can be scaled.

    Args:
        reason (str): In words.
        node: The graph's node where that shows, None if it is not in the graph.
    """

    def __init__(self, reason, node=None):
        super().__init__(reason)
        self.node = node


@dataclass(frozen=True)
class Way:
    """From the calls of a block back to the affine layer before it.

    Attributes:
        nodes (list): The graph's nodes between, and the layer's own.
        weight: The node of its weight.
        parameters (list[nn.Parameter]): Its weight, and its bias if it has one.
    """

    nodes: list
    weight: object
    parameters: list


class Trace:
    """Run a model once, as in inference but with gradients, past some of its blocks.

    Args:
        module (nn.Module): The model.
        inputs (Tensor | tuple[Tensor]): What to run it on.
        blocks (dict[str, nn.Module]): Blocks that multiply their input by a constant,
            by name. The run takes each for the identity.

    Raises:
        Exception: Whatever the model raises on its inputs, or it returns no tensors.
    """

    def __init__(self, module, inputs, blocks):
        self.calls = {name: [] for name in blocks}  # to a node for each call
        self.block_at = {}  # nodes to the names of the blocks
        # Outputs keep the graph alive, and with it the identity of its nodes.
        with hooks_on(blocks, self._mark, skip), _everything_recorded(module):
            self.outputs = list(tensors(run_as_in_inference(module, inputs)))
        if not self.outputs:
            raise ValueError('it returns no tensors')
        self._users = defaultdict(list)
        self._find_users()

    def _mark(self, name):
        def mark(module, args):
            x = args[0].clone()  # a node of its own
            self.calls[name].append(x.grad_fn)
            if x.grad_fn is not None:
                self.block_at[x.grad_fn] = name
            return (x, *args[1:])

        return mark

    def _find_users(self):
        """Edges of the graph, turned round; None stands for who called the model."""
        for y in self.outputs:
            self._users[y.grad_fn].append(None)
        todo = [*self._users, *self.block_at]
        seen = set()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for source, _ in node.next_functions:
                if source is not None:
                    self._users[source].append(node)
                    todo.append(source)

    def way_to_affine(self, name):
        """From a block back to the affine layer before it.

        Returns:
            Way: The same layer for all calls of the block.

        Raises:
            CannotScaleError: There is none, or something between mixes channels or is
                not positively homogeneous.
        """
        if not self.calls[name]:
            raise CannotScaleError('the model does not call it in inference')
        nodes = []
        for mark in self.calls[name]:
            node = mark and mark.next_functions[0][0]
            while node in self.block_at or _kind(node) in _HOMOGENEOUS:
                nodes.append(node)
                node = node.next_functions[0][0]
            nodes.append(node)
            _check_affine(node)
        weights = {_parameters(n)[0] for n in nodes if _kind(n) in _AFFINE}
        if len(weights) > 1:
            raise CannotScaleError('it is called several times, after several layers')
        return Way(nodes, weights.pop(), [p.variable for p in _parameters(node) if p])

    def factor(self, weight, gates):
        """By what to multiply an affine layer's weight and bias.

        Args:
            weight: Node of the weight.
            gates (dict[str, Tensor]): Names of the blocks to make up for, to what they
                multiply by, (C,).

        Returns:
            Tensor: (C,) in float64.

        Raises:
            CannotScaleError: Not all that uses the layer's output can do with that.
        """
        users = self._users[weight]
        for node in users:
            own = _kind(node) in _AFFINE and _parameters(node)[0] is weight
            bias = _parameters(node)[1] if own else None
            if not own or (bias and set(self._users[bias]) != set(users)):
                raise CannotScaleError(USED_ELSEWHERE)
        return _agreed(None, [self._factor(node, gates) for node in users])

    def _factor(self, node, gates):
        """By what to multiply a node's output, so that all that follows stays."""
        wanted = []
        for user in self._users[node]:
            if user in self.block_at:
                gate = gates.get(self.block_at[user], 1)
                wanted.append(self._factor(user, gates) / gate)
            elif user is not None and _kind(user) in _HOMOGENEOUS:
                wanted.append(self._factor(user, gates))
            else:
                wanted.append(torch.ones((), dtype=torch.float64))
        return _agreed(node, wanted)


def _agreed(node, wanted):
    """The factor that all users of a node's output want."""
    first = max(wanted, key=torch.numel, default=torch.ones((), dtype=torch.float64))
    for other in wanted:
        if other.numel() not in (1, first.numel()) or (first != other).any():
            raise CannotScaleError(USED_ELSEWHERE, node)
    return first


def _parameters(node):
    return node.next_functions[1][0], node.next_functions[2][0]


def _kind(node):
    """'Relu' for a ReluBackward0; an in-place operation may have another number."""
    return type(node).__name__.partition('Backward')[0]


def _check_affine(node):
    if node is None or _kind(node) == 'AccumulateGrad':
        raise CannotScaleError('no layer comes before it in what was run')
    what = _kind(node)
    if what not in _AFFINE:
        raise CannotScaleError(f'{what} comes before it, which passes no scale on')
    weight, bias = _parameters(node)
    if weight is None:
        raise CannotScaleError(f'the {what} before it has no weight to scale')
    if any(p is not None and _kind(p) != 'AccumulateGrad' for p in (weight, bias)):
        raise CannotScaleError(f'the weight of the {what} before it is computed')
    if getattr(node, '_saved_transposed', False):
        raise CannotScaleError('a transposed convolution comes before it')


class Effects:
    """Whether blocks return their input: pairs of hooks for :func:`hooks_on`."""

    def __init__(self):
        self.inputs = {}
        self.identity = {}  # names to whether each call returned its input

    def before(self, name):
        def hook(block, args):
            is_map = len(args) == 1 and isinstance(args[0], torch.Tensor)
            self.inputs[name] = args[0].detach().clone() if is_map else None

        return hook

    def after(self, name):
        def hook(block, args, output):
            x, y = self.inputs[name], output
            is_map = x is not None and isinstance(y, torch.Tensor)
            self.identity.setdefault(name, []).append(is_map and torch.equal(x, y))

        return hook


@contextlib.contextmanager
def hooks_on(blocks, before=None, after=None):
    """Forward hooks, as made for each block's name, as long as the context lasts."""
    handles = []
    for name, block in blocks.items():
        if before is not None:
            handles.append(block.register_forward_pre_hook(before(name)))
        if after is not None:
            handles.append(block.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def skip(name):
    """A forward hook that makes a block the identity."""
    return lambda module, args, output: args[0]


@contextlib.contextmanager
def _everything_recorded(module):
    """Gradients for frozen parameters, too, and none of the checkpointing that leaves
    no graph."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    frozen = [p for p in frozen if p.is_floating_point()]
    checkpointed = [m for m in module.modules() if getattr(m, 'with_cp', False)]
    try:
        for p in frozen:
            p.requires_grad_(True)
        for m in checkpointed:
            m.with_cp = False
        with torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
        for m in checkpointed:
            m.with_cp = True
