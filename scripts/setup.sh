#!/bin/sh
# Makes a checkout ready to run: system packages, .venv, Kompute (kp), the Vulkan layer, vkllm itself.
#
#   scripts/setup.sh          what `make run` needs
#   scripts/setup.sh --dev    and what `make test` needs
#
# What is done is not done again, so a second run needs no network and takes no time. System packages are installed
# only where something is missing, only on Debian and Ubuntu, only as root; otherwise their names are printed.
set -eu
cd "$(dirname "$0")/.."

KP_VERSION=0.9.0
VENV=.venv
LOG=$VENV/setup.log
INSTALL=vkllm
[ "${1:-}" != --dev ] || INSTALL=vkllm-dev

say() { printf '%s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- what the system has to have -------------------------------------------------------------------------------------

is_usable_python() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
    for candidate in "$VENV/bin/python" python3.12 python3.11 python3; do
        if is_usable_python "$candidate"; then
            say "$candidate"
            return
        fi
    done
}

preprocesses() { # includes... : whether the C++ compiler finds these headers
    include_dir=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    for header in "$@"; do say "#include <$header>"; done | c++ -E -x c++ "-I$include_dir" - >/dev/null 2>&1
}

has_vulkan_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return
    for folder in /usr/share /usr/local/share /etc "${XDG_DATA_HOME:-$HOME/.local/share}"; do
        for manifest in "$folder"/vulkan/icd.d/*.json; do [ -e "$manifest" ] && return; done
    done
    return 1
}

has_validation_layer() {
    for folder in /usr/share /usr/local/share /etc "${XDG_DATA_HOME:-$HOME/.local/share}"; do
        [ -e "$folder/vulkan/explicit_layer.d/VkLayer_khronos_validation.json" ] && return
    done
    return 1
}

# Prints what is missing, in words. Looks for the things themselves, so that it holds on any distribution.
missing() {
    python=$(find_python)
    if [ -z "$python" ]; then
        say "Python 3.11 or 3.12 (Kompute needs numpy 1 and that has no builds for others)"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || say "Python's venv module"
    fi
    for tool in cmake make c++ cc; do command -v $tool >/dev/null || say "$tool"; done
    if [ -n "$python" ] && command -v c++ >/dev/null; then
        preprocesses Python.h || say "Python's headers"
        preprocesses vulkan/vulkan.h || say "Vulkan's headers"
        preprocesses fmt/core.h || say "fmt"
        preprocesses Python.h pybind11/pybind11.h || say "pybind11"
        printf 'int main() { return 0; }' | c++ -x c++ - -lvulkan -o /dev/null 2>/dev/null || say "the Vulkan loader"
    fi
    has_vulkan_driver || say "a Vulkan driver"
    [ $INSTALL = vkllm ] || has_validation_layer || say "the Khronos validation layer"
}

APT="python3-venv python3-dev cmake g++ make libvulkan-dev libfmt-dev pybind11-dev mesa-vulkan-drivers"
DNF="python3.12-devel cmake gcc-c++ make vulkan-headers vulkan-loader-devel fmt-devel pybind11-devel mesa-vulkan-drivers"
PACMAN="cmake gcc make vulkan-headers vulkan-icd-loader fmt pybind11 vulkan-swrast"
if [ $INSTALL = vkllm-dev ]; then
    APT="$APT vulkan-validationlayers"
    DNF="$DNF vulkan-validation-layers"
    PACMAN="$PACMAN vulkan-validation-layers"
fi

# Not every Debian or Ubuntu has Python 3.11 or 3.12; where it does not, apt cannot help.
advise() {
    say "setup: this machine lacks: $(missing | paste -s -d, - | sed 's/,/, /g')"
    say "Install these packages (with your GPU's own Vulkan driver in place of Mesa's, if it has one), then try again:"
    say "  Debian 12, Ubuntu 24.04:  apt-get install $APT"
    say "  Fedora:                   dnf install $DNF"
    say "  Arch:                     pacman -S $PACMAN    (and python312 from the AUR)"
}

if [ -n "$(missing)" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        advise >&2
        exit 1
    fi
    say "Installing system packages: $APT"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of names
    if ! { apt-get update -q && apt-get install -q -y --no-install-recommends $APT; }; then
        fail "apt-get could not install them; its own lines above say why."
    fi
    if [ -n "$(missing)" ]; then
        advise >&2
        exit 1
    fi
fi

# --- inside the checkout ---------------------------------------------------------------------------------------------

background=""
trap '[ -z "$background" ] || kill "$background" 2>/dev/null' EXIT
trap 'exit 130' INT TERM

# Runs a long command with its output in the log, and shows how long it has taken and how far a compiler is.
step() {
    title=$1
    shift
    "$@" >"$LOG" 2>&1 </dev/null &
    background=$!
    seconds=0
    while kill -0 "$background" 2>/dev/null; do
        percent=$(tail -n 50 "$LOG" | sed -n 's/^ *\[ *\([0-9]*%\)\].*/, \1/p' | tail -n 1)
        if [ -t 1 ]; then
            printf '\r%s: %d s%s ' "$title" $seconds "$percent"
        elif [ $((seconds % 20)) = 0 ]; then
            say "$title: $seconds s$percent"
        fi
        sleep 1
        seconds=$((seconds + 1))
    done
    if wait "$background"; then
        background=""
        if [ -t 1 ]; then printf '\r%s: done in %d s      \n' "$title" $seconds; else say "$title: done in $seconds s"; fi
    else
        background=""
        [ ! -t 1 ] || say ""
        tail -n 40 "$LOG" >&2
        fail "$title failed; the lines above are the end of $LOG."
    fi
}

