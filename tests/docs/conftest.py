"""One machine for all pages of a test file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from machine import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Machine]:
    hub = HubServer()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    yield Machine(tmp_path_factory.mktemp("machine"), hub, default_model)
    hub.shutdown()
    thread.join()
    hub.server_close()
