"""The built page in headless Chromium, opened from disk."""

import json
import math
import re

import pytest

TABS = ["answer", "choosing", "training"]
STOPS = range(1, 11)


class Page:
    """A tab of the browser that notes whatever should not happen."""

    def __init__(self, browser, file):
        self.context = browser.new_context(viewport={"width": 1100, "height": 900})
        self.file = file
        self.trouble, self.requests = [], []
        self.tab = self.context.new_page()
        self.tab.on("console", lambda m: self.trouble.append(f"console {m.type}: {m.text}"))
        self.tab.on("pageerror", lambda e: self.trouble.append(f"error: {e}"))
        self.tab.on("request", lambda r: self.requests.append(r.url))

    def open(self, hash=""):
        self.tab.goto("about:blank")
        self.requests.clear()
        self.tab.goto(self.file.as_uri() + hash)
        return self.wait()

    def go(self, hash):
        """To another address, without loading the file again."""
        self.tab.evaluate(
            """hash => new Promise(done => {
                addEventListener('hashchange', () => setTimeout(done), {once: true});
                const same = location.hash === hash || hash === '#';
                location.hash = same ? hash + '&again=' + Math.random() : hash; })""",
            hash,
        )
        return self.wait()

    def wait(self):
        self.tab.evaluate("window.fusionroute?.finished()")
        return self

    def text(self, selector):
        return self.tab.inner_text(selector)

    def all(self, selector, of):
        """What the JavaScript expression `of` gives for each element e."""
        return self.tab.eval_on_selector_all(selector, f"list => list.map(e => {of})")

    def count(self, selector):
        return self.tab.locator(selector).count()

    def box(self, selector):
        return self.tab.locator(selector).bounding_box()

    def focused(self):
        return self.tab.evaluate("document.activeElement.id")

    def answer(self, lane="tokens"):
        """The text of an answer as one would copy it, without spaces around it."""
        copied = """id => { getSelection().selectAllChildren(document.getElementById(id));
            const text = getSelection().toString();
            getSelection().removeAllRanges();
            return text; }"""
        return self.tab.evaluate(copied, lane).strip()

    def ask(self, prompt):
        self.tab.fill("#prompt", prompt)
        self.tab.press("#prompt", "Enter")
        return self.wait()

    def click(self, selector):
        self.tab.click(selector)
        return self.wait()

    def press(self, selector, *keys):
        self.tab.focus(selector)
        for key in keys:
            self.tab.keyboard.press(key)
        return self.wait()

    def choose(self, selector, value):
        self.tab.select_option(selector, value)
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
    """The page as at the start. No complaint, and no request but for the file."""
    shared.trouble.clear()
    shared.tab.emulate_media(color_scheme="light", reduced_motion="no-preference")
    shared.tab.set_viewport_size({"width": 1100, "height": 900})
    shared.go("#")
    yield shared
    assert shared.trouble == []
    assert [url for url in shared.requests if not url.startswith("data:")] == [shared.file.as_uri()]


TOKENS = "#tokens [role=option]"


def prompt_of(data, skill):
    return next(e["prompt"] for e in data["examples"] if e["skill"] == skill)


# --- the answer ----------------------------------------------------------------------------------


def test_answers_are_those_of_the_engine(page, node, data):
    """window.fusionroute.answer and what one sees, for prompts of all kinds and typed marks."""
    prompts = [e["prompt"] for e in data["examples"][::12]]
    prompts += ["<|user|>Wörter 🎉 in JSON<|end|>", "List red and dog as bullet points.\\n"]
    for prompt, theirs in zip(prompts, node("answer", [[p, "fusionroute"] for p in prompts])):
        assert page.tab.evaluate("p => window.fusionroute.answer(p)", prompt) == theirs
        page.ask(prompt)
        assert page.answer() == theirs[-1]["answer"].strip()
        rows = theirs[:-1] + [theirs[-1]["end"]] * bool(theirs[-1]["end"])
        signs = "[e.classList.contains('in-s'), e.classList.contains('changed'), e.dataset.mark]"
        marks = [r["expert"][0] if r["in_S"] else None for r in rows]
        expected = [[r["in_S"], r["changed"], mark] for r, mark in zip(rows, marks)]
        assert page.all(TOKENS, signs) == expected
        shown = [int(n) for n in page.all("#facts b", "e.textContent")[-3:]]
        assert shown == [sum(r[key] for r in rows) for key in ("in_S", "changed")] + [len(rows)]


