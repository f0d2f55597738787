"""Who may call what: one line for each route. `python tests/web/authorisation.py` writes it into docs/security.md."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wetread.clinic.access import RIGHTS, Right, Role

ANYONE, SIGNED_IN = "anyone", "signed in"
PAGE = Path(__file__).parents[2] / "docs/security.md"
BEGIN, END = "<!-- begin: written by tests/web/authorisation.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Rule:
    """Who may call a route.

    `page`: a stranger is sent to the login page instead of being told 401. `also`: answers that mean something else
    here than *not allowed* (a wrong password is a 403, too). `more`: what a request needs to reach the route's code.
    `names`: the answer says who the patient is, so that no role may have it that sees no patients.
    """

    who: Right | str
    page: bool = False
    also: tuple[int, ...] = ()
    names: bool = False
    more: dict[str, Any] = field(default_factory=dict)


VIEW, UPLOAD, REVIEW, INFER = Right.VIEW, Right.UPLOAD, Right.REVIEW, Right.INFER
OPERATE, PULL, ADMINISTER = Right.OPERATE, Right.PULL, Right.ADMINISTER
_STUDY, _SERIES = "/dicomweb/studies/{study}", "/dicomweb/studies/{study}/series/{series}"
_INSTANCE = f"{_SERIES}/instances/{{instance}}"
_PDF = {"headers": {"Content-Type": "application/pdf"}}

TABLE: dict[tuple[str, str], Rule] = {
    # pages
    ("GET", "/"): Rule(VIEW, page=True),
    ("GET", "/studies/next"): Rule(VIEW, page=True),
    ("GET", "/studies/ahead"): Rule(VIEW, page=True),
    ("GET", "/studies/{study}"): Rule(VIEW, page=True),
    ("GET", "/studies/{study}/critical"): Rule(VIEW, page=True),
    ("GET", "/try"): Rule(UPLOAD, page=True),
    ("GET", "/studies/{study}/history"): Rule(VIEW, page=True),
    ("GET", "/studies/{study}/report"): Rule(VIEW, page=True),
    ("GET", "/settings"): Rule(SIGNED_IN, page=True),
    ("POST", "/settings"): Rule(SIGNED_IN),
    ("GET", "/settings/rule"): Rule(ADMINISTER, page=True),
    ("POST", "/settings/rule"): Rule(ADMINISTER),
    ("GET", "/users"): Rule(ADMINISTER, page=True),
    ("POST", "/users"): Rule(ADMINISTER),
    ("POST", "/users/{account}"): Rule(ADMINISTER),
    ("GET", "/quality"): Rule(VIEW, page=True),
    ("GET", "/models"): Rule(VIEW, page=True),
    ("GET", "/models/{model}"): Rule(VIEW, page=True),
    ("GET", "/settings/ai"): Rule(ADMINISTER, page=True),
    ("POST", "/settings/ai"): Rule(ADMINISTER),
    ("GET", "/drift"): Rule(OPERATE, page=True),
    ("GET", "/drift/report"): Rule(OPERATE, page=True),
    ("GET", "/operations"): Rule(OPERATE, page=True),
    ("POST", "/images/{image}/retry"): Rule(OPERATE),
    ("POST", "/images/{image}/release"): Rule(ADMINISTER),
    ("GET", "/deliveries"): Rule(OPERATE, page=True),
    ("POST", "/deliveries/{delivery_id}/retry"): Rule(OPERATE),
    ("POST", "/deliveries/{delivery_id}/dismiss"): Rule(OPERATE),
    ("GET", "/login"): Rule(ANYONE),
    ("POST", "/login"): Rule(ANYONE, also=(403,)),
    ("GET", "/login/provider"): Rule(ANYONE),
    ("GET", "/login/provider/done"): Rule(ANYONE, also=(403,)),
    ("POST", "/logout"): Rule(SIGNED_IN),
    ("GET", "/password"): Rule(SIGNED_IN, page=True),
    ("POST", "/password"): Rule(SIGNED_IN, also=(403,)),
    ("GET", "/static/{path}"): Rule(ANYONE),
    ("GET", "/static/language/{code}.js"): Rule(ANYONE, also=(404,)),
    # API
    ("GET", "/api/v1/openapi.json"): Rule(ANYONE),
    ("POST", "/api/v1/studies"): Rule(UPLOAD, more={"data": {"study": ""}}),
    ("POST", "/api/v1/try"): Rule(UPLOAD, more={"data": {"model": "none"}}),
    ("GET", "/api/v1/studies/{study}"): Rule(VIEW),
    ("GET", "/api/v1/studies/{study}/sr"): Rule(VIEW, names=True),
    ("GET", "/api/v1/studies/{study}/sc"): Rule(VIEW, names=True),
    ("GET", "/api/v1/studies/{study}/fhir"): Rule(VIEW, names=True),
    ("GET", "/api/v1/studies/{study}/report.pdf"): Rule(VIEW),
    ("GET", "/api/v1/deliveries"): Rule(OPERATE),
    ("POST", "/api/v1/deliveries/{delivery_id}/retry"): Rule(OPERATE),
    ("DELETE", "/api/v1/deliveries/{delivery_id}"): Rule(OPERATE),
    ("GET", "/api/v1/worklist"): Rule(VIEW),
    ("GET", "/api/v1/filters"): Rule(VIEW),
    ("PUT", "/api/v1/filters/{name}"): Rule(VIEW, more={"json": {"king": 1}}),
    ("DELETE", "/api/v1/filters/{name}"): Rule(VIEW),
    ("GET", "/api/v1/readers"): Rule(REVIEW),
    ("POST", "/api/v1/studies/{study}/hand-over"): Rule(REVIEW, more={"json": {"king": 1}}),
    ("POST", "/api/v1/studies/{study}/claim"): Rule(REVIEW, also=(409,)),
    ("DELETE", "/api/v1/studies/{study}/claim"): Rule(REVIEW),
    ("POST", "/api/v1/studies/{study}/reviews"): Rule(REVIEW, more={"json": {"state": "neither"}}),
    ("DELETE", "/api/v1/studies/{study}/signature"): Rule(REVIEW, also=(409,)),
    ("POST", "/api/v1/studies/{study}/own-call"): Rule(REVIEW, also=(409,), more={"json": {"king": 1}}),
    ("GET", "/api/v1/keys"): Rule(VIEW),
    ("PUT", "/api/v1/keys"): Rule(VIEW, more={"json": {"king": 1}}),
    ("DELETE", "/api/v1/keys"): Rule(VIEW),
    ("GET", "/api/v1/critical"): Rule(VIEW),
    ("GET", "/api/v1/studies/{study}/communications"): Rule(VIEW),
    ("POST", "/api/v1/studies/{study}/communications"): Rule(REVIEW, more={"json": {"kind": "neither"}}),
    ("GET", "/api/v1/images/{image}"): Rule(VIEW),
    ("GET", "/api/v1/images/{image}/frame"): Rule(VIEW),
    ("GET", "/api/v1/images/{image}/values"): Rule(VIEW),
    ("GET", "/api/v1/images/{image}/preview.png"): Rule(VIEW),
    ("GET", "/api/v1/images/{image}/heatmap"): Rule(VIEW, more={"params": {"finding": "Edema"}}),
    ("GET", "/api/v1/images/{image}/heatmap.png"): Rule(VIEW, more={"params": {"finding": "Edema"}}),
    ("POST", "/api/v1/images/{image}/retry"): Rule(OPERATE),
    ("GET", "/api/v1/operations"): Rule(OPERATE),
    ("POST", "/api/v1/pull"): Rule(PULL, more={"json": {"source": "none", "studies": ["1.2"]}}),
    ("GET", "/api/v1/pull"): Rule(PULL),
    ("GET", "/api/v1/pull/{pull}"): Rule(PULL),
    ("POST", "/api/v1/studies/{study}/patient"): Rule(ADMINISTER, more={"json": {"king": 1}}),
    ("POST", "/api/v1/studies/{study}/merge"): Rule(ADMINISTER, more={"json": {"king": 1}}),
    ("POST", "/api/v1/images/{image}/release"): Rule(ADMINISTER, also=(409,)),
    ("POST", "/api/v1/images/{image}/rejection"): Rule(REVIEW, more={"json": {"king": 1}}),
    ("DELETE", "/api/v1/images/{image}/rejection"): Rule(REVIEW),
    ("GET", "/api/v1/ai"): Rule(VIEW),
    ("PUT", "/api/v1/ai"): Rule(ADMINISTER, more={"json": {"on": "neither"}}),
    ("GET", "/api/v1/accounts"): Rule(ADMINISTER),
    ("POST", "/api/v1/accounts"): Rule(ADMINISTER, more={"json": {"name": "x", "role": "none", "password": "short"}}),
    ("PATCH", "/api/v1/accounts/{account}"): Rule(ADMINISTER, more={"json": {}}),
    ("PUT", "/api/v1/accounts/{account}/password"): Rule(ADMINISTER, more={"json": {"password": "short"}}),
    ("GET", "/events"): Rule(VIEW),
    # DICOMweb
    ("POST", "/dicomweb/studies"): Rule(UPLOAD, more=_PDF),
    ("POST", _STUDY): Rule(UPLOAD, more=_PDF),
    ("GET", "/dicomweb/studies"): Rule(VIEW, names=True),
    ("GET", "/dicomweb/series"): Rule(VIEW, names=True),
    ("GET", "/dicomweb/instances"): Rule(VIEW, names=True),
    ("GET", f"{_STUDY}/series"): Rule(VIEW, names=True),
    ("GET", f"{_STUDY}/instances"): Rule(VIEW, names=True),
    ("GET", f"{_SERIES}/instances"): Rule(VIEW, names=True),
    ("GET", _STUDY): Rule(VIEW, names=True),
    ("GET", _SERIES): Rule(VIEW, names=True),
    ("GET", _INSTANCE): Rule(VIEW, names=True),
    ("GET", f"{_STUDY}/metadata"): Rule(VIEW, names=True),
    ("GET", f"{_SERIES}/metadata"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/metadata"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/frames/{{numbers}}"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/bulkdata/{{tag}}"): Rule(VIEW, names=True),
    ("GET", f"{_STUDY}/rendered"): Rule(VIEW, names=True),
    ("GET", f"{_SERIES}/rendered"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/rendered"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/frames/{{number}}/rendered"): Rule(VIEW, names=True),
    ("GET", f"{_STUDY}/thumbnail"): Rule(VIEW, names=True),
    ("GET", f"{_SERIES}/thumbnail"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/thumbnail"): Rule(VIEW, names=True),
    ("GET", f"{_INSTANCE}/frames/{{number}}/thumbnail"): Rule(VIEW, names=True),
    # inference
    ("GET", "/v2"): Rule(INFER),
    ("GET", "/v2/health/live"): Rule(ANYONE),
    ("GET", "/v2/health/ready"): Rule(ANYONE),
    ("GET", "/api/v1/deployments"): Rule(VIEW),
    ("GET", "/v2/models/{name}"): Rule(INFER),
    ("GET", "/v2/models/{name}/versions/{version}"): Rule(INFER),
    ("GET", "/v2/models/{name}/ready"): Rule(INFER),
    ("GET", "/v2/models/{name}/versions/{version}/ready"): Rule(INFER),
    ("POST", "/v2/models/{name}/infer"): Rule(INFER),
    ("POST", "/v2/models/{name}/versions/{version}/infer"): Rule(INFER),
    # monitoring: numbers without names
    ("GET", "/healthz"): Rule(ANYONE),
    ("GET", "/readyz"): Rule(ANYONE),
    ("GET", "/metrics"): Rule(ANYONE),
}


@dataclass(frozen=True)
class Kind:
    """A kind of caller: the rights that it has, None for nobody."""

    name: str
    rights: frozenset[Right] | None
    signed_in: bool = True
    sees_patients: bool = True


SCOPED = tuple(Kind(f"service: {scope}", frozenset({scope})) for scope in sorted(RIGHTS[Role.SERVICE]))
KINDS = (
    Kind("nobody", None, signed_in=False),
    *(
        Kind(role.value, RIGHTS[role], sees_patients=role is not Role.ENGINEER)
        for role in (Role.RADIOLOGIST, Role.ENGINEER, Role.ADMINISTRATOR, Role.SERVICE)
    ),
    *SCOPED,
)


def may(rule: Rule, kind: Kind) -> bool:
    """Return what the table says."""
    if rule.who == ANYONE:
        return True
    if rule.who == SIGNED_IN:
        return kind.signed_in
    return kind.rights is not None and rule.who in kind.rights and (kind.sees_patients or not rule.names)


def markdown() -> str:
    """Return the table for the manual."""
    cell: Callable[[bool], str] = lambda yes: "●" if yes else ""  # noqa: E731
    lines = [
        f"| route | needs | {' | '.join(kind.name for kind in KINDS)} |",
        f"|---|---|{'---|' * len(KINDS)}",
    ]
    for (method, path), rule in TABLE.items():
        cells = " | ".join(cell(may(rule, kind)) for kind in KINDS)
        needs = f"{rule.who}, and to see patients" if rule.names else rule.who
        lines.append(f"| `{method} {path}` | {needs} | {cells} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Return the manual's page with the table as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(TABLE)} routes\n")
