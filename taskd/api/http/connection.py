"""One client's connection: one Trio task reads its requests and writes their answers, one
after another.

    accepted ─► idle ─► head arriving ─► body arriving ─► in hand ─► answer ─► idle …
                 │          │                  │             │          │
            KEEP_ALIVE_S  HEAD_S         BODY_TIMEOUT_S   no limit    SEND_S for
                 │          │                  │          here: the   one write
                 │          │                  │          service's
                 │          │                  │          own apply
                 └─► closed └─► refused ◄──────┘

After the last answer (the client wants no more, or can't be understood) the connection
lingers: see `stream`. Bytes behind a last request are not read as a request. A client that
closes its side still gets the answers to the requests that it had sent whole.

`Admission` is told what is known of the client, and may close the connection for others by
`give_up`. `end` closes it at any point, whatever it waits for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from http import HTTPStatus

import trio

from taskd.api.http.admission import Admission, NoPlace, Stage
from taskd.api.http.body_framing import Chunked, Counted, Framing
from taskd.api.http.body_intake import BodyTooLong, read_body
from taskd.api.http.heads import Head, HeadGatherer, read_head
from taskd.api.http.rendering import CONTINUE, Renderer
from taskd.api.http.request import Request
from taskd.api.http.router import Router, request_id
from taskd.api.http.stream import SlowReader, Wire
from taskd.api.wire.envelope import Answer, Refusal
from taskd.runtime.logs import log_event

logger = logging.getLogger("taskd.api")

KEEP_ALIVE_S = 60.0
"""How long a connection may wait for the first byte of a request, plus the time until
`look` is called next."""

HEAD_S = 10.0
"""From the first byte of a request to the end of its headers."""

FINISH_S = 10.0
"""How long a request in hand may go on after its client has reset the connection. The
service's own deadlines are shorter."""

_TRY_AGAIN = ((b"retry-after", b"1"),)
_CROWDED = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "too many connections are open: this one was closed for others; try again",
    headers=_TRY_AGAIN,
).answer


class HeadStalled(Refusal):
    """A request's line and headers did not arrive in time: 400."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST,
            f"the request's line and headers did not arrive within {HEAD_S:g} s",
        )


class HeadCutShort(Refusal):
    """The client has closed its side, and the head is not complete: 400."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.BAD_REQUEST, "the request ended before its headers were complete"
        )


