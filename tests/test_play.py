"""The page of `lvlm play`: what it computes, always; the page itself, in a headless Chromium where there is
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm
from lvlm.errors import MissingLibrary, UserError
from lvlm.generation.encode import encode_in_windows
from lvlm.generation.kl_by_token import ACTIVE_NATS_PER_SLOT, reading_of
from lvlm.model.latent_lm import LatentLM
from lvlm.playground import markup
from lvlm.playground.hosts import OnlyAddressed
from lvlm.playground.player import Player
from lvlm.playground.writing import Asked, Control, Written, control_of, write
from lvlm.report.folder import read_folder, study_of
from tests.tiny import tiny, write_text

ROOT = Path(__file__).parent.parent
ARMS = {"baseline": "baseline", "bits": "cross/binary_sequence_prefix"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline and a model with a code a text, trained and evaluated, with a report."""
    folder = tmp_path_factory.mktemp("play")
    text, out = write_text(folder), folder / "study"
    for name, arm in ARMS.items():
        recipe = tiny(arm, text, model={"backbone": {"context": 64}})
        lvlm.train(recipe, out / name / "seed0")
        lvlm.evaluate(out / name / "seed0")
    (out / "report.html").write_text("")
    return out


@pytest.fixture(scope="module")
def player(study: Path) -> Player:
    """Of the run with bits, whose codes are made to matter: ten steps teach nobody to listen."""
    found = Player.load(study / "bits" / "seed0")
    return replace(found, model=loud(found.model))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LatentLM]:
    """Untrained models of shipped recipes, small."""
    text = write_text(tmp_path_factory.mktemp("build"))
    return lambda arm: loud(lvlm.build(tiny(arm, text)).eval())


