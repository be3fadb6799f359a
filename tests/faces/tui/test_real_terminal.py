"""The chat in a real terminal: tmux holds the screen and presses the keys."""

from __future__ import annotations

import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import delay_by_others

from vkllm.faces.chat.store import ChatStore

ROOT = Path(__file__).parent.parent.parent.parent
PATIENCE_S = 120.0  # a machine may be busy with anything; what is waited for is on the screen far sooner
# The command with tests/fake_engine.py in the place of the engine; "no end": its answers last until they are stopped.
FAKE = (
    "import functools, vkllm.api.llm, vkllm.engine.process.handle as process\n"
    "vkllm.api.loading.EngineProcess = functools.partial(process.EngineProcess, factory='fake_engine:FakeEngine')\n"
    "from vkllm.faces.cli.app import main; main()"
)


class Tmux:
    """One terminal of 80 by 24 on a server of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._n_servers = 0
        self._socket = ""

    def run(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def start(self, command: list[str]) -> None:
        """Runs a command; when it has ended, its exit code is on the screen."""
        self._n_servers += 1  # each on a socket of its own: a server that was told to end may still be ending
        self._socket = str(self.folder / f"tmux{self._n_servers}")
        variables = {"VKLLM_DATA": str(self.folder), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "VKLLM_TMUX": "1"}
        line = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *command])
        self.run("new-session", "-d", "-x", "80", "-y", "24", "-s", "chat", f"{line}; echo exit code $?; exec cat")

    def end(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True)

    def press(self, *keys: str) -> None:
        self.run("send-keys", "-t", "chat", *keys)

    def type(self, text: str) -> None:
        self.run("send-keys", "-t", "chat", "-l", text)

    def paste(self, text: str) -> None:
        """As terminals do, between marks of its beginning and its end."""
        command = ["tmux", "-S", self._socket, "load-buffer", "-b", "text", "-"]
        subprocess.run(command, input=text, text=True, check=True)
        self.run("paste-buffer", "-p", "-b", "text", "-t", "chat")

    @property
    def screen(self) -> str:
        return self.run("capture-pane", "-p", "-t", "chat")

    def until(self, holds: Callable[[str], bool], patience_s: float = PATIENCE_S) -> str:
        deadline = time.monotonic() + patience_s
        while not holds(screen := self.screen):
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)
        return screen

    def quit(self) -> str:
        """Presses Ctrl+Q and waits for the end; what is on the screen then."""
        self.press("C-q")
        return self.until(lambda screen: "exit code" in screen)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed; it is the terminal of this test (apt-get install tmux)")
    terminal = Tmux(tmp_path)
    yield terminal
    terminal.end()


def engines() -> set[str]:
    """Ids of the engines' processes that tests in this file have started and that still run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"VKLLM_TMUX=1" in (path / "environ").read_bytes() and b"worker" in (path / "cmdline").read_bytes():
                found.add(path.name)
        except OSError:
            continue
    return found


def test_a_person_types_stops_repeats_quits_and_finds_the_chat_again(tmux: Tmux, tiny_gguf: Path) -> None:
    command = [sys.executable, "-c", FAKE, "chat", str(tiny_gguf), "--device", "no end"]
    tmux.start(command)
    tmux.until(lambda screen: "ready" in screen)
    tmux.type("a question")
    tmux.press("C-j")
    tmux.type("that goes on")
    tmux.press("Enter")
    tmux.until(lambda screen: "Answer" in screen and screen.count("a question") > 1)
    tmux.press("Escape")
    tmux.until(lambda screen: "stopped" in screen)
    tmux.press("C-r")
    tmux.until(lambda screen: "2/2" in screen and screen.count("a question") > 2)
    assert engines()
    assert "Traceback" not in tmux.quit()
    assert engines() == set()
    tmux.end()
    tmux.start(command)
    tmux.until(lambda screen: "ready" in screen)
    tmux.press("F2", "Enter", "x", "y")  # in one burst: the dialog is not there yet when the others come
    tmux.until(lambda screen: "2/2" in screen and "stopped" in screen and "that goes on" in screen and "│ xy" in screen)
    tmux.press("F4", "0", ".", "2", "5", "Tab", "5", "0", "C-s", "z")
    tmux.until(lambda screen: "temperature 0.25" in screen and "│ xyz" in screen)
    tmux.quit()


