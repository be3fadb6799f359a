"""`python -m vkllm` is the command `vkllm`."""

from vkllm.faces.cli import main

main()
