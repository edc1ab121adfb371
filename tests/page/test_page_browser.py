"""The built page in headless Chromium, opened from disk."""

import json
import re

import pytest

from page_screenshot import INSTALL, take

TABS = ["answer", "choosing", "training"]
STOPS = range(1, 11)


class Page:
    """A tab of the browser that notes whatever should not happen."""

    def __init__(self, browser, file, **options):
        options = {"viewport": {"width": 1100, "height": 900}} | options
        self.context, self.file, self.trouble = browser.new_context(**options), file, []
        self.tab = self.context.new_page()
        self.tab.on("console", lambda m: self.trouble.append(f"console {m.type}: {m.text}"))
        self.tab.on("pageerror", lambda e: self.trouble.append(f"error: {e}"))
        self.tab.on("request", lambda r: self.requests.append(r.url))
        self.requests = []

    def open(self, hash=""):
        self.tab.goto("about:blank")
        self.requests.clear()
        self.tab.goto(self.file.as_uri() + hash)
        return self.wait()

    def go(self, hash):
        """To another address, without loading the file again."""
        self.tab.evaluate("""hash => new Promise(done => {
            addEventListener('hashchange', () => setTimeout(done), {once: true});
            location.hash = location.hash === hash || hash === '#' ? hash + '&again=' + Math.random() : hash;
        })""", hash)
        return self.wait()

    def wait(self):
        self.tab.evaluate("window.fusionroute?.finished()")
        return self

    def text(self, selector):
        return self.tab.inner_text(selector)

    def answer(self, lane="tokens"):
        """The text of an answer as one would copy it."""
        return self.tab.evaluate("""id => {
            getSelection().selectAllChildren(document.getElementById(id));
            const text = getSelection().toString(); getSelection().removeAllRanges(); return text; }""", lane)

    def click(self, selector):
        self.tab.click(selector)
        return self.wait()

    def state(self):
        return dict(re.findall(r"([a-zA-Z]+)=([^&]*)", self.tab.evaluate("location.hash")))


@pytest.fixture(scope="module")
def shared(chromium, page_file):
    page = Page(chromium, page_file).open()
    yield page
    page.context.close()


@pytest.fixture()
def page(shared):
    """The page as at the start. Nothing is complained about, and nothing but the file is asked for."""
    shared.trouble.clear()
    shared.go("#")
    yield shared
    assert shared.trouble == []
    assert [url for url in shared.requests if not url.startswith("data:")] == [shared.file.as_uri()]


def prompt_of(data, skill):
    return next(e["prompt"] for e in data["examples"] if e["skill"] == skill)


def test_answers_are_those_of_the_engine(page, node, data):
    """window.fusionroute.answer and what one sees, for prompts of all kinds and typed marks."""
    prompts = [e["prompt"] for e in data["examples"][::12]] + ["<|user|>Wörter 🎉 in JSON<|end|>"]
    for prompt, theirs in zip(prompts, node("answer", [[p, "fusionroute"] for p in prompts])):
        assert page.tab.evaluate("p => window.fusionroute.answer(p)", prompt) == theirs
        page.tab.fill("#prompt", prompt)
        page.tab.press("#prompt", "Enter")
        page.wait()
        assert page.answer().strip() == theirs[-1]["answer"].strip()
        rows = theirs[:-1] + [theirs[-1]["end"]] * bool(theirs[-1]["end"])
        marks = page.tab.evaluate("""[...document.querySelectorAll('#tokens [role=option]')].map(o => [
            o.classList.contains('in-s'), o.classList.contains('changed'), o.dataset.mark ?? null])""")
        assert marks == [[r["in_S"], r["changed"], r["expert"][0] if r["in_S"] else None] for r in rows]
        counts = [int(b) for b in page.tab.evaluate(
            "[...document.querySelectorAll('#answers .legend b')].map(b => b.textContent)")]
        in_S = [sum(r["in_S"] and r["expert"] == e for r in rows) for e in ("math", "code", "instruct")]
        assert counts == in_S + [len(rows) - sum(in_S), sum(r["changed"] for r in rows)]


