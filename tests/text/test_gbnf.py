"""GBNF against a recognizer that tries every way to read a text, and what is wrong with what is not GBNF."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tiny_vocabularies import tiny_bpe, write_gguf
from work_time import assert_grows_linearly

from vkllm.engine.constraint import Vocabulary
from vkllm.errors import InvalidParameter
from vkllm.text.gbnf_to_lark import lark_of_gbnf
from vkllm.text.grammar import answer_grammar
from vkllm.text.tokenizer import Tokenizer

BYTES = LLTokenizer("byte")
ALPHABET = ["a", "é", "è"]  # the last two have the same first byte
Tree = tuple[Any, ...]
"""("text", text), ("class", characters, is_negated), ("ref", name), ("row", *trees), ("or", *trees) or
("times", tree, least, most)."""


def takes(grammar: str, text: str) -> bool:
    lark = answer_grammar(grammar=grammar)
    assert lark is not None
    matcher = LLMatcher(BYTES, lark, log_level=0)
    assert not matcher.is_error(), (grammar, matcher.get_error())
    raw = list(text.encode())
    return bool(matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting())


def reason(grammar: str) -> str:
    with pytest.raises(InvalidParameter) as caught:
        answer_grammar(grammar=grammar)
    assert "\n" not in str(caught.value), "one sentence"
    return str(caught.value)


def random_tree(draw: random.Random, names: list[str], depth: int) -> Tree:
    kinds = ["text", "class", "ref", "ref", "row", "row", "row", "or", "times"]
    kind = draw.choice(kinds if depth else kinds[:3])
    match kind:
        case "text":
            return ("text", "".join(draw.choices(ALPHABET, k=draw.choice([0, 1, 1, 2]))))
        case "class":
            return ("class", "".join(draw.sample(ALPHABET, draw.choice([1, 2]))), draw.random() < 0.2)
        case "ref":
            return ("ref", draw.choice(names))
        case "times":
            least, most = draw.choice([(0, None), (1, None), (0, 1), (2, 2), (0, 2), (2, None), (0, 0)])
            return ("times", random_tree(draw, names, depth - 1), least, most)
    return (kind, *(random_tree(draw, names, depth - 1) for _ in range(draw.choice([2, 2, 3]))))


def written(tree: Tree) -> str:
    match tree:
        case ("text", text):
            return f'"{text}"'
        case ("class", characters, is_negated):
            return f"[{'^' * is_negated}{characters}]"
        case ("ref", name):
            return str(name)
        case ("row", *trees):
            return "(" + " ".join(map(written, trees)) + ")"
        case ("or", *trees):
            return "(" + " | ".join(map(written, trees)) + ")"
        case ("times", inner, least, most):
            return f"({written(inner)}){{{least},{'' if most is None else most}}}"
    raise AssertionError(tree)


def language(rules: dict[str, Tree], longest: int) -> dict[str, set[str]]:
    """The texts of up to so many characters of each rule, by growing the sets until nothing is new."""
    found: dict[str, set[str]] = {name: set() for name in rules}

    def joined(some: set[str], others: set[str]) -> set[str]:
        return {a + b for a in some for b in others if len(a) + len(b) <= longest}

    def of(tree: Tree) -> set[str]:
        match tree:
            case ("text", text):
                return {text}
            case ("class", characters, is_negated):
                return {c for c in ALPHABET if (c in characters) != is_negated}
            case ("ref", name):
                return found[name]
            case ("row", *trees):
                texts = {""}
                for each in trees:
                    texts = joined(texts, of(each))
                return texts
            case ("or", *trees):
                return set().union(*map(of, trees))
            case ("times", inner, least, most):
                once, texts, all_texts = of(inner), {""}, set()
                for n in range((least + longest + 1) if most is None else most + 1):
                    all_texts |= texts if n >= least else set()
                    texts = joined(texts, once)
                return all_texts
        raise AssertionError(tree)

    while True:
        grown = {name: found[name] | of(tree) for name, tree in rules.items()}
        if grown == found:
            return found
        found.update(grown)


@pytest.mark.parametrize(("seed", "by_character"), [(0, False), (1, False), (2, False), (3, False), (4, True)])
def test_random_grammars_take_exactly_their_texts(seed: int, by_character: bool) -> None:
    draw, longest = random.Random(seed), 4
    texts = ["".join(letters) for n in range(longest + 1) for letters in product(ALPHABET, repeat=n)]
    n_recursive = 0
    for _ in range(8):
        names = ["root", "x", "Y-1"][: draw.choice([1, 2, 3])]
        rules = {name: random_tree(draw, names, 3) for name in names}
        grammar = "\n".join(f"{name} ::= {written(tree)}" for name, tree in rules.items())
        wanted = language(rules, longest)["root"]
        try:
            lark = lark_of_gbnf(grammar, by_character=by_character)
        except InvalidParameter as error:
            assert "no text matches it" in str(error) and not wanted, grammar
            continue
        n_recursive += "r0" in lark
        for text in texts:
            matcher = LLMatcher(BYTES, lark, log_level=0)
            raw = list(text.encode())
            is_taken = matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting()
            assert is_taken == (text in wanted), (grammar, text)
    assert n_recursive > 0, "some are read by lexemes"


JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (
    string ":" ws value   # a comment
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= WS
"""


