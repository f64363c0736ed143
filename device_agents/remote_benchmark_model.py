"""benchmark_model on a phone: a script around it that runs a plan, and what its output says.

One process is one block. The script marks what it does in its file of steps, with everything that the program printed,
its result file and the phone's readings in between; nothing is understood on the phone.
"""

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from device_agents.benchmark_model import Build, Crashed, fault_of, words
from device_agents.enrolment import Enrolment, cores_in
from device_agents.errors import DeviceFault, SubjectFault, SuspectedFault, Unexplained
from device_agents.gates import parse_readings, readings_script
from device_agents.litert_runner import CANNOT_WRITE, REFERENCE
from device_agents.turns import Crash, Done, Pinned, Plan, Ran, Refused, Started, State, Step, block_limit_s


class RemoteBenchmarkModel:
    """Runs plans on a phone with the binary that the farm's operator has given."""

    def __init__(self, binary: bytes, build: Build, enrolment: Enrolment) -> None:
        name = hashlib.sha256(binary).hexdigest()
        self.programs = {name: binary}
        self.command = f"taskset {enrolment.core_mask} sh plan"
        self._program = f"../cache/{name}"
        self._build = build
        self._abi = enrolment.abi
        self._readings_script = readings_script(core=enrolment.core, android=enrolment.android)
        self._mark = f"@{secrets.token_hex(8)}"  # which no program can have in its output

    def plan_text(self, plan: Plan) -> str:
        """A script for any shell that Android has had."""
        limit_s = block_limit_s(plan.protocol)
        subjects = "\n".join(f"{n}) {self._block(plan, n)} ;;" for n in range(len(plan.models)))
        turns = range(max(rounds for _, rounds in plan.models))
        visits = [f"visit {n}" for turn in turns for n, (_, rounds) in enumerate(plan.models) if turn < rounds]
        return f"""
            mark() {{ echo "{self._mark} $*" >>steps || exit {CANNOT_WRITE}; }}
            {self._readings_script}
            state() {{ mark state; readings >>steps 2>/dev/null; mark end; }}
            block() {{
            at=$1; shift; rm -f result; mark started $at $(date +%s)
            timeout {limit_s} {self._program} "$@" >block 2>&1 </dev/null; status=$?
            mark printed $at $status; cat block >>steps && echo >>steps || exit {CANNOT_WRITE}
            if [ -s result ]; then mark result; base64 result >>steps || exit {CANNOT_WRITE}; fi
            mark end; return $status
            }}
            subject() {{
            case $1 in
            {subjects}
            esac
            }}
            reference() {{ {self._block(plan, REFERENCE)}; }}
            # A model that failed is left alone for the rest of the plan.
            visit() {{
            [ -e failed-$1 ] && return
            subject $1 || : >failed-$1
            reference || exit 0; state
            }}
            rm -f failed-*
            mark pinned $(grep Cpus_allowed_list /proc/$$/status)
            state; reference || exit 0
            {chr(10).join(visits)}
            mark done
            """

    def _block(self, plan: Plan, position: int) -> str:
        protocol = plan.protocol
        block_ms = protocol.reference_block_ms if position == REFERENCE else protocol.block_ms
        arguments = words(
            self._build.program,
            protocol,
            graph=f"../cache/{plan.model(position).name}",
            block_ms=block_ms,
            max_s=block_limit_s(protocol),  # later than `timeout`, which tells a slow model from a faulty device
            result_file="result" if self._build.has_result_file else None,
        )
        return f"block {position} {' '.join(arguments)}"

    def steps(self, text: str, plan: Plan) -> Iterator[Step]:
        """What the script wrote, which may end anywhere.

        Raises:
            DeviceFault: it cannot have written that.
            SuspectedFault: the program failed on a model and does not say why, or printed what is no latency.
        """
        began: int | None = None
        at_s = 0
        for section in self._sections(text):
            match section.words:
                case ["pinned", *_, cores]:
                    yield Pinned("pinned", cores_in(cores))
                case ["state"]:
                    yield State("state", parse_readings(section.body))
                case ["started", position, seconds] if _are_numbers(position, seconds):
                    began = began or int(seconds)
                    at_s = max(int(seconds) - began, 0)  # somebody may set the phone's clock
                    yield Started("started", int(position))
                case ["printed", position, status] if _are_numbers(position, status):
                    try:
                        yield self._printed(
                            section, int(position), int(status), at_s=at_s, min_runs=plan.protocol.min_runs
                        )
                    except Unexplained as fault:
                        if int(position) == REFERENCE:
                            raise
                        # The same program has just run the reference operator.
                        raise SuspectedFault(str(fault), suspect=plan.model(int(position))) from fault
                case ["done"]:
                    yield Done("done")
                case other:
                    raise DeviceFault(f"The script says something unintelligible: {' '.join(other)[:500]}")

    def _printed(self, section: "_Section", position: int, status: int, *, at_s: float, min_runs: int) -> Step:
        """The step that a block's output amounts to."""
        if status == 0:
            try:
                summary = self._build.summary(section.body, section.result, min_runs=min_runs)
            except SubjectFault as refusal:
                return Refused("refused", position, str(refusal))
            return Ran("ran", position, at_s, [summary.latency_ms], summary.runs)
        fault = fault_of(status, section.body, abi=self._abi)
        if isinstance(fault, Crashed):
            return Crash("crash", position, str(fault))
        if isinstance(fault, SubjectFault):
            return Refused("refused", position, str(fault))
        raise fault

    def _sections(self, text: str) -> Iterator["_Section"]:
        """What stands between the marks. A section that was cut off is none."""
        open_section: _Section | None = None
        for part in text.split(self._mark)[1:]:
            head, newline, body = part.partition("\n")
            if not newline:
                return
            match head.split():
                case ["state" | "printed", *_] as heading:
                    open_section = _Section(heading, body, None)
                case ["result"] if open_section is not None:
                    open_section = open_section._replace(result=_decoded(body))
                case ["end"] if open_section is not None:
                    yield open_section
                    open_section = None
                case heading:
                    yield _Section(heading, "", None)


class _Section(NamedTuple):
    words: list[str]  # of its mark
    body: str
    result: bytes | None  # the file that the program wrote


def _are_numbers(*words: str) -> bool:
    return all(re.fullmatch(r"-?[0-9]{1,10}", word) for word in words)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise DeviceFault(f"The result file of benchmark_model arrived damaged: {text[:200]}") from error