def test_refusals_stand_under_the_field(page, data):
    empty, long, huge = "the prompt is empty", "must have at most 160", "more than 1280"
    cases = {"": empty, "  \n ": empty, "seven " * 200: long, "y " * 10**5: huge}
    for prompt, message in cases.items():
        page.tab.fill("#prompt", prompt)
        page.click("#run")
        assert message in page.text("#error")
        assert page.tab.get_attribute("#prompt", "aria-invalid") == "true"
        assert not page.tab.is_visible("#token-panel") and page.text("#answers") == ""
        field, error = page.box("#prompt"), page.box("#error")
        assert 0 <= error["y"] - field["y"] - field["height"] < 30
        with pytest.raises(Exception, match=message):
            page.tab.evaluate("p => window.fusionroute.answer(p)", prompt)
    with pytest.raises(Exception, match="the method is"):
        page.tab.evaluate("window.fusionroute.answer('What is 38 mod 5?', {method: 'all'})")
    page.ask("What is 140 modulo 5?")
    assert page.text("#error") == "" and "never seen: 140, modulo." in page.text("#unseen")
    page.ask("What is 38 mod 5?")
    assert "Not one of the examples" in page.text("#unseen") and "38 // 5 = 7" in page.answer()
    page.choose("#example", prompt_of(data, "mod"))
    assert page.text("#unseen") == ""


def test_run_step_and_back(page):
    whole = page.count(TOKENS)
    page.click("#restart")
    for n in (1, 2, 3):
        assert page.tab.is_disabled("#back") == (n == 1)
        assert page.count(TOKENS) == n
        assert page.text("#token-head h2").startswith(f"Token {n} of {n}")
        page.click("#step")
    page.click("#back")
    assert page.count(TOKENS) == 3 and page.state()["written"] == "3"
    page.click("#run")
    assert page.count(TOKENS) == whole


def test_examples_methods_and_comparison(page, data, node):
    hard = prompt_of(data, "triple")
    page.choose("#example", hard)
    methods = ["fusionroute", "sft_only", "routing_only", "router", "math", "code", "instruct"]
    answers = dict(zip(methods, node("answer", [[hard, m] for m in methods])))
    right = next(e["answer"] for e in data["examples"] if e["prompt"] == hard)
    for name in methods[3:]:  # what each model alone answers: in short, whole, and away again
        text, alone = answers[name][-1]["answer"], f"#alone-{name}"
        result = re.search(r"The answer is (\w+)", text)[1]
        assert page.text(alone).endswith(f" {result} {'✗✓'[text == right]}")
        assert page.click(alone).answer("tokens-beside") == text.strip()
        assert page.click(alone).count("#tokens-beside") == 0
    for method, rows in answers.items():
        page.choose("#method", method)
        assert page.answer() == rows[-1]["answer"].strip()
        assert page.state().get("method", "fusionroute") == method
    page.choose("#method", "fusionroute")
    page.choose("#beside", "sft_only")
    two = [answers[m] for m in ("fusionroute", "sft_only")]
    assert [page.answer(), page.answer("tokens-beside")] == [r[-1]["answer"].strip() for r in two]
    ids = zip(*([row["id"] for row in rows[:-1]] for rows in two))
    differ = next(t for t, (a, b) in enumerate(ids) if a != b)
    assert f"differ from token {differ + 1} on" in page.text("#facts")
    for lane in ("tokens", "tokens-beside"):
        assert "split" in page.tab.get_attribute(f"#{lane}-{differ}", "class")
    page.click(f"#tokens-beside-{differ}")
    assert page.state()["lane"] == "1" and page.tab.is_disabled("#scale")
    for phase in (1, 2):  # one switch; the old answer stays beside the new one
        page.click(f"#phase-{phase}")
        assert page.tab.get_attribute(f"#phase-{phase}", "aria-pressed") == "true"
        both = [page.answer("tokens-beside"), page.answer()][:: 1 if phase == 1 else -1]
        assert both == [r[-1]["answer"].strip() for r in two]
        assert page.text("#token-head h2").startswith(f"Token {differ + 1} of")
    page.choose("#method", "router")  # neither phase of FusionRoute; nobody is picked
    assert page.count(".switch [aria-pressed=true]") == 0
    assert set(page.all("#bars .value", "e.textContent")[::3]) == {"–"}


