"""Bill of materials: what is inside the executable, for programs, as CycloneDX 1.5 in JSON.

Equal executables have equal bills: there is no time and no random serial number in it.
"""

import json
from collections.abc import Iterable

from .components import Component

FORMAT, VERSION = "CycloneDX", "1.5"


def bill(name: str, version: str, sha256: str, components: Iterable[Component]) -> str:
    """Write the bill of the executable ``name``, whose digest is ``sha256``."""
    listed = list(components)
    reference = f"pkg:generic/{name}@{version}"
    subject = {
        "type": "application",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        "licenses": [{"expression": "MIT"}],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }
    inside = [component.purl for component in listed if component.inside]
    document = {
        "bomFormat": FORMAT,
        "specVersion": VERSION,
        "version": 1,
        "metadata": {"component": subject},
        "components": [_entry(component) for component in listed],
        "dependencies": [{"ref": reference, "dependsOn": inside}],
    }
    return json.dumps(document, indent=2) + "\n"


def _entry(component: Component) -> dict[str, object]:
    entry: dict[str, object] = {
        "type": "library",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "scope": "required" if component.inside else "excluded",
        "licenses": [{"expression": component.licence}],
        "purl": component.purl,
    }
    if component.sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": component.sha256}]
    return entry
