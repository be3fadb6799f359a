"""The chat on a whole terminal, made with Textual, which is imported nowhere else.

`app.run_chat` starts it. `vkllm.faces.cli.line_chat` decides between it and the plain chat.
"""
