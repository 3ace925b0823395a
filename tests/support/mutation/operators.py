"""Small mistakes that formulas are prone to, made one at a time in the syntax tree of a module.

A term of a sum is dropped, doubled or has its sign flipped; a factor is dropped or inverted, a
product halved or doubled; ``1 - x`` becomes ``x``; a square root, a transpose or an absolute value
is forgotten; minimum and maximum, ``<`` and ``<=``, ``and`` and ``or`` are mistaken for each other;
an index, a number or a default is off by one; a check is left out. Annotations, decorators,
docstrings and what is said in errors are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

Path = tuple[tuple[str, int | None], ...]
"""From the root of a tree to a node: fields, and places in those that are lists."""

FORGOTTEN = (
    {"sqrt", "square", "abs", "exp", "log", "detach", "flip", "transpose", "t", "cumsum", "cumprod"}
    | {"mT", "T", "reciprocal", "neg", "tanh", "sin", "cos", "expm1", "log1p", "sign", "floor"}
    | {"cummax", "diff", "lgamma", "erf", "reversed", "clamp"}
)
"""Functions and methods of one operand that are left out."""

MISTAKEN = {
    "min": "max",
    "amin": "amax",
    "minimum": "maximum",
    "floor": "ceil",
    "any": "all",
    "sum": "mean",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "new_zeros": "new_ones",
    "argmin": "argmax",
}
MISTAKEN |= {second: first for first, second in MISTAKEN.items()}
"""Functions that are taken for each other."""

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPLEMENTS = {"lam", "q", "share", "weight"}
"""Names of numbers between 0 and 1 that are taken for their complements."""
ROOTED = {"alpha", "abar", "sigma", "beta", "variance", "rho"}
"""Names of numbers of which the root, or the square, is meant."""
SAID = {"require", "require_each", "require_finite", "per_step", "InvalidProblem", "warn"}
"""Functions whose further arguments are words."""
WORDS = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp, ast.Dict, ast.Set)
"""Operands of sums and products that are no numbers."""


class Change(NamedTuple):
    """A node, and what replaces it; ``None`` for a statement that is left out."""

    path: Path
    operator: str
    before: str
    after: ast.AST | None


def changes(tree: ast.Module) -> Iterator[Change]:
    """All of them, in the order of the source; what comes out the same is made once."""
    for path, node, parent in _walk(tree, (), None):
        before = ast.unparse(node)
        seen = {before}
        for operator, after in _mistakes(node, parent):
            text = "" if after is None else ast.unparse(after)
            if text not in seen:
                seen.add(text)
                yield Change(path, operator, before, after)


def changed(tree: ast.Module, change: Change) -> ast.Module:
    """A copy of the tree with one change."""
    found = copy.deepcopy(tree)
    node: ast.AST = found
    for field, place in change.path[:-1]:
        node = _child(node, field, place)
    field, place = change.path[-1]
    old = _child(node, field, place)
    new = ast.Pass() if change.after is None else copy.deepcopy(change.after)
    for each in ast.walk(new):
        ast.copy_location(each, old)
    if place is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[place] = new
    return ast.fix_missing_locations(found)


def enclosing(tree: ast.Module, path: Path) -> tuple[str, ast.stmt | None]:
    """Qualified name, and definition, of the outermost function whose body has a node; of a class,
    or nothing, where there is none.
    """
    names: list[str] = []
    node: ast.AST = tree
    for field, place in path:
        child = _child(node, field, place)
        if isinstance(node, ast.FunctionDef) and field == "body":
            return ".".join(names), node
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            names.append(child.name)
        node = child
    return ".".join(names), None


def _child(node: ast.AST, field: str, place: int | None) -> ast.AST:
    value = getattr(node, field)
    return value if place is None else value[place]


def _walk(
    node: ast.AST, path: Path, parent: ast.AST | None
) -> Iterator[tuple[Path, ast.AST, ast.AST | None]]:
    if path:
        yield path, node, parent
    for field, value in ast.iter_fields(node):
        if field in _skipped(node):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_text(child) and not _is_said(node, place):
                yield from _walk(child, (*path, (field, place)), node)


def _skipped(node: ast.AST) -> set[str]:
    found = {"annotation", "returns", "decorator_list", "type_params", "ctx", "op", "ops"}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.comprehension):
        found |= {"target", "targets"}
    if isinstance(node, ast.ClassDef):
        found |= {"bases", "keywords"}
    return found


def _is_text(node: ast.AST) -> bool:
    """Docstrings, imports, errors, names of exports, f-strings."""
    return (
        isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr | ast.Assert)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    )


def _is_said(node: ast.AST, place: int | None) -> bool:
    if not isinstance(node, ast.Call) or _name(node.func) not in SAID:
        return False
    return _name(node.func) == "InvalidProblem" or (place is not None and place > 1)


def _name(function: ast.AST) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


Mistakes = Iterator[tuple[str, ast.AST | None]]


def _mistakes(node: ast.AST, parent: ast.AST | None) -> Mistakes:
    for kind, made in MADE.items():
        if isinstance(node, kind):
            yield from made(node, parent)


def _binary(node: ast.BinOp, parent: ast.AST | None) -> Mistakes:
    inner = isinstance(parent, ast.BinOp) and _family(parent) == _family(node) != ""
    if _family(node) == "sum" and not inner:
        yield from _sums(node)
    if _family(node) == "product" and not inner:
        yield from _products(_factors(node), node)
    if isinstance(node.op, ast.Pow):
        yield "power dropped", node.left
        if isinstance(node.right, ast.Constant):
            yield "power off by one", _binop(node.left, ast.Pow(), _plus(node.right, 1))
    if isinstance(node.op, ast.FloorDiv):
        yield "rounded up", _plus(node, 1)


def _family(node: ast.BinOp) -> str:
    if isinstance(node.op, ast.Add | ast.Sub):
        return "sum"
    return "product" if isinstance(node.op, ast.Mult | ast.Div) else ""


def _terms(node: ast.expr, sign: int = 1) -> list[tuple[ast.expr, int]]:
    if isinstance(node, ast.BinOp) and _family(node) == "sum":
        right = sign if isinstance(node.op, ast.Add) else -sign
        return [*_terms(node.left, sign), (node.right, right)]
    return [(node, sign)]


def _sums(node: ast.BinOp) -> Mistakes:
    terms = _terms(node)
    if any(_wordy(term) for term, _ in terms):
        return
    for i, (term, sign) in enumerate(terms):
        yield "term dropped", _add(terms[:i] + terms[i + 1 :])
        yield "sign flipped", _add([*terms[:i], (term, -sign), *terms[i + 1 :]])
        if not _is_product(term) and not isinstance(term, ast.Constant):
            doubled = _binop(ast.Constant(2), ast.Mult(), term)
            yield "term doubled", _add([*terms[:i], (doubled, sign), *terms[i + 1 :]])
    if len(terms) == 2 and _is_one(terms[0][0]) and terms[1][1] < 0:
        yield "complement", terms[1][0]


def _add(terms: list[tuple[ast.expr, int]]) -> ast.expr:
    (found, sign), *rest = terms
    found = found if sign > 0 else ast.UnaryOp(ast.USub(), found)
    for term, sign in rest:
        found = _binop(found, ast.Add() if sign > 0 else ast.Sub(), term)
    return found


def _factors(node: ast.expr, power: int = 1) -> list[tuple[ast.expr, int]]:
    if isinstance(node, ast.BinOp) and _family(node) == "product":
        right = power if isinstance(node.op, ast.Mult) else -power
        return [*_factors(node.left, power), (node.right, right)]
    return [(node, power)]


def _products(factors: list[tuple[ast.expr, int]], node: ast.expr) -> Mistakes:
    if any(_wordy(factor) for factor, _ in factors):
        return
    for i, (factor, power) in enumerate(factors):
        if _is_one(factor):
            continue
        yield "factor dropped", _multiply(factors[:i] + factors[i + 1 :])
        yield "factor inverted", _multiply([*factors[:i], (factor, -power), *factors[i + 1 :]])
    yield "doubled", _binop(ast.Constant(2), ast.Mult(), node)
    yield "halved", _binop(node, ast.Div(), ast.Constant(2))


def _multiply(factors: list[tuple[ast.expr, int]]) -> ast.expr:
    above = [factor for factor, power in factors if power > 0] or [ast.Constant(1)]
    found = above[0]
    for factor in above[1:]:
        found = _binop(found, ast.Mult(), factor)
    for factor in (factor for factor, power in factors if power < 0):
        found = _binop(found, ast.Div(), factor)
    return found


def _wordy(node: ast.expr) -> bool:
    text = isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    return text or isinstance(node, WORDS)


def _is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 1


def _is_product(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and _name(node.func) == "product"
    return called or (isinstance(node, ast.BinOp) and _family(node) == "product")


def _binop(left: ast.expr, op: ast.operator, right: ast.expr) -> ast.BinOp:
    return ast.BinOp(left, op, right)


def _plus(node: ast.expr, count: int) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return ast.Constant(node.value + count)
    return _binop(node, ast.Add() if count > 0 else ast.Sub(), ast.Constant(abs(count)))


def _unary(node: ast.UnaryOp, parent: ast.AST | None) -> Mistakes:
    if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield "sign dropped", node.operand


def _compare(node: ast.Compare, parent: ast.AST | None) -> Mistakes:
    for i, op in enumerate(node.ops):
        if type(op) in COMPARED:
            ops = [*node.ops[:i], COMPARED[type(op)](), *node.ops[i + 1 :]]
            yield "comparison", ast.Compare(node.left, ops, node.comparators)


def _boolean(node: ast.BoolOp, parent: ast.AST | None) -> Mistakes:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield "and for or", ast.BoolOp(other, node.values)


def _choice(node: ast.IfExp, parent: ast.AST | None) -> Mistakes:
    yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)


def _branch(node: ast.If, parent: ast.AST | None) -> Mistakes:
    negated = ast.UnaryOp(ast.Not(), node.test)
    yield "condition negated", ast.If(negated, node.body, node.orelse)


def _augmented(node: ast.AugAssign, parent: ast.AST | None) -> Mistakes:
    other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    if type(node.op) in other:
        yield "sign flipped", ast.AugAssign(node.target, other[type(node.op)](), node.value)


def _statement(node: ast.Expr, parent: ast.AST | None) -> Mistakes:
    if isinstance(node.value, ast.Call):
        yield "call left out", None


def _constant(node: ast.Constant, parent: ast.AST | None) -> Mistakes:
    if isinstance(parent, ast.BinOp):
        return
    if isinstance(node.value, bool):
        yield "truth", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "off by one", _plus(node, 1)
        if isinstance(parent, ast.Slice | ast.Subscript):
            yield "off by one", _plus(node, -1)
    elif isinstance(node.value, float):
        yield "number doubled", ast.Constant(2 * node.value + (node.value == 0))


def _index(node: ast.Subscript, parent: ast.AST | None) -> Mistakes:
    if isinstance(node.slice, ast.Name) and node.slice.id in {"k", "t", "i", "j", "m"}:
        yield "index off by one", ast.Subscript(node.value, _plus(node.slice, 1), node.ctx)
        yield "index off by one", ast.Subscript(node.value, _plus(node.slice, -1), node.ctx)


def _symbol(node: ast.Name, parent: ast.AST | None) -> Mistakes:
    if isinstance(node.ctx, ast.Load) and node.id in COMPLEMENTS and not _is_called(node, parent):
        yield "complement", _binop(ast.Constant(1), ast.Sub(), node)
    if isinstance(node.ctx, ast.Load) and node.id in ROOTED and not _is_called(node, parent):
        yield "root", _binop(node, ast.Pow(), ast.Constant(0.5))


def _attribute(node: ast.Attribute, parent: ast.AST | None) -> Mistakes:
    if node.attr in {"T", "mT"}:
        yield "transpose dropped", node.value
    if isinstance(node.ctx, ast.Load) and node.attr in ROOTED and not _is_called(node, parent):
        yield "root", _binop(node, ast.Pow(), ast.Constant(0.5))


def _is_called(node: ast.AST, parent: ast.AST | None) -> bool:
    return isinstance(parent, ast.Call | ast.Attribute | ast.Subscript | ast.keyword)


def _call(node: ast.Call, parent: ast.AST | None) -> Mistakes:
    name = _name(node.func)
    method = isinstance(node.func, ast.Attribute) and not _is_module(node.func.value)
    if name in FORGOTTEN:
        yield f"{name} dropped", node.func.value if method else node.args[0]  # type: ignore[union-attr]
    if name in MISTAKEN:
        yield f"{MISTAKEN[name]} for {name}", _renamed(node, MISTAKEN[name])
    if name in {"min", "max", "minimum", "maximum"} and not method and len(node.args) == 2:
        yield from (("only one of two", each) for each in node.args)
    if name == "where" and len(node.args) == 3:
        condition, first, second = node.args
        yield "branches swapped", ast.Call(node.func, [condition, second, first], node.keywords)
    if name == "product":
        yield from _products([(each, 1) for each in node.args], node)
    if name == "range" and len(node.args) == 1:
        yield "range off by one", ast.Call(node.func, [_plus(node.args[0], -1)], [])
        yield "range off by one", ast.Call(node.func, [ast.Constant(1), *node.args], [])


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in {"torch", "math", "np", "functional"}


def _renamed(node: ast.Call, name: str) -> ast.Call:
    function = copy.copy(node.func)
    setattr(function, "attr" if isinstance(function, ast.Attribute) else "id", name)
    return ast.Call(function, node.args, node.keywords)


MADE: dict[type[ast.AST], Callable[..., Mistakes]] = {
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.IfExp: _choice,
    ast.If: _branch,
    ast.AugAssign: _augmented,
    ast.Expr: _statement,
    ast.Constant: _constant,
    ast.Subscript: _index,
    ast.Name: _symbol,
    ast.Attribute: _attribute,
    ast.Call: _call,
}
"""What can be mistaken in each kind of node."""