COLUMNS = """[...e.querySelectorAll('td')].map(td => [
    parseFloat(td.querySelector('.value').textContent.replace('−', '-')),
    ...[...td.querySelectorAll('.piece')].map(p => p.getBoundingClientRect().width)])"""


def test_the_bars_are_an_addition(page):
    """Three columns for the same candidates: the third is the sum, in numbers and in length."""
    page.tab.emulate_media(reduced_motion="reduce")
    page.click("#back")
    page.click("#step")
    rows = page.all("#bars tbody tr", COLUMNS)
    assert len(rows) == 8
    for expert, router, total in rows:
        assert abs(expert[0] + router[0] - total[0]) < 0.16  # each is rounded to a tenth
        assert abs(expert[1] - total[1]) < 0.1 and abs(router[1] - total[2]) < 0.1  # pixels
    for i in range(3):  # the longest bar of a column stands out, and the longest sum is written
        longest = max(range(8), key=lambda k: sum(rows[k][i][1:]))
        assert rows[longest][i][0] == max(row[i][0] for row in rows)
        name = ("expert", "router", "sum")[i]
        assert page.all("#bars .best", "e.id").count(f"cell-{name}-{longest}") == 1
    assert page.tab.locator("#bars .written").get_attribute("id") == f"row-{longest}"


def test_stepping_moves_the_bars_and_the_lines(page):
    """The same elements get other lengths; they glide, unless the system asks for none of that."""
    look = """() => [[...document.querySelectorAll('.piece, .wire')].map(e => e.style.cssText),
        getComputedStyle(document.querySelector('.piece')).transitionDuration]"""
    page.tab.evaluate("window.row = document.getElementById('row-0')")
    before, duration = page.tab.evaluate(look)
    page.click("#step")
    assert sum(a != b for a, b in zip(before, page.tab.evaluate(look)[0])) > 10
    assert duration == "0.35s"
    assert page.tab.evaluate("window.row === document.getElementById('row-0')")
    page.tab.emulate_media(reduced_motion="reduce")
    assert page.tab.evaluate(look)[1] == "0s"
    page.click("#play")
    assert page.text("#play") == "Pause"
    page.click("#play")
    assert page.text("#play") == "Play"


def test_words_when_asked(page):
    """A term opens its sentence beside itself, and another press closes it."""
    for name in page.all("#panel-answer .term", "e.id.slice(5)"):
        for open_now in (True, False):
            page.tab.focus(f"#term-{name}")
            page.tab.keyboard.press("Enter")
            assert page.tab.is_visible(f"#about-{name}") == open_now, name
            if open_now:
                assert page.text(f"#about-{name}").rstrip(".").count(". ") == 0  # one sentence


def at_the_change(page, data):
    """Open the prompt whose token the router changes, and choose that token: its number."""
    page.choose("#example", prompt_of(data, "triple"))
    both = page.all(TOKENS, "e.classList.contains('changed') && e.classList.contains('in-s')")
    page.click(f"#tokens-{both.index(True)}")
    return both.index(True)


def test_experiments(page, data, node):
    at = at_the_change(page, data)
    prompt, plain, token = prompt_of(data, "triple"), page.answer(), f"#tokens-{at}"
    label = lambda: page.tab.get_attribute(token, "aria-label")
    was = page.tab.get_attribute(token, "data-was")
    page.press("#scale", "Home")  # the router adds nothing here
    assert label().startswith(f"{at + 1}: {was}")
    assert page.answer("tokens-before") == plain and page.answer() != plain
    for lane in (token, f"#tokens-before-{at}"):
        assert "split" in page.tab.get_attribute(lane, "class")
    off = {"at": at, "rest": False, "scale": 0}
    (expected,) = node("edits", [{"prompt": prompt, "edits": [off]}])
    assert page.count(TOKENS) == len(expected["fresh"])
    place = page.box("#scale")
    page.press("#scale", "End")  # the answer is as it was; the slider stays where it is
    assert page.count("#tokens-before") == 0 and abs(page.box("#scale")["y"] - place["y"]) < 2
    assert page.text("#scale-value") == "× 2.00" and page.count("#edits button") == 1
    page.press("#undo-0", "Enter")
    assert page.answer() == plain and "edits" not in page.state()
    assert page.tab.input_value("#scale") == "1" and page.text("#scale-value") == "× 1.00"
    assert page.focused() == "tokens"

    page.click(token)
    other = page.tab.locator("#bars tr:not(.written) .candidate").first
    wanted = other.inner_text()
    other.click()  # another token
    page.wait()
    assert label().startswith(f"{at + 1}: {wanted}")
    assert "edited" in page.tab.get_attribute(token, "class")
    page.click("#undo-0")

    page.click(token)
    free = page.tab.locator(".expert[aria-pressed=false]").first
    name = free.get_attribute("id").removeprefix("use-")
    page.tab.check("#rest")
    free.click()  # another expert, here and after
    page.wait()
    assert page.tab.get_attribute(f"#use-{name}", "aria-pressed") == "true"
    assert f"{at}E" in page.state()["edits"]
    assert name in page.all("#tokens .in-s", "e.className")[-1]
    page.tab.uncheck("#rest")


