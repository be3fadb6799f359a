"""Evaluates the expressions of a parsed template."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import FilterArgumentError, SecurityError, TemplateRuntimeError
from jinja2.runtime import Undefined

from vkllm.text.templates import marked, operations
from vkllm.text.templates.filters import FILTERS, TESTS, attribute_of
from vkllm.text.templates.limits import Budget
from vkllm.text.templates.methods import call_method, get_attribute, get_item
from vkllm.text.templates.values import Function, Joiner, Method

CALLING_FILTERS = ("map", "select", "reject", "selectattr", "rejectattr")

_BINARY: dict[type[nodes.Node], Callable[[Budget, Any, Any], Any]] = {
    nodes.Add: operations.add,
    nodes.Sub: operations.subtract,
    nodes.Mul: operations.multiply,
    nodes.Div: operations.divide,
    nodes.FloorDiv: operations.divide_whole,
    nodes.Mod: operations.modulo,
    nodes.Pow: operations.power,
}


class Scope:
    """Variables by name, and the scope around."""

    __slots__ = ("around", "variables")

    def __init__(self, around: Scope | None = None, variables: dict[str, Any] | None = None) -> None:
        self.around = around
        self.variables = {} if variables is None else variables

    def find(self, name: str) -> Any:
        """The value of a variable, or Undefined."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.variables:
                return scope.variables[name]
            scope = scope.around
        return Undefined(name=name)


