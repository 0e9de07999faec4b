"""Who may do what: every route with every kind of key; nothing names a file or fetches a URL."""

import asyncio
from urllib.parse import quote

import pytest
from serving import CONSENT, call, client, close, make_app, make_engine, recording, upload

from engine import Voice
from engine.errors import ConfigError
from engine.serve.keys import Keys, add_key, parse
from engine.serve.settings import Limits, Settings
from engine.serve_command import check_bind

OPEN = {"/livez", "/readyz"}
PAGE = ("/", "/page/{name}")  # open on the loopback only
SCOPES = {
    "POST /v1/audio/voices": "voices:write",
    "DELETE /v1/audio/voices/{voice_id}": "voices:write",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def served(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    keys = {
        name: add_key(folder / "keys", name, scopes)
        for name, scopes in {"ann": "speech,voices:write", "bob": "speech,voices:write",
                             "reader": "speech", "writer": "voices:write", "root": "admin"}.items()
    }  # fmt: skip
    app, _ = make_app(
        engine, folder / "voices", api_key_file=folder / "keys",
        host="0.0.0.0",
    )  # fmt: skip
    yield app, keys
    close(app)


def with_key(key):
    return {"headers": {"Authorization": f"Bearer {key}"}} if key else {}


def routes(app):
    """Every method and path that the application answers over HTTP."""
    for path, methods in app.openapi()["paths"].items():
        yield from ((method.upper(), path) for method in methods)
    yield from (("GET", path) for path in (*PAGE, "/openapi.json"))


def test_every_route_needs_a_key_that_may(served):
    app, keys = served
    seen = 0
    for method, path in routes(app):
        url = path.format(voice_id="v_x", name="page.js")
        for key in (None, "cw_wrong", "", "Bearer", keys["ann"][:-1], keys["ann"] + "x"):
            status = call(app, method, url, **with_key(key)).status_code
            assert (status != 401) is (path in OPEN), (method, path, key)
        scope = SCOPES.get(f"{method} {path}", "speech")
        for name, scopes in (("reader", {"speech"}), ("writer", {"voices:write"})):
            status = call(app, method, url, **with_key(keys[name])).status_code
            free = not path.startswith("/v1")
            assert (status == 403) is (scope not in scopes and not free), (method, path, name)
        assert call(app, method, url, **with_key(keys["root"])).status_code not in (401, 403)
        seen += 1
    assert seen >= 12


def test_keys_come_in_either_header_and_in_no_query(served):
    app, keys = served
    ok = lambda **o: call(app, "GET", "/v1/models", **o).status_code == 200  # noqa: E731
    assert ok(headers={"xi-api-key": keys["ann"]})
    assert ok(headers={"authorization": f"bearer {keys['ann']}"})
    assert not ok(headers={"authorization": f"Basic {keys['ann']}"})
    assert not ok(params={"api_key": keys["ann"], "key": keys["ann"]})


def test_voices_belong_to_the_key_that_made_them(served):
    app, keys = served
    made = call(app, "POST", "/v1/audio/voices", **upload("Mine"), **with_key(keys["ann"])).json()
    for method, path in (("GET", ""), ("GET", "/export"), ("DELETE", "")):
        url = f"/v1/audio/voices/{made['id']}{path}"
        answer = call(app, method, url, **with_key(keys["bob"]))
        assert answer.status_code == 404
        unknown = call(app, method, f"/v1/audio/voices/v_{'0' * 32}{path}", **with_key(keys["bob"]))
        text = answer.text.replace(made["id"], "X")
        assert text == unknown.text.replace("v_" + "0" * 32, "X")
    body = {"input": "Hi.", "voice": made["id"]}
    said = call(app, "POST", "/v1/audio/speech", json=body, **with_key(keys["bob"]))
    assert said.status_code == 404
    assert len(call(app, "GET", "/v1/audio/voices", **with_key(keys["bob"])).json()["voices"]) == 1
    url = f"/v1/audio/voices/{made['id']}"
    assert call(app, "DELETE", url, **with_key(keys["ann"])).status_code == 200


def test_shared_voices_are_for_all_and_only_the_admin_deletes_them(served):
    app, keys = served
    service = app.state.service
    voice = Voice([1.0] * 16, (1.0,), service.engine.encoder_hash)
    entry = service.store.add(voice, owner="", name="House")
    url = "/v1/audio/voices/House"
    assert call(app, "GET", url, **with_key(keys["bob"])).json()["shared"] is True
    assert call(app, "DELETE", url, **with_key(keys["bob"])).status_code == 403
    assert call(app, "DELETE", url, **with_key(keys["root"])).json()["id"] == entry.id


NAMES = (
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data", "https://localhost/x.wav", "\\\\host\\share",
    "..\\..\\windows", "voices.sqlite", "v_/../../x", "%00", "a\0b", "~root", "$(id)", "`id`",
    "'; DROP TABLE voices; --", "' OR 1=1 --", "con", "x" * 100, "data:audio/wav;base64,AAAA",
    "gopher://x", "ftp://x", "{{7*7}}", "\u202e", "v_" + "0" * 32 + "/../../voices",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_voice_is_a_label_and_never_a_path_or_url(served, name, monkeypatch):
    app, keys = served
    store = app.state.service.store
    touched = []
    monkeypatch.setattr(type(store), "path", lambda self, id: touched.append(id))

    def refuse(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refuse)
    key = with_key(keys["ann"])
    for voice in (name, {"id": name}):
        body = {"input": "Hi.", "voice": voice}
        answer = call(app, "POST", "/v1/audio/speech", json=body, **key)
        assert answer.status_code == 404 and "root:" not in answer.text
    for method, tail in (("GET", ""), ("GET", "/export"), ("DELETE", "")):
        answer = call(app, method, f"/v1/audio/voices/{quote(name, safe='')}{tail}", **key)
        assert answer.status_code in (404, 405), answer.text
    assert not touched


def test_page_files_are_a_fixed_list(engine, tmp_path):
    app, _ = make_app(engine, tmp_path)
    try:
        assert call(app, "GET", "/").status_code == 200
        script = call(app, "GET", "/page/page.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for name in ("index.html", "..%2fkeys.py", "%2e%2e/keys.py", "page.js%00", "/etc/passwd"):
            assert call(app, "GET", f"/page/{name}").status_code == 404
    finally:
        close(app)


def test_a_server_without_keys_answers_only_this_machine(engine, tmp_path):
    app, _ = make_app(engine, tmp_path)
    ask = lambda **headers: call(  # noqa: E731
        app, "POST", "/v1/audio/speech", json={"input": "Hi."},
        headers={k.replace("_", "-"): v for k, v in headers.items()},
    ).status_code  # fmt: skip
    try:
        assert ask() == 200
        assert ask(host="localhost:8000", origin="http://localhost:8000") == 200
        assert ask(host="evil.example") == ask(host="[") == 403
        assert ask(origin="https://evil.example") == ask(origin="null") == 403
        assert ask(sec_fetch_site="cross-site") == 403
    finally:
        close(app)


def test_requests_a_minute_are_limited_by_key(engine, tmp_path):
    keys = [add_key(tmp_path / "keys", name, "speech") for name in ("ann", "bob")]
    limits = Limits(requests_per_minute=3)
    app, _ = make_app(engine, tmp_path / "v", api_key_file=tmp_path / "keys", limits=limits)
    try:
        answers = [call(app, "GET", "/v1/models", **with_key(keys[0])) for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
        assert call(app, "GET", "/v1/models", **with_key(keys[1])).status_code == 200
    finally:
        close(app)


def test_key_files_are_read_again_and_bad_ones_are_not(tmp_path):
    path = tmp_path / "keys"
    first = add_key(path, "ann", "speech")
    assert path.stat().st_mode & 0o077 == 0 and first not in path.read_text()
    keys = Keys(path)
    assert keys.find(first).name == "ann" and keys.find("cw_x") is None and keys.find("") is None
    second = add_key(path, "ann", "speech")  # the same client's next key
    assert keys.find(first).name == keys.find(second).name == "ann"
    good = path.read_text()
    path.write_text("nonsense")
    assert keys.find(first) is not None  # the last good ones
    path.write_text(good.splitlines()[1] + "\n# a comment\n")
    assert keys.find(first) is None and keys.find(second) is not None
    for text in ("", "# nothing\n", "ann speech abc", "ann fly " + "0" * 64, "\xff\0"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            parse(path)
    with pytest.raises(ConfigError):
        Keys(tmp_path / "missing")
    for name, scopes in (("a b", "speech"), ("a", "fly"), ("", "speech")):
        with pytest.raises(ConfigError):
            add_key(tmp_path / "new", name, scopes)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_machines_are_served_only_with_keys(tmp_path, host):
    with pytest.raises(ConfigError, match="--api-key-file"):
        check_bind(Settings(host=host))
    check_bind(Settings(host=host, insecure=True))
    check_bind(Settings(host=host, api_key_file=tmp_path / "keys"))
    check_bind(Settings(host="127.0.0.1"))


def test_concurrent_uploads_of_one_name_make_one_voice(engine, tmp_path):
    app, _ = make_app(engine, tmp_path)

    async def go():
        async with client(app) as http:
            data = recording(1.5)
            post = lambda: http.post(  # noqa: E731
                "/v1/audio/voices", data={"name": "Same", "consent": CONSENT},
                files={"audio_sample": ("a.wav", data)},
            )  # fmt: skip
            return await asyncio.gather(*(post() for _ in range(4)))

    try:
        statuses = sorted(a.status_code for a in asyncio.run(go()))
        assert statuses == [201, 409, 409, 409] and app.state.service.store.count() == 1
    finally:
        close(app)
