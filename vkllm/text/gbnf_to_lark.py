"""GBNF, llama.cpp's grammar language, translated into Lark as llguidance reads it.

A grammar without recursion is a regular expression and becomes one. Of others, the regular parts become lexemes where
that means the same (text/gbnf_lexemes.py).
"""

from __future__ import annotations

import json

from vkllm.errors import InvalidParameter
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
    parse,
    parts,
    sequence,
)
from vkllm.text.gbnf_lexemes import cut_into_lexemes, regular_rules
from vkllm.text.tokenizer import Tokenizer

_MAX_INLINED = 100  # characters of a rule that is a plain text and stands where its name is
_MAX_PARENTHESES = 8
_MAX_ROUNDS = 4  # of putting rules that are plain texts into others


def lark_of_gbnf(text: str, tokenizer: Tokenizer | None = None, *, by_character: bool = False) -> str:
    """A GBNF grammar in Lark.

    tokenizer: of the model that answers, whose tokens the grammar may name. Without one, !<NAME> is any token.
    by_character: every character is a lexeme; means the same, and is slower.
    Raises InvalidParameter if it is not GBNF, names tokens that are not there, or if no text matches it.
    """
    rules = _simplified(_without_dead_ends(parse(text)))
    if by_character:
        return _Lark(rules, tokenizer).of(cut_into_lexemes(rules, set()))
    rules = {name: _without_tail(name, node) for name, node in rules.items()}
    regular = regular_rules(rules)
    lark = _Lark(rules, tokenizer)
    return lark.of_regular() if "root" in regular else lark.of(cut_into_lexemes(rules, regular))


def _simplified(rules: dict[str, Node]) -> dict[str, Node]:
    """The rules with plain texts in one piece: llguidance fails on a choice of a text and the same text in pieces."""
    texts: dict[str, Node] = {}
    for _ in range(_MAX_ROUNDS):
        rules = {name: _simple(node, texts) for name, node in rules.items()}
        found: dict[str, Node] = {}
        for name, node in rules.items():
            if isinstance(node, Text) and len(node.text) <= _MAX_INLINED:
                found[name] = node
        if found.keys() == texts.keys():
            break
        texts = found
    return rules


def _simple(node: Node, texts: dict[str, Node]) -> Node:
    """texts: the rules that replace their names."""
    match node:
        case Chars(((first, last),)) if first == last:
            return Text(chr(first))
        case Ref(name):
            return texts.get(name, node)
        case Sequence(items):
            row: list[Node] = []
            for item in (_simple(item, texts) for item in items):
                for part in item.items if isinstance(item, Sequence) else (item,):
                    if row and isinstance(part, Text) and isinstance(before := row[-1], Text):
                        row[-1] = Text(before.text + part.text)
                    else:
                        row.append(part)
            return sequence(row)
        case Choice(options):
            found: dict[Node, None] = {}
            for option in (_simple(option, texts) for option in options):
                found |= dict.fromkeys(option.options if isinstance(option, Choice) else (option,))
            return choice(list(found))
        case Repeat(item, least, most):
            item = _simple(item, texts)
            if isinstance(item, Text) and least == most and least * len(item.text) <= _MAX_INLINED:
                return Text(item.text * least)
            return Repeat(item, least, most)
    return node


def _without_dead_ends(rules: dict[str, Node]) -> dict[str, Node]:
    """The rules without the parts that no text matches, such as those that only lead back to themselves."""
    users: dict[str, set[str]] = {}
    for name, node in rules.items():
        for part in parts(node):
            if isinstance(part, Ref):
                users.setdefault(part.rule, set()).add(name)
    kept: dict[str, Node] = {}
    waiting = dict.fromkeys(rules)
    while waiting:
        name, _ = waiting.popitem()
        if name not in kept and _pruned(rules[name], kept) is not None:
            kept[name] = EMPTY
            waiting |= dict.fromkeys(users.get(name, ()))
    if "root" not in kept:
        is_empty = any(isinstance(part, Chars) and not part.ranges for node in rules.values() for part in parts(node))
        raise InvalidParameter(
            "grammar cannot be used: no text matches it, because "
            + (
                "a set of characters in it has none, such as [z-a], whose range ends before it begins; write [a-z]"
                if is_empty
                else "its rules never come to an end"
            )
        )
    return {name: live for name in kept if (live := _pruned(rules[name], kept)) is not None}


def _pruned(node: Node, kept: dict[str, Node]) -> Node | None:
    """The node without its dead ends; None if it is one. kept: the rules that are not."""
    match node:
        case Chars(ranges):
            return node if ranges else None
        case Ref(name):
            return node if name in kept else None
        case Sequence(items):
            alive = [part for item in items if (part := _pruned(item, kept)) is not None]
            return sequence(alive) if len(alive) == len(items) else None
        case Choice(options):
            live = [live_option for option in options if (live_option := _pruned(option, kept)) is not None]
            return choice(live) if live else None
        case Repeat(item, least, most):
            repeated = _pruned(item, kept)
            if repeated is None:
                return EMPTY if least == 0 else None
            if most == 0 or repeated == EMPTY:
                return EMPTY
            return repeated if least == most == 1 else Repeat(repeated, least, most)
    return node


def _without_tail(name: str, node: Node) -> Node:
    """A rule that goes on with itself at its end only, as a repetition: x ::= "a" x | "b" is "a"* "b"."""
    if (found := _tail(node, name)) is None:
        return node
    loop, end = found
    if loop is None or end is None or any(isinstance(part, Ref) and part.rule == name for part in parts(loop)):
        return node
    return end if loop == EMPTY else sequence([Repeat(loop, 0, None), end])


