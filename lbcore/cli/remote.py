"""What the commands of the service share: where its management plane is, asking it, and saying what it refuses and what to do then."""

from __future__ import annotations

import functools
import inspect
import ipaddress
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import httpx
import typer

from lbcore.cli.common import NOT_FOUND, UNAVAILABLE, Failure, print_table, user_files
from lbcore.errors import ServiceError
from lbcore.service.logbook import clean

__all__ = [
    "ADVICE", "DEFAULT_URL", "Answer", "Authorities", "Management", "Named", "TokenFile", "Unreachable", "Url", "connected", "explained",
    "opened",
]  # fmt: skip

DEFAULT_URL = "http://127.0.0.1:9180"

Url = Annotated[str, typer.Option(metavar="URL", envvar="LBCORE_URL", show_envvar=True, help="The management plane.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", envvar="LBCORE_TOKEN_FILE", show_envvar=True, help="What `lbcore token create` gave.")
]  # fmt: skip
Authorities = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Authorities (PEM) in place of the system's.")]
Named = Annotated[str, typer.Option("--service", metavar="NAME", envvar="LBCORE_SERVICE", help="Of several. Default: the one there is.")]

ADVICE = {
    "AuthenticationFailed": "--token-file FILE or LBCORE_TOKEN_FILE; `lbcore token create` on the primary's machine makes one",
    "AuthorizationFailed": "another role may: `lbcore token create --role operator`, or owner",
    "PreconditionFailed": "somebody changed it after this command had read it, so nothing was done: look again, then run it again",
    "RevisionConflict": "somebody published meanwhile, so nothing was done: `lbcore config revisions`, compare, publish again",
    "OperationInProgress": "one at a time: `lbcore regions wait` returns when it is over",
    "VipChangeNotAcknowledged": "tell whoever keeps firewalls and DNS of these addresses, then say --acknowledge-vip-change",
    "WouldLoseCapacity": "bring up what is down first, or say --force",
    "Fenced": "another location was promoted: write to its management plane (--url)",
    "NotPrimary": "write to the primary (--url)",
    "ManagementPlaneUnavailable": "regions serve on with the last configuration meanwhile; try again, or see `lbcore promote --help`",
    "StoreLocked": "try again",
}  # fmt: skip


class Answer(NamedTuple):
    """One answer of a management plane. body: JSON, None for none; etag: as the header has it, "" without"""

    status: int
    body: Any
    etag: str
    headers: httpx.Headers


class Unreachable(Failure):
    """Say that nobody answers."""

    def __init__(self, message: str) -> None:
        super().__init__(message, UNAVAILABLE)


