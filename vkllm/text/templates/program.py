"""A template, parsed and checked, and a run of it.

jinja2 reads a template's source, and what it read is run here statement by statement instead of compiled to Python:
so each step counts against the limits, constants are not computed ahead, and nothing but a template's own values is in
reach. A run behaves as jinja2 does with transformers' settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import TemplateAssertionError, TemplateRuntimeError
from jinja2.parser import Parser
from jinja2.runtime import Undefined

from vkllm.errors import InvalidParameter
from vkllm.text.templates import marked, operations
from vkllm.text.templates.expressions import CALLING_FILTERS, Expressions, Scope
from vkllm.text.templates.filters import FILTERS, TESTS
from vkllm.text.templates.limits import MAX_RANGE, MAX_SOURCE, Budget, TemplateLimit
from vkllm.text.templates.values import Cycler, Function, Joiner, Loop, Namespace


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks the model's words for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
)

_NOT_SUPPORTED = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)


class _Break(Exception):
    """{% break %}"""


class _Continue(Exception):
    """{% continue %}"""


class Program:
    """A template that can be run.

    reads: the names of variables that it reads. names: the names of attributes and the texts that it compares or looks
    up, whole: so it knows the role developer if that is one of them.
    """

    def __init__(self, source: str) -> None:
        """Parses a template. Raises jinja2.TemplateSyntaxError with a line, TemplateLimit, RecursionError."""
        if len(source) > MAX_SOURCE:
            raise TemplateLimit(f"it has {len(source)} characters, the limit is {MAX_SOURCE}")
        self._tree = _ENVIRONMENT.parse(source)
        _check(self._tree, is_certain=True)
        self.reads = {name.name for name in self._tree.find_all(nodes.Name) if name.ctx == "load"}
        self.names = {node.attr for node in self._tree.find_all(nodes.Getattr)}
        self.names |= {node.value for node in self._tree.find_all(nodes.Const) if isinstance(node.value, str)}

    def run(self, variables: Mapping[str, Any], budget: Budget) -> str:
        """What the template writes, with marks where it comes from marked text.

        variables: plain values. Raises InvalidParameter where the template refuses them, TemplateLimit, SecurityError,
        and whatever else goes wrong in an expression.
        """
        return _Run(budget).run(self._tree, variables)


def _check(node: nodes.Node, *, is_certain: bool) -> None:
    """Raises TemplateAssertionError for what is not supported, and for unknown filters and tests that surely run."""
    if isinstance(node, _NOT_SUPPORTED):
        raise TemplateAssertionError(f"{type(node).__name__.lower()} is not supported", node.lineno)
    if is_certain and isinstance(node, nodes.Filter) and node.name not in FILTERS | dict.fromkeys(CALLING_FILTERS):
        raise TemplateAssertionError(f"No filter named {node.name!r}.", node.lineno)
    if is_certain and isinstance(node, nodes.Test) and node.name not in TESTS:
        raise TemplateAssertionError(f"No test named {node.name!r}.", node.lineno)
    is_certain = is_certain and not isinstance(node, nodes.If | nodes.CondExpr)
    for child in node.iter_child_nodes():
        _check(child, is_certain=is_certain)


class _Run(Expressions):
    """A run of a template: its statements."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._out: list[str] = []
        self._execute: dict[type[nodes.Node], Callable[[Any, Scope], None]] = {
            nodes.Output: self._output,
            nodes.If: self._if,
            nodes.For: self._for,
            nodes.Assign: lambda node, scope: self._assign(node.target, self.value(node.node, scope), scope),
            nodes.AssignBlock: self._assign_block,
            nodes.Macro: self._define_macro,
            nodes.CallBlock: self._call_block,
            nodes.FilterBlock: self._filter_block,
            nodes.With: self._with,
            nodes.ExprStmt: lambda node, scope: self.value(node.node, scope) and None,
            nodes.Block: lambda node, scope: self._statements(node.body, Scope(scope)),
            nodes.Scope: lambda node, scope: self._statements(node.body, Scope(scope)),
            nodes.ScopedEvalContextModifier: lambda node, scope: self._statements(node.body, Scope(scope)),
            nodes.Break: self._break,
            nodes.Continue: self._continue,
        }

    def run(self, tree: nodes.Template, variables: Mapping[str, Any]) -> str:
        """Runs the whole template; see `Program.run`."""
        scope = Scope(Scope(None, self._globals()), dict(variables))
        self._statements(tree.body, scope)
        return marked.join(self._out)

    def _statements(self, body: list[nodes.Node], scope: Scope) -> None:
        for node in body:
            self.budget.step()
            try:
                execute = self._execute[type(node)]
            except KeyError:
                raise TemplateRuntimeError(f"{type(node).__name__} is not supported") from None
            execute(node, scope)

    def _captured(self, body: list[nodes.Node], scope: Scope) -> str:
        """What statements write."""
        outside, self._out = self._out, []
        try:
            self._statements(body, scope)
            return marked.join(self._out)
        finally:
            self._out = outside

    def _output(self, node: nodes.Output, scope: Scope) -> None:
        for part in node.nodes:
            text = self.text(self.value(part, scope))
            self.budget.write(len(text))
            self._out.append(text)

    def _if(self, node: nodes.If, scope: Scope) -> None:
        for branch in (node, *node.elif_):
            if self.value(branch.test, scope):
                return self._statements(branch.body, scope)
        return self._statements(node.else_, scope)

    def _for(self, node: nodes.For, scope: Scope, items: Any = None, depth: int = 0) -> None:
        found = operations.items_of(self.budget, self.value(node.iter, scope) if depth == 0 else items)
        if node.test is not None:
            found = [item for item in found if self.value(node.test, self._with_item(node, item, scope))]
        loop = Loop(found, depth)
        if node.recursive:
            loop.again = lambda items: self._loop_again(node, scope, items, depth + 1)
        for number, item in enumerate(found):
            self.budget.step()
            loop.index0 = number
            inner = self._with_item(node, item, scope)
            inner.variables.setdefault("loop", loop)
            try:
                self._statements(node.body, inner)
            except _Continue:
                continue
            except _Break:
                break
        if not found:
            self._statements(node.else_, Scope(scope))

    def _with_item(self, node: nodes.For, item: Any, scope: Scope) -> Scope:
        inner = Scope(scope)
        self._assign(node.target, item, inner)
        return inner

    def _loop_again(self, node: nodes.For, scope: Scope, items: Any, depth: int) -> str:
        outside, self._out = self._out, []
        with self._entered():
            try:
                self._for(node, scope, items, depth)
                return marked.join(self._out)
            finally:
                self._out = outside

    def _assign(self, target: nodes.Node, value: Any, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.variables[target.name] = value
        elif isinstance(target, nodes.NSRef):
            namespace = scope.find(target.name)
            if not isinstance(namespace, Namespace):
                raise TemplateRuntimeError("cannot assign attribute on non-namespace object")
            namespace.values[target.attr] = value
        elif isinstance(target, nodes.Tuple):
            values = operations.items_of(self.budget, value)
            if len(values) != len(target.items):
                raise ValueError(f"{len(values)} values cannot be assigned to {len(target.items)} names")
            for part, item in zip(target.items, values, strict=True):
                self._assign(part, item, scope)
        else:
            raise TemplateRuntimeError(f"cannot assign to a {type(target).__name__}")

    def _assign_block(self, node: nodes.AssignBlock, scope: Scope) -> None:
        text: Any = self._captured(node.body, Scope(scope))
        if node.filter is not None:
            text = self._filter_chain(node.filter, text, scope)
        self._assign(node.target, text, scope)

    def _filter_block(self, node: nodes.FilterBlock, scope: Scope) -> None:
        text = self.text(self._filter_chain(node.filter, self._captured(node.body, Scope(scope)), scope))
        self.budget.write(len(text))
        self._out.append(text)

    def _filter_chain(self, node: nodes.Filter, text: Any, scope: Scope) -> Any:
        """The filters of a block; the innermost has no value of its own."""
        value = text if node.node is None else self._filter_chain(node.node, text, scope)  # type: ignore[arg-type]
        args, named = self.arguments(node, scope)
        return self.filtered(node.name, value, args, named)

    def _with(self, node: nodes.With, scope: Scope) -> None:
        inner = Scope(scope)
        values = [self.value(value, scope) for value in node.values]
        for target, value in zip(node.targets, values, strict=True):
            self._assign(target, value, inner)
        self._statements(node.body, inner)

    def _define_macro(self, node: nodes.Macro, scope: Scope) -> None:
        scope.variables[node.name] = self._macro(node, node.name, scope)

    def _call_block(self, node: nodes.CallBlock, scope: Scope) -> None:
        function = self.value(node.call.node, scope)
        args, named = self.arguments(node.call, scope)
        text = self.text(self.call(function, args, named | {"caller": self._macro(node, "caller", scope)}))
        self.budget.write(len(text))
        self._out.append(text)

    def _macro(self, node: nodes.Macro | nodes.CallBlock, name: str, scope: Scope) -> Function:
        names = [argument.name for argument in node.args]
        n_required = len(names) - len(node.defaults)
        used = {found.name for found in node.find_all(nodes.Name) if found.ctx == "load"}

        def call(*args: Any, **named: Any) -> str:
            inner = Scope(scope)
            given = dict(zip(names, args, strict=False))
            for argument in names:
                if argument in named:
                    given[argument] = named.pop(argument)
            inner.variables["caller"] = named.pop("caller", Undefined("No caller defined", name="caller"))
            if len(args) > len(names) and "varargs" not in used:
                raise TypeError(f"macro {name!r} takes not more than {len(names)} argument(s)")
            if named and "kwargs" not in used:
                raise TypeError(f"macro {name!r} takes no keyword argument {next(iter(named))!r}")
            inner.variables |= {"varargs": args[len(names) :], "kwargs": named}
            for number, argument in enumerate(names):
                if argument in given:
                    inner.variables[argument] = given[argument]
                elif number >= n_required:
                    inner.variables[argument] = self.value(node.defaults[number - n_required], inner)
                else:
                    inner.variables[argument] = Undefined(f"parameter {argument!r} was not provided", name=argument)
            with self._entered():
                return self._captured(node.body, inner)

        return Function(name, call)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self.budget.enter()
        try:
            yield
        finally:
            self.budget.leave()

    def _break(self, node: nodes.Break, scope: Scope) -> None:
        raise _Break

    def _continue(self, node: nodes.Continue, scope: Scope) -> None:
        raise _Continue

    def call(self, function: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if isinstance(function, Loop):
            if function.again is None:
                raise TypeError("The loop must have the 'recursive' marker to be called recursively.")
            return function.again(*args)
        return super().call(function, args, named)

    def _globals(self) -> dict[str, Any]:
        functions: dict[str, Callable[..., Any]] = {
            "range": _range,
            "dict": _dict,
            "namespace": lambda *args, **named: Namespace(_dict(*args, **named)),
            "cycler": lambda *items: Cycler(items),
            "joiner": lambda separator=", ": Joiner(separator),
            "raise_exception": lambda message="": _raise_exception(self.text(message)),
            "strftime_now": lambda pattern: datetime.now().strftime(pattern[:200]),
        }
        return {name: Function(name, function) for name, function in functions.items()}


def _dict(pairs: Any = (), **named: Any) -> dict[Any, Any]:
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return {operations.key(name): value for name, value in items} | named


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    # len() fails for ranges above 2^63
    if numbers and abs((numbers[-1] - numbers[0]) // numbers.step) >= MAX_RANGE:
        raise TemplateLimit(f"a range has more than {MAX_RANGE} numbers")
    return numbers


def _raise_exception(message: str) -> NoReturn:
    raise InvalidParameter(f"The model's chat template refuses these messages: {' '.join(message[:1000].split())}")