NONSENSE = (
    "#tab=nothing&method=x&at=9999&edits=zz,1e9,2s7,1t99999&B=-1&coverage=2&world=1.5&tour=99"
)


def test_the_address_shows_somebody_else_the_same(page, data, chromium, page_file):
    at = at_the_change(page, data)
    page.tab.select_option("#beside", "routing_only")
    page.press("#scale", "Home")
    other = Page(chromium, page_file).open(page.tab.evaluate("location.hash"))
    speed = re.compile(r"\d+ tokens a second")
    assert speed.sub("", other.text("main")) == speed.sub("", page.text("main"))
    assert f"Token {at + 1} of" in other.text("#token-head")
    for hash in (NONSENSE, "#%E0%A4%A", "#experts=1_2,3_4&target=a_b&written=-3&pair=7"):
        other.go(hash)  # nonsense is as at the start
        assert other.tab.is_visible("#app")
    assert other.trouble == []
    other.go("#prompt=What+is+38+mod+5%3F&method=math")
    assert "38 // 5" in other.answer()
    other.context.close()


# --- the other tabs ------------------------------------------------------------------------------


def test_choosing(page, node):
    page.click("#tab-choosing")
    page.tab.fill("#coverage", "0.9")
    page.tab.fill("#bound", "4")
    found = [float(page.text(f"#loss-{name}")) for name in ("choosing", "logits", "nobody")]
    theirs = node("mean_loss", [[0.9, 0, False], [0.9, 4, False], [0.9, 4, True]])
    assert found == [round(x, 3) for x in theirs]
    assert "The last line is lower" in page.text("#losses")
    page.tab.fill("#coverage", "1")  # where experts know, they help
    assert "The last line is lower" not in page.text("#losses")
    page.tab.fill("#coverage", "0.5")
    lost = page.count("#tree text.lost")
    assert 0 < lost and f"gets {3 - lost} of these 3" in page.text("#tree-text")
    before = page.text("#tree-text")
    page.tab.select_option("#world", "5")
    assert page.text("#tree-text") != before and page.state()["world"] == "5"

    ways = ("routing", "mixing", "logits")
    distances = lambda: [float(page.text(f"#distance-{way}")) for way in ways]
    routing, mixing, logits = distances()
    assert routing > mixing > logits > 0
    page.tab.fill("#B", "2")
    assert distances() == [routing, mixing, 0]  # large logits reach the target
    page.press("#target", *["Shift+ArrowUp"] * 40)  # to expert 1, by keyboard
    assert page.focused() == "target"
    up = distances()
    assert up != [routing, mixing, 0]
    assert page.tab.get_attribute("#target", "aria-valuetext").startswith("A 0.9")
    box, goal = page.box("#expert-1"), page.box("#target polygon")  # and back, by mouse
    page.tab.mouse.move(box["x"] + 16, box["y"] + box["height"] - 16)
    page.tab.mouse.down()
    middle = goal["x"] + goal["width"] / 2, goal["y"] + goal["height"] / 2
    page.tab.mouse.move(*middle, steps=5)
    page.tab.mouse.up()
    assert distances()[0] < 0.05 < up[0]
    assert page.state()["experts"] and page.state()["target"]