class Management:
    """A management plane.

    url: of it;  token: what it is shown, "" = nothing;  ca: a file of authorities, None = the system's
    service: name, "" = the one there is;  transport: of httpx, None = its own
    Methods raise ServiceError for what is refused, Unreachable when nobody answers.
    """

    transport: httpx.BaseTransport | None = None  # for tests

    def __init__(self, url: str, *, token: str = "", ca: Path | None = None, service: str = "", timeout: float = 30.0) -> None:
        _refuse_to_tell(url, token)
        self.url, self._name = url.rstrip("/"), service
        headers = {"accept": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        with user_files():
            verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if ca else url.startswith("https:")
        self._client = httpx.Client(
            headers=headers, verify=verify, timeout=httpx.Timeout(timeout, connect=3.0), trust_env=False, transport=self.transport,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def name(self) -> str:
        """Give the service's name; ServiceError ResourceNotFound when there is none, Failure when there are several."""
        if not self._name:
            names = _names(self.url, self._ask("GET", "/services").body)
            if not names:
                raise ServiceError("ResourceNotFound", f"{self.url} has no service yet")
            if len(names) > 1:
                raise Failure(f"--service: {self.url} has {', '.join(names)}")
            self._name = names[0]
        return self._name

    def call_it(self, name: str) -> None:
        """Give the service a name where nobody said one."""
        self._name = self._name or name

    def get(self, path: str = "", **query: Any) -> Answer:
        """Read something of the service: a path below it, such as "/locations"."""
        return self._ask("GET", self.path(path), query=query)

    def send(
        self, method: str, path: str = "", body: Any = None, *, etag: str = "", why: str = "", headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Answer:  # fmt: skip
        """Change something of the service. etag: what it must still be, "" = whatever it is; why: for its history"""
        given: dict[str, str | bytes] = {**(headers or {}), **({"if-match": etag} if etag else {})}
        given |= {"x-lbcore-why": clean(why).encode()} if why else {}
        return self._ask(method, self.path(path), body, given, query)

    def path(self, below: str) -> str:
        """Give the full path of something of the service; what is a whole path already stays."""
        return below if below.startswith("/services/") else f"/services/{quote(self.name, safe='')}{below}"

    def _ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | bytes] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Answer:  # fmt: skip
        content = None if body is None else json.dumps(body).encode()
        given = {key.encode(): value if isinstance(value, bytes) else value.encode() for key, value in (headers or {}).items()}
        given |= {} if content is None else {b"content-type": b"application/json"}
        asked = {key: str(value).lower() if isinstance(value, bool) else value for key, value in (query or {}).items()}
        try:
            response = self._client.request(method, self.url + path, content=content, headers=given, params=asked or None)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unreachable(f"{self.url}: nobody answers ({error or type(error).__name__}); regions serve on without it") from error
        return _read(self.url, response)


def _names(url: str, body: Any) -> list[str]:
    """Read who is there; whatever else answers at the URL is told apart here."""
    value = body.get("value") if isinstance(body, dict) else None
    if not isinstance(value, list) or not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in value):
        raise Unreachable(f"{url} is no management plane of lbcore")
    return [each["name"] for each in value]


def _refuse_to_tell(url: str, token: str) -> None:
    """Send a token only to where nobody else hears it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or parts.scheme not in ("http", "https") or parts.username is not None or parts.query or parts.fragment:
        raise Failure(f"--url: expected a URL such as {DEFAULT_URL} or https://primary.example:9180, got {url!r}")
    if parts.scheme == "http" and token and not _loopback(host):
        raise Failure(f"--url: {url} would let anybody on the way read the token; expected https, or http on loopback")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(url: str, response: httpx.Response) -> Answer:
    try:
        body = response.json() if response.content else None
    except ValueError:
        body = None
    if response.is_success or response.status_code == 304:
        return Answer(response.status_code, body, response.headers.get("etag", ""), response.headers)
    raise _error(url, response, body)


def _error(url: str, response: httpx.Response, body: Any) -> Exception:
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("code"), str):
        return Unreachable(f"{url} answers {response.status_code} {response.reason_phrase}, which no management plane does")
    code, message, target = (clean(str(found.get(key) or "")) for key in ("code", "message", "target"))
    details: Any = found.get("details")
    inner = [_refusal(each) for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    if after := response.headers.get("retry-after"):
        message += f" (try again in {clean(after)} s)"
    return ServiceError(code, message, target or None, inner)


def _refusal(body: Mapping[str, Any]) -> ServiceError:
    code, message, target = (clean(str(body.get(key) or "")) for key in ("code", "message", "target"))
    return ServiceError(code, message, target or None)


def explained(error: ServiceError, advice: Mapping[str, str] = ADVICE) -> Failure:
    """Give the Failure that says what was refused and what to do; several violations are printed as a table on stderr before."""
    from lbcore.service.codes import STATUS, exit_code_of

    if len(error.details) > 1:
        rows = [(each.code, each.target or "", _words(each)) for each in error.details]
        print_table(["code", "where", "what"], rows, stderr=True)
    code = exit_code_of(error) if error.code in STATUS else UNAVAILABLE
    lines = [f"{error.code}: {_words(error)}" + (f" [{error.target}]" if _tells_more(error) else "")]
    lines += [advice[each] for each in dict.fromkeys(one.code for one in (error, *error.details)) if each in advice]
    return Failure("\n".join(lines), NOT_FOUND if error.code == "ResourceNotFound" else code)


def _words(error: ServiceError) -> str:
    return str(error).partition(": ")[2]


def _tells_more(error: ServiceError) -> bool:
    return error.target is not None and error.target not in str(error) and len(error.details) < 2


@contextmanager
def opened(url: str, token_file: Path | None, ca: Path | None, service: str, advice: Mapping[str, str] = ADVICE) -> Iterator[Management]:
    """Give a Management for the time of a `with`; what it refuses ends the command with what to do."""
    with Management(url, token=_token(token_file), ca=ca, service=service) as there:
        try:
            yield there
        except ServiceError as error:
            raise explained(error, advice) from error


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a function of a Management and options of its own into a command, which says where the management plane is by options, too."""

    @functools.wraps(command)
    def wrapper(*, url: str, token_file: Path | None, ca: Path | None, service: str, **given: Any) -> None:
        with opened(url, token_file, ca, service, advice) as there:
            command(there, **given)

    advice = command.__globals__.get("HINTS", ADVICE)
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(_shared, eval_str=True).parameters.values()
    wrapper.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # Typer reads it; to mypy no function has one
    return wrapper


def _shared(*, url: Url = DEFAULT_URL, token_file: TokenFile = None, ca: Authorities = None, service: Named = "") -> None:
    """Have the options of every command that asks a management plane."""


def _token(file: Path | None) -> str:
    if file is None:
        return ""
    with user_files():
        text = file.read_text().strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise Failure(f"{file}: expected a token as `lbcore token create` gives it")
    return text
