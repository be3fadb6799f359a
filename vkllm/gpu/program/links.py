"""Links of a step of one token: dispatches side by side, chained to those before them where a device allows that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vkllm.gpu.device.kompute import Dispatch


@dataclass(frozen=True)
class Link:
    """Dispatches that may run side by side. n_groups: workgroups of all; 0 if the next link cannot wait for them.

    reads_earlier: the source of its first dispatch was there before the link before it began, which only chose experts
    (`n_before` of matvec_fused).
    """

    dispatches: tuple[Dispatch, ...]
    n_groups: int = 0
    reads_earlier: bool = False

    @property
    def has_chain(self) -> bool:
        """Whether its dispatches take part in a chain."""
        return self.n_groups > 0


def side_by_side(*links: Link) -> Link:
    """One link of several, whose dispatches neither read nor overwrite what the others write."""
    first, *others = (dispatch for link in links for dispatch in link.dispatches)
    dispatches = (first, *(replace(dispatch, is_independent=True) for dispatch in others))
    n_groups = sum(link.n_groups for link in links) if all(link.has_chain for link in links) else 0
    return Link(dispatches, n_groups, links[0].reads_earlier)


def chained(links: Sequence[Link]) -> list[Dispatch]:
    """Numbers the links; one that follows another of the chain waits for it instead of for a barrier."""
    dispatches: list[Dispatch] = []
    n_before = n_awaited = 0
    for number, link in enumerate(links, start=1):
        for dispatch in link.dispatches:
            if link.has_chain:
                is_independent = dispatch.is_independent or n_awaited > 0
                others = list(dispatch.push[:-2])
                if link.reads_earlier and dispatch is link.dispatches[0] and n_awaited:
                    others[-1] = n_before
                numbered = dispatch.with_push(*others, number, n_awaited)
                dispatch = replace(numbered, is_independent=is_independent)
            dispatches.append(dispatch)
        n_before, n_awaited = n_awaited, link.n_groups
    return dispatches
