"""What stands on the other side of a delivery: HTTP servers with and without TLS, proxies, and who vouches for them.

All on loopback and on the test's own event loop; certificates are made when asked for, and last a day.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import itertools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Identity:
    """Files of one certificate and its key."""

    cert_file: str
    key_file: str


class LocalNames(AbstractResolver):
    """Knows `localhost` and the names it is given, at once and wherever the tests run.

    A name has a list of addresses for each time it is asked for; the last goes on. `asked` are the names in turn.
    """

    def __init__(self, **names: list[list[str]]) -> None:
        self._names = {"localhost": [["127.0.0.1"]]} | names
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self._names:
            raise OSError(f"no such name: {host}")
        answers = self._names[host]
        addresses = answers[min(self.asked.count(host), len(answers) - 1)]
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=0,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None: ...


class Authority:
    """A certificate authority whose files go into `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._names = (f"{name}-{number}" for number in itertools.count())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = self._write("ca.pem", self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str = "localhost", *, passphrase: bytes | None = None) -> Identity:
        """For a server on 127.0.0.1 named `name`, or for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            _builder(_common_name(name), self._name, key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
        )
        return Identity(
            self._write("cert.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write("key.pem", private),
        )

    def server_context(self, name: str = "localhost", *, client_authority: Authority | None = None) -> ssl.SSLContext:
        """A server vouched for by this authority; with `client_authority` it demands a client certificate."""
        identity = self.issue(name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.cert_file, identity.key_file)
        if client_authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_authority.ca_file)
        return context

    def _write(self, kind: str, content: bytes) -> str:
        file = self._folder / f"{next(self._names)}-{kind}"
        file.write_bytes(content)
        return str(file)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    client_name: str | None = None  # of the client's certificate


class _Server:
    """Serves each connection on a task, and leaves nothing open."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.requests: list[Request] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


@dataclass
class Answer:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        headers = {"content-length": str(len(self.body))} | self.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} Told\r\n{lines}\r\n".encode() + self.body


class Peer(_Server):
    """A receiver. `answer` makes each answer from its request; None: the connection is closed without one.

    With `gate` every answer waits until the gate is set.
    """

    def __init__(
        self,
        answer: Callable[[Request], Answer | None] = lambda _: Answer(),
        *,
        context: ssl.SSLContext | None = None,
        gate: asyncio.Event | None = None,
    ) -> None:
        super().__init__(context)
        self._answer = answer
        self._gate = gate
        self.asked = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _read_request(reader, _client_name(writer))) is not None:
            self.requests.append(request)
            self.asked.set()
            if self._gate is not None:
                await self._gate.wait()
            answer = self._answer(request)
            if answer is None:
                return
            writer.write(answer.encoded())
            await writer.drain()
            if request.headers.get("connection") == "close":
                return


class ProxyPeer(_Server):
    """A proxy: tunnels CONNECT, forwards the rest. `requests` are those made to the proxy itself.

    `refuse` answers each request with that status; `hang_up` closes before any answer.
    """

    def __init__(
        self, *, context: ssl.SSLContext | None = None, refuse: int | None = None, hang_up: bool = False
    ) -> None:
        super().__init__(context)
        self._refuse = refuse
        self._hang_up = hang_up

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _read_request(reader, None)) is not None:
            self.requests.append(request)
            if self._hang_up:
                return
            if self._refuse is not None:
                writer.write(Answer(self._refuse, b"no").encoded())
            elif request.method == "CONNECT":
                await self._tunnel(request, reader, writer)
            else:
                writer.write(await self._forward(request))
            await writer.drain()

    async def _tunnel(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._reach(f"//{request.target}")
        except OSError:
            writer.write(Answer(502, b"no").encoded())
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, back), _pump(there, writer))

    async def _forward(self, request: Request) -> bytes:
        try:
            there, back = await self._reach(request.target)
        except OSError:
            return Answer(502, b"no").encoded()
        back.write(_forwarded(request))
        return await there.read()

    async def _reach(self, url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(url)
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        self._writers.append(back)
        return there, back


def _forwarded(request: Request) -> bytes:
    path = urlsplit(request.target).path
    headers = "".join(f"{n}: {v}\r\n" for n, v in request.headers.items() if not n.startswith("proxy-"))
    return f"{request.method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n".encode() + request.body


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(65536):
            sink.write(chunk)
            await sink.drain()
    sink.close()


async def _read_request(reader: asyncio.StreamReader, client_name: str | None) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body, client_name)


def _client_name(writer: asyncio.StreamWriter) -> str | None:
    certificate = writer.get_extra_info("peercert")
    if not certificate:
        return None
    return next(str(value) for part in certificate["subject"] for key, value in part if key == "commonName")