def test_sixty_tokens_a_second(page):
    """With all four models. The median of single tokens, as other work may interrupt some of them."""
    milliseconds = page.tab.evaluate("""() => { const { engine, toy } = window.fusionroute, times = [];
        for (const option of [...document.querySelectorAll('#example option')].slice(1, 6)) {
            const decoding = engine.start(toy, option.value);
            decoding.step();                                        // reads the prompt
            while (!decoding.done) {
                const begun = performance.now();
                decoding.step();
                times.push(performance.now() - begun); } }
        return times.sort((a, b) => a - b)[Math.floor(times.length / 2)]; }""")
    print(f"{1000 / milliseconds:.0f} tokens a second")
    assert 1000 / milliseconds > 60


def test_refusals_stand_under_the_field(page):
    for prompt, message in (("", "the prompt is empty"), ("  \n ", "the prompt is empty"),
                            ("seven " * 200, "tokens, and at most 160 fit"), ("y " * 10**5, "more than 1280")):
        page.tab.fill("#prompt", prompt)
        page.click("#run")
        assert message in page.text("#error")
        assert page.tab.get_attribute("#prompt", "aria-invalid") == "true"
        assert not page.tab.is_visible("#token-panel") and page.text("#answers") == ""
        field, error = (page.tab.locator(s).bounding_box() for s in ("#prompt", "#error"))
        assert 0 <= error["y"] - field["y"] - field["height"] < 30
        with pytest.raises(Exception, match=message):
            page.tab.evaluate("p => window.fusionroute.answer(p)", prompt)
    with pytest.raises(Exception, match="the method is"):
        page.tab.evaluate("window.fusionroute.answer('What is 38 mod 5?', {method: 'all'})")
    page.tab.fill("#prompt", "What is 38 mod 5?")
    page.click("#run")
    assert page.text("#error") == "" and "38 // 5 = 7" in page.answer()


def test_run_step_and_back(page):
    whole = page.tab.locator("#tokens [role=option]").count()
    page.click("#restart")
    assert page.tab.locator("#tokens [role=option]").count() == 0 and page.tab.is_disabled("#back")
    for n in (1, 2, 3):
        page.click("#step")
        assert page.tab.locator("#tokens [role=option]").count() == n
        assert page.text("#token-head h2").startswith(f"Token {n} of {n}")
    page.click("#back")
    assert page.tab.locator("#tokens [role=option]").count() == 2 and page.state()["written"] == "2"
    page.click("#run")
    assert page.tab.locator("#tokens [role=option]").count() == whole
    assert page.tab.is_disabled("#step")


def test_examples_methods_and_comparison(page, data, node):
    hard = prompt_of(data, "triple")
    page.tab.select_option("#example", hard)
    page.wait()
    methods = ["fusionroute", "sft_only", "routing_only", "router", "math"]
    answers = node("answer", [[hard, m] for m in methods])
    for method, rows in zip(methods, answers):
        page.tab.select_option("#method", method)
        page.wait()
        assert page.answer().strip() == rows[-1]["answer"].strip() and page.state().get(
            "method", "fusionroute") == method
    page.tab.select_option("#method", "fusionroute")
    page.tab.select_option("#beside", "sft_only")
    page.wait()
    assert page.answer("tokens-beside").strip() == answers[1][-1]["answer"].strip()
    assert page.answer().strip() == answers[0][-1]["answer"].strip()
    ids = [[r["id"] for r in rows[:-1]] for rows in answers[:2]]
    differ = next(t for t, (a, b) in enumerate(zip(*ids)) if a != b)
    assert f"differ from token {differ + 1} on" in page.text("#verdict")
    for lane in ("tokens", "tokens-beside"):
        assert "split" in page.tab.get_attribute(f"#{lane}-{differ}", "class")
    page.click(f"#tokens-beside-{differ}")
    assert page.state()["lane"] == "1" and page.tab.is_disabled("#scale")


