"""What a store remembers of apps: never what it was told is out of date."""

from __future__ import annotations

import dataclasses
import threading

from taskd.domain.model import App
from taskd.stores.app_cache import REFRESHED_AT_ONCE, AppCache
from tests.support.stores import new_app


def app(number: int, *, url: str = "http://a/") -> App:
    return dataclasses.replace(new_app(f"key-{number}"), id=number, link_url=url)


def remembered(cache: AppCache, one: App) -> tuple[App | None, App | None]:
    return cache.by_id(one.id), cache.by_key(one.app_key)


def filled(apps: list[App]) -> AppCache:
    cache = AppCache()
    for one in apps:
        cache.keep(one, since=cache.forgets)
    return cache


def refresh(cache: AppCache, present: dict[int, App]) -> tuple[list[int], list[int]]:
    """One turn, with what there is: which ids are read, which of them have changed."""
    since, asked = cache.forgets, cache.to_refresh()
    found = [present[app_id] for app_id in asked if app_id in present]
    return asked, list(cache.refresh(asked, found, since=since))


def test_a_forgotten_app_is_not_remembered_by_id_or_key() -> None:
    one, other = app(1), app(2)
    cache = filled([one, other])
    cache.forget(1)
    cache.forget(3)  # nobody's
    assert remembered(cache, one) == (None, None)
    assert remembered(cache, other) == (other, other)


def test_what_was_read_before_a_forget_is_not_remembered() -> None:
    cache, former, present = AppCache(), app(1), app(1, url="http://b/")
    since = cache.forgets
    cache.forget(1)
    cache.keep(former, since=since)
    assert remembered(cache, former) == (None, None)
    cache.keep(present, since=cache.forgets)
    assert cache.refresh([1], [former], since=since) == []
    assert remembered(cache, present) == (present, present)


def test_what_was_dropped_while_it_was_read_anew_stays_so() -> None:
    cache = AppCache()
    assert cache.refresh([1], [app(1)], since=cache.forgets) == []
    assert remembered(cache, app(1)) == (None, None)


def test_apps_are_then_as_they_were_read_anew() -> None:
    first, second, third = app(1), app(2), app(3)
    cache = filled([first, second, third])
    moved = app(2, url="http://b/")
    assert refresh(cache, {1: app(1), 2: moved}) == ([1, 2, 3], [2, 3])
    assert cache.by_id(1) is first
    assert remembered(cache, moved) == (moved, moved)
    assert remembered(cache, third) == (None, None)


def test_those_whose_reading_is_the_longest_ago_come_first() -> None:
    count = 2 * REFRESHED_AT_ONCE + REFRESHED_AT_ONCE // 2
    present = {number: app(number) for number in range(1, count + 1)}
    cache = filled(list(present.values()))
    first, second = refresh(cache, present)[0], refresh(cache, present)[0]
    assert first + second == list(range(1, 2 * REFRESHED_AT_ONCE + 1))
    # One that was forgotten and read since is not among them yet.
    cache.forget(count)
    cache.keep(present[count], since=cache.forgets)
    rest = range(2 * REFRESHED_AT_ONCE + 1, count)
    third = refresh(cache, present)[0]
    assert third[: len(rest)] == list(rest)
    assert third[len(rest) :] == first[: REFRESHED_AT_ONCE - len(rest)]


def test_a_turn_in_which_one_was_forgotten_comes_again() -> None:
    cache = filled([app(1), app(2)])
    since, asked = cache.forgets, cache.to_refresh()
    cache.forget(2)
    assert cache.refresh(asked, [app(1, url="http://b/")], since=since) == []
    assert refresh(cache, {1: app(1, url="http://b/")}) == ([1], [1])


def test_an_empty_cache_has_nothing_to_read_anew() -> None:
    assert refresh(AppCache(), {}) == ([], [])


def test_threads_leave_both_ways_to_an_app_open_or_none() -> None:
    cache = AppCache()

    def work(offset: int) -> None:
        for turn in range(3_000):
            number = 1 + (turn + offset) % 5
            if (turn + offset) % 7 == 0:
                refresh(cache, {one: app(one, url=f"http://{turn}/") for one in range(1, 5)})
            elif (turn + offset) % 3:
                cache.keep(app(number), since=cache.forgets)
            else:
                cache.forget(number)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(1, 6):
        by_id, by_key = remembered(cache, app(number))
        assert by_id is by_key
