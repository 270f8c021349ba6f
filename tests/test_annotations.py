"""Public functions, classes and methods of the package carry type annotations.

``make lint`` runs mypy, which checks only functions that carry annotations.
"""

import ast

from conftest import ROOT


def _public(name):
    return not name.startswith('_') or name in ('__init__', '__call__')


def _functions(body, prefix=''):
    """Public functions in a list of statements, with their dotted names."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            if _public(node.name):
                yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            if _public(node.name):
                yield from _functions(node.body, f'{prefix}{node.name}.')
        elif isinstance(node, (ast.If, ast.Try)):
            handlers = [s for h in getattr(node, 'handlers', []) for s in h.body]
            yield from _functions([*node.body, *node.orelse, *handlers], prefix)


def _lacks_annotations(name, function):
    decorators = [ast.unparse(d) for d in function.decorator_list]
    if any(d.startswith('triton.') for d in decorators):
        return False  # The arguments of a kernel have no Python types.
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if '.' in name and 'staticmethod' not in decorators:
        named = named[1:]  # self or cls
    named += [a for a in (arguments.vararg, arguments.kwarg) if a]
    # mypy derives the result of a constructor that has an annotated argument.
    result = function.returns or (name.endswith('__init__') and named)
    return not result or any(a.annotation is None for a in named)


def _modules_with_gaps():
    gaps = {}
    for path in sorted((ROOT / 'prm_mmdet').rglob('*.py')):
        functions = _functions(ast.parse(path.read_text(encoding='utf-8')).body)
        names = [name for name, f in functions if _lacks_annotations(name, f)]
        if names:
            gaps[path.relative_to(ROOT / 'prm_mmdet').as_posix()] = names
    return gaps


def test_public_functions_are_annotated():
    gaps = _modules_with_gaps()
    assert not gaps, f'functions without annotations: {gaps}'