def test_the_bars_are_an_addition(page):
    """Three rows for the same ten tokens; the third is the sum of the first two, in numbers and in height."""
    found = page.tab.evaluate("""[...document.querySelectorAll('.candidates tr.bars')].map(row =>
        [...row.children].map(td => [parseFloat(td.querySelector('.value').textContent.replace('−', '-')),
            ...[...td.querySelectorAll('.piece')].map(p => p.getBoundingClientRect().height)]))""")
    expert, router, total = found
    assert len(expert) == len(router) == len(total) == 10
    for e, r, t in zip(expert, router, total):
        assert abs(e[0] + r[0] - t[0]) < 0.16                      # each is rounded to a tenth
        assert abs(e[1] - t[1]) < 0.1 and abs(r[1] - t[2]) < 0.1   # pixels
    best = [i for i, td in enumerate(total) if td[0] == max(t[0] for t in total)]
    assert best[0] == 0 and "best" in page.tab.locator(".bars.deep td").first.get_attribute("class")


def at_the_change(page, data):
    """Open the prompt whose token the router changes, and choose that token: its number."""
    page.tab.select_option("#example", prompt_of(data, "triple"))
    page.wait()
    at = page.tab.evaluate("[...document.querySelectorAll('#tokens [role=option]')].findIndex("
                           "o => o.classList.contains('changed') && o.classList.contains('in-s'))")
    page.click(f"#tokens-{at}")
    return at


def test_experiments(page, data, node):
    at = at_the_change(page, data)
    prompt, plain = prompt_of(data, "triple"), page.answer()
    was = page.tab.get_attribute(f"#tokens-{at}", "data-was")
    page.click("#scale-0")                                          # the router adds nothing here
    assert page.tab.get_attribute(f"#tokens-{at}", "aria-label").startswith(f"{at + 1}: {was}")
    assert page.answer("tokens-before") == plain and page.answer() != plain
    assert "split" in page.tab.get_attribute(f"#tokens-{at}", "class")
    assert "split" in page.tab.get_attribute(f"#tokens-before-{at}", "class")
    expected, = node("edits", [{"prompt": prompt, "edits": [{"at": at, "rest": False, "scale": 0}]}])
    assert page.tab.locator("#tokens [role=option]").count() == len(expected["fresh"])
    page.click("#scale-2")
    assert page.text("#scale-value") == "2.00" and page.tab.locator("#edits button").count() == 1
    page.tab.focus("#scale")
    page.tab.keyboard.press("Home")                                 # the slider by keyboard
    page.wait()
    assert page.text("#scale-value") == "0.00"
    page.tab.focus("#undo-0")
    page.tab.keyboard.press("Enter")
    page.wait()
    assert page.answer() == plain and "edits" not in page.state()
    assert page.tab.input_value("#scale") == "1" and page.text("#scale-value") == "1.00"
    assert page.tab.evaluate("document.activeElement.id") == "tokens"

    page.click(f"#tokens-{at}")
    other = page.tab.locator(".candidates thead th:not(.written) button").first
    wanted = other.inner_text()
    other.click()                                                   # another token
    page.wait()
    assert page.tab.get_attribute(f"#tokens-{at}", "aria-label").startswith(f"{at + 1}: {wanted}")
    assert "edited" in page.tab.get_attribute(f"#tokens-{at}", "class")
    page.click("#undo-0")

    page.click(f"#tokens-{at}")
    free = page.tab.locator(".opinions button").first
    name = free.get_attribute("id").removeprefix("use-")
    page.tab.check("#rest")
    free.click()                                                    # another expert, here and after
    page.wait()
    assert page.tab.locator(".opinions tr.picked").inner_text().split()[1].startswith(name[:5])
    assert f"{at}E" in page.state()["edits"]
    rest = page.tab.evaluate("at => [...document.querySelectorAll('#tokens .in-s')].slice(-1)[0].className", at)
    assert name in rest
    page.tab.uncheck("#rest")


