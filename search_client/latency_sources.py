"""Where the latencies of a search come from: a service that measures meanwhile, or a table in a file and no device."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from latency_contract.connection import ServiceError, ServiceUnreachable
from latency_contract.operators import Conv, Head, IBConv, Network
from latency_contract.tables import Latency, Purpose, Table
from search_client.errors import AnotherSearch, ProtocolChanged
from search_client.imported_tables import AnyTable, describe
from search_client.latencies import LatencyService
from search_client.progress import ConsoleProgress
from search_client.run_directory import RunDirectory


class MeasuredLatencies:
    """The service measures what it is asked for; final networks are measured whole."""

    def __init__(self, service: LatencyService, directory: RunDirectory, progress: ConsoleProgress) -> None:
        self.device_model = service.device.model
        self._service = service
        self._directory = directory
        self._progress = progress

    def request(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None:
        """Have operators queued; `layers` counts where each is used. Raises NoAgent where nobody would measure them."""
        self._service.request(operators, purpose=Purpose.SEARCH, layers=layers)

    def table_if_complete(self, operators: Sequence[Conv | IBConv | Head]) -> Table | None:
        """The table, published as a version, once everything is measured.

        A service that is away at this moment does not end the training; it is asked again later.
        """
        with suppress(ServiceUnreachable):
            if self._service.complete(operators):
                return self._service.publish(patient=False)
        return None

    def complete_table(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> Table:
        """The same, waiting for what is still missing."""
        with self._progress.task("measuring operators", len(operators)) as advance:
            self._service.measured(operators, purpose=Purpose.SEARCH, on_progress=advance, layers=layers)
        return self._service.publish()

    def must_agree_with(self, table: AnyTable) -> None:
        """Raises ProtocolChanged where the search began with latencies that this device would not measure now."""
        device = self._service.device
        if not isinstance(table, Table):
            raise ProtocolChanged(
                f"This search began with an {describe(table)}, so final networks measured on {device.model} could not"
                " be compared. Go on with --table, or start a new search with another --out."
            )
        then, now = table.protocol, device.protocol
        if then.id != now.id or table.device_model != device.model:
            raise ProtocolChanged(
                f"This search began with latencies of {table.device_model} under {then.runtime}"
                f" {then.runtime_version}; {device.model} now measures under {now.runtime}"
                f" {now.runtime_version} or other settings, so its final networks could not be compared."
                " Start a new search with another --out."
            )

    def release(self, operators: Sequence[Conv | IBConv | Head]) -> None:
        """What nobody releases is measured once more than needed, no worse."""
        with suppress(ServiceUnreachable):
            if operators:
                self._service.release(operators)

    def refine(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None:
        """Have operators measured again. Where that cannot be, what is known stands."""
        with suppress(ServiceError):
            if operators:
                self._service.measure_again(operators, layers=layers)

    def newest_table(self, last: AnyTable, operators: Sequence[Conv | IBConv | Head]) -> AnyTable:
        """The table as it stands now, if it holds all of these; else the last one stands."""
        with suppress(ServiceError):
            table = self._service.publish(patient=False)
            if all(operator.id in table.by_subject for operator in operators):
                return table
        return last

    def of_finals(self, networks: Sequence[Network]) -> list[Latency | None]:
        """Latencies of whole networks, kept in the directory so that a search stopped here does not ask again.

        None of one that cannot be measured: the search is not lost for it.
        """
        kept = self._directory.measured()
        if any(network.id not in kept for network in networks):
            with self._progress.task("measuring final networks", len(networks)) as advance:
                entries = self._service.settled(networks, purpose=Purpose.SEARCH, on_progress=advance)
            for entry in entries:
                if entry.error is not None:
                    self._progress.say(f"{entry.key} cannot be measured: {entry.error}")
            kept = {entry.subject_id: entry.latency for entry in entries if entry.latency is not None}
            self._directory.save_measured(kept)
            with suppress(ServiceUnreachable):
                self._service.release()
        return [kept.get(network.id) for network in networks]


class TableFile:
    """A table that is there already. No device is asked, so final networks are not measured."""

    def __init__(self, table: AnyTable) -> None:
        self.device_model = table.device_model
        self._table = table

    def request(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None:
        """Nobody measures."""

    def table_if_complete(self, operators: Sequence[Conv | IBConv | Head]) -> AnyTable:  # noqa: ARG002
        """What the table lacks is said when it is first used, which is before anything is trained."""
        return self._table

    def complete_table(
        self,
        operators: Sequence[Conv | IBConv | Head],  # noqa: ARG002
        layers: Mapping[str, int],  # noqa: ARG002
    ) -> AnyTable:
        return self._table

    def must_agree_with(self, table: AnyTable) -> None:
        """Raises AnotherSearch where the search began with another table."""
        if _identity(table) != _identity(self._table):
            raise AnotherSearch(
                f"This search began with the {describe(table)}, and the file of --table holds another one."
                " Give that table, or start a new search with another --out."
            )

    def release(self, operators: Sequence[Conv | IBConv | Head]) -> None:
        """Nothing is queued."""

    def refine(self, operators: Sequence[Conv | IBConv | Head], layers: Mapping[str, int]) -> None:
        """Nobody measures."""

    def newest_table(self, last: AnyTable, operators: Sequence[Conv | IBConv | Head]) -> AnyTable:  # noqa: ARG002
        return last

    def of_finals(self, networks: Sequence[Network]) -> list[None]:
        return [None for _ in networks]


def _identity(table: AnyTable) -> tuple[type[AnyTable], str]:
    """Of what a table says of operators. A search keeps of the calibrations what it uses, and so says less."""
    known = table.with_calibrations(()) if isinstance(table, Table) else table
    return type(known), known.content_hash