def loud(model: LatentLM) -> LatentLM:
    """Random weights that are large: whatever can make a difference does."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model


def last(found: Iterator[Written]) -> Written:
    *_, whole = found
    assert whole.done
    return whole


def texts(found: Written) -> list[list[str]]:
    return [[card.text for card in row.cards] for row in found.rows]


# ------------------------------------------------------------------------------------------------ what it
# computes


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("baseline", None),
        ("free", Control("bits", 8, True)),
        ("cross/binary_sequence_prefix", Control("bits", 16, False)),
        ("gptvae", Control("numbers", 16, False)),
        ("cross/fsq_chunk_add", "index"),
    ],
)
def test_codes_are_given_as_their_family_has_them(
    build: Callable[[str], LatentLM], arm: str, expected: object
) -> None:
    control = control_of(build(arm))
    assert (control.form if control and expected == "index" else control) == expected


def test_columns_share_the_code_and_rows_share_the_noise(build: Callable[[str], LatentLM]) -> None:
    model = build("cross/binary_sequence_prefix")
    found = last(write(model, Asked("10 l", 8, columns=3, seed=5, source="given", bits=(0, 2), code_seed=7)))
    common: dict[str, Any] = {"seed": 5, "samples": 3, "prompt_codes": "prior"}
    given = lvlm.generate(model, "10 l", 8, codes=torch.tensor(5), **common)
    drawn = lvlm.generate(model, "10 l", 8, code_seed=[8, 9, 10], **common)
    assert texts(found) == [[s.text for s in given], [s.text for s in drawn]]
    assert [card.codes for card in found.rows[0].cards] == ["101" + "0" * 13] * 3
    assert [card.seed for row in found.rows for card in row.cards] == [5, 6, 7] * 2


def test_a_toggled_bit_changes_the_first_row_alone(build: Callable[[str], LatentLM]) -> None:
    model, asked = build("cross/binary_sequence_prefix"), Asked("10 l", 12, source="given")
    one, other = (texts(last(write(model, replace(asked, bits=bits)))) for bits in ((), (3,)))
    assert one[0] != other[0] and one[1] == other[1]


def test_texts_grow(build: Callable[[str], LatentLM], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm.playground.writing.SECONDS_BETWEEN_LOOKS", -1.0)
    *growing, whole = write(build("free"), Asked("10 l", 6))
    assert len(growing) == 6 and not any(found.done for found in growing)
    for found in growing:
        for row, end in zip(texts(found), texts(whole), strict=True):
            assert all(b.startswith(a) for a, b in zip(row, end, strict=True))


def test_one_slot_is_given_and_the_others_are_those_of_the_row_below(
    build: Callable[[str], LatentLM],
) -> None:
    found = last(write(build("free"), Asked("10 l", 4, source="given", bits=(1,), slot=2)))
    above, below = (row.cards[0].codes.split() for row in found.rows)
    assert above[2] == "01000000" and [a for n, a in enumerate(above) if n != 2] == [
        b for n, b in enumerate(below) if n != 2
    ]
    assert not found.notes
    with pytest.raises(UserError, match="no slot 7; prompt and text have slots 0 to 6"):
        last(write(build("free"), Asked("10 l", 4, source="given", slot=7)))


def test_one_code_for_all_slots_is_told_to_be_out_of_distribution(build: Callable[[str], LatentLM]) -> None:
    found = last(write(build("free"), Asked("10 l", 4, source="given", bits=(1,))))
    assert "out of distribution" in found.notes[0]
    assert found.rows[0].cards[0].codes == " ".join(["01000000"] * 7)


@pytest.mark.parametrize(
    "arm", ["free", "gptvae", "cross/fsq_chunk_add", "cross/binary_chunk_kv_learned_prior"]
)
def test_codes_of_a_text_and_of_the_prompt(build: Callable[[str], LatentLM], arm: str) -> None:
    model = build(arm)
    asked = Asked("10 l", 4, source="text", code_seed=3)
    assert texts(last(write(model, asked))) == texts(last(write(model, replace(asked, text="10 l"))))
    assert texts(last(write(model, asked)))[0] != texts(last(write(model, replace(asked, text="of a"))))[0]


def test_numbers_and_an_index(build: Callable[[str], LatentLM]) -> None:
    asked = Asked("10 l", 4, source="given")
    found = last(write(build("gptvae"), replace(asked, numbers=(0.5, *[0.0] * 15))))
    assert found.rows[0].cards[0].codes.startswith("(0.50 0.00")
    found = last(write(build("cross/fsq_sequence_add"), replace(asked, index=3)))
    assert found.rows[0].cards[0].codes == "3"
    with pytest.raises(UserError):
        last(write(build("cross/fsq_sequence_add"), replace(asked, index=10**6)))
    with pytest.raises(UserError):
        last(write(build("gptvae"), replace(asked, numbers=(0.5,))))


def test_without_a_latent_it_says_so_and_writes(study: Path) -> None:
    plain = Player.load(study / "baseline" / "seed0")
    assert "no latent" in plain.about()
    *_, page = plain.write(prompt="10 l", tokens=3, columns=2)
    assert page.count('class="card"') == 2 and "Samples" in page and "mark>" not in page
    assert "no latent" in plain.read("10 lines")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": None}, "tokens is empty; give a number"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"temperature": -1.0}, "temperature"),
        ({"tokens": 500}, "context is 64"),
        ({"columns": 9}, "ask for 1 to 4"),
        ({"prompt": "a" * 20_001}, "20001 characters; the page takes at most 20000"),
        ({"source": "text", "text": "a" * 20_001}, "the text has 20001 characters"),
        ({"tokens": 10**9}, "the page writes at most"),
        ({"tokens": "many"}, "a whole number"),
        ({"tokens": 1e300}, "a whole number"),
        ({"seed": 2**63}, "seed is"),
        ({"temperature": float("nan")}, "a finite number"),
        ({"prompt": ["a"]}, "prompt is"),
        ({"source": "given", "bits": tuple(range(10**5))}, "more than 65536 bits"),
        ({"source": "given", "slot": "x"}, "slot is"),
        ({"columns": 10**5000}, "at most 64 bits"),
    ],
)
def test_mistakes_are_words_on_the_page(player: Player, said: dict[str, Any], message: str) -> None:
    (page,) = player.write(**{"prompt": "10 l", "tokens": 3, **said})
    assert 'role="alert"' in page and message in page


def test_a_text_that_is_too_long_is_not_read(player: Player) -> None:
    assert "at most 20000" in player.read("a" * 20_001)
    assert "text is 3" in player.read(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "said", "answers"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "localhost:7860", True),
        ("127.0.0.1", "LOCALHOST:7860", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("::1", "[::1]:7860", True),
        ("192.168.0.7", "192.168.0.7:7860", True),
        ("box.example", "box.example:7860", True),
        ("0.0.0.0", "192.168.0.7:7860", True),
        ("0.0.0.0", f"{socket.gethostname()}:7860", True),
        ("0.0.0.0", "evil.example:7860", False),
        ("127.0.0.1", "evil.example:7860", False),
        ("127.0.0.1", "192.168.0.7:7860", False),
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "localhost:80", False),
        ("127.0.0.1", "localhost.evil.example:7860", False),
        ("127.0.0.1", "127.0.0.1:7860@evil.example", False),
        ("127.0.0.1", "[::1]", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", ":7860", False),
    ],
)
def test_a_foreign_host_is_refused(host: str, said: str, answers: bool) -> None:
    assert asked_of(host, [said]) == (200 if answers else 403)


def test_a_request_has_one_host() -> None:
    assert asked_of("127.0.0.1", []) == 403
    assert asked_of("127.0.0.1", ["localhost:7860", "evil.example"]) == 403


def asked_of(host: str, said: list[str]) -> int:
    """The status that a request gets from a page that listens at `host`, port 7860."""
    statuses: list[int] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "headers": [(b"host", one.encode()) for one in said]}
    asyncio.run(OnlyAddressed(app, host=host, port=7860)(scope, receive, send))
    (status,) = statuses
    return status


def test_what_is_typed_is_escaped(player: Player) -> None:
    *_, page = player.write(prompt="<b>", tokens=3)
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "<b>" not in player.read("<b>&")


def test_the_prompt_and_the_study_are_the_runs_own(player: Player, study: Path) -> None:
    assert player.study == study == study_of(study / "bits" / "seed0")
    assert player.prompt and player.first_tokens > 0
    assert "16 bits for the whole text" in player.about()
    assert study_of(study) is None
    with pytest.raises(UserError, match="no such folder"):
        Player.load(study / "bits" / "seed0", study=study / "none")


@pytest.mark.parametrize("arm", ["free", "gptvae", "cross/fsq_chunk_add"])
def test_a_text_is_read_in_windows(build: Callable[[str], LatentLM], arm: str) -> None:
    text = "ein Verslein über naïve Zähler — 10 l"
    found = reading_of(encode_in_windows(build(arm), text, 12))
    assert found.tokens == len(text.encode()) and found.windows == -(-found.tokens // 12)
    assert sum(span.tokens for span in found.spans) == found.tokens
    assert sum(span.kl_nats for span in found.spans) == pytest.approx(found.kl_nats, rel=1e-4)
    assert sum(found.kl_nats_per_slot) * found.slots == pytest.approx(found.kl_nats, rel=1e-4)
    assert found.active == tuple(kl > ACTIVE_NATS_PER_SLOT for kl in found.kl_nats_per_slot)
    whole = reading_of(encode_in_windows(build(arm), "naïve Zähler", 16))
    assert "".join(span.text for span in whole.spans) == "naïve Zähler"
    assert [span.tokens for span in whole.spans].count(2) == 2


def test_a_reading_has_its_colours_scale_and_units(player: Player) -> None:
    page = player.read("10 lines of a latent")
    alphas = [float(alpha) for alpha in re.findall(r"background: rgb\(0 128 200 / ([\d.]+)\)", page)]
    assert len(alphas) == 20 and max(alphas) == 0.85
    assert "KL, nats per token: 0" in page and "nats per slot" in page
    assert re.search(r"\d+ of 16 units are active in this text", page)
    assert 'role="alert"' in player.read("")


def test_the_plane_is_the_reports(player: Player, study: Path) -> None:
    report = read_folder(study)
    assert (report.arms, report.control) == (("baseline", "bits"), "baseline")
    page = player.plane()
    assert "<svg" in page and "baseline (exact, at rate 0)" in page and "http:" not in page
    assert "--study" in replace(player, study=None).plane()
    assert 'role="alert"' in replace(player, study=study / "bits" / "seed0").plane()


def test_what_differs_is_marked() -> None:
    assert markup._marked("abcd", "abxd") == "ab<mark>c</mark>d"
    assert markup._marked("abcd", "ab") == "ab<mark>cd</mark>"


def test_without_gradio_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lvlm.playground.page", None)
    with pytest.raises(MissingLibrary, match=r"pip install -e '\.\[play\]'"):
        lvlm.play(tmp_path)


# ---------------------------------------------------------------------------------------------------- the
# page itself


@pytest.fixture(scope="module")
def page_module() -> Any:
    pytest.importorskip("gradio", reason="needs the extra play")
    from lvlm.playground import page

    return page


def test_a_port_that_is_taken_is_told(page_module: Any, player: Player) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of 127.0.0.1 can't be had.*--port"):
            page_module.serve(player, port=port)
    with pytest.raises(UserError, match="host 'nowhere.invalid'"):
        page_module.serve(player, host="nowhere.invalid")
    with pytest.raises(UserError, match="port is 0"):
        page_module.serve(player, port=0)


def test_loopback() -> None:
    from lvlm.playground.hosts import is_loopback

    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@contextlib.contextmanager
def browser_page(requests: list[str]) -> Iterator[Any]:
    """A page of a headless Chromium that finds no address but loopback."""
    browser_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with browser_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(15_000)
        page.on("request", lambda request: requests.append(request.url))
        yield page
        browser.close()


SERVER = """
import sys, threading
from dataclasses import replace
from pathlib import Path