def test_the_address_shows_somebody_else_the_same(page, data, chromium, page_file):
    at = at_the_change(page, data)
    page.tab.select_option("#beside", "routing_only")
    page.click("#scale-0")
    other = Page(chromium, page_file).open(page.tab.evaluate("location.hash"))
    skip = re.compile(r"Just now: .*")
    assert skip.sub("", other.text("main")) == skip.sub("", page.text("main"))
    assert f"Token {at + 1} of" in other.text("#token-head")
    for hash in ("#tab=nothing&method=x&at=9999&edits=zz,1e9,2s7,1t99999&B=-1&coverage=2&world=1.5&pair=7&tour=99",
                 "#%E0%A4%A", "#prompt=&tab=choosing", "#experts=1_2,3_4&target=a_b&written=-3"):
        other.go(hash)                                            # nonsense is as at the start
        assert other.tab.is_visible("#app")
    assert other.trouble == []
    other.go("#prompt=What+is+38+mod+5%3F&method=math")
    assert "38 // 5" in other.answer()
    other.tab.evaluate("location.hash = '#tab=training'")
    other.tab.wait_for_selector("#panel-training:not([hidden])")
    other.context.close()


def test_choosing(page, node):
    page.click("#tab-choosing")
    page.tab.fill("#coverage", "0.9")
    page.tab.fill("#bound", "4")
    found = [float(page.text(f"#loss-{name}")) for name in ("choosing", "logits", "nobody")]
    theirs = node("mean_loss", [[0.9, 0, False], [0.9, 4, False], [0.9, 4, True]])
    assert found == [round(x, 4) for x in theirs]
    before = page.text("#tree-text")
    page.tab.select_option("#world", "5")
    assert page.text("#tree-text") != before and page.state()["world"] == "5"

    distances = lambda: [float(page.text(f"#distance-{way}")) for way in ("routing", "mixing", "logits")]
    routing, mixing, logits = distances()
    assert routing > mixing > logits > 0
    page.tab.fill("#B", "2")
    assert distances() == [routing, mixing, 0]                      # large logits reach the target
    page.tab.focus("#target")                                       # to expert 3, by keyboard
    for _ in range(40):
        page.tab.keyboard.press("Shift+ArrowUp")
    assert page.tab.evaluate("document.activeElement.id") == "target"
    up = distances()
    assert up != [routing, mixing, 0] and page.tab.get_attribute("#target", "aria-valuetext").startswith("A 0.9")
    box = page.tab.locator("#expert-1").bounding_box()              # and expert 1 to the target, by mouse
    goal = page.tab.locator("#target polygon").bounding_box()
    page.tab.mouse.move(box["x"] + 16, box["y"] + box["height"] - 16)
    page.tab.mouse.down()
    page.tab.mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + goal["height"] / 2, steps=5)
    page.tab.mouse.up()
    assert distances()[0] < 0.05 < up[0]
    assert page.state()["experts"] and page.state()["target"]


def test_training(page, data, node):
    page.click("#tab-training")
    assert page.tab.locator("#charts svg[role=img]").count() == 4
    for i, theirs in enumerate(node("pairs", data["pairs"])):
        page.tab.select_option("#pair", str(i))
        shown = [float(x.replace("−", "-")) for x in page.tab.evaluate(
            "[...document.querySelectorAll('#pair-panel .readout td')].map(td => td.textContent)")]
        six = [[*theirs[name], theirs[name][0] - theirs[name][1]] for name in ("theta", "ref", "expert")]
        assert shown == pytest.approx([x for row in six for x in row], abs=6e-4)
        after = page.text(".eq3:nth-of-type(2)").replace("−", "-")
        for name in ("margin", "bias", "loss"):
            assert f"{theirs[name]:.3f}" in after
        assert ("negative" in page.text("#pair-text")) == (theirs["bias"] < 0)
        assert ("did not succeed" in page.text("#pair-text")) == (theirs["margin"] + theirs["bias"] < 0)
    assert page.state()["pair"] == str(len(data["pairs"]) - 1)


