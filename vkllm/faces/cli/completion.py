"""What a shell offers when Tab is pressed: models and devices.

Anything that goes wrong here offers nothing: an error in the middle of a command line helps nobody.
"""

from __future__ import annotations


def models(incomplete: str) -> list[tuple[str, str]]:
    """Models on this machine and those of the catalogue: names, and a word on each."""
    here = models_here(incomplete)
    try:
        from vkllm.store.catalog import catalog

        names = {entry.name: entry.description for entry in catalog() if entry.name.startswith(incomplete)}
    except Exception:
        return here
    return list((names | dict(here)).items())


def models_here(incomplete: str) -> list[tuple[str, str]]:
    """Models on this machine: names, and a word on each."""
    try:
        from vkllm.store import installed

        names = [model.name for model in installed()]
    except Exception:
        return []
    return [(name, "on this machine") for name in names if name.startswith(incomplete)]


def devices(incomplete: str) -> list[tuple[str, str]]:
    """Indices of Vulkan devices, and their names."""
    try:
        from vkllm.gpu.device.probe import devices as probe

        found = {str(device.index): device.name for device in probe()}
    except Exception:
        return []
    return [(index, name) for index, name in found.items() if index.startswith(incomplete)]
