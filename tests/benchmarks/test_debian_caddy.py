import pytest

from benchmarks.debian_caddy import CADDYFILE, on_this_machine


def test_addresses_of_containers_become_ports_here_and_nothing_listens_elsewhere() -> None:
    here = on_this_machine(CADDYFILE.read_text(), {"service-1:8000": 1, "service-2:8000": 2, "converter:8000": 3})
    assert "reverse_proxy 127.0.0.1:1 127.0.0.1:2 {" in here
    assert "reverse_proxy /v1/conversions 127.0.0.1:3" in here
    assert "default_bind 127.0.0.1" in here
    assert "skip_install_trust" in here  # a test must not change whom the machine trusts
    assert ":8000" not in here


def test_an_address_that_the_caddyfile_does_not_name_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="does not name nobody:80"):
        on_this_machine("{\n}\n", {"nobody:80": 1})
