"""Settings of the service, built once by the command line and passed down."""

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    database_url: str = "sqlite:///padnas.db"
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    lease_s: float = 60.0  # an agent renews at a third of it, so two renewals may be lost
    max_attempts: int = 5  # leases of one job before it is given up
    alive_s: float = 120.0  # an agent that was silent for longer is not at work
    seen_s: float = 45.0  # that an agent without work was seen is written down this often at most
    idle_poll_s: int = 1  # what an agent without work is told to wait, at least
    idle_polls_per_s: float = 25.0  # and so much longer that all of them together ask no more often than this
    fault_backoff_s: float = 5.0  # longest rest of a device after its first fault, doubled with each further one
    fault_backoff_max_s: float = 900.0
    check_backoff_s: float = 60.0  # from quarantine to the first check of a device, doubled with each that fails
    check_backoff_max_s: float = 3600.0
    conversion_claim_s: float = 15.0  # a converter renews its claim at a third of it; without, another one takes over
    conversion_timeout_s: float = 300.0  # a conversion not finished by then is given up
    max_conversion_attempts: int = 3  # deaths of the converter on one subject before that is given up
    max_waiting: int = 10_000  # jobs that one client waits for; a large space has some hundred operators
    converts: bool = True  # TensorFlow is needed then; of several services on one database one is enough
    token_use_s: float = 60.0  # that a token was used is written down this often at most

    @property
    def this_machine_alone(self) -> bool:
        """Whether nobody but programs of this machine can connect."""
        return is_this_machine(self.host)


def is_this_machine(host: str) -> bool:
    """Whether a name or address can be of no other machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
