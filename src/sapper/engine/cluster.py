"""The executor for many machines: each stage becomes a task on a Ray cluster, and the Store is what all of them see.

Before anything is made, every machine of the cluster shows that it has the same versions of all that a result depends
on, and that it sees the same Store. A task whose process or machine is killed is given to another one. What had been
finished is in the Store; what had been begun goes on from its checkpoint where the Store is a folder of all machines,
and begins anew where it is a bucket. Either way it ends the same.
"""

import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sapper.engine.executors import Ready, Tell, make_packed, nothing, packed
from sapper.engine.store import Finished, Store
from sapper.errors import SapperError

if TYPE_CHECKING:
    from sapper.engine.stage import Stage

COMPARED = ("sapper", "torch", "torchvision", "timm", "numpy", "scikit-learn", "open_clip_torch")
"""Packages that all machines must have in the same version, or not at all."""

RETRIES = 5
"""How often a stage is begun anew whose process or machine was killed."""

PATIENCE = 60.0
"""Seconds that each machine gets to answer before any work is given to it."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else Ray reports to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it hides all GPUs from work that asks for none, with a warning
    "RAY_raylet_start_wait_time_s": "300",  # a busy machine takes longer than it thinks
}
"""Environment variables that Ray reads, where the user has not set them."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster at ``address``, such as ``10.0.0.1:6379``; none: the running one, or one of this machine alone.

    ``settle`` is called in each process before torch is loaded.
    """

    address: str | None = None
    settle: Callable[[], None] = nothing

    def takes(self, stage: "Stage") -> bool:
        return True

    def make(self, missing: list["Stage"], done: dict["Stage", Finished], store: Store, tell: Tell) -> None:
        """See ``Executor``. Raises ``SapperError`` for a cluster that cannot be reached, or cannot do the work."""
        with _connected(self.address) as ray:
            _check_machines(ray, store.absolute())
            _check_room(ray, missing)
            call = ray.remote(_call)
            under_way: dict[Any, Stage] = {}
            ready = Ready(missing, done)
            try:
                while ready.waiting or under_way:
                    for stage in ready.take(len(ready.waiting)):
                        wanted = call.options(**_needs(stage), max_retries=RETRIES, retry_exceptions=False)
                        under_way[wanted.remote(self.settle, packed(stage, store, done))] = stage
                    (first, *_), _ = ray.wait(list(under_way), num_returns=1)
                    stage = under_way.pop(first)
                    done[stage] = _answer(ray, first, stage, store)
                    tell(stage, done[stage])
            except BaseException:
                for each in under_way:
                    ray.cancel(each, force=True)
                raise


def _needs(stage: "Stage") -> dict[str, float]:
    """What Ray is to keep free for a stage."""
    gpus = {"num_gpus": 1.0} if stage.run.device.type == "cuda" else {}
    return {"num_cpus": float(stage.threads)} | gpus


def _call(settle: Callable[[], None], job: bytes) -> Finished | SapperError:
    """In another process: make a stage. Its mistakes come back as values, which Ray leaves as they are."""
    settle()
    try:
        return make_packed(job)
    except SapperError as error:
        return error


def _answer(ray: Any, ref: Any, stage: "Stage", store: Store) -> Finished:
    """What became of a stage."""
    try:
        made = ray.get(ref)
    except ray.exceptions.RayTaskError:
        raise  # a fault of ours, with its traceback
    except ray.exceptions.RayError as error:
        what, remedy = f"the cluster lost {stage.work.name} {RETRIES + 1} times", "was its memory full?"
        where = stage.title or stage.place
        raise SapperError(what, where=where, remedy=f"{remedy} finished parts are kept") from error
    if isinstance(made, SapperError):
        raise made
    assert isinstance(made, Finished)
    return Finished(store.here(made.folder), made.seconds, made.cached)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected. Raises ``SapperError`` where it is not installed, or nobody answers."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise SapperError("Ray is not installed", where="--executor", remedy="pip install 'sapper[ray]'") from error
    if ray.is_initialized():  # the caller's own
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        _call_up(address)
        _join(ray, address, quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where, remedy = address or "ray", "start one with `ray start --head`, and name its address with --ray-address"
        raise SapperError(f"no Ray cluster answers: {error}", where=where, remedy=remedy) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _call_up(address: str | None) -> None:
    """Raises ``OSError`` when nobody listens at an address, which Ray itself finds out in minutes."""
    host, _, port = (address or os.environ.get("RAY_ADDRESS") or "").rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _join(ray: Any, address: str | None, quiet: dict[str, Any]) -> None:
    if address is not None or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **quiet)
        return
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:  # none is running: this machine is the cluster
        ray.init(include_dashboard=False, **quiet)


def _look(name: str, store: Store) -> dict[str, str | None]:
    """In another process: what this machine has, and what it reads in the Store, where it leaves an answer."""
    host = platform.node() or "a machine"
    seen: str | None
    try:
        seen = store.noted(name)
        store.note(f"{name}-answer", seen or "")
    except SapperError as error:
        seen = str(error)
    return versions() | {"machine": host, "the store": seen, "Python": platform.python_version()}


def versions() -> dict[str, str | None]:
    """Those of ``COMPARED`` that are installed here."""
    found: dict[str, str | None] = {}
    for name in COMPARED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _check_machines(ray: Any, store: Store) -> None:
    """Raises ``SapperError`` when a machine has other versions, or sees another Store."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name, word = f".cluster-{secrets.token_hex(8)}", secrets.token_hex(16)
    store.note(name, word)
    try:
        for node in (node for node in ray.nodes() if node["Alive"]):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=there)
            try:
                seen = ray.get(look.remote(name, store), timeout=PATIENCE)
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError, ImportError) as error:
                where = f"machine {node.get('NodeManagerHostname', '?')}"
                remedy = "does it have sapper, in the version that is here, and can it see the store?"
                raise SapperError("it cannot do any work", where=where, remedy=remedy) from error
            _compare(seen, word, store.noted(f"{name}-answer"), str(getattr(store, "url", store.root)))
            store.forget(f"{name}-answer")
    finally:
        store.forget(name)
        store.forget(f"{name}-answer")


def _compare(seen: dict[str, str | None], word: str, answer: str | None, where: str) -> None:
    """Raises ``SapperError`` when what a machine has ``seen`` is not what is here."""
    machine = f"machine {seen['machine']}"
    if seen["the store"] != word or answer != word:
        what = f"{machine} sees another store than this one"
        raise SapperError(what, where=where, remedy="name a folder that all machines mount, or a bucket, with --store")
    for name, ours in [("Python", platform.python_version()), *versions().items()]:
        if (theirs := seen[name]) != ours:
            what = f"it has {name} {theirs or 'not at all'}, this one has {ours or 'none'}"
            raise SapperError(what, where=machine, remedy="install the same versions on all machines")


def _check_room(ray: Any, missing: list["Stage"]) -> None:
    """Raises ``SapperError`` for a stage that no machine of the cluster has enough cores or GPUs for."""
    for key, word in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        wanted = max(_needs(stage).get(key, 0.0) for stage in missing)
        most = max((node["Resources"].get(word, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if wanted > most:
            what = f"a stage needs {wanted:g} {word}s, and no machine of the cluster has more than {most:g}"
            remedy = "lower --threads" if word == "CPU" else "add a machine with a GPU, or set --device cpu"
            raise SapperError(what, where="--executor", remedy=remedy)
