"""What a device over ADB is: its names, its clusters of cores, and what can be run and read there.

Two scripts, each run once: the first asks what the device is, the second reads the state of the core that follows.
Nothing that the device answers becomes part of a script again, but numbers of cores and the boot id.
"""

import re
from collections.abc import Callable, Collection, Mapping, Set
from typing import NamedTuple

from device_agents.adb import Output
from device_agents.errors import DeviceFault
from device_agents.gates import parse_readings, readings_script
from device_agents.local_device import as_name, processor_name_in, serial_of
from latency_contract.measurements import DeviceState

# The large cores of devices that may hide their frequencies, and of those that the literature measures on.
LARGE_CORES = {
    "Pixel 3": (4, 5, 6, 7),  # Snapdragon 845: gold; the last one, cpu7, is measured on
    "Pixel 3 XL": (4, 5, 6, 7),
}
PROPERTIES = {
    "serial": "ro.serialno",
    "model": "ro.product.model",
    "soc": "ro.soc.model",  # since Android 12
    "platform": "ro.board.platform",
    "hardware": "ro.hardware",
    "fingerprint": "ro.build.fingerprint",
    "abi": "ro.product.cpu.abi",
}
ABIS = {"aarch64": "arm64-v8a", "armv7l": "armeabi-v7a", "armv8l": "armeabi-v7a", "x86_64": "x86_64", "i686": "x86"}
TOOLS = ("taskset", "timeout", "base64", "sha256sum", "tar", "df", "du")  # that measuring needs
NO_SERIALS = {"unknown", "0123456789ABCDEF", "uninitialized"}  # which many units have at once
MAX_CORE = 63  # the last that a protocol's mask can name

# Files are read by one grep, which names each and goes on where one cannot be read.
LOOK = f"""
say() {{ echo "@$1 $2"; }}
say boot "$(cat /proc/sys/kernel/random/boot_id)"
say machine "$(uname -m)"
say system "$(uname -sr)"
say machine-id "$(cat /etc/machine-id 2>/dev/null)"
if command -v getprop >/dev/null; then
{chr(10).join(f'say {name} "$(getprop {key})"' for name, key in PROPERTIES.items())}
fi
grep -E '^(model name|Hardware|Model|CPU implementer|CPU part)' /proc/cpuinfo | sort -u | while read -r line; do
say cpuinfo "$line"
done
cpu=/sys/devices/system/cpu
files=
for name in $(ls $cpu); do
case $name in
cpu[0-9]*) files="$files $cpu/$name/online $cpu/$name/cpufreq/cpuinfo_max_freq" ;;
esac
done
for name in $(ls $cpu/cpufreq 2>/dev/null); do
case $name in
policy[0-9]*) files="$files $cpu/cpufreq/$name/related_cpus $cpu/cpufreq/$name/cpuinfo_max_freq" ;;
esac
done
grep -H . $cpu/online $cpu/present $files 2>/dev/null | while read -r line; do say file "$line"; done
for folder in /data/local/tmp /var/tmp; do
[ -d $folder ] && say free "$(df -kP $folder | tail -n 1)" && break
done
for tool in {" ".join(TOOLS)}; do command -v $tool >/dev/null || say missing $tool; done
command -v getprop >/dev/null || python3 -c '
import hashlib, importlib.metadata, importlib.util, pathlib, platform
folder = pathlib.Path(importlib.util.find_spec("ai_edge_litert").origin).parent
library = sorted(folder.glob("libpywrap_litert_common*"))[0]
version = importlib.metadata.version("ai-edge-litert")
print("@litert", version, hashlib.sha256(library.read_bytes()).hexdigest(), platform.python_version())
' 2>/dev/null
exit 0
"""


class LiteRT(NamedTuple):
    """LiteRT in the device's own Python."""

    version: str
    sha256: str  # of its native library
    python: str


class Cluster(NamedTuple):
    """Cores of one kind, which change their frequency together."""

    cores: tuple[int, ...]
    max_khz: int  # by their nature, not the cap of the moment


class Enrolment(NamedTuple):
    android: bool
    serial: str
    model: str
    soc: str
    os_build: str
    abi: str  # as Android calls it
    clusters: tuple[Cluster, ...]  # slowest first; empty where the device hides the frequencies
    large: tuple[int, ...]  # cores of the fastest kind
    online: tuple[int, ...]
    core: int  # that is measured on: the last of the large ones that are online
    max_khz: int | None  # of that core, by its nature
    boot_id: str
    free_kb: int | None  # where models will be kept
    litert: LiteRT | None
    state: DeviceState  # as it was at enrolment; what is None cannot be read there without root

    @property
    def core_mask(self) -> str:
        return f"{1 << self.core:x}"

    @property
    def lasting(self) -> "Enrolment":
        """Without what changes while it is one and the same device, measured on one and the same core."""
        return self._replace(boot_id="", clusters=(), large=(), online=(), free_kb=None, state=DeviceState())