def test_training(page, data, node):
    page.click("#tab-training")
    assert page.count("#charts svg[role=img]") == page.count("#more-charts svg[role=img]") == 2
    for i, theirs in enumerate(node("pairs", data["pairs"])):
        page.tab.select_option("#pair", str(i))
        numbers = page.all("#pair-panel .readout td", "e.textContent")
        six = [[a, b, a - b] for a, b in (theirs[name] for name in ("theta", "ref", "expert"))]
        shown = [float(x.replace("−", "-")) for x in numbers]
        assert shown == pytest.approx(sum(six, []), abs=6e-4)
        after = page.text(".eq3:nth-of-type(2)").replace("−", "-")
        for name in ("margin", "bias", "loss"):
            assert f"{theirs[name]:.3f}" in after
        line = float(page.tab.get_attribute("#chart-bias .pointer", "x1"))
        assert 46 < line < 496
        assert abs(float(page.tab.input_value("#bias")) - theirs["bias"]) < 0.03
        said, failed = page.text("#pair-text"), theirs["margin"] + theirs["bias"] < 0
        assert ("negative" in said) == (theirs["bias"] < 0)
        assert ("did not succeed" in said) == failed
        assert data["pairs"][i]["prompt"] in page.tab.locator("#pair option").nth(i).inner_text()
    assert page.state()["pair"] == str(len(data["pairs"]) - 1)
    for bias in (-4, -0.3, 0, 2):  # dragged through zero
        page.tab.fill("#bias", str(bias))
        gradient = 1 / (1 + math.exp(theirs["margin"] + bias))
        assert page.text("#pull") == f"{100 * gradient:.0f}%"
        assert ("rejected" in page.text("#bias-words")) == (bias < 0)
        assert ("does not make up" in page.text("#bias-words")) == (bias < 0 and gradient > 0.6)
    assert page.state()["bias"] == "2"
    page.click("#bias-own")
    assert "bias" not in page.state()


# --- the tour ------------------------------------------------------------------------------------


def test_the_tour_by_keyboard(page):
    """Ten stops with Enter alone; each sets the state, and its address alone shows the same."""
    page.tab.focus("#tour-start")
    seen = []
    for n in STOPS:
        page.tab.keyboard.press("Enter")
        page.wait()
        title, text = page.text("#tour-title"), page.text("#tour-text")
        assert title.startswith(f"Stop {n} of 10") and 25 <= len(text.split()) <= 40
        assert not re.search(r"undefined|NaN|null|\[object", page.text("main"))
        assert page.count(".look") == 1 and page.tab.is_visible(".look")
        seen.append((page.tab.evaluate("location.hash"), title, text))
    assert len({text for _, _, text in seen}) == 10 and page.tab.is_disabled("#tour-next")
    for hash, title, text in [*seen[1::3], ("#tour=4", *seen[3][1:]), seen[9]]:
        page.go(hash)
        assert (page.text("#tour-title"), page.text("#tour-text")) == (title, text)
    page.click("#tour-back")
    assert page.text("#tour-title").startswith("Stop 9")
    page.click("#tour-end")
    assert not page.tab.is_visible("#tour") and page.focused() == "tour-start"


def test_the_tour_says_what_the_models_do(page, data):
    """What the stops claim of the shipped weights."""
    gold = next(e["answer"] for e in data["examples"] if e["skill"] == "triple")
    page.go("#tour=2")  # "use it" changes the answer
    assert page.text("#tour-prompt") == page.tab.input_value("#prompt")
    before = page.answer()
    row = re.search(r"Press the (\w+) expert", page.text("#tour-text"))[1]
    page.click(f"#use-{'instruct' if row == 'instruction' else row}")
    assert page.answer() != before and page.answer("tokens-before") == before
    page.go("#tour=3")
    assert page.answer() != gold and "No expert has ever seen" in page.text("#tour-text")
    page.go("#tour=4")
    assert page.answer() == gold and page.count("#tokens .changed") >= 1
    page.go("#tour=5")
    assert page.answer() != gold and page.answer("tokens-before") == gold
    page.go("#tour=6")  # math wrong, router wrong, sum right
    text = page.text("#tour-text")
    assert "Math alone: right, but ends too early. Router alone: wrong. FusionRoute: right." in text
    page.click("#tokens .split")  # there the expert outvotes the router
    assert "With the router's logits it still wins" in page.text("#story")
    page.go("#tour=7")
    assert page.answer() == gold and page.answer("tokens-beside") != gold
    found = [float(x) for x in re.findall(r"\d+\.\d\d", page.text("#tour-text"))]
    assert found[1] < found[0] < found[2]  # the expert's lead lies between the router's two
    page.go("#tour=10")
    assert f"here {page.text('#bias-value')}." in page.text("#tour-text")


