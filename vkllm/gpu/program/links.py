"""Links of a step of one token: dispatches side by side, chained to those before them where a device allows that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vkllm.gpu.device.kompute import Dispatch


@dataclass(frozen=True)
class Link:
    """Dispatches that may run side by side. n_groups: workgroups of all; 0 if the next link cannot wait for them."""

    dispatches: tuple[Dispatch, ...]
    n_groups: int = 0

    @property
    def has_chain(self) -> bool:
        """Whether its dispatches take part in a chain."""
        return self.n_groups > 0


def side_by_side(*links: Link) -> Link:
    """One link of several, whose dispatches neither read nor overwrite what the others write."""
    first, *others = (dispatch for link in links for dispatch in link.dispatches)
    dispatches = (first, *(replace(dispatch, is_independent=True) for dispatch in others))
    return Link(dispatches, sum(link.n_groups for link in links) if all(link.has_chain for link in links) else 0)


def chained(links: Sequence[Link]) -> list[Dispatch]:
    """Numbers the links; one that follows another of the chain waits for it instead of for a barrier."""
    dispatches: list[Dispatch] = []
    n_awaited = 0
    for number, link in enumerate(links, start=1):
        for dispatch in link.dispatches:
            if link.has_chain:
                is_independent = dispatch.is_independent or n_awaited > 0
                numbered = dispatch.with_push(*dispatch.push[:-2], number, n_awaited)
                dispatch = replace(numbered, is_independent=is_independent)
            dispatches.append(dispatch)
        n_awaited = link.n_groups
    return dispatches
