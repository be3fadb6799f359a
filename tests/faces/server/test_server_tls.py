"""`vkllm serve --ssl-key-file --ssl-cert-file`, with a certificate that is made here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from served import serving, single

from vkllm.errors import InvalidParameter, VkllmError
from vkllm.faces.remote import RemoteAnswer, Server
from vkllm.faces.server.serving import check_certificate
from vkllm.faces.server.settings import ServerSettings

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


def made(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """A new key, and a certificate for 127.0.0.1."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    subject = ["-subj", "/CN=vkllm", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate, *subject]
    subprocess.run([*command, *(more or ("-nodes",))], check=True, capture_output=True)
    return key, certificate


def test_a_server_with_a_certificate_speaks_https_alone(
    tiny_gguf: Path, tmp_path: Path, fake_engines: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = made(tmp_path, "one")
    settings = ServerSettings(port=0, ssl_key_file=key, ssl_cert_file=certificate)
    with serving(single(tiny_gguf), settings, waits=False) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        with pytest.raises(VkllmError, match="self-signed certificate"):
            Server(server.url).ask("/health")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        while Server(server.url).ask("/v1/models")["data"][0]["status"]["value"] != "loaded":
            pass
        answer = RemoteAnswer(Server(server.url), {"messages": [{"role": "user", "content": "Hi"}]})
        assert "".join(answer) == "user\nHi" and answer.result().stats.n_generated == 8
        with pytest.raises(VkllmError, match="does not answer"):
            Server(f"http://127.0.0.1:{server.port}").ask("/health")


def test_what_is_wrong_with_a_certificate_is_told(tmp_path: Path) -> None:
    key, certificate = made(tmp_path, "one")
    other, _ = made(tmp_path, "other")
    locked, its = made(tmp_path, "locked", "-passout", "pass:secret")
    for wrong, why in (
        ((key, None), "belong together; give both"),
        ((None, certificate), "belong together; give both"),
        ((tmp_path / "none", certificate), "No such file"),
        ((other, certificate), "KEY_VALUES_MISMATCH"),
        ((certificate, certificate), r"cannot be used \("),
        ((locked, its), "it has a password; give a key without one"),
    ):
        with pytest.raises(InvalidParameter, match=why):
            check_certificate(ServerSettings(ssl_key_file=wrong[0], ssl_cert_file=wrong[1]))
