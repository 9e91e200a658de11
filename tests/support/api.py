"""The API on a port of its own over the in-memory adapters, and a client that can
send what no decent client sends."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from taskd.api import create_api
from taskd.api.server import ApiServer
from taskd.config import AuthConfig, Config, ServerConfig
from taskd.delivery.egress import Egress
from taskd.delivery.transport import validate_link_url
from taskd.domain.model import App, NonceUse, TaskDetail
from taskd.domain.signing import payload_digest, sign
from taskd.ports.store import Store
from taskd.service.service import NewApp
from taskd.stores.memory import MemoryStore
from tests.support.clocks import SteppableClock
from tests.support.node import Node

NOW_S = 1_626_418_779
ADMIN_KEY = "admin"
ADMIN_SECRET = "0123456789abcdef0123456789abcdef"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
LINK_URL = "http://127.0.0.1:9000/cb"
TASK = {"taskNo": "order-1001", "name": "close order", "content": '{"order":1001}', "timeout": 5000}

Headers = dict[str, str]


class StoppedClock(SteppableClock):
    """A wall clock that moves only when a test steps it."""

    def now_ms(self) -> int:
        return self._start_ms + self._stepped_ms

    def now_ns(self) -> int:
        return self.now_ms() * 1_000_000


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        assert value.keys() == {"code", "msg", "data"}
        return value

    @property
    def code(self) -> int:
        return int(self.json["code"])

    @property
    def msg(self) -> str:
        return str(self.json["msg"])

    @property
    def data(self) -> Any:  # noqa: ANN401 - each endpoint's own
        return self.json["data"]


class Wire:
    """A connection, used by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next response."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        self._buffer = self._buffer[end + 4 :]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        status = int(lines[0].split(" ")[1])
        length = 0 if head_only or status < 200 else int(headers["content-length"])
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(status, headers, body)

    async def _more(self) -> None:
        data = await self.stream.receive_some(65_536)
        if not data:
            raise EOFError(f"the server closed after {self._buffer!r}")
        self._buffer += data

    async def closed(self) -> None:
        """Return once the server has closed; whatever comes before is dropped."""
        try:
            while await self.stream.receive_some(65_536):
                pass
        except trio.BrokenResourceError:
            return


def request_bytes(
    method: str, target: str, headers: Mapping[str, str], body: bytes, *, length: bool = True
) -> bytes:
    """A request as it goes on the wire."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length and (body or method == "POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def encode(values: object) -> bytes:
    """The body for some fields; bytes and text stay what they are."""
    if isinstance(values, bytes):
        return values
    if isinstance(values, str):
        return values.encode()
    return json.dumps(values, ensure_ascii=False).encode()


@dataclass
class Api:
    """A running API."""

    node: Node
    server: ApiServer
    config: Config
    host: str
    port: int
    app: App
    nonces: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def clock(self) -> SteppableClock:
        return self.node.clock

    async def connect(self) -> Wire:
        return Wire(await trio.open_tcp_stream(self.host, self.port))

    async def raw(self, data: bytes, *, head_only: bool = False) -> Reply:
        """Send bytes on a connection of their own; the first response."""
        wire = await self.connect()
        async with wire.stream:
            await wire.send(data)
            return await wire.reply(head_only=head_only)

    def signed(
        self,
        signed: bytes,
        *,
        key: str | None = None,
        secret: str | None = None,
        **overrides: str,
    ) -> Headers:
        """The five headers, as the app unless said otherwise."""
        key = self.app.app_key if key is None else key
        secret = self.app.secret_key if secret is None else secret
        timestamps = overrides.pop("timestamps", str(self.clock.now_ms() // 1000))
        nonce = overrides.pop("nonce", f"nonce-{next(self.nonces):012d}")
        payload = overrides.pop("payload", payload_digest(signed))
        headers = {
            "app_key": key,
            "nonce": nonce,
            "timestamps": timestamps,
            "payload": payload,
            "signature": sign(secret, timestamps, nonce, payload),
        }
        return headers | overrides

    def admin(self, signed: bytes, **overrides: str) -> Headers:
        return self.signed(signed, key=ADMIN_KEY, secret=ADMIN_SECRET, **overrides)

    async def post(
        self, path: str, values: object, *, headers: Headers | None = None, **overrides: str
    ) -> Reply:
        """POST some fields, signed by the app unless headers are given."""
        body = encode(values)
        if headers is None:
            headers = self.signed(body, **overrides)
        if not any(name.lower() == "content-type" for name in headers):
            headers = {"Content-Type": "application/json", **headers}
        return await self.raw(request_bytes("POST", path, headers, body))

    async def get(self, path: str, query: str = "", *, headers: Headers | None = None) -> Reply:
        """GET with a query, signed by the app unless headers are given."""
        headers = self.signed(query.encode()) if headers is None else headers
        target = f"{path}?{query}" if query else path
        return await self.raw(request_bytes("GET", target, headers, b""))

    async def create_app(self, values: object, **overrides: str) -> Reply:
        """``/application/create`` as the administrator."""
        body = encode(values)
        return await self.post("/application/create", body, headers=self.admin(body, **overrides))

    async def task(self, task_no: str = "order-1001") -> TaskDetail | None:
        """What the store has of the app's task."""
        return await self.node.store.task_detail(self.app.id, task_no=task_no)

    def kept(self) -> tuple[int, int]:
        """How many apps and tasks the in-memory store has."""
        store = self.node.store
        assert isinstance(store, MemoryStore)
        return len(store._apps), len(store._tasks)


def config_of(
    *,
    max_body: int = 4096,
    timezone: str = "UTC",
    trusted_proxies: tuple[str, ...] = (),
    **auth: object,
) -> Config:
    """A configuration for tests: port 0, an administrator, small bodies."""
    return Config(
        server=ServerConfig(
            port=0, max_body=max_body, timezone=timezone, trusted_proxies=trusted_proxies
        ),
        auth=dataclasses.replace(AuthConfig(admin_secret=ADMIN_SECRET), **auth),  # type: ignore[arg-type]  # checked by use
    )


@asynccontextmanager
async def running_api(
    config: Config | None = None,
    *,
    store: Store | None = None,
    node: Node | None = None,
    max_connections: int = 1000,
) -> AsyncIterator[Api]:
    """The API while the block runs, with one app in its store."""
    config = config or config_of()
    node = node or Node(store=store, clock=StoppedClock(NOW_S * 1000))
    egress = Egress(strict=config.auth.open_registration, denied_networks=(), allowed_networks=())
    api = create_api(
        node.service,
        config,
        node.clock,
        check_link_url=lambda url: validate_link_url(url, egress),
    )
    server = ApiServer(api, config, max_connections=max_connections)
    owner = await node.service.create_app(
        NewApp(name="an app", link_url=LINK_URL, step=5, retry_total=3, remark=""), None
    )
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(server.serve)
        host, _, port = str(urls[0]).partition("://")[2].rpartition(":")
        yield Api(node, server, config, host.strip("[]"), int(port), owner)
        nursery.cancel_scope.cancel()


class SlowStore(MemoryStore):
    """A store whose creates wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = trio.Event()
        self.may_go_on = trio.Event()

    async def use_nonce(self, nonce: NonceUse) -> None:
        self.entered.set()
        await self.may_go_on.wait()
        await super().use_nonce(nonce)


def detail_request(api: Api) -> bytes:
    """A request that a `SlowStore` holds."""
    query = b"coroutine_id=1"
    return request_bytes("GET", f"/task/detail?{query.decode()}", api.signed(query), b"")


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    """Return once a callable is true."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)
