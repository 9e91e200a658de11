"""Who may have a connection, and who goes where there are too many."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskd.api.http.admission import GRACE_S, Admission, NoPlace, Stage


@dataclass(eq=False)
class Client:
    """A connection, as `Admission` sees it."""

    name: str = ""
    stage: Stage = Stage.IDLE
    idle_since: float = 0.0
    gone: bool = False

    def give_up(self) -> None:
        assert not self.gone
        self.gone = True


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class House:
    """Places for eight signers and one more, or as told."""

    most: int = 8
    reserve: int = 1
    trusted: tuple[str, ...] = ()
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.places = Admission(self.most, self.reserve, trusted=self.trusted, now=self.clock)

    def enter(self, address: str = "10.0.0.1", **state: object) -> Client:
        client = Client(**state)  # type: ignore[arg-type]  # checked by use
        self.places.enter(client, address)
        return client

    def signer(self, holder: Hashable = 1, stage: Stage = Stage.IDLE) -> Client:
        client = self.enter()
        client.stage = stage
        client.idle_since = self.clock.now
        assert self.places.sign(client, holder)
        return client


def gone(clients: list[Client]) -> list[int]:
    return [number for number, client in enumerate(clients) if client.gone]


def test_where_there_is_room_nobody_goes() -> None:
    house = House()
    assert gone([house.enter() for _ in range(9)]) == []


def test_who_has_just_come_is_heard_and_who_waits_longest_goes() -> None:
    house = House()
    clients = [house.enter() for _ in range(12)]
    assert gone(clients) == [0, 1, 2]


def test_those_who_rest_go_before_those_who_wait() -> None:
    house = House()
    clients = [house.enter() for _ in range(9)]
    for number in (5, 2):
        house.places.rest(clients[number])
    house.enter()
    assert gone(clients) == [5]
    house.places.wait(clients[2])
    house.enter()
    assert gone(clients) == [0, 5]


def test_those_who_are_served_go_last() -> None:
    house = House()
    clients = [house.enter() for _ in range(9)]
    for number in (0, 1, 3):
        house.places.serve(clients[number])
    late = [house.enter() for _ in range(8)]
    assert gone(clients) == [2, 4, 5, 6, 7, 8]
    assert gone(late) == [0, 1]


def test_who_comes_is_heard_though_all_others_are_served() -> None:
    house = House(reserve=8)
    clients = [house.enter() for _ in range(16)]
    for client in clients:
        house.places.serve(client)
    first = house.enter()
    assert gone(clients) == [0]
    # What is served may be about to end ...
    second = house.enter()
    assert (first.gone, second.gone, gone(clients)) == (True, False, [0])
    # ... unless that takes long.
    house.clock.now += GRACE_S
    late = [house.enter() for _ in range(4)]
    assert gone(late) == []
    assert gone(clients) == [0, 1, 2, 3]


def test_those_who_come_at_once_are_heard_before_they_go() -> None:
    for reserve in (1, 3, 100, 4000):
        places = House(reserve=reserve).places
        assert 1 <= places.at_once <= max(1, reserve // 2)


def test_of_the_address_that_has_the_most_one_goes() -> None:
    house = House()
    few = [house.enter(f"10.0.1.{number}") for number in range(3)]
    many = [house.enter("10.0.0.1") for _ in range(6)]
    late = [house.enter(f"10.0.2.{number}") for number in range(4)]
    assert gone(few) == []
    assert gone(many) == [0, 1, 2, 3]
    assert gone(late) == []


def test_addresses_of_one_64_are_one() -> None:
    house = House()
    one = house.enter("2001:db8::1")
    many = [house.enter(f"2001:db8:1::{number}") for number in range(1, 10)]
    assert not one.gone
    assert gone(many) == [0]


def test_no_stranger_takes_a_signers_place() -> None:
    house = House()
    signers = [house.signer(stage=stage) for stage in Stage] + [house.signer(), house.signer()]
    strangers = [house.enter() for _ in range(20)]
    assert gone(signers) == []
    assert gone(strangers) == list(range(19))


def test_for_one_more_signer_the_longest_idle_one_goes() -> None:
    house = House()
    signers = []
    for _ in range(8):
        house.clock.now += 1
        signers.append(house.signer())
    signers[0].stage = Stage.IN_HAND
    signers[1].idle_since = 100.0
    assert house.places.full
    house.signer()
    assert gone(signers) == [2]


def test_of_the_application_that_has_the_most_bodies_on_their_way_one_goes() -> None:
    house = House()
    few = [house.signer(1, Stage.BODY) for _ in range(3)]
    many = [house.signer(2, Stage.BODY) for _ in range(5)]
    house.signer(3, Stage.BODY)
    assert (gone(few), gone(many)) == ([], [0])


def test_an_applications_own_body_makes_room_where_nobody_has_more() -> None:
    house = House()
    signers = [house.signer(1, Stage.BODY) for _ in range(8)]
    house.signer(1, Stage.BODY)
    assert gone(signers) == [0]


@pytest.mark.parametrize("stage", [Stage.IN_HAND, Stage.BODY])
def test_where_no_signer_may_go_the_newcomer_is_refused(stage: Stage) -> None:
    house = House()
    signers = [house.signer(holder, stage) for holder in range(8)]
    late = house.enter()
    with pytest.raises(NoPlace):
        house.places.sign(late, 9)
    assert house.places.refused == 1
    assert gone([*signers, late]) == []
    # It may try again, once there is room.
    house.places.leave(signers[0])
    assert house.places.sign(late, 9)


def test_a_signer_whose_request_is_not_signed_is_a_stranger_again() -> None:
    house = House()
    clients = [house.signer() for _ in range(8)]
    house.places.wait(clients[3])
    late = [house.enter() for _ in range(3)]
    assert gone(clients) == [3]
    assert gone(late) == [0]


def test_of_several_requests_that_are_the_same_one_counts() -> None:
    house = House()
    clients = [house.enter() for _ in range(8)]
    for number, client in enumerate(clients):
        client.stage = Stage.BODY
        assert house.places.sign(client, 1, ("key", "nonce")) == (number == 0)
    assert not house.places.full
    house.enter()
    house.enter()
    assert gone(clients) == [1]
    # Once the first has its body, another may count.
    house.places.settle(clients[0])
    assert house.places.sign(clients[2], 1, ("key", "nonce"))
    late = [house.enter() for _ in range(20)]
    assert gone(clients) == [1, 3, 4, 5, 6, 7]
    assert not late[-1].gone


def test_a_claim_ends_with_its_connection() -> None:
    house = House()
    first, second = house.enter(), house.enter()
    assert house.places.sign(first, 1, "claim")
    house.places.leave(first)
    assert house.places.sign(second, 1, "claim")
    [house.enter() for _ in range(20)]
    assert not second.gone


def test_an_address_keeps_only_so_many_who_wait_for_long() -> None:
    house = House(reserve=80)
    assert house.places.per_address == 10
    quick = [house.enter() for _ in range(15)]
    other = [house.enter("10.0.0.2") for _ in range(10)]
    house.places.sweep()
    assert gone(quick) == []
    house.clock.now += GRACE_S
    late = [house.enter() for _ in range(3)]
    house.places.sweep()
    assert gone(quick) == list(range(8))
    assert gone(other + late) == []
    assert house.places.given_up == 8


def test_a_sweep_spares_who_has_not_waited_for_long() -> None:
    house = House(reserve=80)
    old = [house.enter() for _ in range(3)]
    house.clock.now += GRACE_S
    young = [house.enter() for _ in range(30)]
    house.places.sweep()
    assert gone(old) == [0, 1, 2]
    assert gone(young) == []


def test_sweeps_close_a_few_at_a_time() -> None:
    house = House(reserve=800)
    clients = [house.enter() for _ in range(180)]
    house.clock.now += GRACE_S
    for number in (50, 80, 80):
        house.places.sweep()
        assert gone(clients) == list(range(number))


@pytest.mark.parametrize("address", ["10.1.2.3", "2001:db8::5", "::ffff:10.1.2.3", "fe80::1%eth0"])
def test_an_address_that_is_trusted_is_none(address: str) -> None:
    house = House(reserve=37, trusted=("10.0.0.0/8", "2001:db8::/32", "fe80::/10"))
    behind = [house.enter(address) for _ in range(30)]
    many = [house.enter("192.168.0.1") for _ in range(20)]
    assert gone(many) == list(range(5))
    house.clock.now += GRACE_S
    house.places.sweep()
    assert gone(behind) == []
    assert gone(many) == list(range(16))
    assert house.places.busiest == "192.168.0.1"


def test_who_is_being_closed_may_still_say_something() -> None:
    house = House()
    clients = [house.enter() for _ in range(10)]
    (number,) = gone(clients)
    client = clients[number]
    assert not house.places.sign(client, 1)
    house.places.wait(client)
    house.places.rest(client)
    house.places.settle(client)
    house.places.leave(client)
    assert not house.places.full


def test_a_place_costs_the_same_however_many_are_taken() -> None:
    def cost(most: int) -> float:
        house = House(reserve=most)
        for number in range(2 * most):
            house.enter(f"10.{number % 200}.0.1")
        best = float("inf")
        for _ in range(5):
            began = time.thread_time()
            for number in range(1000):
                house.enter(f"10.{number % 200}.0.1")
            best = min(best, time.thread_time() - began)
        return best

    assert cost(16_000) < 8 * cost(500) + 0.01


class Doorway(RuleBasedStateMachine):
    """Random comings and goings, against the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(most=6)
        self.all: list[Client] = []
        self.signers: set[Client] = set()

    def here(self) -> list[Client]:
        return [client for client in self.all if not client.gone]

    @rule(address=st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "::1"]))
    def enter(self, address: str) -> None:
        before = {client for client in self.signers if not client.gone}
        client = self.house.enter(address)
        self.all.append(client)
        assert not client.gone
        assert not any(signer.gone for signer in before)

    @precondition(lambda self: self.here())
    @rule(
        data=st.data(),
        holder=st.integers(0, 2),
        claim=st.none() | st.integers(0, 2),
        stage=st.sampled_from(Stage),
    )
    def sign(self, data: st.DataObject, holder: int, claim: int | None, stage: Stage) -> None:
        client = data.draw(st.sampled_from(self.here()))
        client.stage = stage
        had_place = client in self.signers
        try:
            if self.house.places.sign(client, holder, claim):
                self.signers.add(client)
            else:
                assert claim is not None
                self.signers.discard(client)
        except NoPlace:
            assert not had_place
        assert not client.gone

    @precondition(lambda self: self.here())
    @rule(data=st.data(), what=st.sampled_from(["wait", "serve", "rest", "settle", "leave"]))
    def change(self, data: st.DataObject, what: str) -> None:
        client = data.draw(st.sampled_from(self.here()))
        getattr(self.house.places, what)(client)
        if what != "settle":
            self.signers.discard(client)
        if what == "leave":
            client.gone = True

    @rule()
    def sweep(self) -> None:
        self.house.clock.now += 0.7
        self.house.places.sweep()

    @invariant()
    def bounds_hold(self) -> None:
        places = self.house.places
        here = self.here()
        assert set(places._seats) == set(here)
        assert len(here) <= places.most + places.reserve
        assert set(places._signers) == {client for client in self.signers if not client.gone}
        assert len(places._signers) <= places.most
        queues = places._queues
        waiting = [one for queue in queues._by_origin.values() for one in queue]
        strangers = {*waiting, *places._served, *places._resting}
        assert {*strangers, *places._signers} == set(here)
        lengths = {origin: len(queue) for origin, queue in queues._by_origin.items()}
        assert queues._longest == max(lengths.values(), default=0)
        assert lengths == {o: n for n, same in queues._by_length.items() for o in same}
        claims = {seat.claim for seat in places._seats.values()} - {None}
        assert claims == places._claims


Doorway.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestDoorway = Doorway.TestCase
