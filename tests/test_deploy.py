"""The files of deploy/ and the Dockerfile: they agree with the server and with each other."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from pydantic import TypeAdapter
from starlette.routing import Route

from serve.app import build
from serve.http.keys import OPEN, Keys
from serve.service import Service
from serve.settings import ServeConfig

ROOT = Path(__file__).parent.parent
IMAGE = (ROOT / "Dockerfile").read_text()
MANIFESTS = ("one-machine", "slice")
ROUTES = {
    route.path
    for route in build(Service(ServeConfig()), Keys({})).routes
    if isinstance(route, Route)
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / f"deploy/{name}.yaml").read_text()))


@pytest.fixture(params=MANIFESTS)
def workload(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What has pods; there is one in each file."""
    (found,) = [one for one in documents(request.param) if "template" in one["spec"]]
    return found


@pytest.fixture
def pod(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return found


def options(container: dict[str, Any], tmp_path: Path) -> ServeConfig:
    """The server's settings, as its command line would read them in pod 2."""
    (tmp_path / "keys").write_text("ann 0123456789abcdef\n")
    arguments = container["args"]
    if container.get("command") == ["/bin/sh", "-c"]:
        (script,) = arguments
        assert script.startswith("exec python -m serve ")  # the signal reaches the server
        shell = ["bash", "-c", f"printf '%s\\n' {script.removeprefix('exec python -m serve ')}"]
        environment = {"HOSTNAME": "qwen-slice-2"}
        told = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
        arguments = told.stdout.splitlines()
    else:
        assert 'ENTRYPOINT ["python", "-m", "serve", "--host", "0.0.0.0"]' in IMAGE
        arguments = ["--host", "0.0.0.0", *arguments]
    place = arguments.index("--api-keys") + 1
    assert arguments[place].startswith("/keys/")
    arguments[place] = str(tmp_path / "keys")
    return tyro.cli(ServeConfig, args=arguments)


def test_options(workload: dict[str, Any], container: dict[str, Any], tmp_path: Path) -> None:
    settings = options(container, tmp_path)
    assert settings.host == "0.0.0.0"
    assert settings.model == "/model"
    ports = [port["containerPort"] for port in container["ports"]]
    assert ports[0] == settings.port
    if settings.coordinator is not None:
        assert (settings.processes, settings.process) == (workload["spec"]["replicas"], 2)
        host, port = settings.coordinator.split(":")
        name = workload["metadata"]["name"]
        assert (host, int(port)) == (f"{name}-0.{workload['spec']['serviceName']}", ports[1])


def test_time_to_drain(pod: dict[str, Any], container: dict[str, Any], tmp_path: Path) -> None:
    """Kubernetes counts the sleep before SIGTERM too."""
    (_, seconds) = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = options(container, tmp_path).drain_seconds
    assert int(seconds) + drain + 10 <= pod["terminationGracePeriodSeconds"]


def asked(probe: dict[str, Any], container: dict[str, Any], host: str) -> str | None:
    """The path a probe asks for in the pod of that name; None where it asks for nothing."""
    if "httpGet" in probe:
        assert probe["httpGet"]["port"] == container["ports"][0]["containerPort"]
        return probe["httpGet"]["path"]
    command, record = probe["exec"]["command"], "import urllib.request as r; r.urlopen = {}; "
    record = record.format("lambda url, timeout: print(url)")
    place = command.index("-c") + 1
    told = subprocess.run(
        [sys.executable, *command[1:place], record + "\n" + command[place], *command[place + 1 :]],
        env={"HOSTNAME": host},
        capture_output=True,
        text=True,
        check=True,
    )
    url, _, path = told.stdout.strip().partition(f":{container['ports'][0]['containerPort']}")
    assert url in ("", "http://127.0.0.1")
    return path or None


def test_probes(container: dict[str, Any]) -> None:
    """Without a key, of routes that there are; a process without an address is well."""
    wanted = {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    for kind, path in wanted.items():
        probe = container[f"{kind}Probe"]
        assert asked(probe, container, "qwen-slice-0") == path
        assert path in OPEN & ROUTES
        if "exec" in probe:
            assert asked(probe, container, "qwen-slice-10") is None
            assert probe["timeoutSeconds"] > 5
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_what_a_container_may(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The image's user, and nothing to write to but what the image writes to."""
    (user,) = set(re.findall(r"(?:useradd --uid|USER) (\d+)", IMAGE))
    security = pod["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == security["fsGroup"] == int(user)
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", IMAGE)
    written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert written == {cache, "/tmp"}
    assert {mount["name"] for mount in mounts.values()} == {one["name"] for one in pod["volumes"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_services(name: str) -> None:
    """Each leads to the pods, by a port they have."""
    *services, workload = sorted(documents(name), key=lambda one: "template" in one["spec"])
    template = workload["spec"]["template"]
    assert workload["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    first = {"statefulset.kubernetes.io/pod-name": f"{workload['metadata']['name']}-0"}
    (container,) = template["spec"]["containers"]
    ports = {port["containerPort"] for port in container["ports"]}
    for service in services:
        assert service["spec"]["selector"] in (template["metadata"]["labels"], first)
        assert {port["targetPort"] for port in service["spec"].get("ports", [])} <= ports


def test_slice_is_whole() -> None:
    *_, workload = documents("slice")
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    across, down = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    count = container["resources"]["limits"]["google.com/tpu"]
    assert int(across) * int(down) == count * workload["spec"]["replicas"]


def test_ray_serve() -> None:
    """Its arguments are settings, and no replica gets more than it has slots for."""
    (config,) = documents("ray_serve")
    (application,) = config["applications"]
    assert application["args"].keys() <= ServeConfig.__dataclass_fields__.keys()
    settings = TypeAdapter(ServeConfig).validate_python(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["max_ongoing_requests"] == settings.slots
    module, _, function = application["import_path"].partition(":")
    text = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert f"def {function}(" in text
    assert f'name="{deployment["name"]}"' in text
