"""A headless ComfyUI with the pack and the stand-in models: started, asked, and always stopped.

    with Server(base_directory(folder)) as server:
        entry = server.run(graph)

Needs the standard library; `run` also aiohttp, which every ComfyUI has. Loads as a plain file, by path.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "spectralcache"
STAND_IN = "spectralcache_stand_in"
STAND_IN_PACK = ROOT / "tests" / "packs" / "stand_in"
WEIGHTS = ROOT / "bench" / "weights"
KINDS = {"diffusion_models": "*_flux*.safetensors", "vae": "*_taef1.safetensors"}
"""The host's folders for models to the small ones that its own loaders read."""
LOG_TAIL_LINES = 30
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class HostError(RuntimeError):
    """The host cannot start, did not answer, refused a graph or failed in it."""


class Interrupted(HostError):
    """The run was interrupted on request."""


class PortTaken(HostError):
    """Something else listens on the port."""


# --- the base directory ---------------------------------------------------------------------------------------------


def base_directory(path: Path | str) -> Path:
    """Prepares a ComfyUI base directory with the pack, the stand-in models and their workflows. May exist already."""
    base = Path(path).absolute()
    for folder in ("input", "output", "temp", "models", "custom_nodes", "user/default/workflows"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for kind, pattern in KINDS.items():
        found = sorted(WEIGHTS.glob(pattern))
        if not found:
            raise HostError(f"{WEIGHTS / pattern} is missing; fetch the whole repository again.")
        for weights in found:
            link(base / "models" / kind / weights.name, weights)
    link(base / "custom_nodes" / PACK, ROOT)
    link(base / "custom_nodes" / STAND_IN, STAND_IN_PACK)
    for workflow in sorted((STAND_IN_PACK / "workflows").glob("*.json")):
        target = base / "user" / "default" / "workflows" / "SpectralCache" / workflow.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(workflow, target)
    return base


def link(target: Path, source: Path) -> None:
    """Makes `target` stand for `source`: a symlink, or what Windows allows without special rights."""
    if not source.exists():
        raise HostError(f"{source} is missing; fetch the whole repository again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _unlink(target)
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        if sys.platform == "win32" and source.is_dir():
            import _winapi

            _winapi.CreateJunction(str(source.resolve()), str(target))
        elif source.is_file():
            shutil.copy2(source, target)
        else:
            raise


def _unlink(target: Path) -> None:
    """Removes an earlier link, junction or copied file; a real folder is not ours to remove."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        target.rmdir()


# --- the server -----------------------------------------------------------------------------------------------------


class Server:
    """One ComfyUI process on 127.0.0.1, from `__enter__` to `__exit__`, and the client that talks to it.

    comfyui, python  default to COMFYUI_PATH and this interpreter
    port             None: a free one
    cpu              None: --cpu where there is no CUDA (or ROCm) device
    console          True: the host writes to this terminal; False: to `comfyui.log` in the base directory
    """

    def __init__(
        self,
        base: Path,
        *,
        comfyui: Path | str | None = None,
        python: Path | str = sys.executable,
        port: int | None = None,
        cpu: bool | None = None,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        console: bool = False,
        ready_within: float = 180,
    ) -> None:
        comfyui = comfyui or os.environ.get("COMFYUI_PATH")
        if not comfyui:
            raise HostError("COMFYUI_PATH is not set; start this through dev.py, or set it to a ComfyUI folder.")
        self.base = Path(base)
        self.comfyui = Path(comfyui)
        self.python = str(python)
        self.port = port
        self.cpu = cpu
        self.arguments = arguments
        self.environment = environment
        self.log = None if console else self.base / "comfyui.log"
        self.ready_within = ready_within
        self.process: subprocess.Popen[bytes] | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        try:
            self._catch_signals()
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the host and every process it started. Interrupts wait until that is done."""
        with _undisturbed():
            if self.process is not None:
                _end_tree(self.process)
                self.process = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def wait(self) -> int:
        """Blocks until the host ends by itself; returns its exit code. Stays open to Ctrl-C, on Windows too."""
        assert self.process is not None
        while self.process.poll() is None:
            time.sleep(0.3)
        return self.process.returncode

    def _catch_signals(self) -> None:
        """Being told to stop ends in `__exit__`, instead of leaving the host behind."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, signal.default_int_handler)

    def _start(self) -> None:
        if self.port is None:
            self.port = free_port()
        else:
            require_free_port(self.port)
        if self.cpu is None:
            self.cpu = not cuda_available(self.python)
        options: dict[str, Any] = {"cwd": self.base, "env": self.environment, "stdin": subprocess.DEVNULL}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options["start_new_session"] = True
        if self.log is None:
            self.process = subprocess.Popen(self.command(), **options)
        else:
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT, **options)

    def command(self) -> list[str]:
        """The host's command line: only our packs, nothing shared with other ComfyUIs, no network."""
        command = [self.python, str(self.comfyui / "main.py"), "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-api-nodes"]
        command += ["--database-url", "sqlite:///:memory:", "--disable-all-custom-nodes"]
        command += ["--whitelist-custom-nodes", PACK, STAND_IN]
        return [*command, *(["--cpu"] if self.cpu else []), *self.arguments]

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.ready_within
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise HostError(f"ComfyUI ended with code {self.process.returncode} while starting.{self.log_tail()}")
            with suppress(HostError, OSError):
                self._request("/system_stats")
                return
            time.sleep(0.2)
        raise HostError(f"ComfyUI was not ready within {self.ready_within:.0f} seconds.{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the host's log, for error messages."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(["", f"The end of {self.log}:", *lines])

    # --- the client

    def queue(self, graph: dict[str, Any], client_id: str | None = None) -> str:
        """Queues a graph in API format; returns its prompt id. Raises HostError with what the host has against it."""
        body = {"prompt": graph, "client_id": client_id or uuid.uuid4().hex}
        try:
            answer = json.loads(self._request("/prompt", body))
        except urllib.error.HTTPError as error:
            raise HostError(_refusal(json.loads(error.read()))) from None
        if answer["node_errors"]:  # the host would run the other outputs and leave these out
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            raise HostError(_refusal(answer))
        return answer["prompt_id"]

    def run(
        self,
        graph: dict[str, Any],
        on_progress: Callable[[int, int], None] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        timeout: float = 900,
    ) -> dict[str, Any]:
        """Runs a graph to its end and returns its history entry: {outputs: {node: ...}, status: ...}.

        on_progress(value, maximum) is called on the sampler's steps, on_event(type, data) on every message of the host.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._run(graph, on_progress, on_event), timeout))
        except asyncio.TimeoutError:
            self.interrupt()
            raise HostError(f"The graph did not end within {timeout:.0f} seconds.{self.log_tail()}") from None

    async def _run(
        self,
        graph: dict[str, Any],
        on_progress: Callable[[int, int], None] | None,
        on_event: Callable[[str, dict[str, Any]], None] | None,
    ) -> dict[str, Any]:
        import aiohttp

        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            try:
                messages = await session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0)
            except aiohttp.ClientError as error:
                raise HostError(f"ComfyUI does not answer ({error}).{self.log_tail()}") from None
            prompt_id = self.queue(graph, client_id)
            async for message in messages:
                if message.type is not aiohttp.WSMsgType.TEXT:  # preview images
                    continue
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data") or {}
                if on_event is not None:
                    on_event(kind, data)
                if data.get("prompt_id") != prompt_id:
                    continue
                if kind == "progress" and on_progress is not None:
                    on_progress(data["value"], data["max"])
                elif kind == "execution_interrupted":
                    raise Interrupted(f"Interrupted in {data['node_type']} (node {data['node_id']}).")
                elif kind == "execution_error":
                    raise HostError(_failure(data))
                elif kind == "executing" and data["node"] is None:
                    return self.history(prompt_id)
        raise HostError(f"ComfyUI closed the connection during the run.{self.log_tail()}")

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt that has ended."""
        return json.loads(self._request(f"/history/{prompt_id}"))[prompt_id]

    def image(self, reference: dict[str, str]) -> bytes:
        """An image as the history names it: {filename, subfolder, type}."""
        return self._request("/view?" + urllib.parse.urlencode(reference))

    def object_info(self, node: str) -> dict[str, Any]:
        """What the host tells the frontend about a node class."""
        answer = json.loads(self._request(f"/object_info/{urllib.parse.quote(node)}"))
        if node not in answer:
            raise HostError(f"ComfyUI has no node {node}; the pack may have failed to load.{self.log_tail()}")
        return answer[node]

    def set(self, settings: dict[str, Any]) -> None:
        """Changes settings of the page's user, for pages that are loaded from now on."""
        self._request("/settings", settings)

    def interrupt(self) -> None:
        """Stops the graph that is running."""
        self._request("/interrupt", {})

    def _request(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        # An empty ProxyHandler: a proxy from the environment cannot reach this machine's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise HostError(f"ComfyUI does not answer ({error}).{self.log_tail()}") from None


# --- small parts ----------------------------------------------------------------------------------------------------


def require_free_port(port: int) -> None:
    """Raises PortTaken where a server could not listen on the port."""
    with socket.socket() as probe:
        if os.name != "nt":  # as servers do, so that a port that was just given up counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortTaken(
                f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}); stop what runs there or choose another "
                f"one with --port {port + 1}."
            ) from None


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cuda_available(python: str) -> bool:
    """Whether the host's torch sees a CUDA or ROCm device. Asked in a process of its own: importing torch is heavy."""
    code = "import torch; print(torch.cuda.is_available())"
    with tempfile.TemporaryDirectory() as empty:  # -c puts the current folder on sys.path
        answer = subprocess.run([python, "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    return answer.stdout.strip() == "True"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds back interrupts in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its descendants: asks first, then insists."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait(10)
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # the group is gone already
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _refusal(answer: dict[str, Any]) -> str:
    """The host's reasons for refusing a graph, in lines."""
    lines = ["ComfyUI refused the graph."]
    if answer.get("error"):
        lines.append(f"{answer['error']['message']}: {answer['error'].get('details', '')}")
    for node, problem in (answer.get("node_errors") or {}).items():
        for error in problem["errors"]:
            lines.append(f"{problem['class_type']} (node {node}): {error['message']}: {error['details']}")
    return "\n".join(lines)


def _failure(data: dict[str, Any]) -> str:
    """An execution error of the host, with its traceback."""
    head = f"{data['node_type']} (node {data['node_id']}) raised {data['exception_type']}: {data['exception_message']}"
    return "\n".join([head.strip(), *data["traceback"]])