def test_the_tour_by_keyboard(page, chromium, page_file):
    """Ten stops with Enter alone; each sets the state, and its address alone shows the same."""
    page.tab.focus("#tour-start")
    seen = []
    for n in STOPS:
        page.tab.keyboard.press("Enter")
        page.wait()
        title, text = page.text("#tour-title"), page.text("#tour-text")
        assert title.startswith(f"Stop {n} of 10") and len(text) > 100
        assert not re.search(r"undefined|NaN|null|\[object", page.text("main"))
        assert page.tab.locator(".look").count() == 1 and page.tab.locator(".look").is_visible()
        seen.append((page.tab.evaluate("location.hash"), title, text, page.tab.locator(".look").text_content()))
    assert len({text for _, _, text, _ in seen}) == 10 and page.tab.is_disabled("#tour-next")
    other = Page(chromium, page_file).open()
    for hash, title, text, look in seen[1::2]:
        other.go(hash)
        assert (other.text("#tour-title"), other.text("#tour-text")) == (title, text)
        assert other.tab.locator(".look").text_content() == look
    other.open("#tour=4")
    assert other.text("#tour-text") == seen[3][2]
    other.context.close()
    page.click("#tour-back")
    assert page.text("#tour-title").startswith("Stop 9")
    page.click("#tour-end")
    assert not page.tab.is_visible("#tour") and page.tab.evaluate("document.activeElement.id") == "tour-start"


def test_the_tour_says_what_the_models_do(page, data):
    """What the stops claim of the shipped weights."""
    gold = next(e["answer"] for e in data["examples"] if e["skill"] == "triple")
    page.go("#tour=2")                                             # "use it" changes the answer
    before, row = page.answer(), re.search(r"in the row of the (\w+) expert", page.text("#tour-text"))[1]
    page.click(f"#use-{'instruct' if row == 'instruction' else row}")
    assert page.answer() != before and page.answer("tokens-before") == before
    assert page.answer().strip() in page.text("#tour .changed-answer")
    card, answers = (page.tab.locator(s).bounding_box() for s in ("#tour", "#answers"))
    assert card["y"] + card["height"] <= answers["y"] < 900        # the answer is in view under the card
    page.go("#tour=3")
    assert page.answer().strip() != gold and "No expert has ever seen" in page.text("#tour-text")
    page.go("#tour=4")
    assert page.answer().strip() == gold and page.tab.locator("#tokens .changed").count() >= 1
    page.go("#tour=5")
    assert page.answer().strip() != gold and page.answer("tokens-before").strip() == gold
    assert page.answer().strip() in page.text("#tour .changed-answer")
    page.go("#tour=6")                                             # math wrong, router wrong, sum right
    assert re.findall(r"\((right|wrong)\)", page.text("#tour-text")) == ["wrong", "wrong", "right"]
    assert "all three experts agree on the end of the answer" in page.text("#tour-text")
    page.go("#tour=7")
    assert page.answer().strip() == gold and page.answer("tokens-beside").strip() != gold
    assert "They part at token" in page.text("#tour-text")
    page.go("#tour=8")
    assert float(page.text("#distance-logits")) > 0
    page.go("#tour=10")
    assert "It is negative" in page.text("#tour-text")


def test_keyboard(page):
    """Tab reaches every control in turn, focus is visible, arrows move in the answer and between tabs."""
    for tab in TABS:
        page.tab.focus(f"#tab-{tab}")
        page.tab.keyboard.press("Enter")
        page.wait()
        page.tab.focus("#tab-" + tab)
        reached = {f"tab-{tab}"}
        for _ in range(80):
            page.tab.keyboard.press("Tab")
            found = page.tab.evaluate("""() => { const e = document.activeElement, s = getComputedStyle(e);
                const halo = e.querySelector?.('.halo');
                const seen = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2
                    || halo && getComputedStyle(halo).strokeWidth === '3px';
                return [e.id, e.tagName, Boolean(seen)]; }""")
            if found[1] == "BODY":
                break
            assert found[0] and found[2], found
            reached.add(found[0])
        controls = page.tab.evaluate("""[...document.querySelectorAll('button, input, select, textarea, [tabindex="0"]')]
            .filter(e => !e.disabled && e.tabIndex >= 0 && e.getClientRects().length).map(e => e.id)""")
        assert set(controls) - {"tour-start"} <= reached, set(controls) - reached
    page.tab.focus("#tab-training")
    page.tab.keyboard.press("ArrowRight")
    assert page.state().get("tab", "answer") == "answer"
    page.tab.focus("#tokens")
    for key, expected in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1),
                          ("End", page.tab.locator("#tokens [role=option]").count() - 1)):
        page.tab.keyboard.press(key)
        assert page.tab.get_attribute("#tokens", "aria-activedescendant") == f"tokens-{expected}"
        assert page.text("#token-head h2").startswith(f"Token {expected + 1} of")
        assert page.tab.evaluate("document.activeElement.id") == "tokens"


