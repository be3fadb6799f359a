"""Builds the layer's library beside its sources with the system's C compiler.

    python -m vkllm.gpu.layer.build [--force]

Knows nothing of what the library does; it needs a C compiler (`cc`, or the environment's CC) and the Vulkan headers,
as building Kompute itself does.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from vkllm.errors import DeviceError
from vkllm.gpu.layer import FOLDER, LIBRARY

FLAGS = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
PACKAGES = (
    "install a C compiler and the Vulkan headers: `apt install gcc libvulkan-dev`, "
    "`dnf install gcc vulkan-headers vulkan-loader-devel` or `pacman -S gcc vulkan-headers`"
)


def is_current() -> bool:
    """Whether the library is there and no source is newer."""
    sources = [*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]
    return LIBRARY.exists() and all(LIBRARY.stat().st_mtime >= source.stat().st_mtime for source in sources)


def build(force: bool = False) -> Path:
    """Builds the library unless it is current, and returns its path.

    Raises DeviceError if there is no compiler, no Vulkan header, or the compiler refuses the sources.
    """
    if not force and is_current():
        return LIBRARY
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise DeviceError(f"The Vulkan layer cannot be built without the C compiler {compiler[0]!r}; {PACKAGES}.")
    # Written beside the old one and renamed: a process that has the old one mapped keeps it whole.
    beside = LIBRARY.with_suffix(f".{os.getpid()}")
    sources = [str(source) for source in sorted(FOLDER.glob("*.c"))]
    command = [*compiler, *FLAGS, *shlex.split(os.environ.get("CFLAGS", "")), *sources, "-o", str(beside), "-lpthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = PACKAGES if "vulkan/" in done.stderr else "see the compiler's message above"
            raise DeviceError(f"The Vulkan layer cannot be built; {reason}.\n{done.stderr.strip()}")
        beside.replace(LIBRARY)
    finally:
        beside.unlink(missing_ok=True)
    return LIBRARY


def main() -> None:
    try:
        print(build(force="--force" in sys.argv[1:]))
    except DeviceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
