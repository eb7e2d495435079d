"""The door itself, over a real server: hosts, origins, sessions, errors, headers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from web_support import PASSWORD, Web, running_web

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with running_web(tmp_path_factory.mktemp("web")) as running:
        yield running


def sign_in(web: Web, https: bool = False) -> dict[str, str]:
    headers = {"X-Forwarded-Proto": "https"} if https else {}
    answer = web.client().post("/v1/auth/login", json={"email": "ana@x.org", "password": PASSWORD}, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.cookies)


def cookie(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def raw(web: Web, text: str) -> str:
    """The server's answer to bytes that no client would send."""
    with socket.socket(socket.AF_UNIX) as plug:
        plug.settimeout(10)
        plug.connect(str(web.socket))
        plug.sendall(text.encode())
        return plug.recv(65536).decode()


def test_the_server_says_that_it_is_healthy_without_a_key(web: Web) -> None:
    for path in ("/health", "/v1/health"):
        answer = web.client().get(path)

        assert (answer.status_code, answer.text) == (200, '"HEALTHY"')
        assert answer.headers["content-type"] == "application/json"


def test_a_stranger_has_no_session_and_a_wrong_key_is_told_so(web: Web) -> None:
    stranger = web.client().get("/v1/auth/session")
    wrong = web.client(None, Authorization="Bearer grad_wrong").get("/v1/auth/session")

    assert (stranger.status_code, stranger.text) == (200, "null")
    assert (wrong.status_code, wrong.json()["code"]) == (401, "UNAUTHORIZED")


def test_a_key_has_a_session_with_the_team(web: Web) -> None:
    session = web.client("ana").get("/v1/auth/session").json()

    assert session["team"]["namespace"] == "team"
    assert session["user"]["email"] == "ana@x.org"


# -- hosts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "Host: evil.example",
        "Host: localhost\r\nHost: localhost",
        "Host: localhost@evil.example",
        "Host: localhost/path",
        "Host: localhost:80:80",
        "Host: ",
        "X-Forwarded-Host: localhost",
    ],
)
@pytest.mark.parametrize("path", ["/v1/projects", "/nothing/here"])
def test_a_request_that_does_not_name_us_is_refused_before_everything(web: Web, lines: str, path: str) -> None:
    answer = raw(web, f"GET {path} HTTP/1.1\r\n{lines}\r\nConnection: close\r\n\r\n")

    assert answer.split()[1] in ("421", "400"), answer


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8443", "GPU.test", "gpu.test."])
def test_every_name_of_ours_is_accepted_with_any_port(web: Web, host: str) -> None:
    assert web.client(None, Host=host).get("/health").status_code == 200


# -- origins -----------------------------------------------------------------------------------------------------------

ORIGINS = [
    ({"Sec-Fetch-Site": "same-origin"}, True, 200),
    ({"Sec-Fetch-Site": "none"}, True, 200),
    ({"Sec-Fetch-Site": "same-site"}, True, 403),
    ({"Sec-Fetch-Site": "cross-site"}, True, 403),
    ({"Sec-Fetch-Site": "cross-site"}, False, 403),
    ({"Origin": "http://localhost"}, True, 200),
    ({"Origin": "http://localhost:9400"}, True, 403),
    ({"Origin": "https://evil.example"}, True, 403),
    ({"Origin": "null"}, True, 403),
    ({}, True, 403),
    ({}, False, 200),
]


@pytest.mark.parametrize("headers, with_cookie, expected", ORIGINS)
def test_only_our_own_page_may_change_something_with_a_cookie(
    web: Web, headers: dict[str, str], with_cookie: bool, expected: int
) -> None:
    sent = {**headers, **({"Cookie": cookie(sign_in(web))} if with_cookie else {})}

    answer = web.client(None, **sent).post("/v1/auth/logout")

    assert answer.status_code == expected, answer.text