class Crowded(Refusal):
    """There are too many signed requests in hand: 503."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too many requests are in hand: nothing was done, try again",
            headers=_TRY_AGAIN,
        )


class Connection:
    """Serves the requests of one client.

    Args:
        wire: just accepted; closed at the end.
        client: its address.
        router: answers the requests.
        renderer: writes the answers.
        places: has given it a place, and is told what is known of the client.
        on_last: called once the last answer is sent.
    """

    def __init__(
        self,
        wire: Wire,
        client: str,
        router: Router,
        renderer: Renderer,
        *,
        places: Admission,
        on_last: Callable[[], object],
    ) -> None:
        self._wire = wire
        self._client = client
        self._router = router
        self._renderer = renderer
        self._places = places
        self._on_last = on_last
        self._all = trio.CancelScope()
        self._finishing = False
        self._signed = False
        """Whether its last request was signed right."""
        self.stage = Stage.IDLE
        self.idle_since = trio.current_time()
        """When its last request ended."""

    def end(self) -> None:
        """Close it, whatever it is doing. An answer that is half sent stays so."""
        self._all.cancel()

    def give_up(self) -> None:
        """Close it for others. A client that has begun a request is told so first, with
        503."""
        if self.stage in {Stage.HEAD, Stage.BODY}:
            body = _CROWDED.encode()
            self._wire.write_now(self._renderer.render(_CROWDED, body, request_id({}), last=True))
        self.end()

    def finish(self) -> None:
        """Close it as soon as no request is in hand."""
        self._finishing = True
        if self.stage in {Stage.IDLE, Stage.HEAD, Stage.LINGERING} and not self._wire.has_more():
            self.end()

    def look(self) -> None:
        """Close it if it has been idle for `KEEP_ALIVE_S`. If the client has reset it while
        a request is in hand, end it after `FINISH_S`."""
        if self.stage is Stage.IDLE:
            if trio.current_time() - self.idle_since >= KEEP_ALIVE_S:
                self.end()
        elif (
            self.stage is Stage.IN_HAND and self._all.deadline == math.inf and self._wire.is_reset()
        ):
            self._all.deadline = trio.current_time() + FINISH_S

    async def run(self) -> None:
        """Serve until either side closes."""
        try:
            with self._all:
                if await self._wire.shake_hands():
                    await self._serve()
        except SlowReader:
            self._router.log.unread(self._client)
        except OSError as error:
            log_event(logger, logging.DEBUG, "connection lost", error=str(error))
        except Exception as error:  # noqa: BLE001 - what one client provokes must not end the others
            self._router.log.failed(error, self._client)
        finally:
            await self._wire.close()

    async def _serve(self) -> None:
        # A new client has mostly sent something already: that is read before others may
        # take the connection's place.
        data = self._wire.receive_now()
        while data := data or await self._wire.receive():
            if not self._signed:
                self._places.wait(self)
            try:
                head = read_head(data)
                if head is None:
                    head, data = await self._gather(data)
                    if head is None:
                        return
                else:
                    data = data[head.end :]
            except Refusal as refusal:
                await self._refuse(refusal.answer)
                break
            rest = await self._exchange(head, data)
            if rest is None or self._wire.broken:
                break
            data = rest
            if data:
                # Requests that came together could all be answered without letting other
                # tasks run.
                await trio.lowlevel.checkpoint()
            elif self._finishing and not self._wire.has_more():
                return
        else:
            return
        await self._linger()

    async def _gather(self, data: bytes) -> tuple[Head | None, bytes]:
        """The head that these bytes begin, once all of it has come, and the bytes behind
        it. No head if the client leaves, or `HEAD_S` pass, before it has begun one.

        Raises:
            Refusal: it is malformed, too long, incomplete or late.
        """
        self.stage = Stage.HEAD
        gatherer = HeadGatherer()
        fed = 0
        with trio.move_on_after(HEAD_S):
            while True:
                head = gatherer.feed(data)
                if head is not None:
                    return head, data[head.end - fed :]
                fed += len(data)
                data = await self._wire.receive()
                if not data:
                    if gatherer.begun:
                        raise HeadCutShort
                    return None, b""
        if gatherer.begun:
            raise HeadStalled
        return None, b""

    async def _exchange(self, head: Head, data: bytes) -> bytes | None:
        """Answer a request whose head has come. Returns the bytes behind it; None if the
        connection ends with the answer."""
        began = time.perf_counter()
        self.stage = Stage.IN_HAND
        router = self._router
        request = router.begin(head, self._client)
        last = head.last
        length = head.length
        try:
            if self._signed and not head.chunked and length <= min(len(data), router.max_body):
                request.body, data = data[:length], data[length:]
            else:
                data = await self._take(request, head, data)
            answer, body = await router.answer(request)
        except Refusal as refusal:
            request.refusal, last = refusal.answer, True
            answer, body = refusal.answer, refusal.answer.encode()
        finally:
            router.buffered.give(request.held, request.sender)
        last = last or self._renderer.closing or self._finishing
        headed = request.method == "HEAD"
        await self._send(self._renderer.render(answer, body, request.id, last=last, headed=headed))
        router.log.request(request, answer, began)
        if last:
            return None
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self._signed = False
        if not self._signed:
            self._places.rest(self)
        self.stage = Stage.IDLE
        self.idle_since = trio.current_time()
        return data

    async def _take(self, request: Request, head: Head, data: bytes) -> bytes:
        """Judge a request by its head, then read its body, which is dropped if the head
        alone decides the answer. Returns the bytes behind it.

        Raises:
            Refusal: the body is too long, or does not come.
        """
        router = self._router
        if head.length > router.max_body:
            raise BodyTooLong(router.max_body)
        come = not head.chunked and head.length <= len(data)
        if not come:
            self.stage = Stage.BODY
        elif not self._signed:
            self._places.serve(self)
        await router.admit(request, bodied=head.chunked or head.length > 0)
        self._note_signer(request, come=come)
        if come:
            request.body = data[: head.length]
            return data[head.length :]
        if head.expects and not data:
            # Even if it will be refused: a client that is refused before it sends the body
            # can try again at once, without having waited for anything.
            await self._send(CONTINUE)
            self.stage = Stage.BODY
        framing: Framing = Chunked() if head.chunked else Counted(head.length)
        try:
            request.body = await read_body(
                self._wire.receive,
                framing,
                data,
                max_body=router.max_body,
                buffered=None if request.refusal else router.buffered,
                whose=request.sender,
            )
        finally:
            self._places.settle(self)
        request.held = len(request.body)
        self.stage = Stage.IN_HAND
        if not self._signed:
            self._places.serve(self)
        return framing.rest

    def _note_signer(self, request: Request, *, come: bool) -> None:
        """Note whether a request is signed right, as far as its head tells.

        Raises:
            Crowded: it is, and there is no place for one more signer.
        """
        caller = request.caller
        if caller is None:
            if self._signed:
                self._signed = False
                self._places.wait(self)
            return
        key = caller.nonce.app_key
        try:
            self._signed = self._places.sign(
                self, request.sender, None if come else (key, caller.nonce.nonce)
            )
        except NoPlace:
            raise Crowded from None

    async def _send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            SlowReader: the client makes no room for them.
        """
        rest = self._wire.write_now(data)
        if rest:
            self.stage = Stage.SENDING
            await self._wire.write(rest)

    async def _refuse(self, answer: Answer) -> None:
        """Answer bytes that are no valid request, and log them."""
        name = request_id({})
        await self._send(self._renderer.render(answer, answer.encode(), name, last=True))
        self._router.log.unreadable(self._client, name, answer)

    async def _linger(self) -> None:
        """Close this side, then read and drop what the client still sends."""
        if self._wire.broken:
            return
        self.stage = Stage.LINGERING
        self._places.rest(self)
        self._on_last()
        await self._wire.linger(lambda: self._finishing)