def enrol(shell: Callable[[str], Output]) -> Enrolment:
    """Ask a device what it is.

    Raises:
        DeviceFault: it does not say, or its answers contradict each other; nothing is guessed.
    """
    answers = _answers(shell(LOOK).text)

    def answer(name: str) -> str:
        return answers.get(name, [""])[-1]

    if missing := answers.get("missing"):
        lacking = ", ".join(as_name(tool) for tool in missing)
        raise DeviceFault(f"The device lacks {lacking}, without which nothing can be measured there.")
    if not re.fullmatch(r"[\w-]{1,64}", answer("boot")):
        raise DeviceFault("The device does not say when it booted (/proc/sys/kernel/random/boot_id).")
    android = "model" in answers
    model = as_name(answer("model") if android else _processor(answers))
    if not model:
        raise DeviceFault("The device does not say what model it is (ro.product.model).")
    files = _files(answers.get("file", []))
    clusters = _clusters(files)
    online = _online(files)
    large = _large(clusters, online, model=model, android=android, kinds=_kinds(answers))
    if not large & online:
        raise DeviceFault(
            f"No large core is online (large: {_list(large)}, online: {_list(online)}). Charge it, or let it cool."
        )
    core = max(large & online)
    return Enrolment(
        android=android,
        serial=_serial(answers, android=android),
        model=model,
        soc=as_name(answer("soc") or answer("platform") or answer("hardware"))
        if android
        else f"{_processor(answers)}, {len(_present(files) or online)} cores",
        os_build=_printable(answer("fingerprint") if android else answer("system")),
        abi=as_name(answer("abi") or ABIS.get(answer("machine"), answer("machine")))[:40],
        clusters=clusters,
        large=tuple(sorted(large)),
        online=tuple(sorted(online)),
        core=core,
        max_khz=next((cluster.max_khz for cluster in clusters if core in cluster.cores), None),
        boot_id=answer("boot"),
        free_kb=_free_kb(answer("free")),
        litert=_litert(answer("litert")),
        state=parse_readings(shell(f"{readings_script(core=core, android=android)}\nreadings").text),
    )


def cores_in(text: str) -> list[int]:
    """From the kernel's list, as `7`, `0-3,7` or `4 5 6 7`.

    Raises:
        DeviceFault: it is none.
    """
    cores: list[int] = []
    for part in re.split(r"[,\s]\s*", text.strip()):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if ends is None:
            raise DeviceFault(f"The device does not say which cores it means: '{_printable(text)[:200]}'.")
        cores.extend(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return cores


def _answers(text: str) -> Mapping[str, list[str]]:
    answers: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"@([\w-]+) ?(.*)", line):
            answers.setdefault(match[1], []).append(match[2].strip())
    return answers