@pytest.mark.parametrize("keys", [["C-q"], ["C-c", "C-c"]])
def test_quitting_while_a_model_is_loaded_leaves_nothing(tmux: Tmux, tiny_gguf: Path, keys: list[str]) -> None:
    tmux.start([sys.executable, "-c", FAKE, "chat", str(tiny_gguf), "--device", "slow start"])
    tmux.until(lambda screen: "loading" in screen and bool(engines()))
    tmux.press(*keys)
    screen = tmux.until(lambda screen: "exit code" in screen, 50)  # the load would take 60 s
    assert "exit code 0" in screen and "Traceback" not in screen
    assert engines() == set()


@pytest.mark.parametrize("keys", [["C-q"], ["C-c", "C-c"]])
def test_quitting_in_mid_answer_leaves_nothing_but_the_chat(tmux: Tmux, tiny_gguf: Path, keys: list[str]) -> None:
    tmux.start([sys.executable, "-c", FAKE, "chat", str(tiny_gguf), "--device", "no end"])
    tmux.until(lambda screen: "ready" in screen)
    tmux.type("a question that is as long as its answer will be, so that there is time to leave in between")
    tmux.press("Enter")
    tmux.until(lambda screen: "Answer" in screen and screen.count("a question") > 2)
    for key in keys:
        tmux.press(key)
    screen = tmux.until(lambda screen: "exit code" in screen)
    assert "exit code 0" in screen and "Traceback" not in screen
    assert engines() == set()
    assert "a question" in last_answer(tmux)


def test_a_terminal_that_is_closed_in_mid_answer_leaves_nothing_but_the_chat(tmux: Tmux, tiny_gguf: Path) -> None:
    tmux.start([sys.executable, "-c", FAKE, "chat", str(tiny_gguf), "--device", "no end"])
    tmux.until(lambda screen: "ready" in screen)
    tmux.type("a question that is as long as its answer will be, so that there is time to leave in between")
    tmux.press("Enter")
    tmux.until(lambda screen: "Answer" in screen and screen.count("a question") > 2)
    assert engines()
    tmux.end()
    deadline = time.monotonic() + PATIENCE_S
    while engines():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "a question" in last_answer(tmux)


def last_answer(tmux: Tmux) -> str:
    """The answer that is kept last."""
    store = ChatStore(tmux.folder / "chats.db")
    try:
        message = store.messages(store.chats()[0].id)[-1]
    finally:
        store.close()
    assert (message.role, message.state) == ("assistant", "stopped")
    return message.content


@pytest.mark.gpu
@pytest.mark.weights
def test_a_key_is_on_the_screen_within_a_tenth_of_a_second_while_the_gpu_reads(tmux: Tmux, default_model: Path) -> None:
    tmux.start([sys.executable, "-m", "vkllm", "chat", str(default_model), "-c", "5000"])
    tmux.until(lambda screen: "ready" in screen)
    tmux.paste("word " * 4000)
    tmux.until(lambda screen: "word word" in screen)
    tmux.press("Enter")
    tmux.until(lambda screen: "reading 4" in screen)
    times, delays, typed = [], [], ""
    for key in "thequickbrownfox":
        typed += key
        start = time.monotonic()
        tmux.press(key)
        while typed not in tmux.screen:
            assert time.monotonic() - start < PATIENCE_S
        times.append(time.monotonic() - start)
        delays.append(delay_by_others())
    # What else runs on the machine delays each of the three processes between key and screen as it delays this one.
    assert statistics.median(times) < 0.1 * max(1.0, *sorted(delays)[-3:]), (times, delays)
    assert "reading 4" in tmux.screen
    tmux.quit()


@pytest.mark.gpu
@pytest.mark.weights
def test_the_default_model_answers_on_the_screen(tmux: Tmux, default_model: Path) -> None:
    tmux.start([sys.executable, "-m", "vkllm", "chat", str(default_model), "--temp", "0"])
    tmux.until(lambda screen: "ready" in screen)
    tmux.type("What is the capital of France?")
    tmux.press("Enter")
    tmux.until(lambda screen: "Paris" in screen)
    assert "exit code 0" in tmux.quit()


def test_plain_is_line_by_line(tmux: Tmux, tiny_gguf: Path) -> None:
    tmux.start([sys.executable, "-c", FAKE, "chat", str(tiny_gguf), "--plain"])
    tmux.until(lambda screen: ">>>" in screen)
    tmux.type("/bye")
    tmux.press("Enter")
    tmux.until(lambda screen: "exit code 0" in screen)
