"""Rendezvous of a job's processes: process 0 counts the others at the port where jax's coordinator will listen."""

import contextlib
import errno
import select
import socket
import sys
import time
from dataclasses import dataclass

from lm.errors import UserError, check, one_line

FORM = "give 'auto' or HOST:PORT,COUNT,INDEX, with an INDEX from 0 to COUNT - 1"
QUIET = 10.0  # seconds of waiting before the first notice


@dataclass(frozen=True)
class Place:
    """One process of a job: the address of process 0, the number of processes, and the index of this one."""

    host: str
    port: int
    count: int
    index: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def read_place(text: str) -> Place:
    """Parse HOST:PORT,COUNT,INDEX; raises UserError where it cannot be a job, or the host has no address."""
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    check(host and len(numbers) == 2 and all(one.isdecimal() for one in (port, *numbers)), f"--distributed={text}: {FORM}")
    place = Place(host, int(port), *map(int, numbers))
    check(0 < place.port < 65536, f"--distributed={text}: port {port} is not from 1 to 65535")
    check(place.count > 0, f"--distributed={text}: {place.count} processes are none; {FORM}")
    check(place.index < place.count, f"--distributed={text}: there is no process {place.index} of {place.count}; {FORM}")
    try:
        socket.getaddrinfo(host.strip("[]"), place.port)
    except OSError as error:
        raise UserError(f"--distributed={text}: '{host}' is no host that this machine can find ({error.strerror})") from None
    return place


class Line:
    """A connection for short text lines; it closes when the peer dies, or its machine is silent for `heartbeat` seconds."""

    def __init__(self, connection: socket.socket, heartbeat: float):
        self.connection, self.rest, self.open = connection, b"", True
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # One pause of silence, then four probes; lines that nobody acknowledges end at the same time.
        pause, silence = max(1, int(heartbeat / 5)), int(1000 * heartbeat)
        limits = (("TCP_KEEPIDLE", pause), ("TCP_KEEPINTVL", pause), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", silence))
        for name, value in limits:
            if hasattr(socket, name):  # Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, text: str) -> None:
        """Send a line; a closed connection is noticed by `read`."""
        with contextlib.suppress(OSError):
            self.connection.sendall(f"{one_line(text)}\n".encode())

    def read(self) -> list[str]:
        """Block for data; return its complete lines. `open` is False after the last."""
        try:
            data = self.connection.recv(4096)
        except OSError:
            data = b""
        self.open = bool(data)
        *lines, self.rest = (self.rest + data)[-8192:].split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


class Wait:
    """A deadline with notices: the first after QUIET seconds, then one a minute."""

    def __init__(self, timeout: float):
        self.began, self.next, self.timeout = time.monotonic(), QUIET, timeout

    def say(self, what: str) -> bool:
        """Print a due notice; return False after the deadline."""
        waited = time.monotonic() - self.began
        if waited >= self.next:
            self.next = waited + 60
            print(f"waiting for {what} (for {self.timeout - waited:.0f} s more)", file=sys.stderr, flush=True)
        return waited < self.timeout


def gather(place: Place, timeout: float, heartbeat: float = 30) -> dict[int, Line]:
    """As process 0, wait for all others; return index -> connection. Raises UserError after `timeout` seconds."""
    # On all interfaces: the name in HOST may resolve differently on other machines.
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", place.port), family=family, dualstack_ipv6=both)
    except OSError as error:
        taken = f"port {place.port} is taken on this machine, by another job or program"
        reason = taken if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(f"--distributed: process 0 cannot listen at {place.address}: {reason}; name another port") from None
    peers: dict[int, Line] = {}
    strangers: list[Line] = []
    wait = Wait(timeout)
    # Newcomers are strangers until their first line, so that a silent connection blocks nobody.
    with listener:
        while len(peers) < place.count - 1:
            lacking = place.count - 1 - len(peers)
            what = f"{lacking} of {place.count} processes at {place.address}"
            if not wait.say(what):
                late = f"waited {timeout:.0f} s for {what}: start each with its own index, or raise --distributed_timeout"
                for line in peers.values():
                    line.send(f"no {late}")
                raise UserError(late)
            waiting: list[socket.socket | Line] = [listener, *strangers, *peers.values()]
            for ready in select.select(waiting, [], [], 0.5)[0]:
                if isinstance(ready, socket.socket):
                    strangers.append(Line(listener.accept()[0], heartbeat))
                elif ready in strangers:
                    strangers.remove(ready)
                    admit(place, ready, peers)
                else:  # a process that came and ended again: its index is free for a restart
                    ready.read()
                    peers = {index: line for index, line in peers.items() if line.open}
    # The listener is closed by now: jax's coordinator takes the port.
    for line in peers.values():
        line.send("go")
    return peers


def admit(place: Place, line: Line, peers: dict[int, Line]) -> None:
    """Accept a process that introduces itself correctly, or refuse it with the reason."""
    words = (line.read() or [""])[0].split()
    if len(words) != 3 or words[0] != "lm" or not (words[1].isdecimal() and words[2].isdecimal()):
        return line.connection.close()  # a port scanner, or another program
    index, count = int(words[1]), int(words[2])
    if count != place.count:
        line.send(f"no process 0 at {place.address} waits for {place.count} processes, this one for {count}: COUNT is the same")
    elif index in peers or not 0 < index < count:
        line.send(f"no process {index} of {count} is at {place.address} already: give each process its own INDEX")
    else:
        peers[index] = line


def arrive(place: Place, timeout: float, heartbeat: float = 30) -> Line:
    """As another process, connect to process 0 and wait for its `go`. Raises UserError when refused or after `timeout`."""
    wait, line, what = Wait(timeout), None, f"process 0 of {place.count} at {place.address}"
    late = f"waited {timeout:.0f} s for {what}: start it, look at HOST:PORT, or raise --distributed_timeout"
    while True:
        check(wait.say(what if line is None else f"the rest of {place.count} processes at {place.address}"), late)
        if line is None:
            try:
                connection = socket.create_connection((place.host.strip("[]"), place.port), timeout=2)
                line = Line(connection, heartbeat)
                line.connection.settimeout(None)
                line.send(f"lm {place.index} {place.count}")
            except OSError:
                time.sleep(0.2)
        elif select.select([line], [], [], 0.5)[0]:
            for message in line.read():
                check(not message.startswith("no "), f"--distributed: {message.removeprefix('no ')}")
                if message == "go":
                    return line
            if not line.open:
                line = None  # process 0 ended, or another program listens there
                time.sleep(0.5)
