"""`vkllm serve`: the HTTP server that clients of OpenAI, Anthropic, ollama and llama.cpp speak to."""
