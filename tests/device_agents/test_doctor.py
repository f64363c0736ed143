from device_agents.doctor import Finding, examine_local
from device_agents.local_device import LocalDevice


def test_this_machine_is_examined_and_fit() -> None:
    checks = {check.name: check for check in examine_local()}
    assert set(checks) == {"device", "runtime", "core", "governor", "timer", "load", "steal"}
    assert Finding.UNFIT not in {check.finding for check in checks.values()}
    assert checks["runtime"].seen.startswith("LiteRT ")


def test_a_warning_says_what_to_do() -> None:
    assert all(check.advice for check in examine_local() if check.finding != Finding.GOOD)


def test_a_machine_that_another_agent_has_is_unfit() -> None:
    with LocalDevice():
        (check,) = examine_local()
    assert check.finding == Finding.UNFIT
    assert "Another agent already measures" in check.seen