def _files(lines: Collection[str]) -> Mapping[str, str]:
    """Content of the files under /sys/devices/system/cpu, by the path from there."""
    found = (re.fullmatch(r".*/system/cpu/([\w/]+):(.*)", line) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def _clusters(files: Mapping[str, str]) -> tuple[Cluster, ...]:
    """From the frequency policies, else from each core's own file; none where the device shows neither.

    Raises:
        DeviceFault: two policies have one core, or a core's own frequency is not its policy's.
    """
    khz = {int(n): value for n, value in _numbers(files, r"cpu(\d{1,4})/cpufreq/cpuinfo_max_freq").items()}
    policies = _numbers(files, r"cpufreq/policy(\d{1,4})/cpuinfo_max_freq")
    by_policy: dict[int, int] = {}
    clusters = []
    for policy, max_khz in policies.items():
        if (related := files.get(f"cpufreq/policy{policy}/related_cpus")) is None:
            continue
        cores = cores_in(related)
        if shared := by_policy.keys() & set(cores):
            raise DeviceFault(f"Two frequency policies of the device have the same cores: {_list(shared)}.")
        by_policy.update(dict.fromkeys(cores, max_khz))
        clusters.append(Cluster(tuple(sorted(cores)), max_khz))
    if differing := {core for core in by_policy.keys() & khz.keys() if by_policy[core] != khz[core]}:
        raise DeviceFault(f"The device states two different maximal frequencies of its cores {_list(differing)}.")
    without = {core: speed for core, speed in khz.items() if core not in by_policy}
    for speed in set(without.values()):
        clusters.append(Cluster(tuple(sorted(core for core, own in without.items() if own == speed)), speed))
    return tuple(sorted(clusters, key=lambda cluster: (cluster.max_khz, cluster.cores)))


def _numbers(files: Mapping[str, str], pattern: str) -> dict[str, int]:
    found = ((re.fullmatch(pattern, path), text) for path, text in files.items())
    return {match[1]: int(text) for match, text in found if match and re.fullmatch(r"[1-9]\d{0,8}", text)}


def _online(files: Mapping[str, str]) -> set[int]:
    """Raises DeviceFault where the device does not say, or names cores that it does not have."""
    if "online" in files:
        online = set(cores_in(files["online"]))
    else:  # a core that cannot be switched off, as the first one often, has no such file
        switches = {int(n) for n in (_core_of(path, "online") for path in files) if n}
        if not switches:
            raise DeviceFault("The device does not say which of its cores are online (/sys/devices/system/cpu/online).")
        off = {core for core in switches if files[f"cpu{core}/online"] != "1"}
        online = (switches | _present(files)) - off
    if foreign := online - (_present(files) or online) or {core for core in online if core > MAX_CORE}:
        raise DeviceFault(f"The device says that cores are online which it does not have: {_list(foreign)}.")
    return online


def _core_of(path: str, name: str) -> str | None:
    match = re.fullmatch(rf"cpu(\d{{1,4}})/{name}", path)
    return match[1] if match else None


def _present(files: Mapping[str, str]) -> set[int]:
    return set(cores_in(files["present"])) if "present" in files else set()


def _large(
    clusters: Collection[Cluster], online: Set[int], *, model: str, android: bool, kinds: Collection[str]
) -> set[int]:
    """Which cores are of the fastest kind.

    Cases: every core's frequency is known: those with the highest, which a known model must confirm; it is a known
    model; a board that names one kind of core and no frequency: all. Raises DeviceFault for every other.
    """
    khz = {core: cluster.max_khz for cluster in clusters for core in cluster.cores}
    known = LARGE_CORES.get(model)
    if khz and online <= khz.keys():  # case: every core's frequency
        fastest = {core for core, speed in khz.items() if speed == max(khz.values())}
        if known is not None and fastest != set(known) & khz.keys():
            raise DeviceFault(
                f"A {model} has its large cores at {_list(known)}, but this device's frequencies say {_list(fastest)}."
            )
        if fastest == khz.keys() and len(kinds) > 1:
            raise DeviceFault(
                f"This {model} has cores of {len(kinds)} kinds with one frequency, so that the large ones cannot be"
                " told; measuring on a small one by mistake would be worse than not measuring."
            )
        return fastest
    if known is not None:  # case: known model
        return set(known)
    if not android and not khz and len(kinds) <= 1:  # case: board with one kind of core
        return set(online)
    raise DeviceFault(
        f"This {model} hides the frequencies of {'some of its' if khz else 'its'} cores, and its large cores are not"
        " known; measuring on a small one by mistake would be worse than not measuring."
    )


def _kinds(answers: Mapping[str, list[str]]) -> set[str]:
    """What /proc/cpuinfo calls the kinds of core that are online; ARM kernels name implementer and part."""
    lines = [re.split(r"\s*:\s*", line, maxsplit=1) for line in answers.get("cpuinfo", [])]
    parts = {value for name, value in (line for line in lines if len(line) == 2) if name == "CPU part"}
    return parts or {value for name, value in (line for line in lines if len(line) == 2) if name == "model name"}


def _serial(answers: Mapping[str, list[str]], *, android: bool) -> str:
    """A phone's own; a board's is drawn from its machine id, as this machine's is (local_device.machine_serial)."""
    said = answers.get("serial" if android else "machine-id", [""])[-1]
    if said in NO_SERIALS or not re.fullmatch(r"[\w.:-]{1,100}", said):
        source = "serial number (ro.serialno)" if android else "machine id (/etc/machine-id)"
        raise DeviceFault(f"The device has no {source} that would tell it from others of its model.")
    return said if android else serial_of(said)


def _processor(answers: Mapping[str, list[str]]) -> str:
    return processor_name_in("\n".join(answers.get("cpuinfo", [])), machine=answers.get("machine", [""])[-1])


def _free_kb(answer: str) -> int | None:
    """From the last line of `df -kP`: DEVICE TOTAL USED FREE SHARE% PLACE."""
    match = re.search(r" (\d{1,15}) +\d+% ", f"{answer} ")
    return int(match[1]) if match else None


def _litert(answer: str) -> LiteRT | None:
    words = answer.split()
    return LiteRT(*words) if len(words) == 3 and re.fullmatch(r"[0-9a-f]{64}", words[1]) else None


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable()).strip()[:300]


def _list(cores: Collection[int]) -> str:
    return ", ".join(map(str, sorted(cores))) or "none"
