"""Markdown as lines of text: what each piece looks like, and that text that grows looks like text that is there."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vkllm.faces.tui import markdown_text
from vkllm.faces.tui.markdown_text import Document
from vkllm.faces.tui.text_blocks import Line


def lines(document: Document, width: int = 40) -> list[Line]:
    return [line for section in document.sections for block in section.blocks for line in block.lines(width)]


def drawn(source: str, width: int = 40) -> str:
    """What a text looks like, without its styles."""
    document = Document()
    document.update(source)
    return "\n".join((line.prefix.plain + line.text.plain).rstrip() for line in lines(document, width))


def styles(source: str, text: str) -> list[str]:
    """The styles of a piece of text."""
    document = Document()
    document.update(source)
    line = next(line for line in lines(document) if text in line.text.plain)
    start = line.text.plain.index(text)
    return [str(span.style) for span in line.text.spans if span.start <= start and span.end >= start + len(text)]


def test_a_paragraph_is_wrapped_and_keeps_its_own_line_ends() -> None:
    assert drawn("one two three four\nfive", width=10) == "one two\nthree four\nfive"


def test_what_is_set_off_in_the_source_is_set_off_on_the_screen() -> None:
    assert drawn("# A\ntext\n\n\n\nmore\n- x\n- y") == "A\n\ntext\n\nmore\n • x\n • y"


def test_lists_hang_and_nest() -> None:
    source = "1. first item that wraps\n   - inner\n\n   more of it\n2. second\n"
    assert drawn(source, width=16) == " 1. first item\n    that wraps\n     ◦ inner\n\n    more of it\n 2. second"


def test_numbers_go_on_whatever_the_source_says() -> None:
    assert drawn("7. a\n1. b\n1. c") == " 7. a\n 8. b\n 9. c"


def test_quotes_have_a_bar() -> None:
    assert drawn("> a\n>\n> - b\n\nc") == "▌ a\n▌\n▌  • b\n\nc"


def test_html_is_shown_as_it_is() -> None:
    assert drawn("A Set<int> and <b>x</b> &amp; y") == "A Set<int> and <b>x</b> & y"


def test_a_table_has_columns_as_wide_as_they_need() -> None:
    source = "| a | long | n |\n|---|:---:|---:|\n| wide cell | x | 1 |\n| b | y | 100 |"
    assert drawn(source).split("\n") == [
        "a         │ long │   n",
        "──────────┼──────┼────",
        "wide cell │  x   │   1",
        "b         │  y   │ 100",
    ]


def test_a_table_that_is_too_wide_wraps_its_widest_cells() -> None:
    source = "| a | b |\n|---|---|\n| one two three four five | x |"
    table = drawn(source, width=18).split("\n")
    assert table[2:] == ["one two three  │ x", "four five      │"]
    assert max(map(len, table)) <= 18


def test_code_keeps_its_blanks_has_its_language_above_and_is_coloured() -> None:
    document = Document()
    document.update("```python\ndef f():\n\n\treturn 1  # x\n```")
    assert [line.text.plain.rstrip() for line in lines(document)][1:] == ["def f():", "", "    return 1  # x"]
    header, *code = lines(document)
    assert header.prefix.plain.split() == ["python", "copy"] and header.prefix.cell_length == 40
    assert all(line.fill for line in lines(document))
    assert len({str(span.style) for span in code[-1].text.spans}) > 2
    assert document.codes == ["def f():\n\n\treturn 1  # x"]


@pytest.mark.parametrize(
    ("markdown", "codes"),
    [
        ("none", []),
        ("```py\na\n\nb\n```\ntext\n~~~\nc\n~~~", ["a\n\nb", "c"]),
        ("```\nopen", ["open"]),
        ("````md\n```\nx\n```\n````", ["```\nx\n```"]),
        ("`not` a ```block```", []),
        ("1. list\n\n       indented\n   - ```\n     deep\n     ```", ["indented", "deep"]),
    ],
)
def test_code_is_found_wherever_it_stands(markdown: str, codes: list[str]) -> None:
    document = Document()
    document.update(markdown)
    assert document.codes == codes


@pytest.mark.parametrize("language", ["nonsense", "", "a b c", "{.python}"])
def test_code_of_an_unknown_language_is_plain(language: str) -> None:
    assert "x = 1" in drawn(f"```{language}\nx = 1\n```")


def test_code_is_numbered_across_sections() -> None:
    document = Document()
    source = "```\na\n```\n\n- ```\n  b\n  ```\n\n~~~\nc\n~~~\n"
    for end in range(len(source) + 1):
        document.update(source[:end], is_live=True)
    clicks = [str(span.style.meta) for line in lines(document) for span in line.prefix.spans if "@click" in str(span)]
    assert document.codes == ["a", "b", "c"]
    assert [f"copy_code({number})" in click for number, click in enumerate(clicks)] == [True] * 3


def test_long_code_is_coloured_in_parts_that_look_like_one() -> None:
    code = "\n".join(f'def f{i}():\n    return "{i}"\n\n' for i in range(100))
    document = Document()
    document.update(f"```python\n{code}\n```")
    assert len(document.sections[0].blocks) > 3
    assert [line.text.plain for line in lines(document)][1:] == code.split("\n")


def test_emphasis_links_and_headings_have_styles() -> None:
    assert styles("a **b** c", "b") == ["bold"]
    assert styles("a ~~b~~ c", "b") == ["strike"]
    assert len(styles("**a *b* c**", "b")) == 2
    assert any("bold" in style for style in styles("## b", "b"))
    assert any("link('https://x.y/')" in style for style in styles("[b](https://x.y/)", "b"))
    assert any("link('https://x.y')" in style for style in styles("see https://x.y now", "https://x.y"))


def test_wrapped_lines_know_their_place_in_the_text() -> None:
    document = Document()
    document.update("- one two three\n- four")
    assert [(line.text.plain, line.x, line.y) for line in lines(document, width=11)] == [
        ("one two", 0, 0),
        ("three", 8, 0),
        ("four", 0, 0),
    ]


def test_control_characters_of_a_model_reach_no_terminal() -> None:
    assert drawn("a\x1b[31mb\x07c\r\nd") == "a[31mbc\nd"


@pytest.mark.parametrize("width", [1, 2, 5])
def test_no_width_is_too_small(width: int) -> None:
    assert drawn("# T\n\n- - - deep\n\n| a | b |\n|--|--|\n| c | d |\n\n---\n\n```py\nx\n```\n\nword日本語", width)


def test_the_beginning_of_markup_waits_for_the_rest() -> None:
    document = Document()
    for source in ("A list:\n-", "A list:\n- "):
        document.update(source, is_live=True)
        assert lines(document)[0].text.plain == "A list:"
        assert document.sections[0].kind == "text"  # and no heading
    document.update("A list:\n- x", is_live=True)
    assert [line.text.plain for line in lines(document)] == ["A list:", "x"]
    document.update("4\n-")  # what has ended is shown, whatever it looks like
    assert document.sections[0].kind == "heading"


def test_only_the_end_of_a_long_text_is_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parser = markdown_text._parser()
    monkeypatch.setattr(
        markdown_text,
        "_parser",
        lambda: type("P", (), {"parse": lambda _, text: parsed.append(len(text)) or parser.parse(text)})(),
    )
    document = Document()
    source = "".join(f"- item {number} **says** something\n" for number in range(500))
    for end in range(0, len(source), 50):
        document.update(source[:end], is_live=True)
    assert max(parsed) < 200
    kept = document.sections[100].blocks[0]
    document.update(source + "more")
    assert document.sections[100].blocks[0] is kept


PIECES = [
    *[
        "# Title\n",
        "text",
        "two words\n",
        "\n",
        "\n\n",
        "- item\n",
        "- ",
        "  - nested\n",
        "1. one\n",
        "2. two\n",
        "1. ",
    ],
    *["   more\n", "```python\n", "x = 1\n", "```\n", "> quote\n", "> - q\n", "| a | b |\n", "|---|---|\n", "---\n"],
    *["| 1 | 2 |\n", "**bold** ", "`code` ", "*", "    indented\n", "<b>", "[a](b)", "![i](j)", "~~s~~", "\t", "===\n"],
    *["* x\n", "+ y\n", "1) z\n", "10. t\n", "~~~\n", "\\", "&amp;", "https://a.b/c ", "日本", "🙂"],
]


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.data())
def test_a_text_that_came_in_pieces_looks_like_one_that_came_at_once(pieces: list[str], data: st.DataObject) -> None:
    source = "".join(pieces)
    whole, grown = Document(), Document()
    whole.update(source)
    end = 0
    while end < len(source):
        end += data.draw(st.integers(1, 9))
        grown.update(source[:end], is_live=True)
    grown.update(source)
    assert [tuple(map(str, line)) for line in lines(grown)] == [tuple(map(str, line)) for line in lines(whole)]
    assert grown.codes == whole.codes