@pytest.mark.parametrize("space", ['| " " | "\n" [ \t]{0,20}', "([ \t\n] ws)?"])
@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ('{"a": [1, {"b": null}],\n "é\\"": -1.5e3}', True),
        ('{"a":"\\u00e9","b":[]}', True),
        ("{}", True),
        ('{"a": [1, {"b": null}]', False),
        ('{"a": 01}', False),
        ('{"a": tru}', False),
        ('{"a\n": 1}', False),
        ("[]", False),
    ],
)
def test_json_in_gbnf_is_json(space: str, text: str, is_json: bool) -> None:
    grammar = JSON.replace("WS", space)
    assert takes(grammar, text) == is_json
    lexemes = [line for line in lark_of_gbnf(grammar).splitlines() if line.startswith("T")]
    assert len(lexemes) == 10, "strings and numbers are lexemes, not characters"


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        ('root ::= "a" . "b"', ["a\nb", "aéb", "a\rb"], ["ab"]),
        ("root ::= [x--y]", ["y"], ["x", "-", "z"]),  # x to -, which is no character, and y
        ("root ::= [a&&b~~c]+", ["a&b~c"], ["d"]),
        ("root ::= [a-c-]+", ["b-"], ["d"]),
        ("root ::= [+--]", [",", "-"], ["."]),
        (r"root ::= [\x41\u00e9\U0001F600\-\]\[\\^]+", ["A", "é😀-][\\^"], ["B", "x"]),
        (r"root ::= [^\n-\r\u00e9-\u00ff]", ["a", "\t", "Ā", "😀", "日"], ["\n", "\r", "é", "ÿ"]),
        (r'root ::= "\u00e9\x22\"\\\[\]\-\t\r\n"', ['é""\\[]-\t\r\n'], ["é"]),
        ('root ::= [/*]+ "//" "/*"', ["*///*"], ["///"]),
        ('root ::= "<" .* ">"', ["<a\nb>", "<>>", "<>"], ["<", "<a"]),
        ('root ::= [a]+ "ab" root | "c"', ["aabc", "aaabaabc"], ["abc", "aab"]),
        ('root ::= "a" "b" | "a" [b]', ["ab"], ["a"]),
        ('root ::= x | "a" y\nx ::= "ab"\ny ::= "b"', ["ab"], ["a"]),
        ('root ::= "a"{2} | "b"{1,} | "c"{0,2} | "d"{ 1 , 2 }', ["aa", "b", "bbb", "", "cc", "dd"], ["a", "ccc"]),
        ('root ::= "ab"*', ["", "abab"], ["abb"]),
        ('root ::= ("a"? "b")+ | "a"?+', ["bab", "aaa", ""], ["ba"]),
        ('root ::= "a" ("" | "b")* ( | "c")', ["a", "abbc"], ["ac b"]),
        ("root ::= | 'x".replace("'x", '"x"'), ["", "x"], ["y"]),
        ('root ::= "a" |\n  "b" | # why\n\n  "c"', ["a", "b", "c"], ["|"]),
        ('root ::= "a"\n\n  # why\n  | "b"\n  | x\nx ::= "c"', ["a", "b", "c"], ["ab"]),
        ('x ::= "1"\n\n\r\n# between\r\n  root ::= (x\r\n  "2") # end', ["12"], ["1"]),
        (
            'root ::= 1st My-rule my-rule my_rule\n1st::="1"\nMy-rule::="2"\nmy-rule::="3"\nmy_rule::="4"',
            ["1234"],
            ["1"],
        ),
        ('root ::= start\nstart ::= "a: b" | "%llguidance {}"', ["a: b", "%llguidance {}"], ["a"]),
        ('root ::= root "a" | root "b" | "c"', ["c", "cab"], ["a"]),  # left recursion, which llama.cpp refuses
        ('root ::= x | "a"\nx ::= x "b"', ["a"], ["b", ""]),  # a rule that never ends
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),  # the last counts, as in llama.cpp
        ('root ::= ("(" root ")")*', ["", "(()())"], ["(", "())"]),
        ("root ::= [\u3041-\u309f]+ [😀-😂]", ["あい😁"], ["あ", "😁"]),
        ("root ::= " + '("a" | "b" ' * 60 + '"c"' + ")" * 60, ["a", "ba", "bba", "b" * 60 + "c"], ["b", "c"]),
        ("root ::= " + '("a" root | "b" ' * 60 + '"c"' + ")?" * 60, ["", "a", "ab", "bba"], ["c"]),
        ('root ::= "\x7f\x00" [\x00-\x7f]', ["\x7f\x00\x7f"], ["\x7f"]),
    ],
)
def test_what_llama_cpp_takes_is_taken(grammar: str, taken: list[str], refused: list[str]) -> None:
    for text in taken:
        assert takes(grammar, text), text
    for text in refused:
        assert not takes(grammar, text), text