# --- for everybody -------------------------------------------------------------------------------


def test_keyboard(page):
    """Tab reaches all controls, focus is seen, arrows move in the answer and between tabs."""
    controls = "button, input, select, textarea, [tabindex='0']"
    for tab in TABS:
        page.press(f"#tab-{tab}", "Enter")
        page.tab.focus("#tab-" + tab)
        reached = {f"tab-{tab}"}
        for _ in range(80):
            page.tab.keyboard.press("Tab")
            id, name, seen = page.tab.evaluate("""() => {
                const e = document.activeElement, s = getComputedStyle(e);
                const outlined = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
                const halo = e.querySelector?.('.halo');
                return [e.id, e.tagName,
                    outlined || halo && getComputedStyle(halo).strokeWidth === '3px']; }""")
            if name == "BODY":
                break
            assert id and seen, (id, name)
            reached.add(id)
        free = "!e.disabled && e.tabIndex >= 0 && e.getClientRects().length ? e.id : 'tour-start'"
        assert set(page.all(controls, free)) - {"tour-start"} <= reached
    page.press("#tab-training", "ArrowRight")
    assert page.state().get("tab", "answer") == "answer"
    moves = {"Home": 0, "ArrowRight": 1, "ArrowLeft": 0, "End": page.count(TOKENS) - 1}
    for key, expected in moves.items():
        page.press("#tokens", key)
        assert page.tab.get_attribute("#tokens", "aria-activedescendant") == f"tokens-{expected}"
        assert page.text("#token-head h2").startswith(f"Token {expected + 1} of")
        assert page.focused() == "tokens"


@pytest.mark.parametrize("width", [360, 2200])
def test_no_sideways_scrolling(page, width, data):
    page.tab.set_viewport_size({"width": width, "height": 800})
    long = prompt_of(data, "distinct")
    hashes = [f"#tab={tab}" for tab in TABS[1:]] + ["#tour=2", "#tour=6"]
    hashes += [f"#beside=routing_only&edits=3s0&prompt={long}", f"#prompt={'x' * 140}"]
    for hash in hashes if width < 1000 else hashes[:2]:
        page.go(hash)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width, hash
        right = "e.getClientRects().length ? e.getBoundingClientRect().right : 0"
        assert max(page.all("main *", right)) <= width + 1, hash


def test_accessibility(page):
    """axe-core finds nothing, in light and in dark colours."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    page.tab.evaluate(axe.axe_script)
    everything, contrast = {}, {"runOnly": ["color-contrast"]}
    for hash, scheme, rules, least in (
        ("#tour=8", "light", everything, 20),
        ("#tab=training", "light", everything, 20),
        ("#tab=training", "dark", contrast, 1),
        ("#beside=sft_only&edits=4e1&prompt=What+is+140%3F", "light", everything, 20),
        ("#beside=sft_only&edits=4e1&prompt=What+is+140%3F", "dark", contrast, 1),
    ):
        page.go(hash)
        page.tab.emulate_media(color_scheme=scheme)
        run = "o => axe.run(o).then(r => [r.violations, r.passes.length])"
        violations, passes = page.tab.evaluate(run, rules)
        bad = [[v["id"], [n["html"][:200] for n in v["nodes"][:3]]] for v in violations]
        assert bad == [] and passes >= least, (hash, scheme, json.dumps(bad, indent=1))


def test_damaged_and_incomplete_files_give_a_message(chromium, page_file, tmp_path):
    text = page_file.read_text(encoding="utf-8")
    at = text.index('"base64":"') + 5000
    other_letter = text[:at] + ("B" if text[at] == "A" else "A") + text[at + 1 :]
    cases = dict.fromkeys((other_letter, text.replace('id="data">{', 'id="data">')), "cannot start")
    for size in (text.index("<body>"), len(text) // 2, len(text) - 60):  # cut off
        cases[text[:size]] = "This file is incomplete"
    for broken, message in cases.items():
        (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
        page = Page(chromium, tmp_path / "broken.html").open()
        assert message in page.text("body")
        assert not page.tab.is_visible("#app")
        assert page.trouble == [] or "incomplete" in message
        page.context.close()


def test_the_first_paint_does_not_wait_for_the_weights(page):
    paint, decode = page.tab.evaluate("""[performance.getEntriesByType('paint')[0],
        performance.getEntriesByName('decode')[0]].map(e => e.startTime)""")
    assert 0 < paint <= decode
