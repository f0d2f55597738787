"""Who may come in, for administrators: accounts of their own site, as a page and over the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field

from wetread.clinic import accounts
from wetread.clinic.access import Caller, Right
from wetread.errors import ClinicError, ConflictError
from wetread.web.api import clinic_of
from wetread.web.pages import by_form, render, with_right
from wetread.web.security import Administrator

router = APIRouter(prefix="/api/v1", tags=["accounts"])
pages = APIRouter(include_in_schema=False)

_Text = Annotated[str, Form(max_length=2000)]
_Maybe = Annotated[str | None, Form(max_length=2000)]
_Password = Annotated[str, Field(min_length=1, max_length=1024, description="12 characters or more.", repr=False)]


class AccountOut(BaseModel):
    """An account; `external` when the person signs in at the identity provider."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    role: str
    site: str
    external: bool
    created_at: datetime
    seen_at: datetime | None
    disabled_at: datetime | None


class AccountIn(BaseModel):
    """A new account."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    role: str = Field(max_length=64, description="radiologist, engineer or administrator")
    password: _Password


class AccountChange(BaseModel):
    """What becomes of an account; what is left out stays. Its sessions end."""

    model_config = ConfigDict(extra="forbid")

    role: str | None = Field(None, max_length=64)
    disabled: bool | None = None


class PasswordIn(BaseModel):
    """A new password for an account."""

    model_config = ConfigDict(extra="forbid")

    password: _Password


@router.get("/accounts")
def get_accounts(request: Request, caller: Administrator) -> list[AccountOut]:
    """Return the site's accounts, by name."""
    return [AccountOut.model_validate(a) for a in accounts.accounts(clinic_of(request).database, caller.site)]


@router.post("/accounts", status_code=201)
def add_account(request: Request, body: AccountIn, caller: Administrator) -> AccountOut:
    """Make an account at the caller's site."""
    database = clinic_of(request).database
    made = accounts.create(database, body.name, body.role, caller.site, body.password, actor=caller.name)
    return AccountOut.model_validate(made)


@router.patch("/accounts/{account}")
def change_account(request: Request, account: str, body: AccountChange, caller: Administrator) -> AccountOut:
    """Give an account another role, disable it, or enable it again."""
    database = clinic_of(request).database
    changed = accounts.change(database, caller.site, account, role=body.role, disabled=body.disabled, actor=caller.name)
    return AccountOut.model_validate(changed)


@router.put("/accounts/{account}/password", status_code=204)
def put_password(request: Request, account: str, body: PasswordIn, caller: Administrator) -> Response:
    """Give an account another password; its sessions end."""
    accounts.set_password(clinic_of(request).database, caller.site, account, body.password, actor=caller.name)
    return Response(status_code=204)


@pages.get("/users")
def users_page(request: Request, caller: Annotated[Caller, with_right(Right.ADMINISTER)]) -> Response:
    """Show the site's accounts."""
    return _users(request, caller)


@pages.post("/users")
def add_user(
    request: Request,
    caller: Annotated[Caller, by_form(Right.ADMINISTER)],
    name: _Text = "",
    role: _Text = "",
    password: _Text = "",
) -> Response:
    """Make an account."""
    try:
        accounts.create(clinic_of(request).database, name, role, caller.site, password, actor=caller.name)
    except ClinicError as error:
        return _users(request, caller, error)
    return RedirectResponse("/users", 303)


@pages.post("/users/{account}")
def change_user(
    request: Request,
    account: str,
    caller: Annotated[Caller, by_form(Right.ADMINISTER)],
    role: _Maybe = None,
    disabled: Annotated[bool | None, Form()] = None,
    password: _Maybe = None,
) -> Response:
    """Change an account's role, state or password."""
    database = clinic_of(request).database
    try:
        accounts.change(database, caller.site, account, role=role, disabled=disabled, actor=caller.name)
        if password:
            accounts.set_password(database, caller.site, account, password, actor=caller.name)
    except ClinicError as error:
        return _users(request, caller, error)
    return RedirectResponse("/users", 303)


def _users(request: Request, caller: Caller, error: ClinicError | None = None) -> Response:
    status = 200 if error is None else 409 if isinstance(error, ConflictError) else 422
    return render(
        request,
        "users.html",
        status,
        caller=caller,
        accounts=accounts.accounts(clinic_of(request).database, caller.site),
        roles=accounts.ROLES,
        error=error and str(error),
    )