def test_a_program_with_a_key_needs_no_origin_but_a_foreign_page_with_one_is_refused(web: Web) -> None:
    assert web.client("ana").post("/v1/auth/logout").status_code == 200
    assert web.client("ana", Origin="https://evil.example").post("/v1/auth/logout").status_code == 403


def test_a_script_of_another_port_cannot_read_with_our_cookie_but_a_link_leads_here(web: Web) -> None:
    jar = cookie(sign_in(web))

    script = web.client(None, Cookie=jar, **{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"})
    link = web.client(None, Cookie=jar, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})

    assert script.get("/v1/auth/session").status_code == 403
    assert link.get("/v1/auth/session").status_code == 200


def test_a_websocket_of_another_site_is_refused_before_it_is_opened(web: Web) -> None:
    def handshake(origin: str) -> str:
        return raw(
            web,
            "GET /v1/anything HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{origin}\r\n",
        ).split("\r\n")[0]

    for origin in (
        "Origin: https://evil.example\r\n",
        "Origin: http://localhost:9400\r\n",
        "",
        "Sec-Fetch-Site: same-site\r\n",
    ):
        assert " 403 " in handshake(origin)
    assert " 101 " not in handshake("Origin: http://localhost\r\n")  # no route


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_the_cookie_is_hidden_from_scripts_and_other_sites_and_secure_over_https(web: Web) -> None:
    login = {"email": "ana@x.org", "password": PASSWORD}

    plain = web.client().post("/v1/auth/login", json=login).headers["set-cookie"]
    secure = web.client(None, **{"X-Forwarded-Proto": "https"}).post("/v1/auth/login", json=login).headers["set-cookie"]

    assert plain.startswith("appliance=")
    assert secure.startswith("__Host-appliance=")
    assert "Secure" in secure
    assert "Domain" not in secure
    for text in (plain, secure):
        assert "HttpOnly" in text
        assert "samesite=strict" in text.lower()
        assert "Path=/" in text


def test_a_cookie_that_the_client_chose_is_not_taken_over_by_signing_in(web: Web) -> None:
    login = {"email": "ana@x.org", "password": PASSWORD}
    planted = {"Cookie": "appliance=chosen-by-mallory", "Origin": "http://localhost"}

    answer = web.client(None, **planted).post("/v1/auth/login", json=login)

    assert answer.status_code == 200
    assert answer.cookies["appliance"] != "chosen-by-mallory"
    assert web.client(None, Cookie="appliance=chosen-by-mallory").get("/v1/auth/session").text == "null"


def test_two_session_cookies_are_refused(web: Web) -> None:
    jar = cookie(sign_in(web))

    answer = web.client(None, Cookie=f"appliance=planted; {jar}").get("/v1/auth/session")

    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST")


def test_signing_out_ends_the_session_itself_and_not_only_the_cookie(web: Web) -> None:
    jar = cookie(sign_in(web))
    assert web.client(None, Cookie=jar).get("/v1/auth/session").json()

    web.client(None, Cookie=jar, Origin="http://localhost").post("/v1/auth/logout")

    assert web.client(None, Cookie=jar).get("/v1/auth/session").text == "null"


def test_an_invited_colleague_joins_with_a_link_and_is_signed_in(web: Web) -> None:
    boss = web.client("boss")

    made = boss.post("/v1/teams/team/invitations", json={"email": "new@x.org"}).json()
    token = made["url"].partition("token=")[2]
    shown = web.client().get("/v1/auth/invitation", params={"token": token}).json()
    joined = web.client().post("/v1/auth/accept", json={"token": token, "password": "a good long password"})

    assert (shown["kind"], shown["email"], shown["role"]) == ("invite", "new@x.org", "member")
    assert joined.json()["user"]["email"] == "new@x.org"
    assert web.client(None, Cookie=cookie(dict(joined.cookies))).get("/v1/auth/session").json()
    again = web.client().post("/v1/auth/accept", json={"token": token, "password": "a good long password"})
    assert again.status_code == 404


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path, body, status, code",
    [
        ("GET", "/v1/nothing", None, 404, "NOT_FOUND"),
        ("GET", "/nothing", None, 404, "NOT_FOUND"),
        ("GET", "/v1/projects/nothing", None, 404, "NOT_FOUND"),
        ("PUT", "/v1/projects", b"{}", 405, "METHOD_NOT_SUPPORTED"),
        ("POST", "/v1/projects", b"{", 400, "PARSE_ERROR"),
        ("POST", "/v1/projects", b"[]", 400, "BAD_REQUEST"),
        ("POST", "/v1/projects", b"", 400, "BAD_REQUEST"),
        ("POST", "/v1/projects", b'{"name": 5}', 400, "BAD_REQUEST"),
        ("POST", "/v1/projects", b'{"name": "a b"}', 400, "BAD_REQUEST"),
        ("POST", "/v1/projects", b'{"name": "\xff"}', 400, "PARSE_ERROR"),
        ("POST", "/v1/projects", b"[" * 100_000, 400, "PARSE_ERROR"),
        ("GET", "/v1/projects?limit=0", None, 400, "BAD_REQUEST"),
        ("GET", "/v1/projects?limit=many", None, 400, "BAD_REQUEST"),
        ("GET", "/v1/events?after=junk", None, 400, "BAD_REQUEST"),
    ],
)
def test_every_error_has_gradients_shape_and_one_clear_sentence(
    web: Web, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answer = web.client("boss").request(method, path, content=body)

    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code), found
    assert set(found) <= {"code", "message", "issues"}
    assert found["message"].endswith(".")
    assert "litestar" not in answer.text.lower()
    assert "msgspec" not in answer.text.lower()


