"""Numbers of the kernels that decide how much memory they need; the shaders define the same ones (tests/shaders)."""

from __future__ import annotations

KV_BLOCK = 32
"""Tokens of a block of the key/value cache; `KV_BLOCK` in shaders/lib/step.glsl."""

ATTENTION_PIECE = 64
"""Cached tokens that justify one more workgroup of `attention_fused`; `PIECE` in its shader."""

MAX_PARTS = 128
"""Most parts that `attention_fused` cuts the context into; `MAX_PARTS` in its shader."""

MAX_NARROW = 32
"""Rows of a step of several sequences, and sequences and results of any step; `MAX_NARROW` in shaders/lib/step.glsl."""

MAX_ROWS = 512
"""Tokens that one step can hold; `MAX_ROWS` in shaders/lib/step.glsl."""

TOP_K = 64
"""Most candidates that a token is drawn from on the GPU; `TOP_K` in shaders/lib/largest.glsl."""

TOP_LOGITS = 2048
"""Logits that a workgroup of `top_logits` takes; `TOP_LOGITS` in shaders/lib/largest.glsl."""

N_SLOTS = 3
"""Steps that may be in flight on a device."""
