"""Questions and answers: what keys send, stop, repeat, change, copy and delete."""

from __future__ import annotations

import pytest
from conftest import OpenChat
from fake_llm import THOUGHT
from textual.widgets import Collapsible

from vkllm.faces.tui.prompt import Prompt

pytestmark = pytest.mark.asyncio


async def test_enter_sends_and_the_answer_is_shown_and_kept(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.type("Hello there")
        await scene.press("enter")
        await scene.until(lambda: len(scene.texts) == 2 and not scene.chat.is_answering)
        assert scene.texts == ["Hello there", "You said: Hello there (answer 1)"]
        assert scene.chat.prompt.text == ""
        assert "You said: Hello there" in scene.shown
        assert scene.chat.chat is not None
        assert scene.store.messages(scene.chat.chat.id) == scene.chat.messages
        assert [message.state for message in scene.chat.messages] == ["done", "done"]


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter"])
async def test_a_line_break_does_not_send(open_chat: OpenChat, key: str) -> None:
    async with open_chat() as scene:
        await scene.type("ab")
        await scene.press(key)
        await scene.type("c")
        assert scene.chat.prompt.text == "ab\nc"
        await scene.press("enter")
        await scene.until(lambda: scene.llm.asked)
        assert scene.llm.asked[0][0] == [{"role": "user", "content": "ab\nc"}]


async def test_an_empty_prompt_is_not_sent(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.press("space", "enter", "enter")
        assert scene.chat.messages == []


async def test_the_whole_conversation_is_sent_with_the_system_prompt_and_without_reasoning(open_chat: OpenChat) -> None:
    async with open_chat(system="Be short", sampling={"temperature": 0.5}) as scene:
        await scene.ask("think")
        await scene.ask("More")
        messages, sampling = scene.llm.asked[-1]
        assert messages == [
            {"role": "system", "content": "Be short"},
            {"role": "user", "content": "think"},
            {"role": "assistant", "content": "It is **four**."},
            {"role": "user", "content": "More"},
        ]
        assert sampling == {"temperature": 0.5}


async def test_code_is_highlighted_as_it_streams(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.step_s = 0.01
        await scene.ask("code")
        assert "python" in scene.shown and "def double(x):" in scene.shown
        assert len(scene.colours("def double(x):")) > 2
        # What has streamed looks like what is drawn whole.
        streamed = scene.shown
        await scene.chat.show_chat(scene.chat.chat.id)
        await scene.pilot.pause()
        assert scene.shown == streamed


async def test_reasoning_is_folded_and_t_unfolds_it(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("think")
        assert scene.views[1].message.content == THOUGHT
        assert "Thoughts (6 words)" in scene.shown
        assert "four" in scene.shown
        assert "Two and two" not in scene.shown
        await scene.press("up", "t")
        await scene.until(lambda: "Two and two" in scene.shown)
        await scene.press("t")
        await scene.until(lambda: "Two and two" not in scene.shown)


async def test_reasoning_grows_while_it_is_unfolded(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate_at = 4
        scene.llm.gate.clear()
        await scene.ask("think", waits=False)
        await scene.until(lambda: "Thinking… (4 words)" in scene.shown)
        assert "Two" not in scene.shown
        scene.chat.query_one(Collapsible).collapsed = False
        await scene.until(lambda: "Let me see. Two" in scene.shown)
        scene.llm.gate_at = 5
        await scene.until(lambda: "Two and" in scene.shown and "four" not in scene.shown)
        scene.llm.gate.set()
        await scene.until(lambda: not scene.chat.is_answering)
        assert "Thoughts (6 words)" in scene.shown


async def test_esc_stops_the_answer_and_keeps_what_there_is(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate_at = 8  # so few that the name line, which says "stopped", stays on the screen
        scene.llm.gate.clear()
        await scene.ask("endless", waits=False)
        await scene.until(lambda: scene.texts[-1].count("word") == 8)
        await scene.press("escape")
        await scene.until(lambda: not scene.chat.is_answering)
        await scene.until(lambda: "stopped" in scene.shown)
        scene.llm.gate.set()
        text = scene.texts[-1]
        message = scene.store.messages(scene.chat.chat.id)[-1]
        assert (message.content, message.state) == (text, "stopped")
        await scene.pilot.pause(0.2)
        assert scene.texts[-1] == text
        await scene.ask("And now?")  # the chat goes on
        assert scene.texts[-1].startswith("You said: And now?")


async def test_esc_before_the_first_word_leaves_only_the_question(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate.clear()
        await scene.ask("Hi", waits=False)
        await scene.press("escape")
        await scene.until(lambda: scene.texts == ["Hi"])
        assert [m.role for m in scene.store.messages(scene.chat.chat.id)] == ["user"]
        scene.llm.gate.set()
        await scene.press("ctrl+r")
        await scene.until(lambda: len(scene.texts) == 2 and not scene.chat.is_answering)


async def test_a_question_while_an_answer_is_written_stays_in_the_prompt(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        scene.llm.gate.clear()
        await scene.ask("Hi", waits=False)
        await scene.type("Next")
        await scene.press("enter")
        assert scene.chat.prompt.text == "Next"
        assert any("Esc stops it" in told for told in scene.told)
        scene.llm.gate.set()


async def test_ctrl_r_answers_again_and_keeps_the_old_answer(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("Hi")
        await scene.press("ctrl+r")
        await scene.until(lambda: scene.texts[-1:] == ["You said: Hi (answer 2)"] and not scene.chat.is_answering)
        assert "2/2" in scene.shown
        await scene.press("up", "left")
        await scene.until(lambda: scene.texts == ["Hi", "You said: Hi (answer 1)"])
        await scene.press("right")
        await scene.until(lambda: scene.texts == ["Hi", "You said: Hi (answer 2)"])


async def test_r_on_an_earlier_answer_goes_on_from_there(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.ask("Two")
        await scene.press("up", "up", "up", "r")  # the second message is the first answer
        await scene.until(lambda: scene.texts == ["One", "You said: One (answer 3)"])


async def test_an_edited_question_is_answered_from_there_and_the_old_one_is_kept(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.ask("Two")
        await scene.press("up", "up", "up", "up", "e")
        assert scene.chat.prompt.text == "One"
        assert scene.app.focused is scene.chat.prompt
        await scene.type("!")
        await scene.press("enter")
        await scene.until(lambda: scene.texts == ["One!", "You said: One! (answer 3)"])
        assert scene.llm.asked[-1][0] == [{"role": "user", "content": "One!"}]
        await scene.press("up", "up", "left")
        await scene.until(lambda: scene.texts[0::2] == ["One", "Two"])


async def test_esc_leaves_an_edit_and_the_question_as_it_was(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.press("up", "up", "e", "x", "escape")
        assert scene.chat.prompt.text == ""
        await scene.ask("Two")
        assert scene.texts[0::2] == ["One", "Two"]


async def test_c_copies_a_message_and_b_its_blocks_of_code_in_turn(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("think")
        await scene.press("up", "c")
        assert scene.app.clipboard == "It is **four**."
        await scene.press("escape")
        await scene.ask("code")
        await scene.press("up")
        for expected in ("def double(x):\n    return 2 * x", "ls -l", "def double(x):\n    return 2 * x"):
            await scene.press("b")
            assert scene.app.clipboard == expected


async def test_d_deletes_the_last_answer_after_a_question(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.press("up", "d")
        await scene.press("n")
        assert len(scene.texts) == 2
        scene.views[-1].focus()
        await scene.press("d", "y")
        await scene.until(lambda: scene.texts == ["One"])
        assert len(scene.store.messages(scene.chat.chat.id)) == 1


async def test_d_on_an_earlier_message_deletes_question_and_answer(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        for question in ("One", "Two", "Three"):
            await scene.ask(question)
        scene.views[3].focus()
        await scene.press("d", "y")
        await scene.until(lambda: scene.texts[0::2] == ["One", "Three"])
        assert [m.content for m in scene.store.messages(scene.chat.chat.id)] == scene.texts


async def test_keys_walk_through_the_messages_and_back(open_chat: OpenChat) -> None:
    async with open_chat() as scene:
        await scene.ask("One")
        await scene.press("up", "up", "up")
        assert scene.app.focused is scene.views[0]
        assert "Edit" in str([binding.description for _, binding, *_ in scene.app.screen.active_bindings.values()])
        await scene.press("down", "down")
        assert isinstance(scene.app.focused, Prompt)