class Expressions:
    """Evaluates expressions within a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._evaluate: dict[type[nodes.Node], Callable[[Any, Scope], Any]] = {
            nodes.Const: self._const,
            nodes.TemplateData: lambda node, _scope: node.data,
            nodes.Name: lambda node, scope: scope.find(node.name),
            nodes.Getattr: lambda node, scope: get_attribute(self.value(node.node, scope), node.attr),
            nodes.Getitem: self._getitem,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.And: lambda node, scope: self.value(node.left, scope) and self.value(node.right, scope),
            nodes.Or: lambda node, scope: self.value(node.left, scope) or self.value(node.right, scope),
            nodes.Not: lambda node, scope: not self.value(node.node, scope),
            nodes.Neg: lambda node, scope: operations.number(operator.neg(self.value(node.node, scope))),
            nodes.Pos: lambda node, scope: operator.pos(self.value(node.node, scope)),
            nodes.CondExpr: self._conditional,
            nodes.List: lambda node, scope: [self.value(item, scope) for item in node.items],
            nodes.Tuple: lambda node, scope: tuple(self.value(item, scope) for item in node.items),
            nodes.Dict: self._dict,
            nodes.Call: self._call,
            nodes.Filter: self._filter,
            nodes.Test: self._test,
            **dict.fromkeys(_BINARY, self._binary),
        }

    def value(self, node: nodes.Node, scope: Scope) -> Any:
        """The value of an expression. Raises whatever its operations raise, and TemplateLimit."""
        self.budget.step()
        try:
            evaluate = self._evaluate[type(node)]
        except KeyError:
            raise TemplateRuntimeError(f"{type(node).__name__} is not supported") from None
        return evaluate(node, scope)

    def call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Calls what a template calls."""
        if isinstance(function, Method):
            return call_method(self.budget, function, args, named)
        if isinstance(function, Function):
            if function.name == "changed":  # compares them
                operations.measure(self.budget, args)
            return function.call(*args, **named)
        if isinstance(function, Joiner):
            return function()
        if isinstance(function, Undefined):
            function._fail_with_undefined_error()
        raise TypeError(f"a {type(function).__name__} cannot be called")

    def text(self, value: Any) -> str:
        return operations.to_text(self.budget, value)

    def filtered(self, name: Any, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A value after the filter of this name."""
        if name in CALLING_FILTERS:
            items = operations.items_of(self.budget, value) if value else []
            return self._filter_items(name, items, list(args), named)
        if not isinstance(name, str) or name not in FILTERS:
            raise TemplateRuntimeError(f"no filter named {self.text(name)!r}")
        return FILTERS[name](self.budget, value, *args, **named)

    def tested(self, name: Any, value: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether a value passes the test of this name."""
        match name:
            case "filter":
                return isinstance(value, str) and (value in FILTERS or value in CALLING_FILTERS)
            case "test":
                return isinstance(value, str) and value in TESTS
        if not isinstance(name, str) or name not in TESTS:
            raise TemplateRuntimeError(f"no test named {self.text(name)!r}")
        return bool(TESTS[name](self.budget, value, *args, **named))

    def arguments(self, node: Any, scope: Scope) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, a filter or a test."""
        args = [self.value(argument, scope) for argument in node.args]
        named = {keyword.key: self.value(keyword.value, scope) for keyword in node.kwargs}
        if node.dyn_args is not None:
            args += operations.items_of(self.budget, self.value(node.dyn_args, scope))
        if node.dyn_kwargs is not None:
            dynamic = self.value(node.dyn_kwargs, scope)
            if not isinstance(dynamic, Mapping):
                raise TypeError("what follows ** must be a mapping")
            self.budget.step(len(dynamic))
            named |= dynamic
        return tuple(args), named

    def _const(self, node: nodes.Const, scope: Scope) -> Any:
        return node.value

    def _getitem(self, node: nodes.Getitem, scope: Scope) -> Any:
        value = self.value(node.node, scope)
        if not isinstance(node.arg, nodes.Slice):
            return get_item(value, self.value(node.arg, scope))
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        bounds = [None if part is None else self.value(part, scope) for part in parts]
        return operations.get_slice(self.budget, value, *bounds)

    def _concat(self, node: nodes.Concat, scope: Scope) -> str:
        texts = [self.text(self.value(part, scope)) for part in node.nodes]
        self.budget.write(sum(map(len, texts)))
        return marked.join(texts)

    def _compare(self, node: nodes.Compare, scope: Scope) -> Any:
        left = self.value(node.expr, scope)
        holds: Any = True
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            holds = operations.compare(self.budget, operand.op, left, right)
            if not holds:
                break
            left = right
        return holds

    def _binary(self, node: nodes.BinExpr, scope: Scope) -> Any:
        return _BINARY[type(node)](self.budget, self.value(node.left, scope), self.value(node.right, scope))

    def _conditional(self, node: nodes.CondExpr, scope: Scope) -> Any:
        if self.value(node.test, scope):
            return self.value(node.expr1, scope)
        if node.expr2 is None:
            return Undefined("the inline if-expression evaluated to false and no else section was defined")
        return self.value(node.expr2, scope)

    def _dict(self, node: nodes.Dict, scope: Scope) -> dict[Any, Any]:
        return {operations.key(self.value(item.key, scope)): self.value(item.value, scope) for item in node.items}

    def _call(self, node: nodes.Call, scope: Scope) -> Any:
        function = self.value(node.node, scope)
        args, named = self.arguments(node, scope)
        return self.call(function, args, named)

    def _filter(self, node: nodes.Filter, scope: Scope) -> Any:
        if node.node is None:
            raise SecurityError("a filter without a value")
        value = self.value(node.node, scope)
        args, named = self.arguments(node, scope)
        return self.filtered(node.name, value, args, named)

    def _test(self, node: nodes.Test, scope: Scope) -> bool:
        value = self.value(node.node, scope)
        args, named = self.arguments(node, scope)
        return self.tested(node.name, value, args, named)

    def _filter_items(self, name: str, items: list[Any], args: list[Any], named: dict[str, Any]) -> list[Any]:
        if name == "map":
            if not args and "attribute" in named:
                return [attribute_of(item, named["attribute"], named.get("default")) for item in items]
            if not args:
                raise FilterArgumentError("map requires a filter argument")
            return [self.filtered(args[0], item, tuple(args[1:]), named) for item in items]
        wanted = not name.startswith("reject")
        values = items
        if name.endswith("attr"):
            if not args:
                raise FilterArgumentError("Missing parameter for attribute name")
            path = args.pop(0)
            values = [attribute_of(item, path) for item in items]
        if not args:
            passed = [bool(value) for value in values]
        else:
            passed = [self.tested(args[0], value, tuple(args[1:]), named) for value in values]
        self.budget.step(len(items))
        return [item for item, has_passed in zip(items, passed, strict=True) if has_passed is wanted]
