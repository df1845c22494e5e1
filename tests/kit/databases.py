"""Real PostgreSQL, MariaDB and OpenLDAP servers for tests: in folders of their own, on free ports, stopped by pid.

The database servers refuse to run as root: then they run as the users that their Debian packages make.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psycopg
import pymysql

from tests.kit.certificates import Chain
from tests.kit.ports import free_port
from tests.kit.redis_server import wait_until

PASSWORD = "the server's own ' password"
STOP_LIMIT_S = 20.0


def find(program: str, package: str, *folders: str) -> str:
    """The path of a server program; the tests cannot do without it."""
    path = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=path)
    if found is None:
        raise RuntimeError(f"{program} is not installed: it is in the Debian package {package}")
    return found


class Server(ABC):
    """One server process. `stop`, `kill`, `start` again: the same port and the same data."""

    #: Who it runs as where the tests run as root.
    USER: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: dict[str, Any] = {}
        if self.USER and os.geteuid() == 0:
            user = pwd.getpwnam(self.USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def certify(self) -> None:
        """Make a certificate that the server may read."""
        self.chain = Chain(self.folder / "tls")
        self.issued = self.chain.server("server")
        if self._identity:
            for path in [self.folder / "tls", *(self.folder / "tls").iterdir()]:
                os.chown(path, self._identity["user"], self._identity["group"])

    def run(self, *command: str) -> None:
        """A program of the server's, as its user, to the end."""
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=60, check=False, **self._identity)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr)[-2000:].decode(errors='replace')}")

    @abstractmethod
    def prepare(self) -> None:
        """What is done once, before the first start."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The server in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves clients."""

    def start(self) -> None:
        """Returns when the server answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._identity
            )

        def ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text(errors='replace')[-2000:]}")
            return self.answers()

        wait_until(ready)

    def _pids(self) -> list[int]:
        """The server and its children: PostgreSQL has one for each connection."""
        assert self._process is not None
        found = [self._process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pause(self) -> None:
        """Alive, but silent; the kernel still accepts connections for it."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Whatever state it is in, it is gone afterwards; clients are cut off."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            self._signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT if self.USER == "postgres" else signal.SIGTERM)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                process.wait()
        self._process = None


class Postgresql(Server):
    """PostgreSQL with SCRAM passwords; the superuser is postgres."""

    USER = "postgres"

    def prepare(self) -> None:
        folders = [str(path / "bin") for path in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)]
        self._server = find("postgres", "postgresql", *folders)
        self.certify()
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["-A", "scram-sha-256", "--pwfile", str(password), "-U", "postgres", "-E", "UTF8", "--no-locale"]
        self.run(find("initdb", "postgresql", *folders), "-D", str(self.folder / "data"), *options, "--no-sync")

    def command(self) -> Sequence[str]:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder), "fsync": "off"}
        settings |= {"ssl": "on", "ssl_cert_file": str(self.issued.certfile), "ssl_key_file": str(self.issued.keyfile)}
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        return [self._server, "-D", str(self.folder / "data"), "-p", str(self.port), *options]

    @property
    def url(self) -> str:
        """As the broker takes it."""
        return f"postgresql://127.0.0.1:{self.port}/postgres"

    def execute(self, *statements: str) -> None:
        """As the superuser."""
        with psycopg.connect(self.url, user="postgres", password=PASSWORD, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


class Mariadb(Server):
    """MariaDB; the superuser is root."""

    USER = "mysql"

    def prepare(self) -> None:
        self._server = find("mariadbd", "mariadb-server")
        self.certify()
        install = find("mariadb-install-db", "mariadb-server")
        options = ["--no-defaults", f"--datadir={self.folder / 'data'}", "--skip-test-db"]
        self.run(install, *options, "--auth-root-authentication-method=normal", "--skip-name-resolve")
        self._password = ""

    def command(self) -> Sequence[str]:
        paths = [
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 's'}",
            f"--pid-file={self.folder / 'p'}",
        ]
        network = ["--bind-address=127.0.0.1", f"--port={self.port}", "--skip-name-resolve"]
        speed = ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"]
        tls = [f"--ssl-cert={self.issued.certfile}", f"--ssl-key={self.issued.keyfile}", f"--ssl-ca={self.chain.ca}"]
        return [self._server, "--no-defaults", *paths, *network, *speed, *tls]

    @property
    def url(self) -> str:
        """As the broker takes it; the database is called mqtt."""
        return f"mysql://127.0.0.1:{self.port}/mqtt"

    def execute(self, *statements: str) -> None:
        """As the superuser."""
        connection = pymysql.connect(unix_socket=str(self.folder / "s"), user="root", autocommit=True)
        try:
            with connection.cursor() as cursor:
                for statement in ("CREATE DATABASE IF NOT EXISTS mqtt CHARACTER SET latin1", "USE mqtt", *statements):
                    cursor.execute(statement)
        finally:
            connection.close()

    def answers(self) -> bool:
        # The driver leaves a socket behind where nobody listens.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.folder / "s")):
                return False
        try:
            self.execute("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True


class Slapd(Server):
    """OpenLDAP with the suffix dc=example,dc=org; TLS with a certificate of `chain`."""

    TLS: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tls_port = free_port()

    def prepare(self) -> None:
        self._server = find("slapd", "slapd")
        (self.folder / "data").mkdir()
        self.certify()
        tls = (
            f"TLSCACertificateFile {self.chain.ca}\nTLSCertificateFile {self.issued.certfile}\n"
            f"TLSCertificateKeyFile {self.issued.keyfile}\n"
        )
        self.configuration = self.folder / "slapd.conf"
        self.configuration.write_text(
            "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
            + f"pidfile {self.folder / 'pid'}\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n"
            + (tls if self.TLS else "")
            + f'database mdb\nmaxsize 10485760\nsuffix "dc=example,dc=org"\ndirectory {self.folder / "data"}\n'
            f'rootdn "cn=admin,dc=example,dc=org"\nrootpw "admin password"\nindex objectClass eq\nindex uid eq\n'
            "access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by * none\n"
        )

    def load(self, ldif: str) -> None:
        """Entries, before it is started."""
        path = self.folder / "entries.ldif"
        path.write_text(ldif)
        self.run(find("slapadd", "slapd"), "-q", "-f", str(self.configuration), "-l", str(path))

    def command(self) -> Sequence[str]:
        urls = f"ldap://127.0.0.1:{self.port}" + (f" ldaps://127.0.0.1:{self.tls_port}" if self.TLS else "")
        return [self._server, "-h", urls, "-f", str(self.configuration), "-d", "0"]

    @property
    def url(self) -> str:
        """As the broker takes it."""
        return f"ldap://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0):
                return True
        except OSError:
            return False


class PlainSlapd(Slapd):
    """Without TLS."""

    TLS = False


S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def prepared(of: type[S]) -> Iterator[S]:
    """A server that was not started yet, in a folder that others may look into; stopped in the end."""
    with tempfile.TemporaryDirectory(prefix="rookery-") as folder:
        Path(folder).chmod(0o755)
        server = of(Path(folder))
        server.prepare()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def running(of: type[S]) -> Iterator[S]:
    """A server that answers."""
    with prepared(of) as server:
        server.start()
        yield server
