"""What is deployed in containers names the image, the port, the folder and the user that it has."""

import pathlib
from typing import Any

import yaml

import sniproxy
from launcher.chain import image

FOLDER = pathlib.Path(__file__).parent.parent / "chroot" / "containers"
NAME = f"localhost/sniproxy:{sniproxy.__version__}"
HOSTS = "/srv/sniproxy"


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def test_compose() -> None:
    (project,) = read("compose.yaml")
    (service,) = project["services"].values()
    assert service["image"] == f"${{SNIPROXY_IMAGE:-{NAME}}}"
    assert service["ports"] == [f"443:{image.PORT}"]
    (volume,) = service["volumes"]
    assert (volume["source"], volume["target"]) == (HOSTS, image.HOSTS)
    assert volume["read_only"] is service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "user" not in service  # the image's


def test_daemon_set() -> None:
    namespace, daemons = read("daemonset.yaml")
    assert daemons["metadata"]["namespace"] == namespace["metadata"]["name"]
    pod = daemons["spec"]["template"]
    assert daemons["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == NAME
    (port,) = container["ports"]
    assert (port["hostPort"], port["containerPort"]) == (443, image.PORT)
    assert container["readinessProbe"]["tcpSocket"]["port"] == port["name"]
    (mount,), (volume,) = container["volumeMounts"], pod["spec"]["volumes"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], image.HOSTS)
    assert volume["hostPath"]["path"] == HOSTS


def test_the_pod_has_no_rights() -> None:
    """As the unit: no user that is anybody's, no capability, nothing to write to, no way up."""
    _, daemons = read("daemonset.yaml")
    pod = daemons["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = pod["securityContext"]
    assert context.pop("seccompProfile") == {"type": "RuntimeDefault"}
    assert context.pop("runAsNonRoot") is True
    assert ":".join(str(number) for number in context.values()) == image.USER
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"][0]["readOnly"] is True
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