def _tail(node: Node, name: str) -> tuple[Node | None, Node | None] | None:
    """What comes before the rule's own name at the end of the node, and the node without it, each None if there is no
    such text. None if the name is anywhere else."""
    if isinstance(node, Ref) and node.rule == name:
        return EMPTY, None
    if not any(isinstance(part, Ref) and part.rule == name for part in parts(node)):
        return None, node
    match node:
        case Sequence((*before, last)):
            found = _tail(last, name)
            if found is None or any(_tail(item, name) != (None, item) for item in before):
                return None
            loop, end = found
            return _row(before, loop), _row(before, end)
        case Choice(options):
            loops, ends = [], []
            for option in options:
                if (found := _tail(option, name)) is None:
                    return None
                loops += [found[0]] if found[0] is not None else []
                ends += [found[1]] if found[1] is not None else []
            return choice(loops) if loops else None, choice(ends) if ends else None
        case Repeat(item, 0, 1):
            if (found := _tail(item, name)) is None:
                return None
            return found[0], EMPTY if found[1] is None else choice([found[1], EMPTY])
    return None


def _row(before: list[Node], last: Node | None) -> Node | None:
    return None if last is None else sequence([*before, last] if last != EMPTY else before)


class _Lark:
    """Writes rules in Lark: G0, G1 ... for regular ones, T0, T1 ... for lexemes, r0, r1 ... for rules of these."""

    def __init__(self, rules: dict[str, Node], tokenizer: Tokenizer | None) -> None:
        self._rules = rules
        self._tokenizer = tokenizer
        self._lines: list[str] = []
        self._cut: dict[str, str] = {}
        self._regular: dict[str, str] = {}
        self._waiting: list[str] = []
        self._n_named = 0
        self._lexemes: dict[Node, str] = {}

    def of_regular(self) -> str:
        """The grammar, root being regular."""
        self._lines.append(f"start: {self._rule_name('root')}")
        self._write_regular()
        return "\n".join(self._lines)

    def of(self, cut: dict[str, Node]) -> str:
        """The grammar, cut into lexemes."""
        self._cut = {name: f"r{i}" for i, name in enumerate(cut)}
        self._lines.append(f"start: {self._cut['root']}")
        for name, node in cut.items():
            self._lines.append(f"{self._cut[name]}: {self._written(node)}")
        self._cut = {}  # what lexemes name is regular
        for node, name in self._lexemes.items():
            self._lines.append(f"{name}: {self._written(node)}")
        self._write_regular()
        return "\n".join(self._lines)

    def _write_regular(self) -> None:
        for name in self._waiting:  # grows meanwhile
            self._lines.append(f"{self._regular[name]}: {self._written(self._rules[name])}")

    def _written(self, node: Node, depth: int = 0) -> str:
        """depth: the parentheses around the node; a node that is too deep for llguidance becomes a rule of its own."""
        if depth > _MAX_PARENTHESES and isinstance(node, Sequence | Choice | Repeat):
            self._n_named += 1
            name = f"{'h' if self._cut else 'H'}{self._n_named}"
            self._lines.append(f"{name}: {self._written(node)}")
            return name
        match node:
            case Chars(ranges):
                return f"/[{''.join(map(_span, ranges))}]/"
            case Text(text):
                return json.dumps(text).replace("\x7f", "\\u007f")
            case Token():
                return _token(node, self._tokenizer)
            case Ref(name):
                return self._rule_name(name)
            case Lexeme(inner):
                return self._lexemes.setdefault(inner, f"T{len(self._lexemes)}")
            case Sequence(items):
                return f"({' '.join(self._written(item, depth + 1) for item in items)})" if items else '""'
            case Choice(options):
                return f"({' | '.join(self._written(option, depth + 1) for option in options)})"
            case Repeat(item, least, most):
                once = self._written(item, depth + 1)
                return (f"({once})" if isinstance(item, Repeat) else once) + _times(least, most)
        raise AssertionError(node)

    def _rule_name(self, name: str) -> str:
        if name in self._cut:
            return self._cut[name]
        if name not in self._regular:
            self._regular[name] = f"G{len(self._regular)}"
            self._waiting.append(name)
        return self._regular[name]


def _token(token: Token, tokenizer: Tokenizer | None) -> str:
    """A token as llguidance takes it. "Any other" excludes end tokens too: only a whole answer may end."""
    if tokenizer is None and not token.name.startswith("<["):
        return "<[*]>" if token.is_negated else token.name
    if token.name.startswith("<["):
        ids = [int(token.name[2:-2])]
    else:
        assert tokenizer is not None
        ids = tokenizer.encode(token.name, add_special=False, parse_special=True)
    if tokenizer is not None and (len(ids) != 1 or ids[0] >= tokenizer.n_vocab):
        raise InvalidParameter(f"grammar cannot be used: {token.name} is not a token of this model")
    if not token.is_negated:
        return f"<[{ids[0]}]>"
    ends = tokenizer.stop_ids if tokenizer is not None else ()
    return f"<[^{','.join(map(str, sorted({*ids, *ends})))}]>"


def _times(least: int, most: int | None) -> str:
    if (sign := {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))) is not None:
        return sign
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"


def _span(ends: tuple[int, int]) -> str:
    """Characters from one to another as a part of a class; as numbers, so that none of them means anything else."""
    first, last = (f"\\x{{{end:x}}}" for end in ends)
    return first if first == last else f"{first}-{last}"
