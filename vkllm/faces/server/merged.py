"""Several answers read at the same time, their pieces in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

from vkllm.api.answer import Generation, Piece
from vkllm.api.async_stream import AsyncStream


async def merged(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, Piece | Generation]]:
    """Each piece with the place of its stream, and last of each stream the whole answer. An error, or closing this,
    cancels all of them."""
    async with AsyncExitStack() as stack:
        for stream in streams:
            await stack.enter_async_context(stream)
        if len(streams) == 1:
            async for piece in streams[0]:
                yield 0, piece
            yield 0, await streams[0].result()
            return
        steps = {asyncio.ensure_future(_step(stream)): place for place, stream in enumerate(streams)}
        try:
            while steps:
                done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
                for step in sorted(done, key=steps.__getitem__):
                    place, event = steps.pop(step), step.result()
                    if isinstance(event, Piece):
                        steps[asyncio.ensure_future(_step(streams[place]))] = place
                    yield place, event
        finally:
            for step in steps:
                step.cancel()
            await asyncio.gather(*steps, return_exceptions=True)


async def _step(stream: AsyncStream) -> Piece | Generation:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return await stream.result()
