"""What a supervisor and its workers tell each other, and the worker's end of it."""

from __future__ import annotations

import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from taskd.link import (
    Handover,
    Kind,
    Malformed,
    Splitter,
    SupervisorLost,
    Uplink,
    answers,
    frame,
    hand_over,
    split_address,
)
from taskd.link.frames import MAX_PAYLOAD
from taskd.link.uplink import MAX_UNSENT
from tests.support.files import no_file_left

pytestmark = pytest.mark.deadline(10)


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200)), max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[Kind, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frame(kind, payload) for kind, payload in frames)
    splitter, out, turn = Splitter(), [], 0
    while data:
        size = cuts[turn % len(cuts)]
        out += splitter.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert out == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\x01\xff",
        (MAX_PAYLOAD + 2).to_bytes(4) + b"\x01",
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Splitter().feed(data + b"rest of it")


def test_an_address_is_taken_off() -> None:
    ((kind, payload),) = Splitter().feed(frame(Kind.WAKE, b"[\n]", to="node-1"))
    assert kind is Kind.WAKE
    assert split_address(payload) == ("node-1", b"[\n]")
    with pytest.raises(Malformed):
        split_address(b"no address")


async def test_a_worker_knows_who_is_there_and_who_leads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        uplink = Uplink(theirs, "b")
        seen: list[bytes] = []
        uplink.on(Kind.SIGNAL, seen.append)
        async with trio.open_nursery() as nursery:
            await nursery.start(uplink.run)
            assert (uplink.leader, uplink.others) == (None, ())
            ours.sendall(frame(Kind.MEMBERS, b"a a b c\na b c d") + frame(Kind.SIGNAL, b"x"))
            while not seen:
                await trio.sleep(0.001)
            assert (uplink.leader, uplink.others) == ("a", ("a", "c"))
            assert seen == [b"x"]
            ours.sendall(frame(Kind.GONE, b"a") + frame(Kind.MEMBERS, b"b b c\nb c d"))
            assert await uplink.next_gone() == "a"
            while uplink.leader != "b":
                await trio.sleep(0.001)
            assert uplink.others == ("c",)
            assert uplink.alive == {"b", "c", "d"}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("last_words", [b"", b"\0\0\0\0", b"\0\0"])
async def test_a_worker_whose_supervisor_is_gone_ends(last_words: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(last_words)
        lost = False
        try:
            await Uplink(theirs, "a").run()
        except* SupervisorLost:
            lost = True
        assert lost


async def test_what_the_supervisor_does_not_take_waits_within_bounds_and_is_then_dropped() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        uplink = Uplink(theirs, "a")
        piece = b"x" * 60_000
        posted = 0
        while uplink.post(Kind.WAKE, piece):
            posted += 1
        assert uplink.dropped == 1
        assert posted * len(piece) >= MAX_UNSENT - len(piece)
        assert uplink.post(Kind.LEAVING), "only wake-ups and signals may be lost"
        # Nothing was torn: what was taken arrives frame by frame.
        splitter = Splitter()
        got: list[tuple[Kind, bytes]] = []
        ours.settimeout(0)
        async with trio.open_nursery() as nursery:
            await nursery.start(uplink.run)
            while len(got) <= posted:
                await trio.lowlevel.wait_readable(ours)
                got += splitter.feed(ours.recv(1 << 20))
            assert got == [(Kind.WAKE, piece)] * posted + [(Kind.LEAVING, b"")]
            assert uplink.post(Kind.WAKE, piece)
            nursery.cancel_scope.cancel()


async def test_connections_are_handed_over_and_work() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handover = Handover(theirs)
    got: list[socket.socket] = []
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handover.run, got.append, lambda: None, 2)
            for number in range(3):
                client, server = socket.socketpair()
                with server:
                    assert hand_over(ours, server)
                while len(got) <= number:
                    await trio.sleep(0.001)
                with client, got[number] as taken:
                    client.sendall(b"hello")
                    assert taken.recv(5) == b"hello"
            assert handover.taken == 3
            client, server = socket.socketpair()
            with client, server:
                assert hand_over(ours, server)
                ours.settimeout(0)
                assert answers(ours) == [True] * 3
                assert answers(ours) == []
                (last,) = handover.waiting()
                last.close()
                handover.close()  # ends `run` as well
                assert not hand_over(ours, server)
                assert answers(ours) == [True]  # told before the end
                assert answers(ours) is None


async def test_a_worker_that_takes_none_is_full_in_the_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    client, server = socket.socketpair()
    with ours, theirs, client, server:
        taken = 0
        while hand_over(ours, server):
            taken += 1
            assert taken < 10_000
        handover = Handover(theirs)
        for connection in handover.waiting():
            connection.close()
        assert handover.taken == taken
        assert hand_over(ours, server)
        told = answers(ours)
        assert told is not None
        assert len(told) + len(handover._owed) == handover.taken
    await trio.lowlevel.checkpoint()


async def test_a_worker_with_too_many_files_open_takes_no_connection_and_loses_none() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    client, server = socket.socketpair()
    other, second = socket.socketpair()
    handover = Handover(theirs)
    with ours, theirs, client, server, other, second:
        assert hand_over(ours, server)
        assert hand_over(ours, second)
        with no_file_left():
            assert list(handover.waiting()) == []
        assert answers(ours) == [False, False]
        assert hand_over(ours, server)
        (taken,) = handover.waiting()
        assert answers(ours) == [True]
        with taken:
            client.sendall(b"hello")
            assert taken.recv(5) == b"hello"
    await trio.lowlevel.checkpoint()


async def test_a_worker_with_too_many_files_open_has_room_made() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    client, server = socket.socketpair()
    stranger = socket.socket()
    handover = Handover(theirs)
    got: list[socket.socket] = []
    with ours, theirs, client, server, stranger:
        async with trio.open_nursery() as nursery:
            with no_file_left():
                nursery.start_soon(handover.run, got.append, stranger.close, 2)
                for number, taken in enumerate((False, True)):
                    assert hand_over(ours, server)
                    while not (told := answers(ours)):
                        await trio.sleep(0.001)
                    assert (told, len(got)) == ([taken], number)
            nursery.cancel_scope.cancel()
        got[0].close()
