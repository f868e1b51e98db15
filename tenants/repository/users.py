"""Users of the admin surface and their logins; how a password is digested is not known here."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tenants.errors import AlreadyExists, InvalidValue, NotFound
from tenants.ids import new_id
from tenants.models import Session, User
from tenants.repository.audit import Change, write_audit
from tenants.repository.common import MAX_ROWS, Part, check_unambiguous, find_tenant, page_size
from tenants.repository.rows import user_of
from tenants.values import SYSTEM, Actor, Role, SessionRecord, UserRecord

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")


def session_digest(secret: str) -> str:
    """Return the digest under which a login is kept; its secret has 256 random bits."""
    return hashlib.sha256(b"tiergate session\0" + secret.encode()).hexdigest()


class Users(Part):
    """What is asked about users and sessions."""

    async def create_user(
        self,
        name: str,
        role: Role,
        now: datetime,
        *,
        tenant: str | None = None,
        password_digest: str | None = None,
        oidc_subject: str | None = None,
        by: Actor = SYSTEM,
    ) -> UserRecord:
        """Add a user; `tenant` (by name or id) goes with the role tenant-viewer, and only with it.

        Raises `InvalidValue`, `NotFound` for the tenant, `AlreadyExists`.
        """
        if _NAME.fullmatch(name) is None:
            raise InvalidValue(
                "a user's name has 1 to 128 letters, digits, dots, dashes, underscores, @ or +"
            )
        check_unambiguous("a user", name)
        _check_role(role, tenant)
        if oidc_subject is not None and not 0 < len(oidc_subject) <= 256:
            raise InvalidValue("an OIDC subject has 1 to 256 characters")
        row = User(
            id=new_id(now),
            name=name,
            role=role.value,
            tenant_id=None,
            password_digest=password_digest,
            oidc_subject=oidc_subject,
            created_at=now,
        )
        try:
            async with self._database.write() as session:
                if tenant is not None:
                    row.tenant_id = (await find_tenant(session, tenant)).id
                session.add(row)
                write_audit(session, by, now, _change("user.create", None, user_of(row)))
        except IntegrityError:
            raise AlreadyExists(
                f"there is a user {name!r} already, or one of that OIDC subject"
            ) from None
        return user_of(row)

    async def list_users(
        self, *, after: str | None = None, limit: int = MAX_ROWS
    ) -> list[UserRecord]:
        """Return up to `limit` (at most 1,000) users by name, from behind `after` on."""
        query = select(User).order_by(User.name).limit(page_size(limit))
        if after is not None:
            query = query.where(User.name > after)
        async with self._database.read() as session:
            return [user_of(row) for row in await session.scalars(query)]

    async def get_user(self, name_or_id: str) -> UserRecord:
        """Return a user; raises `NotFound`."""
        async with self._database.read() as session:
            return user_of(await _find_user(session, name_or_id))

    async def find_login(self, name: str) -> tuple[UserRecord, str | None] | None:
        """Return a user and the digest of the password, to be checked by who can; None: unknown."""
        async with self._database.read() as session:
            row = await session.scalar(select(User).where(User.name == name))
            return None if row is None else (user_of(row), row.password_digest)

    async def find_user_by_subject(self, subject: str) -> UserRecord | None:
        """Return the user of an OIDC subject, None where there is none."""
        async with self._database.read() as session:
            row = await session.scalar(select(User).where(User.oidc_subject == subject))
            return None if row is None else user_of(row)

    async def set_user_disabled(
        self, name_or_id: str, disabled: bool, now: datetime, *, by: Actor = SYSTEM
    ) -> UserRecord:
        """Shut a user out, at once, or let one in again.

        Raises `NotFound`; `InvalidValue` for the last owner who is let in.
        """
        async with self._database.write() as session:
            owners = await _owners(session)
            row = await _locked(session, name_or_id)
            before = user_of(row)
            if disabled:
                _keep_an_owner(owners, row)
            row.disabled_at = (row.disabled_at or now) if disabled else None
            record = user_of(row)
            if record != before:
                action = "user.disable" if disabled else "user.enable"
                write_audit(session, by, now, _change(action, before, record))
                await session.execute(delete(Session).where(Session.user_id == row.id))
        return record

    async def change_role(
        self,
        name_or_id: str,
        role: Role,
        now: datetime,
        *,
        tenant: str | None = None,
        by: Actor = SYSTEM,
    ) -> UserRecord:
        """Let a user do more, less, or elsewhere; all logins of that user end.

        `tenant` (by name or id) goes with the role tenant-viewer, and only with it. Raises
        `NotFound`; `InvalidValue`, also for the last owner who is let in.
        """
        _check_role(role, tenant)
        async with self._database.write() as session:
            owners = await _owners(session)
            row = await _locked(session, name_or_id)
            before = user_of(row)
            if role is not Role.OWNER:
                _keep_an_owner(owners, row)
            tenant_id = None if tenant is None else (await find_tenant(session, tenant)).id
            row.role, row.tenant_id = role.value, tenant_id
            record = user_of(row)
            if record != before:
                write_audit(session, by, now, _change("user.role", before, record))
                await session.execute(delete(Session).where(Session.user_id == row.id))
        return record

    async def set_password(
        self, name_or_id: str, password_digest: str, now: datetime, *, by: Actor = SYSTEM
    ) -> UserRecord:
        """Give a user another password and end all logins of that user; raises `NotFound`."""
        async with self._database.write() as session:
            row = await _find_user(session, name_or_id)
            before = user_of(row)
            row.password_digest = password_digest
            record = user_of(row)
            write_audit(session, by, now, _change("user.password", before, record))
            await session.execute(delete(Session).where(Session.user_id == row.id))
        return record

    # logins

    async def create_session(
        self,
        user_id: str,
        secret: str,
        now: datetime,
        *,
        expires_at: datetime,
        by: Actor,
        authenticated_at: datetime | None = None,
    ) -> None:
        """Keep a login until `expires_at`; logins that are over are cleared away on the way.

        `authenticated_at`: when the user proved who it is, where that was not now.
        """
        async with self._database.write() as session:
            await session.execute(delete(Session).where(Session.expires_at <= now))
            session.add(
                Session(
                    digest=session_digest(secret),
                    user_id=user_id,
                    authenticated_at=authenticated_at or now,
                    seen_at=now,
                    expires_at=expires_at,
                    address=by.address[:64],
                )
            )
            write_audit(session, by, now, Change("session.create", "user", user_id))

    async def find_session(
        self, secret: str, now: datetime, *, idle: timedelta
    ) -> SessionRecord | None:
        """Return a login in force: not over, not idle for longer than `idle`, the user let in."""
        query = (
            select(Session, User)
            .join(User, User.id == Session.user_id)
            .where(
                Session.digest == session_digest(secret),
                Session.expires_at > now,
                Session.seen_at > now - idle,
                User.disabled_at.is_(None),
            )
        )
        async with self._database.read() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None:
            return None
        login, user = row
        return SessionRecord(
            user=user_of(user),
            authenticated_at=login.authenticated_at,
            seen_at=login.seen_at,
            expires_at=login.expires_at,
            address=login.address,
        )

    async def touch_session(self, secret: str, now: datetime) -> None:
        """Note that a login was used; for the idle limit, so once a minute is enough."""
        change = update(Session).where(Session.digest == session_digest(secret)).values(seen_at=now)
        async with self._database.write() as session:
            await session.execute(change)

    async def end_session(self, secret: str, now: datetime, *, by: Actor) -> None:
        """End a login; harmless when it is over already."""
        async with self._database.write() as session:
            gone = await session.scalar(
                delete(Session)
                .where(Session.digest == session_digest(secret))
                .returning(Session.user_id)
            )
            if gone is not None:
                write_audit(session, by, now, Change("session.end", "user", gone))

    async def num_owners(self) -> int:
        """Return how many owners are let in: without any, only the admin token opens the door."""
        query = select(func.count()).where(
            User.role == Role.OWNER.value, User.disabled_at.is_(None)
        )
        async with self._database.read() as session:
            return await session.scalar(query) or 0


async def _find_user(session: AsyncSession, name_or_id: str) -> User:
    for column in (User.id, User.name):
        row = await session.scalar(select(User).where(column == name_or_id))
        if row is not None:
            return row
    raise NotFound(f"there is no user {name_or_id!r}")


async def _locked(session: AsyncSession, name_or_id: str) -> User:
    """Return a user's row that nobody else can change before this transaction is over."""
    row = await _find_user(session, name_or_id)
    await session.refresh(row, with_for_update=True)
    return row


async def _owners(session: AsyncSession) -> list[str]:
    """Return the ids of the owners who are let in; whoever would change that waits."""
    query = (
        select(User)
        .where(User.role == Role.OWNER.value, User.disabled_at.is_(None))
        .order_by(User.id)
        .with_for_update()
    )
    return [row.id for row in await session.scalars(query)]


def _keep_an_owner(owners: list[str], row: User) -> None:
    if owners == [row.id]:
        raise InvalidValue(f"{row.name} is the last owner: add another one first")


def _check_role(role: Role, tenant: str | None) -> None:
    if (role is Role.TENANT_VIEWER) != (tenant is not None):
        raise InvalidValue("a tenant belongs to the role tenant-viewer, and only to it")


def _change(action: str, before: UserRecord | None, after: UserRecord) -> Change:
    return Change(action, "user", after.id, before, after, after.tenant_id)
