"""Device profiles: every shipped one is valid, says where its numbers come from, and survives a file."""

from __future__ import annotations

import os
import platform
import tomllib
from pathlib import Path

import pytest

from slimline.core.device import Device, LatencyTable, Rate
from slimline.core.registry import registered
from slimline.errors import UsageError
from slimline.targets._micro_arena import KERNEL

NUMBERS = ("cores", "isa", "operations", "mhz", "flash_bytes", "ram_bytes", "bandwidth_gb_s", "size_bytes", "memory_bytes")


@pytest.mark.parametrize("name", Device.known())
def test_shipped_profiles_say_where_their_numbers_come_from(name: str) -> None:
    device = Device.load(name)
    assert device.name == name
    assert {n for n in NUMBERS if getattr(device, n)} <= set(device.sources)
    assert device.target in (device.targets or (device.target,))
    for limit, whole in ((device.size_bytes, device.flash_bytes), (device.memory_bytes, device.ram_bytes)):
        assert limit is None or whole is None or limit <= whole


def test_the_ten_devices_of_the_plan_are_there() -> None:
    assert set(Device.known()) == {
        "cortex-m4-256k", "cortex-m7-1m", "esp32-s3", "raspberry-pi-5", "android-mid", "android-high", "iphone", "cloud-x86-vnni", "cloud-arm", "host",
    }  # fmt: skip


@pytest.mark.parametrize("name", [n for n in Device.known() if Device.load(n).target == "litert-micro"])
def test_boards_list_the_operators_that_their_interpreter_has(name: str) -> None:
    assert set(Device.load(name).operations) == set(KERNEL)


def test_the_host_is_looked_up_on_the_spot() -> None:
    host = Device.load("host")
    assert host.cores == len(os.sched_getaffinity(0)) and host.isa.startswith(platform.machine()) and host.ram_bytes is not None and host.ram_bytes > 10**8
    assert Device.model_validate(tomllib.loads(host.toml())) == host


def test_a_profile_written_to_a_file_reads_back_the_same(tmp_path: Path) -> None:
    rates = (
        Rate(operation="CONV_2D", executes="integer", call_us=1.5, nanoseconds=0.25),
        Rate(operation="ADD", executes="float", call_us=0.0, nanoseconds=2e-4),
    )
    table = LatencyTable(source='with "quotes"', rates=rates, check_estimated_ms=1.0, check_measured_ms=1.25)
    device = Device.load("esp32-s3").model_copy(update={"latency": table, "operations": ("CONV_2D", "ADD")})
    file = tmp_path / "mine.toml"
    file.write_text(device.toml())
    assert Device.load(str(file)) == device
    for name in Device.known():  # also the host's, which runs every target
        file.write_text(Device.load(name).toml())
        assert Device.load(str(file)) == Device.load(name)


@pytest.mark.parametrize(("text", "said"), [("name = ", "TOML"), ('name = "x"', "title"), ('name = "x"\nspeed = 3', "speed|title")])
def test_a_broken_profile_is_the_users_to_mend(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        Device.load(str(file))


def test_an_unknown_device_lists_the_known() -> None:
    with pytest.raises(UsageError, match="esp32-s3"):
        Device.load("toaster")


def test_a_hyphenated_target_stands_in_a_file_with_an_underscore() -> None:
    assert {n for n in registered("targets") if "-" in n} == {"litert-micro"}