# A stamp holds what its step was done for. stamped NAME KEY: whether that is still so.
stamped() { [ -e "$VENV/$1.stamp" ] && [ "$(cat "$VENV/$1.stamp")" = "$2" ]; }
stamp() { printf '%s\n' "$2" >"$VENV/$1.stamp"; }

python=$(find_python)
if ! is_usable_python "$VENV/bin/python"; then
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || fail "$python could not make $VENV."
fi
venv_python=$(pwd)/$VENV/bin/python

# kp's setup.py does not tell CMake which Python it builds for (a comma is missing in it), so a toolchain file does.
# It builds against the system's libraries, where its defaults would clone repositories. Nearly all of the time goes
# into reading Vulkan's C++ headers, so five sources are compiled as one: in 60 s of processor time, not 140.
build_kp() {
    toolchain=$(pwd)/$VENV/kp-toolchain.cmake
    {
        printf 'set(PYTHON_EXECUTABLE "%s" CACHE FILEPATH "")\n' "$venv_python"
        say "set(CMAKE_UNITY_BUILD ON)" "set(CMAKE_UNITY_BUILD_BATCH_SIZE 5)"
    } >"$toolchain"
    env CMAKE_TOOLCHAIN_FILE="$toolchain" \
        KOMPUTE_OPT_USE_BUILT_IN_FMT=OFF KOMPUTE_OPT_USE_BUILT_IN_PYBIND11=OFF \
        KOMPUTE_OPT_USE_BUILT_IN_VULKAN_HEADER=OFF KOMPUTE_OPT_INSTALL=OFF \
        KOMPUTE_OPT_DISABLE_VK_DEBUG_LAYERS=ON KOMPUTE_OPT_DISABLE_VULKAN_VERSION_CHECK=ON \
        KOMPUTE_PYTHON_NUM_PARALLEL_THREADS="$(getconf _NPROCESSORS_ONLN)" \
        "$venv_python" -m pip install --verbose "kp==$KP_VERSION" && "$venv_python" -c 'import kp'
}

# Without build isolation, a changed layer can be built again without network; editables is what pip would fetch for it.
install_vkllm() {
    target=.
    [ $INSTALL = vkllm ] || target=".[dev]"
    "$venv_python" -m pip install "hatchling>=1.27" editables &&
        "$venv_python" -m pip install --no-build-isolation -e "$target"
}

kp_key="kp $KP_VERSION, $("$venv_python" -V)"
if ! stamped kp "$kp_key"; then
    step "Building Kompute (kp $KP_VERSION, about a minute on 2 cores)" build_kp
    stamp kp "$kp_key"
fi

key=$(cat pyproject.toml hatch_build.py vkllm/gpu/layer/*.[ch] | cksum)
if ! stamped "$INSTALL" "$key"; then
    step "Installing vkllm and what it depends on" install_vkllm
    stamp vkllm "$key"
    stamp "$INSTALL" "$key"
fi
