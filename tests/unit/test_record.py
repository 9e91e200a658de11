"""Records are frozen in the tests and plain in use, and alike in all else."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import pytest

import taskd
from taskd.domain import model, record
from taskd.domain.model import DueTask, NewTask


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`taskd.domain.model` once more, as a daemon has it."""
    name = "model_in_use"
    spec = importlib.util.spec_from_file_location(name, model.__file__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(record, "FROZEN", False)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(params=["frozen", "plain"])
def kind(request: pytest.FixtureRequest) -> object:
    """`taskd.domain.model`, with either kind of records."""
    return model if request.param == "frozen" else request.getfixturevalue("plain")


def a_task(kind: ModuleType, **changes: object) -> NewTask:
    values = {
        "app_id": 1,
        "task_no": "no 1",
        "name": "a task",
        "content": b'"hidden"',
        "timeout_ms": 5_000,
        "due_at": 10,
        "created_at": 9,
        "lease": kind.FirstLease("node-1", 10, 20),
    }
    task: NewTask = kind.NewTask(**values | changes)
    return task


def records_of_taskd() -> Iterator[type]:
    for module in pkgutil.walk_packages(taskd.__path__, "taskd."):
        if module.name != "taskd.__main__":
            importlib.import_module(module.name)
    for name, loaded in list(sys.modules.items()):
        if name.startswith("taskd."):
            for value in vars(loaded).values():
                if isinstance(value, type) and value.__module__ == name and is_dataclass(value):
                    parameters: Any = value.__dataclass_params__  # type: ignore[attr-defined] # undocumented
                    if parameters.unsafe_hash:
                        yield value


def test_in_the_tests_a_record_refuses_an_assignment() -> None:
    due = DueTask(task_id=1, app_id=2, due_at=3)
    with pytest.raises(FrozenInstanceError):
        due.due_at = 4  # type: ignore[misc] # mypy refuses it too
    with pytest.raises(FrozenInstanceError):
        del due.due_at
    assert due == DueTask(task_id=1, app_id=2, due_at=3)


def test_in_the_tests_every_record_is_frozen() -> None:
    records = list(records_of_taskd())
    assert len(records) > 30
    assert DueTask in records
    for cls in records:
        with pytest.raises(FrozenInstanceError):
            setattr(object.__new__(cls), fields(cls)[0].name, None)


def test_in_use_a_record_costs_no_call_for_each_field() -> None:
    code = (
        "from taskd.domain.model import DueTask, NewTask\n"
        "assert DueTask.__setattr__ is object.__setattr__\n"
        "assert DueTask.__init__.__code__.co_names == ('task_id', 'app_id', 'due_at')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_records_of_the_same_values_are_equal_and_have_one_hash(kind: ModuleType) -> None:
    one, same, other = a_task(kind), a_task(kind), a_task(kind, content=b"2")
    assert one is not same
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert {one, same, other} == {one, other}
    assert {one: "known"}[same] == "known"


def test_records_of_another_class_are_not_equal(kind: ModuleType) -> None:
    assert kind.FirstLease("a", 1, 2) != ("a", 1, 2)
    values = {"task_id": 1, "token": 2, "node": "a", "expires_at": 3}
    assert kind.Lease(**values) != kind.ExistingTask(1, kind.TaskState.RUNNING)


def test_either_kind_has_the_same_hash_and_text(plain: ModuleType) -> None:
    assert hash(a_task(plain)) == hash(a_task(model))
    assert repr(a_task(plain)) == repr(a_task(model))


def test_a_hidden_field_is_not_in_the_text(kind: ModuleType) -> None:
    assert repr(a_task(kind)) == (
        "NewTask(app_id=1, task_no='no 1', name='a task', timeout_ms=5000, due_at=10,"
        " runtime=None, step=None, retry_total=None, created_at=9,"
        " lease=FirstLease(node='node-1', leased_at=10, expires_at=20))"
    )


def test_a_secret_within_a_record_is_not_in_its_text(kind: ModuleType) -> None:
    app = kind.App(
        id=1,
        app_key="key",
        secret_key="hush",
        name="shop",
        link_url="http://shop.test/",
        step=1,
        retry_total=1,
        remark="",
        created_at=1,
    )
    leased = kind.LeasedTask(
        lease=kind.Lease(task_id=1, token=1, node="a", expires_at=2),
        app=app,
        task_no="no 1",
        name="a task",
        content=b'"hidden"',
        timeout_ms=1,
        due_at=1,
        leased_at=1,
        attempt=1,
        failures=0,
        sent_before=False,
        step=1,
        retry_total=1,
    )
    assert "key" in repr(leased)
    assert "hush" not in repr(leased)
    assert "hidden" not in repr(leased)


def test_a_record_has_its_fields_and_no_others(kind: ModuleType) -> None:
    due = kind.DueTask(task_id=1, app_id=2, due_at=3)
    assert not hasattr(due, "__dict__")
    assert kind.DueTask.__slots__ == ("task_id", "app_id", "due_at")
    with pytest.raises((AttributeError, TypeError)):
        due.other = 4


def test_a_copy_equals_its_original(kind: ModuleType) -> None:
    task = a_task(kind)
    for copied in (copy.copy(task), copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert copied is not task
        assert copied == task
        assert hash(copied) == hash(task)


def test_a_changed_copy_leaves_its_original(kind: ModuleType) -> None:
    task = a_task(kind)
    later = replace(task, due_at=11)
    assert (task.due_at, later.due_at) == (10, 11)
    assert later == a_task(kind, due_at=11)


def test_fields_have_their_defaults(kind: ModuleType) -> None:
    attempt = kind.Attempt(attempt=1, started_at=1, ended_at=2, outcome=kind.Outcome.TIMED_OUT)
    assert (attempt.http_status, attempt.response, attempt.error) == (None, None, None)


def test_keywords_are_needed_where_the_record_says_so(kind: ModuleType) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind.DueTask(1, 2, 3)
    with pytest.raises(TypeError, match="due_at"):
        kind.DueTask(task_id=1, app_id=2)
    assert kind.FirstLease("a", 1, 2).node == "a"


def test_records_match_patterns(kind: ModuleType) -> None:
    match kind.FirstLease("a", 1, 2):
        case kind.FirstLease(node, leased_at=1):
            assert node == "a"
        case other:
            pytest.fail(f"{other} does not match")


def test_a_task_under_a_lease_is_the_same_task_in_all_else(kind: ModuleType) -> None:
    given = {each.name: number for number, each in enumerate(fields(kind.NewTask))}
    lease = kind.FirstLease("node-2", 30, 40)
    # No field has its default here, so one that was forgotten would show.
    assert kind.NewTask(**given).under(lease) == kind.NewTask(**given | {"lease": lease})