def watch(event, said):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = said[1] if event == "socket.connect" else said[0]
        print("called", address[0] if isinstance(address, tuple) else address, file=sys.stderr, flush=True)

sys.addaudithook(watch)
from lvlm.playground.page import serve
from lvlm.playground.player import Player
from tests.test_play import loud

player = Player.load(Path(sys.argv[1]))
print(serve(replace(player, model=loud(player.model))).url, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def process(*words: str, errors: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python of its own, for Gradio leaves open what pytest would find; and the first line that it
    prints.
    """
    with (
        errors.open("w") as told,
        subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=told, text=True
        ) as running,
    ):
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


@pytest.mark.slow  # Gradio takes its time to start
@pytest.mark.usefixtures("page_module")
def test_type_toggle_read_and_look_in_a_browser(study: Path, tmp_path: Path) -> None:
    """Nothing is asked of any other machine, neither by the page nor by its server."""
    requests: list[str] = []
    run, errors = str(study / "bits" / "seed0"), tmp_path / "errors"
    with browser_page(requests) as page, process("-c", SERVER, run, errors=errors) as (_, url):
        assert url, errors.read_text()
        page.goto(url)
        finished = "#texts .lv:has(section + section + p)"
        page.wait_for_selector(finished)  # it writes at once, with codes of the prior
        first = page.locator("#texts .card pre")
        assert first.count() == 4 and "One draw from the prior" in page.inner_text("#texts")

        page.fill("#prompt textarea", "<i>${1}")
        page.click("#write")
        shows(page, "#texts pre", "<i>${1}")

        page.get_by_label("bits that I toggle").check()
        shows(page, "#texts h3", "Code 0000000000000000")
        page.wait_for_selector(finished)
        before = first.nth(0).inner_text()
        page.locator("#bits").get_by_label("3", exact=True).check()
        shows(page, "#texts h3", "Code 0001000000000000")
        page.wait_for_selector(finished)
        assert first.nth(0).inner_text() != before

        page.get_by_role("tab", name="Read").click()
        page.wait_for_timeout(500)  # a tab that has just opened takes no text yet
        page.fill("#text textarea", "10 lines of a latent")
        page.wait_for_timeout(500)
        page.click("#read")
        page.wait_for_selector("#reading table")
        assert page.locator("#reading .kl").count() == 20

        page.get_by_role("tab", name="Plane").click()
        page.wait_for_selector("#plane svg")
    assert requests and all(address.startswith((url, "data:", "blob:")) for address in requests)
    called = {line.split()[1] for line in errors.read_text().splitlines() if line.startswith("called ")}
    assert called <= {"127.0.0.1", "None"}


def shows(page: Any, where: str, beginning: str) -> None:
    """Wait until an element begins with a text."""
    page.wait_for_function(
        "([where, text]) => document.querySelector(where)?.innerText.startsWith(text)", arg=[where, beginning]
    )


@pytest.mark.slow  # Gradio takes its time to start
@pytest.mark.usefixtures("page_module")
def test_the_command_says_where_the_page_is_and_ctrl_c_ends_it(study: Path, tmp_path: Path) -> None:
    words = ["-m", "lvlm", "play", str(study / "baseline" / "seed0")]
    with process(*words, errors=tmp_path / "errors") as (running, line):
        found = re.fullmatch(r"page: (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)", line)
        assert found, (tmp_path / "errors").read_text()
        with urllib.request.urlopen(found[1]) as answer:
            page = answer.read().decode()
        assert "lvlm play" in page and "fonts.googleapis" not in page
        foreign = urllib.request.Request(found[1], headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "errors").read_text()