def test_a_body_that_is_too_large_is_refused(web: Web) -> None:
    answer = web.client("boss").post("/v1/projects", content=b'{"name": "' + b"a" * 11_000_000 + b'"}')

    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_defect_is_answered_with_a_number_and_no_trace(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str | None:
        raise ZeroDivisionError("the secret of the universe")

    object.__setattr__(web.house, "health", broken)
    try:
        answer = web.client().get("/health")
    finally:
        object.__setattr__(web.house, "health", lambda: None)

    found = answer.json()
    assert (answer.status_code, found["code"]) == (500, "INTERNAL_SERVER_ERROR")
    assert "secret" not in answer.text
    number = found["message"].rstrip(".").split()[-1]
    assert number in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_unhealthy_server_says_why(web: Web) -> None:
    object.__setattr__(web.house, "health", lambda: "The scheduler has stopped.")
    try:
        answer = web.client().get("/health")
    finally:
        object.__setattr__(web.house, "health", lambda: None)

    assert (answer.status_code, answer.json()["message"]) == (503, "The scheduler has stopped.")


# -- headers and methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/v1/projects", "/schema", "/git/x.git/info/refs"])
def test_every_answer_carries_the_headers_that_protect_it(web: Web, path: str) -> None:
    headers = web.client().get(path).headers

    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers


def test_head_is_get_without_a_body_and_asks_for_the_same_permission(web: Web) -> None:
    assert web.client().head("/v1/projects").status_code == 401
    answer = web.client("ana").head("/v1/projects")
    assert (answer.status_code, answer.content) == (200, b"")


def test_options_says_the_same_of_every_address_and_grants_nothing(web: Web) -> None:
    for path in ("/v1/projects", "/nothing"):
        answer = web.client(None, Origin="https://evil.example").options(path)

        assert answer.status_code == 204
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_unknown_query_parameters_are_ignored(web: Web) -> None:
    assert web.client("ana").get("/v1/projects?json=true&api-url=x").status_code == 200


def test_the_api_describes_itself_without_the_internet(web: Web) -> None:
    described = web.client().get("/schema/openapi.json")
    page = web.client().get("/schema")

    assert "/v1/projects" in described.json()["paths"]
    assert page.status_code == 200
    assert "/v1/projects" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert json.loads(described.text)