@pytest.mark.parametrize("width", [360, 2200])
def test_no_sideways_scrolling(page, width, data):
    page.tab.set_viewport_size({"width": width, "height": 800})
    long = next(e["prompt"] for e in data["examples"] if e["skill"] == "distinct")
    hashes = [f"#tab={tab}" for tab in TABS] + [f"#tour={n}" for n in (2, 6, 7)]
    hashes = hashes[1:] + [f"#beside=routing_only&edits=3s0&prompt={long}", f"#prompt={'x' * 140}"]
    for hash in hashes if width < 1000 else hashes[1:3]:
        page.go(hash)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width, hash
        outside = page.tab.evaluate("""w => [...document.querySelectorAll('main *')].filter(e =>
            e.getClientRects().length && e.getBoundingClientRect().right > w + 1).map(e => e.outerHTML.slice(0, 80))""", width)
        assert outside == [], hash
    page.tab.set_viewport_size({"width": 1100, "height": 900})


def test_accessibility(chromium, page_file):
    """axe-core finds nothing, in light and in dark colours."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=f"no axe; {INSTALL}").Axe()
    page = Page(chromium, page_file).open()
    page.tab.evaluate(axe.axe_script)
    for hash in ("#tour=8", "#tab=training", "#beside=sft_only&edits=4e1", "#prompt=+"):
        page.go(hash)
        for scheme in ("light", "dark")[:1 + (hash != "#prompt=+")]:
            page.tab.emulate_media(color_scheme=scheme)
            rules = None if scheme == "light" else {"runOnly": ["color-contrast"]}
            found = page.tab.evaluate("o => axe.run(o ?? {}).then(r => [r.violations, r.passes.length])", rules)
            bad = [[v["id"], [n["html"][:200] for n in v["nodes"][:3]]] for v in found[0]]
            assert bad == [] and found[1] >= (1 if rules else 20), (hash, scheme, json.dumps(bad, indent=1))
    assert page.trouble == []
    page.context.close()


def test_damaged_weights_give_a_message(chromium, page_file, tmp_path):
    text = page_file.read_text(encoding="utf-8")
    at = text.index('"base64":"') + 5000
    for broken in (text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1:],
                   text.replace('id="data">{', 'id="data">')):
        (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
        page = Page(chromium, tmp_path / "broken.html").open()
        assert page.text("#message").startswith("This page cannot start: ")
        assert page.tab.is_visible("#message") and not page.tab.is_visible("#app") and page.trouble == []
        page.context.close()


def test_printing_and_reduced_motion(chromium, page_file, tmp_path):
    page = Page(chromium, page_file, reduced_motion="reduce", color_scheme="dark").open("#tour=5")
    page.tab.emulate_media(media="print")
    for gone in ("#tour", "#tabs", "#run", "#scale"):
        assert not page.tab.is_visible(gone)
    for kept in ("#tokens", ".candidates", ".opinions"):
        assert page.tab.is_visible(kept)
    ink, paper = page.tab.evaluate("[getComputedStyle(document.documentElement).color, "
                                   "getComputedStyle(document.documentElement).backgroundColor]")
    assert paper == "rgb(255, 255, 255)" and max(map(int, re.findall(r"\d+", ink))) < 80
    assert len(page.tab.pdf()) > 10_000
    assert page.trouble == []
    page.context.close()


def test_screenshot(chromium, page_file, tmp_path):
    take(chromium, page_file, tmp_path / "shot.png")
    assert (tmp_path / "shot.png").stat().st_size > 30_000
