"""GBNF, llama.cpp's grammar language, as a tree.

It knows how grammars are written and what is wrong with one; text/gbnf_to_lark.py translates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vkllm.errors import InvalidParameter

MAX_LENGTH = 65_536
"""Most characters of a grammar, so that no part of reading it takes longer than some tenths of a second."""
MAX_DEPTH = 64
"""Most parentheses within each other."""
MAX_CHAIN = 400
"""Most rules that lead from one to the next; llguidance follows them on its stack, which ends at about 2,000."""
MAX_REPEATS = 20_000
"""The largest number in {m,n}."""
_MAX_STACKED = 4  # as in "a"{2}{3}
LAST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set. ranges: first and last code points of its parts, in order, apart, without surrogates."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """These characters, at least one."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the vocabulary, written <[12]> or <name>; is_negated: any other one."""

    name: str
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Ref:
    """A text of another rule."""

    rule: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; the empty text without any."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them, at least two."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same least to most times; most None is without limit."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A part that llguidance reads as one; parsing makes none."""

    node: Node


Node = Chars | Text | Token | Ref | Sequence | Choice | Repeat | Lexeme
EMPTY = Sequence(())
ANY_CHARACTER = Chars(((0, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, LAST_CHARACTER)))


def parse(text: str) -> dict[str, Node]:
    """The rules of a grammar by name. If a name has several rules the last counts, as in llama.cpp.

    Raises InvalidParameter with line and column if it is not GBNF, lacks `root`, or names a rule that is not there.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidParameter(f"grammar is too large: it has {len(text)} characters, at most {MAX_LENGTH} are read")
    rules = _Parser(text).rules()
    _check_chains(rules)
    return rules


def _check_chains(rules: dict[str, Node]) -> None:
    """Follows names from rule to rule, each rule once. Raises InvalidParameter if that leads through too many."""
    seen = {"root"}
    path = [_names(rules["root"])]
    while path:
        name = next((name for name in path[-1] if name not in seen), None)
        if name is None:
            path.pop()
            continue
        seen.add(name)
        path.append(_names(rules[name]))
        if len(path) > MAX_CHAIN:
            raise InvalidParameter(
                f"grammar is too complex: its rules lead through more than {MAX_CHAIN} others; put some into one"
            )


def _names(node: Node) -> Iterator[str]:
    return (part.rule for part in parts(node) if isinstance(part, Ref))


def children(node: Node) -> tuple[Node, ...]:
    """The nodes that a node consists of; none of a lexeme."""
    match node:
        case Sequence(items):
            return items
        case Choice(options):
            return options
        case Repeat(item):
            return (item,)
    return ()


def parts(node: Node) -> Iterator[Node]:
    """A node and all nodes below it."""
    yield node
    for child in children(node):
        yield from parts(child)


def sequence(items: list[Node]) -> Node:
    """These nodes in a row, as one."""
    return items[0] if len(items) == 1 else Sequence(tuple(items))


def choice(options: list[Node]) -> Node:
    """Any of these nodes, as one."""
    return options[0] if len(options) == 1 else Choice(tuple(options))


def character_set(ranges: list[tuple[int, int]], *, is_negated: bool = False) -> Chars:
    """The set of these characters, or of all others. A range that ends before it begins is empty, as in llama.cpp."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(r for r in ranges if r[0] <= r[1]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    if is_negated:
        ends = [-1, *(last for _, last in merged)]
        starts = [*(first for first, _ in merged), LAST_CHARACTER + 1]
        merged = [(end + 1, start - 1) for end, start in zip(ends, starts, strict=True) if end + 1 < start]
    apart = []
    for first, last in merged:
        apart += [(first, min(last, _SURROGATES[0] - 1)), (max(first, _SURROGATES[1] + 1), last)]
    return Chars(tuple((first, last) for first, last in apart if first <= last))


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._used: dict[str, int] = {}  # rule -> where it is first named

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(over_lines=True)
        while self._at < len(self._text):
            name = self._name("a rule, such as `root ::= ...`, is expected")
            self._skip(over_lines=False)
            if not self._text.startswith("::=", self._at):
                raise self._error(f"::= is expected after {name}")
            self._at += 3
            self._skip(over_lines=True)
            found[name] = self._choice(is_nested=False)
            if self._peek() not in ("\n", "\r", ""):
                raise self._error(f"unexpected {self._shown()}")
            self._skip(over_lines=True)
        if "root" not in found:
            raise InvalidParameter("grammar cannot be used: it has no rule `root ::= ...`, at which GBNF begins")
        for name, at in self._used.items():
            if name not in found:
                self._at = at
                raise self._error(f"there is no rule {name}")
        return found

    def _choice(self, *, is_nested: bool) -> Node:
        options = [self._sequence(is_nested=is_nested)]
        while self._is_at_bar(is_nested=is_nested):
            self._at += 1
            self._skip(over_lines=True)
            options.append(self._sequence(is_nested=is_nested))
        return choice(options)

    def _is_at_bar(self, *, is_nested: bool) -> bool:
        """Whether the rule goes on with |, which may also be the first sign of the next lines."""
        start = self._at
        if not is_nested:
            self._skip(over_lines=True)
        if self._peek() == "|":
            return True
        self._at = start
        return False

    def _sequence(self, *, is_nested: bool) -> Node:
        items: list[Node] = []
        n_stacked = 0
        while (sign := self._peek()) not in ("", "|", ")", "\n", "\r"):
            if sign in "*+?{":
                if not items:
                    raise self._error(f"{sign} has nothing before it to repeat")
                n_stacked += 1
                if n_stacked > _MAX_STACKED:
                    raise self._error(f"at most {_MAX_STACKED} repetitions may follow each other")
                least, most = self._times(is_nested=is_nested)
                items[-1] = Repeat(items[-1], least, most)
            else:
                items.append(self._item())
                n_stacked = 0
            self._skip(over_lines=is_nested)
        return sequence(items)

    def _item(self) -> Node:
        match self._peek():
            case '"':
                return self._literal()
            case "[":
                return self._class()
            case ".":
                self._at += 1
                return ANY_CHARACTER
            case "(":
                return self._group()
            case "<" | "!":
                return self._token()
        start = self._at
        name = self._name(f"unexpected {self._shown()}")
        self._used.setdefault(name, start)
        return Ref(name)

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"parentheses are nested more than {MAX_DEPTH} deep")
        self._at += 1
        self._skip(over_lines=True)
        node = self._choice(is_nested=True)
        if self._peek() != ")":
            raise self._error("a ) is missing")
        self._at += 1
        self._depth -= 1
        return node

    def _literal(self) -> Node:
        self._at += 1
        characters = []
        while self._peek() != '"':
            code = self._character("the end of a string")
            if _SURROGATES[0] <= code <= _SURROGATES[1]:
                raise self._error("half of a surrogate pair is not a character")
            characters.append(chr(code))
        self._at += 1
        return Text("".join(characters)) if characters else EMPTY

    def _class(self) -> Node:
        self._at += 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        if self._peek() == "]":
            raise self._error("a character class must not be empty")
        ranges = []
        while self._peek() != "]":
            first = last = self._character("the ] of a character class")
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character("the ] of a character class")
            ranges.append((first, last))
        self._at += 1
        return character_set(ranges, is_negated=is_negated)

    def _character(self, wanted: str) -> int:
        """The code point of a character or escape, past which it goes."""
        sign = self._peek()
        if not sign:
            raise self._error(f"{wanted} is missing")
        self._at += 1
        if sign != "\\":
            return ord(sign)
        letter = self._peek()
        if n_digits := _HEX_DIGITS.get(letter):
            digits = self._text[self._at + 1 : self._at + 1 + n_digits]
            if len(digits) < n_digits or not all(d in "0123456789abcdefABCDEF" for d in digits):
                raise self._error(f"\\{letter} takes {n_digits} hexadecimal digits")
            code = int(digits, 16)
            if code > LAST_CHARACTER:
                raise self._error(f"\\{letter}{digits} is above the last character, U+10FFFF")
            self._at += 1 + n_digits
            return code
        if letter not in _ESCAPES:
            what = f"\\{letter} is not an escape" if letter else "an escape is not complete"
            raise self._error(f'{what}; there are \\n \\r \\t \\\\ \\" \\[ \\] \\- \\xXX \\uXXXX \\UXXXXXXXX')
        self._at += 1
        return ord(_ESCAPES[letter])

    def _token(self) -> Node:
        is_negated = self._peek() == "!"
        self._at += is_negated
        end = self._text.find(">", self._at)
        name = self._text[self._at : end + 1]
        if not name.startswith("<") or len(name) < 3 or end < 0 or any(sign.isspace() for sign in name):
            raise self._error("a token is written <[123]> or <think>")
        if name.startswith("<["):
            digits = name[2:-2]
            if not (name.endswith("]>") and digits.isascii() and digits.isdecimal() and len(digits) < 10):
                raise self._error(f"{name} is not a token id, such as <[123]>")
        self._at = end + 1
        return Token(name, is_negated)

    def _times(self, *, is_nested: bool) -> tuple[int, int | None]:
        sign = self._peek()
        self._at += 1
        if sign != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        least = self._integer(is_nested=is_nested)
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._skip(over_lines=is_nested)
            most = None if self._peek() == "}" else self._integer(is_nested=is_nested)
        if self._peek() != "}":
            raise self._error("a repetition is written {2}, {2,} or {2,5}; } is missing")
        if most is not None and most < least:
            raise self._error(f"{{{least},{most}}} allows no number of times")
        self._at += 1
        return least, most

    def _integer(self, *, is_nested: bool) -> int:
        self._skip(over_lines=is_nested)
        start = self._at
        while self._peek().isascii() and self._peek().isdecimal():
            self._at += 1
        digits = self._text[start : self._at]
        if not digits:
            raise self._error("a repetition is written {2}, {2,} or {2,5}; a number is missing")
        if len(digits) > 9 or int(digits) > MAX_REPEATS:
            raise self._error(f"at most {MAX_REPEATS} repetitions are supported")
        self._skip(over_lines=is_nested)
        return int(digits)

    def _name(self, problem: str) -> str:
        start = self._at
        while (sign := self._peek()) in ("-", "_") or (sign.isascii() and sign.isalnum()):
            self._at += 1
        if self._at == start:
            raise self._error(problem)
        return self._text[start : self._at]

    def _skip(self, *, over_lines: bool) -> None:
        """Goes past spaces and comments, and past line ends too if these mean nothing here."""
        blanks = " \t\r\n" if over_lines else " \t"
        while (sign := self._peek()) and (sign in blanks or sign == "#"):
            if sign == "#":
                while self._peek() not in ("\n", "\r", ""):
                    self._at += 1
            else:
                self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _shown(self) -> str:
        return repr(self._peek()) if self._peek() else "the end"

    def _error(self, problem: str) -> InvalidParameter:
        before = self._text[: self._at]
        line, column = before.count("\n") + 1, self._at - before.rfind("\n")
        return InvalidParameter(f"grammar cannot be used: line {line}, column {column}: {problem}")
