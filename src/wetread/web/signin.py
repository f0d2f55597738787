"""How people come in and go out: name and password, one-time link, identity provider; their own password."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from wetread.clinic import access, accounts, attempts
from wetread.clinic.access import Caller
from wetread.clinic.attempts import ThrottledError
from wetread.errors import ClinicError, DeniedError
from wetread.web import oidc, security
from wetread.web.language import N_
from wetread.web.pages import SignedIn, render

router = APIRouter(include_in_schema=False)

_Text = Annotated[str, Form(max_length=2000)]
_FLOW = "wetread_oidc"  # the cookie that ties a sign-in at the provider to this browser
_FLOW_S = 600


@router.get("/login")
def login_page(request: Request, code: str = "") -> Response:
    """Ask before a login link is used, so that a mail scanner that merely looks at it does not spend it."""
    return _login_page(request, code=code)


@router.post("/login")
def login(request: Request, code: _Text = "", name: _Text = "", password: _Text = "") -> Response:
    """Open a session, by a login link or by name and password."""
    database, life, address = request.app.state.clinic.database, security.life(request), security.address(request)
    keys = attempts.from_address(address)
    try:
        security.ours(request)
    except DeniedError:
        with suppress(ThrottledError):  # then it is in the audit often enough
            attempts.take(database, attempts.from_address(address, "other page"))
            _failed(request, "page", "of another site")
        raise
    try:
        if code:
            attempts.take(database, keys)
            session = access.login(database, code, life, address=address)
            _forgive(request, keys)
        else:
            session = accounts.log_in(database, name, password, address=address, life=life)
    except ThrottledError as error:
        answer = _login_page(request, 429, error=str(error), who=name[:64])
        answer.headers["Retry-After"] = str(error.seconds)
        return answer
    except DeniedError as error:
        if code:
            return render(request, "problem.html", 403, title=N_("Not logged in"), detail=str(error))
        return _login_page(request, 403, error=str(error), who=name[:64])
    return _signed_in(request, RedirectResponse(security.recalled(request), 303), session)


@router.get("/login/provider")
def provider_login(request: Request) -> Response:
    """Send the browser to the identity provider."""
    secret, where = oidc.of(request.app).begin(_callback(request))
    answer = RedirectResponse(where, 303)
    # Lax: the way back comes from the provider's page.
    answer.set_cookie(
        security.cookie_name(request, _FLOW),
        secret,
        max_age=_FLOW_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/login/provider/done")
def provider_done(request: Request) -> Response:
    """Take what the identity provider says, and open a session."""
    flow, clinic = security.cookie_name(request, _FLOW), request.app.state.clinic
    provider, keys = oidc.of(request.app), attempts.from_address(security.address(request), "provider")
    attempts.take(clinic.database, keys)  # each is written down, and asks the provider
    person = None
    try:
        person = provider.finish(_callback(request), request.cookies.get(flow, ""), request.query_params)
        session = accounts.enter(
            clinic.database,
            person.issuer,
            person.subject,
            person.name,
            person.role,
            person.site,
            life=security.life(request),
        )
    except ClinicError as error:
        _failed(request, "identity provider", str(error)[:200], **({"person": person.subject} if person else {}))
        answer = render(request, "problem.html", 403, title=N_("Not logged in"), detail=str(error))
    else:
        _forgive(request, keys)
        # A page, not a redirect: a browser keeps our strict cookie back from what another site began.
        answer = _signed_in(request, render(request, "entered.html", back=security.recalled(request)), session)
    answer.delete_cookie(flow, httponly=True, samesite="lax", secure=request.url.scheme == "https")
    return answer


@router.post("/logout")
def logout(request: Request, caller: Annotated[Caller, Depends(security.identify)]) -> Response:
    """End the session."""
    access.logout(request.app.state.clinic.database, caller)
    answer = Response(status_code=204)
    secure = request.url.scheme == "https"
    answer.delete_cookie(security.cookie_name(request), httponly=True, samesite="strict", secure=secure)
    return answer


@router.get("/password")
def password_page(request: Request, caller: SignedIn) -> Response:
    """Ask for the present and the new password."""
    own = accounts.own(request.app.state.clinic.database, caller)
    return render(request, "password.html", caller=caller, without=own is None or own.external)


@router.post("/password")
def change_password(
    request: Request, caller: Annotated[Caller, Depends(security.by_form)], old: _Text = "", new: _Text = ""
) -> Response:
    """Change the caller's own password."""
    database = request.app.state.clinic.database
    try:
        accounts.change_own_password(database, caller, old, new, address=security.address(request))
    except ThrottledError:
        raise
    except ClinicError as error:
        status = 403 if isinstance(error, DeniedError) else 422
        return render(request, "password.html", status, caller=caller, error=str(error))
    return render(request, "password.html", caller=caller, done=True)


def _login_page(request: Request, status: int = 200, **context: str) -> Response:
    """Show the login page; to who is in already, too: another may want to come in."""
    return render(request, "login.html", status, provider=oidc.configured(request.app), **context)


def _forgive(request: Request, keys: Mapping[str, attempts.Limit]) -> None:
    with request.app.state.clinic.database.write() as connection:
        attempts.forgive(connection, keys)


def _failed(request: Request, by: str, why: str, **more: str) -> None:
    """Audit an attempt to come in that was refused."""
    clinic, address = request.app.state.clinic, security.address(request)
    with clinic.database.write() as connection:
        access.failed(connection, clinic.settings.site, "unknown", "", by=by, address=address, why=why, **more)


def _callback(request: Request) -> str:
    """Return where the provider sends the browser back to, by the name that the browser called us by."""
    return str(request.url.replace(path="/login/provider/done", query="", fragment=""))


def _signed_in(request: Request, answer: Response, session: str) -> Response:
    """Give the browser its new session; the one that it had, of whomever, ends."""
    if old := security.session_of(request):
        access.end(request.app.state.clinic.database, old)
    secure = request.url.scheme == "https"
    if security.recalled(request) != "/":
        back = security.cookie_name(request, security.BACK)
        answer.delete_cookie(back, httponly=True, samesite="lax", secure=secure)
    answer.set_cookie(
        security.cookie_name(request),
        session,
        max_age=int(security.life(request).total_seconds()),
        httponly=True,
        samesite="strict",
        secure=secure,
    )
    return answer
