"""Dockerfile and docker-compose.yml are held to the project; what they start is run in end_to_end/test_compose.py."""

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_PIP = {"pip", "setuptools", "wheel"}  # which `pip freeze` leaves out
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE, re.MULTILINE))  # name to instructions
INSTALLS = re.findall(r'pip install --constraint /requirements\.lock "\$\(echo /wheels/\*\.whl\)\[(.+)\]"', DOCKERFILE)


def copied() -> set[str]:
    """What the images take from the project."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


def pinned() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def needed(requirements: Iterable[str], found: set[str]) -> set[str]:
    """The packages that these requirements bring, and what those bring, as far as they are for this machine."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name == canonicalize_name(PROJECT["name"]):
            for extra in extras:
                needed(PROJECT["optional-dependencies"][extra], found)
        elif name not in found:
            found.add(name)
            brought = [Requirement(text) for text in metadata.requires(name) or []]
            wanted = [
                r for r in brought if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
            ]
            needed([f"{r.name}[{','.join(r.extras)}]" if r.extras else r.name for r in wanted], found)
    return found


def test_what_the_images_copy_exists_and_is_all_that_is_sent_to_the_builder() -> None:
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    first, *others = (ROOT / ".dockerignore").read_text().splitlines()
    assert first == "*"
    assert {line[1:] for line in others if line.startswith("!")} == copied()


def test_the_wheel_is_made_of_all_that_it_contains() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {*wheel["packages"], *wheel["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    assert wanted | {"pyproject.toml", "requirements.lock"} == copied()


def test_every_image_installs_extras_that_exist_at_pinned_versions() -> None:
    assert len(INSTALLS) == DOCKERFILE.count("pip install") == 3
    for extras in INSTALLS:
        packages = needed([f"{PROJECT['name']}[{extras}]", *PROJECT["dependencies"]], set())
        assert packages - pinned() - OF_PIP == set()
        assert "fastapi" in packages or "ai-edge-litert" in packages  # that something was looked at


def test_the_image_of_services_has_no_tensorflow() -> None:
    (extras,) = re.findall(r"\.whl\)\[(.+)\]", STAGES["service"])
    packages = needed([f"{PROJECT['name']}[{extras}]"], set())
    assert {"fastapi", "psycopg"} <= packages
    assert {name for name in packages if name.startswith(("tensorflow", "keras", "torch"))} == set()


@pytest.mark.parametrize("target", ["service", "converter", "agent"])
def test_images_run_as_nobody_in_particular(target: str) -> None:
    assert re.findall(r"^USER (.+)$", STAGES[target], re.MULTILINE) == ["padnas"]
    assert "USER" not in STAGES[target].partition("USER")[2]


def test_images_are_pinned_by_version_and_name_no_host() -> None:
    foreign = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    foreign += [name for name in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) if name not in STAGES]
    for image in foreign:
        assert re.fullmatch(r"([a-z]+/)?[a-z]+:v?\d+\.\d+[\w.-]*", image), image
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert service["build"]["target"] in STAGES
            assert service["image"].endswith(f":{PROJECT['version']}")


def test_secrets_come_from_files_that_the_guide_makes() -> None:
    declared = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    guide = (ROOT / "docs" / "guide.md").read_text()
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", [])) <= set(declared)
        for name, value in (service.get("environment") or {}).items():
            assert not re.search("PASSWORD|TOKEN", name) or name.endswith("_FILE") or value == "yes", name
    for file in declared.values():
        assert file.removeprefix("./") in guide


def test_proxy_and_prometheus_know_services_that_there_are() -> None:
    serving = {name for name, service in COMPOSE["services"].items() if "serve" in service.get("command", [])}
    for file in ("Caddyfile", "prometheus.yml"):
        named = set(re.findall(r"([\w-]+):8000", (ROOT / "deploy" / file).read_text()))
        assert named == serving == {"service-1", "service-2", "converter"}


def test_everything_that_serves_has_a_health_check_and_comes_back() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        if name not in ("migrate", "agent", "prometheus"):
            assert service["healthcheck"]["test"][0] == "CMD"