def may_follow(vocabulary: Vocabulary, grammar: str | None, *ids: int) -> set[int]:
    assert grammar is not None
    constraint = vocabulary.constraint(grammar)
    for token_id in ids:
        constraint.accept(token_id)
    words = constraint.mask()
    return {i for i in range(32 * len(words)) if int(words[i // 32]) >> (i % 32) & 1}


def test_tokens_are_named_by_id_or_text() -> None:
    vocabulary = Vocabulary([b"a", b"b", b"\xff<end>", b"\xff<think>", b"\xff</think>"], {2})
    for text in ("root ::= <think> [ab] </think> .*", "root ::= <[3]> [ab] <[4]> .*"):
        grammar = answer_grammar(grammar=text)
        assert may_follow(vocabulary, grammar) == {3}
        assert may_follow(vocabulary, grammar, 3) == {0, 1}
        assert may_follow(vocabulary, grammar, 3, 1) == {4}
        assert may_follow(vocabulary, grammar, 3, 1, 4) == {0, 1, 2}


def test_a_tokenizer_knows_the_tokens_of_a_grammar(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(write_gguf(tmp_path / "tiny.gguf", tiny_bpe()))
    vocabulary = Vocabulary(tokenizer.answer_bytes(), tokenizer.stop_ids)
    (start,) = tokenizer.encode("<|im_start|>", add_special=False)
    a, b = (tokenizer.encode(letter, add_special=False)[0] for letter in "ab")
    others = set(range(tokenizer.n_vocab)) - tokenizer.stop_ids - {start}
    for name in ("<|im_start|>", f"<[{start}]>"):
        grammar = answer_grammar(grammar=f'root ::= "a" !{name}* {name} "b"', tokenizer=tokenizer)
        assert may_follow(vocabulary, grammar) == {a}
        assert others <= may_follow(vocabulary, grammar, a) <= others | {start}, "no end token: the answer is not whole"
        assert may_follow(vocabulary, grammar, a, b, start) == {b}
    for name in ("<nothing>", f"<[{tokenizer.n_vocab}]>", "!<nothing>"):
        with pytest.raises(InvalidParameter, match=r"<.*> is not a token of this model"):
            answer_grammar(grammar=f"root ::= {name}", tokenizer=tokenizer)
        answer_grammar(grammar=f"root ::= {name}")  # of which model is not known yet


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("#" * 70_000 + '\nroot ::= "a"', "grammar is too large: it has 70013 characters, at most 65536 are read"),
        (
            "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(500)) + 'r500 ::= "a"',
            "more than 400 others",
        ),
        (
            "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60)) + "r60 ::= [a-z]*",
            "grammar is too complex",
        ),
    ],
)
def test_a_grammar_that_would_take_too_long_is_refused(grammar: str, why: str) -> None:
    assert why in reason(grammar), "of its size, not of the second that it may take"


@pytest.mark.parametrize(
    ("grammar", "size"),
    [
        (lambda n: 'root ::= "(" root ")" | ' + " | ".join(f'"word{i * 7919 % 100_003}"' for i in range(n)), 4000),
        (lambda n: "root ::= root " + "| root ".join(f'"x{i}" ' for i in range(n)) + "| " + '"ab" ' * 5 * n, 1000),
        (lambda n: "root ::= " + '("a" root)? ' * n, 1000),
        (lambda n: 'root ::= "(" root ")" | x\nx ::= ' + "[a-z]* " * n, 7000),
        (
            lambda n: (
                "root ::= " + " | ".join(f"r{i}" for i in range(n)) + "".join(f'\nr{i} ::= "{i}"' for i in range(n))
            ),
            1000,
        ),
    ],
)
def test_reading_a_large_grammar_takes_time_that_grows_with_it(grammar: Callable[[int], str], size: int) -> None:
    assert_grows_linearly(lambda n: lark_of_gbnf(grammar(n)), size // 64, times=64)


def test_a_grammar_of_very_many_characters_is_compared_only_up_to_a_limit() -> None:
    def doubled(n: int) -> str:
        return (
            'root ::= r0 | "(" root ")"\n'
            + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(n))
            + f"r{n} ::= [a-z]*"
        )

    assert_grows_linearly(lambda n: lark_of_gbnf(doubled(n)), 15, times=4)  # of 2**15 characters, and of 2**60


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("root ::= foo", "line 1, column 10: there is no rule foo"),
        ('root ::= "a"\nx ::= "b" y', "line 2, column 11: there is no rule y"),
        ('root ::= "a', "line 1, column 12: the end of a string is missing"),
        ('root ::= "a\\', "an escape is not complete"),
        (r'root ::= "\d"', r"line 1, column 12: \d is not an escape; there are \n \r"),
        (r'root ::= "\x4"', r"\x takes 2 hexadecimal digits"),
        (r'root ::= "\U00110000"', "above the last character"),
        (r'root ::= "\ud800"', "half of a surrogate pair"),
        ("root ::= [a", "the ] of a character class is missing"),
        ("root ::= []", "must not be empty"),
        ("root ::= [z-a]", "no text matches it, because a set of characters in it has none, such as [z-a]"),
        ('root ::= "a" ([9-0] | x)\nx ::= x', "has none, such as"),
        ('root ::= ("a"', "a ) is missing"),
        ('root ::= "a")', "unexpected ')'"),
        ("root ::= *", "* has nothing before it to repeat"),
        ('root ::= "a"{,2}', "a number is missing"),
        ('root ::= "a"{2', "} is missing"),
        ('root ::= "a"{3,2}', "{3,2} allows no number of times"),
        ('root ::= "a"{999999999999}', "at most 20000 repetitions"),
        ('root ::= "a"' + "*" * 100, "at most 4 repetitions may follow each other"),
        ("root ::= " + "(" * 5000, "parentheses are nested more than 64 deep"),
        ('root ::= "a" ::= "b"', "unexpected ':'"),
        ('root = "a"\nx ::= "b"', "::= is expected after root"),
        ("root ::= 'a'", 'unexpected "\'"'),
        ('root ::= "a" $', "unexpected '$'"),
        ("root ::= root", "no text matches it, because its rules never come to an end"),
        ('root ::= x "a"\nx ::= "b" root', "no text matches it"),
        ("root ::= <[1", "a token is written <[123]> or <think>"),
        ("root ::= <[x]>", "<[x]> is not a token id"),
        ("root ::= !a", "a token is written <[123]> or <think>"),
    ],
)
def test_what_is_not_gbnf_is_refused_with_the_place(grammar: str, why: str) -> None:
    assert why in reason(grammar)
