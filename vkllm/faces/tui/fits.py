"""How the models of the list fit, found out in a child process and kept for as long as the chat runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from vkllm.faces.tui.fit import Fit, FitQuestion, ModelToFit, write_question
from vkllm.resources import child_environment, child_python

_OF_ITS_OWN: dict[str, Any] = {} if sys.platform == "win32" else {"process_group": 0}
_WORKER = tuple(child_python("vkllm.faces.tui.fit_worker"))


class Fits:
    """What is known of models. `n_found` grows with each answer, so a screen knows when to look again.

    loading: arguments of LLM by name, all but n_ctx. command: the worker's; tests put theirs there.
    """

    def __init__(self, loading: Mapping[str, Any], command: Sequence[str] = _WORKER) -> None:
        self.n_found = 0
        self.problem = ""
        self._loading = dict(loading)
        self._command = command
        self._fits: dict[tuple[ModelToFit, int | None], Fit] = {}
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def of(self, model: ModelToFit, n_ctx: int | None) -> Fit | None:
        """How a model fits with so many tokens of context (None: its own choice), or None as long as nobody knows."""
        return self._fits.get((model, n_ctx))

    @property
    def is_looking(self) -> bool:
        """Whether more answers are to come."""
        return self._process is not None and not self._is_closed

    def look(self, models: Sequence[ModelToFit], n_ctx: int | None, held_bytes: dict[str, int]) -> bool:
        """Begins to find out what is not known yet; False if another look is not over. held_bytes: of `FitQuestion`."""
        if self.is_looking:
            return False
        unknown = [model for model in models if (model, n_ctx) not in self._fits]
        if not unknown or self._is_closed:
            return True
        question = FitQuestion(unknown, self._loading | {"n_ctx": n_ctx}, held_bytes)
        self.problem = ""
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=child_environment(),
                **_OF_ITS_OWN,
            )
        except OSError as error:
            self.problem = f"the process that plans models could not be started ({error.strerror})"
            self.n_found += 1
            return True
        threading.Thread(target=self._read, args=(self._process, question), name="vkllm-fits", daemon=True).start()
        return True

    def close(self) -> None:
        """Ends the child, whatever it does."""
        self._is_closed = True
        if (process := self._process) is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                if sys.platform == "win32":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)  # it may have a child that times the device
            process.wait()

    def _read(self, process: subprocess.Popen[str], question: FitQuestion) -> None:
        assert process.stdin is not None and process.stdout is not None
        by_name = {model.name: model for model in question.models}
        with contextlib.suppress(OSError), process:  # a child that died is told below
            process.stdin.write(write_question(question))
            process.stdin.close()
            for line in process.stdout:
                try:
                    answer = json.loads(line)
                    if "problem" in answer:
                        self.problem = answer["problem"]
                    else:
                        model = by_name[answer["name"]]
                        self._fits[model, question.loading["n_ctx"]] = Fit(**answer["fit"])
                except (ValueError, KeyError, TypeError):
                    continue  # drivers print things too
                self.n_found += 1
        if process.returncode and not self.problem and not self._is_closed:
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            self.problem = f"looking for devices ended with {how}; `vkllm devices` may say more"
            self.n_found += 1
        self._process = None
