"""Certificates for tests, made by openssl(1)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from live_migration.wire.meeting_point import Certificates

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """Somebody who signs certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("req", "-x509", *KEY, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")

    def certify(self, name: str) -> Certificates:
        """A new certificate and its key."""
        self._openssl("req", *KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        self._openssl("x509", "-req", *signed, "-in", f"{name}.csr", "-out", f"{name}.pem")
        return Certificates(*(str(self.folder / file) for file in (f"{name}.pem", f"{name}.key", "ca.pem")))

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
