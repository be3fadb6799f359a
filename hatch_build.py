"""Hatchling's hook: wheels hold the Vulkan layer's library, and editable installs have it built in place."""

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LayerBuildHook(BuildHookInterface):
    """Builds vkllm/gpu/layer with the system's C compiler and marks the wheel as one of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":  # a source distribution holds the sources only
            return
        sys.path.insert(0, self.root)
        from vkllm.gpu.layer.build import build

        library = build()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())
