"""The page at / in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
from chromium import Browser
from served import Served, serving, single
from tiny_gguf import write_tiny_gguf

from vkllm.faces.server.settings import ServerSettings

ECHO = "{# <think></think> #}{{ messages[-1].content + '<|im_end|>' }}"
LAST = "document.querySelector('#log article:last-of-type')"
IS_DONE = "document.getElementById('state').textContent === 'The answer is complete.'"
MARKDOWN = """_# Title

Some **bold** and *italic* `code`, 2 * 3 * 4 and snake_case_name.

- one
- two
  1. inner

```python
print("<b>")
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

[good](https://example.com/a) [bad](javascript:alert(1)) <img src=x onerror=alert(1)><script>alert(1)</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, fake_engines: None) -> Iterator[tuple[Browser, Served]]:
    """The page of a server whose model repeats the last message from its second byte on."""
    if chromium.PROGRAM is None:
        pytest.skip("there is no Chromium")
    folder = tmp_path_factory.mktemp("page")
    path = write_tiny_gguf(folder / "echo.gguf", template=ECHO, n_ctx=2048)
    with (
        serving(single(path), replace(ServerSettings(port=0), api_keys=("secret",)), waits=False) as server,
        chromium.browser(folder / "profile") as browser,
    ):
        browser.send("Page.navigate", url=server.url)
        browser.until("document.getElementById('place')?.textContent.includes('API key')")
        browser.run(
            "const k = document.getElementById('key'); k.value = 'secret'; k.dispatchEvent(new Event('change'))"
        )
        browser.until("document.getElementById('place').textContent.includes('fake device')")
        browser.errors.clear()  # the browser notes the 401
        yield browser, server


def ask(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('question').focus(); document.getElementById('state').textContent = ''")
    browser.type(text)
    browser.press("Enter")


def test_an_answer_is_markdown_and_its_text_is_never_markup(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    assert browser.run("document.getElementById('model').value") == "echo"
    ask(browser, MARKDOWN)
    browser.until(IS_DONE)
    html = browser.run(f"{LAST}.innerHTML")
    for part in (
        "<h3>Title</h3>",
        "<strong>bold</strong> and <em>italic</em> <code>code</code>, 2 * 3 * 4 and snake_case_name.",
        "<ul><li>one</li><li>two<ol><li>inner</li></ol></li></ul>",
        '<pre><code>print("&lt;b&gt;")</code></pre>',
        "<thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody>",
        "<blockquote><p>quoted</p></blockquote>",
        '<a href="https://example.com/a" target="_blank" rel="noopener noreferrer">good</a>',
        "[bad](javascript:alert(1)) &lt;img src=x onerror=alert(1)&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
    ):
        assert part in html, html
    assert browser.run(f"{LAST}.querySelectorAll('img, script').length") == 0
    assert "tokens," in browser.run(f"{LAST}.querySelector('.counts').textContent")
    assert browser.errors == []


def test_thoughts_are_apart_and_the_conversation_goes_on(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    ask(browser, "_<think>hm</think>Yes")
    browser.until(IS_DONE)
    assert browser.run(f"{LAST}.querySelector('details.thoughts > div').textContent") == "hm"
    assert browser.run("messages.at(-1)") == {"role": "assistant", "content": "Yes"}
    browser.run("document.getElementById('new').click()")
    assert browser.run("[messages.length, document.getElementById('log').children.length]") == [0, 0]


def test_escape_stops_an_answer_and_the_server_with_it(page: tuple[Browser, Served]) -> None:
    browser, server = page
    ask(browser, "\x05" + "slow " * 100)  # byte 5 makes the engine slow
    browser.until(f"{LAST}.className === 'assistant waiting' && {LAST}.textContent.includes('slow')")
    assert browser.run("document.getElementById('send').hidden") is True
    browser.press("Escape")
    browser.until("document.getElementById('state').textContent === 'Stopped.'")
    browser.until("document.activeElement.id === 'question' && !document.getElementById('send').hidden")
    while server.models.only is not None and server.models.only.n_users:
        browser.run("new Promise((done) => setTimeout(done, 10))")


def test_parameters_are_sent_and_errors_are_shown(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    browser.run("document.getElementById('max_tokens').value = '3'")
    ask(browser, "_abcdef")
    browser.until(IS_DONE)
    assert browser.run(f"{LAST}.querySelector('p').textContent") == "abc"
    assert "cut at its longest length" in browser.run(f"{LAST}.querySelector('.counts').textContent")
    browser.run("document.getElementById('temperature').value = '-1'; document.getElementById('settings').open = false")
    ask(browser, "_abc")
    assert browser.run("document.getElementById('settings').open"), "what is wrong cannot be seen"
    browser.run(
        "for (const name of ['temperature', 'max_tokens', 'question']) document.getElementById(name).value = ''"
    )
    ask(browser, "x" * 3000)
    browser.until(f"{LAST}.className === 'error'")
    assert "the prompt has 300" in browser.run(f"{LAST}.textContent")
    browser.errors.clear()  # the browser notes the 400
    browser.run("document.getElementById('new').click()")
    assert browser.run("document.getElementById('log').children.length") == 0


def test_the_page_can_be_read_aloud_and_used_by_keyboard(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node
    }
    assert ("textbox", "Your question") in named and ("button", "Send") in named and ("log", "") in named
    controls = {"textbox", "button", "combobox", "spinbutton"}
    assert not [each for each in named if each[0] in controls and not each[1].strip()], "a control has no name"
    browser.run("document.getElementById('settings').open = false; document.getElementById('question').focus()")
    browser.press("Enter", shift=True)
    assert browser.run("document.getElementById('question').value") == "\n", "Shift+Enter begins a line"
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "send"


def test_the_page_is_dark_where_the_system_is(page: tuple[Browser, Served]) -> None:
    browser, _ = page
    colours = []
    for scheme in ("light", "dark"):
        browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_the_page_asks_nobody_but_its_own_server(served: Served, tiny_gguf: Path) -> None:
    status, headers, body = served.request("GET", "/")
    text = body.decode()
    assert status == 200 and text.startswith("<!doctype html>") and headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert 'src="' not in text and "@import" not in text and "url(" not in text
    with serving(single(tiny_gguf), replace(ServerSettings(port=0), has_page=False), waits=False) as without:
        assert without.request("GET", "/")[0] == 404
