from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import signal
import time

import pytest

from slimline.core.contracts import Executor
from slimline.errors import DataError, SlimlineError, WorkerDied
from slimline.execute.local import Local


def test_one_worker_is_this_process_and_takes_any_function() -> None:
    executor: Executor = Local()
    assert executor.map(lambda x: (x, os.getpid()), iter([1, 2])) == [(1, os.getpid()), (2, os.getpid())]
    assert executor.map(abs, []) == []


def test_results_keep_the_order_of_the_items_whichever_ends_first() -> None:
    # Functions of the standard library: this file's own module is not importable in a spawned process.
    assert Local(workers=2).map(time.sleep, [0.3, 0.0, 0.0]) == [None, None, None]
    assert Local(workers=3).map(abs, [-3, 2, -1, 5, -4]) == [3, 2, 1, 5, 4]


def test_workers_are_other_processes_of_one_thread() -> None:
    found = Local(workers=2).map(os.getenv, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
    assert found == ["1", "1"]
    pids = Local(workers=2).map(eval, ["__import__('os').getpid()"] * 2)
    assert os.getpid() not in pids


def test_an_exception_keeps_its_type_and_names_the_item_and_the_place() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Local(workers=2).map(eval, ["1", "1 / 0", "2"])
    note = "".join(caught.value.__notes__)
    assert "item 1 ('1 / 0')" in note and "Traceback" in note
    with pytest.raises(ZeroDivisionError):
        Local().map(eval, ["1 / 0"])


def test_an_exception_that_cannot_be_pickled_still_says_what_it_was() -> None:
    code = "(lambda e: (_ for _ in ()).throw(e))(type('Odd', (Exception,), {})('beyond'))"
    with pytest.raises(RuntimeError, match="Odd: beyond"):
        Local(workers=2).map(eval, [f"next({code})", "1"])


def test_errors_of_slimline_come_back_whole() -> None:
    code = "(_ for _ in ()).throw(__import__('slimline.errors').errors.DataError('no labels', hint='Give some.'))"
    with pytest.raises(DataError) as caught:
        Local(workers=2).map(eval, [f"next({code})", "1"])
    assert caught.value.message == "no labels" and caught.value.hint == "Give some."


def test_a_worker_that_dies_is_named_by_its_item() -> None:
    kill = f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})"
    with pytest.raises(WorkerDied, match=r"item 2 .*kill.* status -9") as caught:
        Local(workers=2).map(eval, ["1", "2", kill, "4"])
    assert isinstance(caught.value, SlimlineError)


def test_no_process_is_left_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        Local(workers=2).map(eval, ["__import__('time').sleep(60)", "1 / 0"])
    assert multiprocessing.active_children() == []


def test_what_cannot_be_pickled_says_so_before_any_process_starts() -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        Local(workers=2).map(lambda x: x, [1, 2])
    with pytest.raises(ValueError, match="0 workers"):
        Local(workers=0)


def test_operators_are_work_too() -> None:
    assert Local(workers=2).map(operator.neg, [1, 2, 3]) == [-1, -2, -3]
