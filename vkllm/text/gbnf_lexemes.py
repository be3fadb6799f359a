"""Which parts of a GBNF grammar llguidance may read as one lexeme.

llguidance reads an answer lexeme by lexeme, each as long as it can be; GBNF allows every way to read it. So a part may
be a lexeme only where the longest is always right: where one lexeme could end and another one go on with a character,
that character must not begin what may follow the end. If this cannot be shown for a part, it is opened: its own parts
become lexemes, in the end its single characters. Those are always right, but slower.

Characters are compared by their first UTF-8 byte, and {m,n} is taken as any number of times; both only open more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from vkllm.text.gbnf import (
    EMPTY,
    Chars,
    Choice,
    Lexeme,
    Node,
    Ref,
    Repeat,
    Sequence,
    Text,
    Token,
    choice,
    parts,
    sequence,
)

_MAX_POSITIONS = 1000
"""Characters of a part; longer ones are opened, because pairs of them would take too long to compare."""
_MAX_STEPS = 30_000
"""Steps of comparing, at most some tenths of a second; after that everything is opened."""


class _TooManySteps(Exception):
    pass


class _Steps:
    """How much comparing may still be done."""

    def __init__(self) -> None:
        self._n_left = _MAX_STEPS

    def spend(self, n: int = 1) -> None:
        self._n_left -= n
        if self._n_left < 0:
            raise _TooManySteps


def regular_rules(rules: dict[str, Node]) -> set[str]:
    """The rules that never lead back to themselves and name no token: those are regular expressions."""
    refs = {name: {part.rule for part in parts(node) if isinstance(part, Ref)} for name, node in rules.items()}
    users: dict[str, list[str]] = {}
    for name, used in refs.items():
        for other in used:
            users.setdefault(other, []).append(name)
    n_open = {name: len(used) for name, used in refs.items()}
    ready = [name for name, n in n_open.items() if n == 0]
    found: set[str] = set()
    while ready:
        name = ready.pop()
        if any(isinstance(part, Token) for part in parts(rules[name])):
            continue
        found.add(name)
        for user in users.get(name, ()):
            n_open[user] -= 1
            if n_open[user] == 0:
                ready.append(user)
    return found


def cut_into_lexemes(rules: dict[str, Node], regular: set[str]) -> dict[str, Node]:
    """The rules from root on, cut into lexemes that are as large as they may be. regular: of `regular_rules`."""
    cut = _Cut(rules, regular)
    steps = _Steps()
    automata: dict[Node, _Automaton] = {}
    try:
        while wrong := _Conflicts(cut.rules(), rules, automata, steps).found():
            cut.opened |= wrong
    except _TooManySteps:
        cut.opens_all = True
    return cut.rules()


class _Cut:
    """Rules as rows of lexemes. opened: parts that are no lexeme as a whole."""

    def __init__(self, rules: dict[str, Node], regular: set[str]) -> None:
        self._rules = rules
        self._regular = regular
        self.opened: set[Node] = set()
        self.opens_all = False

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        waiting = ["root"]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self._of(self._rules[name])
                waiting += [part.rule for part in parts(found[name]) if isinstance(part, Ref)]
        return found

    def _of(self, node: Node) -> Node:
        if node == EMPTY or isinstance(node, Token):
            return node
        if self._is_lexeme(node):
            return Lexeme(node)
        match node:
            case Text(text):
                return sequence([Lexeme(Chars(((ord(c), ord(c)),))) for c in text])
            case Sequence(items):
                return sequence(list(self._joined(node, items)))
            case Choice(options):
                return choice(list(self._joined(node, options)))
            case Repeat(item, least, most):
                return Repeat(self._of(item), least, most)
        return node

    def _is_lexeme(self, node: Node) -> bool:
        if isinstance(node, Chars):
            return True
        return not self.opens_all and node not in self.opened and self._is_regular(node)

    def _is_regular(self, node: Node) -> bool:
        return all(
            not isinstance(part, Token) and (not isinstance(part, Ref) or part.rule in self._regular)
            for part in parts(node)
        )

    def _joined(self, node: Sequence | Choice, items: tuple[Node, ...]) -> Iterator[Node]:
        """The items as lexemes; neighbours are one lexeme, unless the node or that lexeme was opened."""
        join = sequence if isinstance(node, Sequence) else choice
        may_join = not self.opens_all and node not in self.opened
        together: list[Node] = []
        for item in (*items, None):
            if may_join and item is not None and item != EMPTY and self._is_lexeme(item):
                together.append(item)
                continue
            if together:
                whole = join(together)
                yield from [Lexeme(whole)] if self._is_lexeme(whole) else map(self._of, together)
                together = []
            if item is not None:
                yield self._of(item)


class _Automaton:
    """The positions of the characters in a part (Glushkov's automaton). Sets of positions, and of the first
    bytes that a position takes, are the bits of integers."""

    def __init__(self, node: Node, rules: dict[str, Node], steps: _Steps) -> None:
        self.takes: list[int] = []
        self.next: list[int] = []
        self._rules = rules
        self._steps = steps
        self.is_too_long = False
        self.is_nullable, self.first, self.last = self._add(node)

    @cached_property
    def first_bytes(self) -> int:
        return self.bytes_of(self.first)

    def bytes_of(self, positions: int) -> int:
        found = 0
        for position in bits(positions):
            found |= self.takes[position]
        return found

    def _add(self, node: Node) -> tuple[bool, int, int]:
        """Adds the positions of a node: whether it may be empty, the first positions, the last."""
        match node:
            case Chars():
                return self._position(first_bytes(node))
            case Text(text):
                node = Sequence(tuple(Chars(((ord(c), ord(c)),)) for c in text))
                return self._row(node.items)
            case Sequence(items):
                return self._row(items)
            case Choice(options):
                found = [self._add(option) for option in options]
                first = last = 0
                for _, begins, ends in found:
                    first |= begins
                    last |= ends
                return any(is_nullable for is_nullable, _, _ in found), first, last
            case Repeat(item, least, most):
                is_nullable, first, last = self._add(item)
                if most is None or most > 1:
                    self._link(last, first)
                return is_nullable or least == 0, first, last
            case Ref(name):
                return self._add(self._rules[name])
        raise AssertionError(node)

    def _row(self, items: tuple[Node, ...]) -> tuple[bool, int, int]:
        is_nullable, first, last = True, 0, 0
        for item in items:
            item_is_nullable, begins, ends = self._add(item)
            self._link(last, begins)
            first |= begins if is_nullable else 0
            last = ends | (last if item_is_nullable else 0)
            is_nullable &= item_is_nullable
        return is_nullable, first, last

    def _position(self, takes: int) -> tuple[bool, int, int]:
        self._steps.spend()
        if len(self.takes) >= _MAX_POSITIONS:
            self.is_too_long = True
            return False, 0, 0
        self.takes.append(takes)
        self.next.append(0)
        bit = 1 << (len(self.takes) - 1)
        return False, bit, bit

    def _link(self, before: int, after: int) -> None:
        self._steps.spend(before.bit_count() // 8)  # each is quicker than other steps
        for position in bits(before):
            self.next[position] |= after


class _Conflicts:
    """Looks for lexemes of which the longest need not be right."""

    def __init__(
        self, cut: dict[str, Node], rules: dict[str, Node], automata: dict[Node, _Automaton], steps: _Steps
    ) -> None:
        self._cut = cut
        self._steps = steps
        units = {part for node in cut.values() for part in parts(node) if isinstance(part, Lexeme | Token)}
        self._units = sorted(units, key=repr)
        self._index: dict[Node, int] = {unit: i for i, unit in enumerate(self._units)}
        self._automata: list[_Automaton | None] = []
        for unit in self._units:
            if isinstance(unit, Lexeme) and unit.node not in automata:
                automata[unit.node] = _Automaton(unit.node, rules, steps)
            self._automata.append(automata[unit.node] if isinstance(unit, Lexeme) else None)
        self._first: dict[str, tuple[bool, int]] = dict.fromkeys(cut, (False, 0))
        self._after_rule: dict[str, int] = dict.fromkeys(cut, 0)
        self._after = [0] * len(self._units)

    def found(self) -> set[Node]:
        """The nodes to open; none if all lexemes are right."""
        wrong = {
            unit.node
            for unit, automaton in zip(self._units, self._automata, strict=True)
            if isinstance(unit, Lexeme) and automaton is not None and automaton.is_too_long
        }
        if wrong:
            return wrong
        self._find_first()
        self._find_after()
        row = self._first["root"][1]
        seen: set[tuple[int, int]] = set()
        waiting = self._pairs(row, row)
        while waiting:
            pair = waiting.pop()
            if pair in seen:
                continue
            seen.add(pair)
            self._steps.spend()
            a, b = pair
            is_common = a == b
            for one, other in {pair, (b, a)}:
                goes_on, meets = self._compared(one, other)
                is_common |= meets
                if goes_on & self._bytes_after(one):
                    wrong |= {
                        unit.node
                        for unit in (self._units[one], self._units[other])
                        if isinstance(unit, Lexeme) and not isinstance(unit.node, Chars)
                    }
            if is_common:  # both may have been read, so what follows each of them may come
                waiting += self._pairs(self._after[a], self._after[b])
        return wrong

    def _pairs(self, some: int, others: int) -> list[tuple[int, int]]:
        self._steps.spend(some.bit_count() * others.bit_count())
        return [(min(a, b), max(a, b)) for a in bits(some) for b in bits(others)]

    def _bytes_after(self, unit: int) -> int:
        found = 0
        for index in bits(self._after[unit]):
            if (automaton := self._automata[index]) is not None:
                found |= automaton.first_bytes
        return found

    def _compared(self, one: int, other: int) -> tuple[int, bool]:
        """The bytes with which `other` can go on where `one` has ended; whether both can end at once."""
        a, b = self._automata[one], self._automata[other]
        if a is None or b is None:
            return 0, True
        goes_on, meets = 0, False
        waiting = [(p, q) for p in bits(a.first) for q in bits(b.first) if a.takes[p] & b.takes[q]]
        seen = set(waiting)
        while waiting:
            p, q = waiting.pop()
            self._steps.spend()
            if a.last >> p & 1:
                goes_on |= b.bytes_of(b.next[q])
                meets |= bool(b.last >> q & 1)
            for p2 in bits(a.next[p]):
                for q2 in bits(b.next[q]):
                    if a.takes[p2] & b.takes[q2] and (p2, q2) not in seen:
                        seen.add((p2, q2))
                        waiting.append((p2, q2))
                    self._steps.spend()
        return goes_on, meets

    def _find_first(self) -> None:
        """With which units each rule begins, and whether it may be empty."""
        is_new = True
        while is_new:
            is_new = False
            for name, node in self._cut.items():
                if (found := self._begins(node)) != self._first[name]:
                    self._first[name] = found
                    is_new = True

    def _begins(self, node: Node) -> tuple[bool, int]:
        self._steps.spend()
        match node:
            case Ref(name):
                return self._first[name]
            case Sequence(items):
                is_nullable, units = True, 0
                for item in items:
                    if is_nullable:
                        is_nullable, more = self._begins(item)
                        units |= more
                return is_nullable, units
            case Choice(options):
                found = [self._begins(option) for option in options]
                units = 0
                for _, more in found:
                    units |= more
                return any(is_nullable for is_nullable, _ in found), units
            case Repeat(item, least, _):
                is_nullable, units = self._begins(item)
                return is_nullable or least == 0, units
        automaton = self._automata[self._index[node]]
        return automaton is not None and automaton.is_nullable, 1 << self._index[node]

    def _find_after(self) -> None:
        """Which units may follow each unit."""
        before: list[int] = []
        while before != (now := [*self._after, *self._after_rule.values()]):
            before = now
            for name, node in self._cut.items():
                self._follows(node, self._after_rule[name])

    def _follows(self, node: Node, after: int) -> None:
        self._steps.spend()
        match node:
            case Ref(name):
                self._after_rule[name] |= after
            case Sequence(items):
                for item in reversed(items):
                    self._follows(item, after)
                    is_nullable, units = self._begins(item)
                    after = units | (after if is_nullable else 0)
            case Choice(options):
                for option in options:
                    self._follows(option, after)
            case Repeat(item, _, most):
                more = self._begins(item)[1] if most is None or most > 1 else 0
                self._follows(item, after | more)
            case _:
                self._after[self._index[node]] |= after


def first_bytes(chars: Chars) -> int:
    """The first bytes of the characters in UTF-8, as the bits of an integer."""
    found = 0
    for first, last in chars.ranges:
        low, high = chr(first).encode()[0], chr(last).encode()[0]
        found |= (1 << (high + 1)) - (1 << low)
    return found


def bits(number: int) -> Iterator[int]:
    """The places of the bits that are set, from the lowest on."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
