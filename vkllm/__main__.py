"""`python -m vkllm` is the command `vkllm`."""

from vkllm.faces.cli.app import main

main()
