"""Certificate chains for tests, made by openssl in a folder of the test: root, intermediate, and what it issues."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_CONFIGURATION = """\
[ca]
default_ca = default
[default]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
default_crl_days = 30
policy = any
unique_subject = no
email_in_dn = yes
preserve = yes
[any]
commonName = optional
countryName = optional
stateOrProvinceName = optional
localityName = optional
organizationName = optional
organizationalUnitName = optional
emailAddress = optional
[req]
distinguished_name = subject
prompt = no
[subject]
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

_LEAF = """\
[leaf]
basicConstraints = CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = {usage}Auth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

#: A server on this machine.
LOCAL = "DNS:localhost,IP:127.0.0.1,IP:::1"


class Issued(NamedTuple):
    """A certificate: `certfile` has the chain up to below the root, `keyfile` the key."""

    name: str
    certfile: Path
    keyfile: Path


class Chain:
    """An authority in `folder`, which is made: `ca` is the root's certificate, `crl` the list of what is revoked.

    With `rsa` the keys are RSA of 2048 bits, else they are on P-256.
    """

    def __init__(self, folder: Path, name: str = "Test", rsa: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "root.pem"
        self.crl = folder / "crl.pem"
        self._key_type = ["-newkey", "rsa:2048"] if rsa else ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        self._configuration = folder / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION.format(folder=folder))
        (folder / "index.txt").touch()
        self._request("root", f"/O={name}/CN={name} root")
        self._sign("root", "root", self._configuration, "-selfsign", authority="root")
        self._request("intermediate", f"/O={name}/CN={name} intermediate")
        self._sign("intermediate", "intermediate", self._configuration, authority="root")
        self.renew_crl()

    def server(self, name: str = "localhost", names: str = LOCAL, **options: str) -> Issued:
        """A certificate for a server; `names` is a subjectAltName as openssl writes it."""
        return self.issue(name, f"/CN={name}", names, "server", **options)

    def client(self, name: str, subject: str = "", names: str = "", **options: str) -> Issued:
        """A certificate for a client, with the common name `name` unless `subject` says more (/O=Example/CN=d1)."""
        return self.issue(name, subject or f"/CN={name}", names, "client", **options)

    def issue(
        self, name: str, subject: str, names: str, usage: str, *, begin: str = "20200101000000Z", end: str = ""
    ) -> Issued:
        """A leaf. `begin` and `end` (YYYYMMDDhhmmssZ) say when it is valid; by default to 2049."""
        file_name = name.replace("*", "_")
        self._request(file_name, subject)
        text = self._configuration.read_text() + _LEAF.format(usage=usage)
        if names:
            text += f"subjectAltName = {names}\n"
        configuration = self.folder / f"{file_name}.cnf"
        configuration.write_text(text)
        dates = ["-startdate", begin, "-enddate", end or "20491231235959Z"]
        certfile = self._sign(file_name, "leaf", configuration, *dates)
        certfile.write_text(certfile.read_text() + (self.folder / "intermediate.pem").read_text())
        return Issued(name, certfile, self.folder / f"{file_name}.key")

    def expired(self, name: str) -> Issued:
        """A client's certificate that was valid once."""
        return self.client(name, end="20210101000000Z")

    def revoke(self, issued: Issued) -> None:
        """`crl` has it from now on."""
        self._ca("-revoke", str(issued.certfile))
        self.renew_crl()

    def renew_crl(self) -> None:
        """Write `crl` anew."""
        self._ca("-gencrl", "-out", str(self.crl))

    def _request(self, name: str, subject: str) -> None:
        key, request = self.folder / f"{name}.key", self.folder / f"{name}.csr"
        _openssl(
            "req", "-new", *self._key_type, "-nodes", "-utf8", "-config", str(self._configuration),
            "-keyout", str(key), "-out", str(request), "-subj", subject,
        )  # fmt: skip

    def _sign(
        self, name: str, section: str, configuration: Path, *arguments: str, authority: str = "intermediate"
    ) -> Path:
        certfile = self.folder / f"{name}.pem"
        dates = () if "-startdate" in arguments else ("-startdate", "20200101000000Z", "-enddate", "20491231235959Z")
        self._ca(
            "-in", str(self.folder / f"{name}.csr"), "-out", str(certfile), "-extensions", section, "-notext",
            *arguments, *dates, authority=authority, configuration=configuration,
        )  # fmt: skip
        return certfile

    def _ca(self, *arguments: str, authority: str = "intermediate", configuration: Path | None = None) -> None:
        command = ["ca", "-batch", "-utf8", "-config", str(configuration or self._configuration)]
        command += ["-keyfile", str(self.folder / f"{authority}.key")]
        if "-selfsign" not in arguments:
            command += ["-cert", str(self.folder / f"{authority}.pem")]
        _openssl(*command, *arguments)


def _openssl(*arguments: str) -> None:
    binary = shutil.which("openssl")
    if binary is None:
        raise RuntimeError("openssl is not installed: it is in the Debian package of that name")
    done = subprocess.run([binary, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(arguments)}: {done.stderr[-2000:]}")
