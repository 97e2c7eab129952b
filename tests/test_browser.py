"""The pages in a browser: every control, light and dark, on a phone and on a desk; no script fails and nothing is fetched."""

import dataclasses
import json
import shlex
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm.data.types import Example
from lm.evaluation.metrics.statistics import proportion
from lm.evaluation.predictions import FORMS, Found
from lm.evaluation.report import errors_page
from lm.evaluation.report.facets import Run, command
from lm.evaluation.report.judging import read_sheet, write_sheet

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: on Debian and Ubuntu apt-get install chromium chromium-driver"
)
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
PHONE, DESK = 390, 1280
HOSTILE = "</script><script>broken = 1</script><img src=x onerror='window.broken = 2'>'\"{{ 7 * 7 }}`${window.broken = 3}`"

# Operate every control that is shown: native ones, links within the page, elements with a handler. Fields are typed into, of
# choices each option is taken, all else is clicked where a pointer would meet it. Returns their number, and the covered ones.
OPERATE = """
const done = arguments[0], covered = [];
const native = "button, select, input, textarea, summary, a[href^='#'], [role=button], [tabindex='0']";
const operable = one => (one.matches(native) || one.onclick) && one.checkVisibility();
const shown = () => [...document.querySelectorAll("body *")].filter(operable);
const fire = (one, ...names) => names.forEach(name => one.dispatchEvent(new Event(name, { bubbles: true })));
let k = 0;
try {
  // A control may remove others or bring new ones: one is looked up by its number each time.
  for (let one; one = shown()[k]; k++) {
    one.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
    one.focus();
    if (one.disabled) continue;
    if (one.tagName === "SELECT") {
      for (const option of one.options) { option.selected = true; fire(one, "input", "change"); }
      one.selectedIndex = 0; fire(one, "input", "change");
    } else if (one.matches("textarea, input:not([type]), input[type=text], input[type=search], input[type=number]")) {
      for (const text of ["a", "</b>", ""]) { one.value = text; fire(one, "input", "change"); }
    } else if (one.matches("input[type=range]")) {
      for (const value of [one.min, one.max]) { one.value = value; fire(one, "input", "change"); }
    } else {
      const { x, y, width, height } = one.getClientRects()[0];
      const at = { clientX: x + width / 2, clientY: y + height / 2, bubbles: true };
      const top = document.elementFromPoint(at.clientX, at.clientY);
      // Points of a map may lie on each other: the keyboard reaches all of them.
      const free = one.contains(top) || top?.contains(one) || (one.closest("svg") && top?.closest("svg"));
      if (!free) covered.push(one.outerHTML.slice(0, 200));
      for (const kind of ["pointermove", "pointerdown", "pointerup"]) (top ?? one).dispatchEvent(new PointerEvent(kind, at));
      (one.contains(top) ? top : one).dispatchEvent(new MouseEvent("click", { ...at, cancelable: true }));
    }
  }
} finally {
  setTimeout(() => done([k, covered]));  // what the controls left for later has been done, too
}
"""

# The lowest ratio of contrast of a page's visible texts to what is painted behind them (WCAG 2.1, 1.4.3), and its text.
CONTRAST = """
const parse = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const over = ([r, g, b, a], under) => [r, g, b].map((x, i) => a * x + (1 - a) * under[i]);
const light = rgb => { const [r, g, b] = rgb.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; };
let worst = [99, ""];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode, node = text.parentElement;
  if (!text.data.trim() || !node.checkVisibility() || node.closest("script, style, option, :disabled")) continue;
  const layers = [];
  for (let one = node; one; one = one.parentElement) layers.unshift(parse(getComputedStyle(one).backgroundColor));
  const behind = layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  const ink = over(parse(getComputedStyle(node).color), behind);
  const [low, high] = [light(ink), light(behind)].sort((a, b) => a - b);
  const ratio = (high + .05) / (low + .05);
  if (ratio < worst[0]) worst = [ratio, text.data.trim().slice(0, 60)];
}
return worst;
"""


# -- a browser ---------------------------------------------------------------------------------------------------------


class Browser:
    """One Chromium for all pages, which knows of every failed script and every request."""

    def __init__(self, folder: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"user-data-dir={folder / 'profile'}"):
            options.add_argument(f"--{flag}")
        self.downloads = folder / "downloads"
        first = {"session.restore_on_startup": 4, "session.startup_urls": ["about:blank"]}  # not the browser's own, large one
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads), **first})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))

    def logs(self) -> tuple[list[dict], list[dict]]:
        return self.driver.get_log("browser"), self.driver.get_log("performance")

    def command(self, name: str, **values) -> None:
        self.driver.execute_cdp_cmd(name, values)

    def look(self, width: int, scheme: str) -> None:
        """Show the page on a phone or a desk, light or dark."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width == PHONE)
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[{"name": name, "value": wish} for name, wish in wishes.items()])

    def open(self, page: Path, address: str = "") -> None:
        if address:  # alone it would not load the page again
            self.driver.get("about:blank")
        self.driver.get(page.as_uri() + address)

    def run(self, script: str, *values):
        return self.driver.execute_script(script, *values)

    def one(self, css: str):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def shown(self, css: str) -> list:
        return [one for one in self.all(css) if one.is_displayed()]

    def sound(self) -> None:
        """Assert that since the last call no script failed, and that nothing was asked of a network."""
        console, traffic = self.logs()
        assert not [line["message"] for line in console if line["level"] == "SEVERE"]
        events = [json.loads(line["message"])["message"] for line in traffic]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        here = self.driver.current_url.partition("#")[0]
        assert not [url for url in asked if not url.startswith((here, "data:", "blob:", "about:"))]

    def operate(self) -> int:
        """Operate every control; return their number. Asserts that nothing lies above one."""
        count, covered = self.driver.execute_async_script(OPERATE)
        assert not covered
        return count


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    chromium = Browser(tmp_path_factory.mktemp("browser"))
    yield chromium
    chromium.driver.quit()


@pytest.fixture
def browser(chromium):
    chromium.logs()  # a test that failed may have left some
    return chromium


# -- pages -------------------------------------------------------------------------------------------------------------


def errors(form: str, objective, predictions: list[dict], examples: list[dict], headline: str = "accuracy") -> str:
    placed = [{"where": f"data.csv:{k}", **prediction} for k, prediction in enumerate(predictions, 2)]
    held_out = [Example(values, one["where"]) for values, one in zip(examples, placed)]
    found = Found(FORMS[form], objective, placed, held_out)
    figures = {name: proportion(3, 10) for name in found.form.headline}
    return errors_page.page("run", found, figures, Run("runs/it's"))


def answers(*reads: str) -> SimpleNamespace:
    return SimpleNamespace(reads=reads)


TEXTS = ("a slow start", "the cat sat\non a mat", HOSTILE, "nothing but noise " * 30, "x" * 300, "cats and dogs", "größer")
LABELS = ("good", "bad", HOSTILE)


def classes() -> str:
    sides = [(0, 1), (1, 0), (2, 1), (0, 1), (1, 2), (0, 2), (0, 1)]
    predictions = []
    for k, (gold, guess) in enumerate(sides):
        shares = dict(zip(LABELS, [0.1 - k / 100, 0.1 - k / 100, 0.1 - k / 100]))
        shares[LABELS[guess]] = 0.6 + k / 20
        shares[LABELS[gold]] = 0.2 - k / 50
        predictions.append({"gold": LABELS[gold], "guess": LABELS[guess], "right": 0.0, "confidence": shares[LABELS[guess]],
                            "probabilities": shares})  # fmt: skip
    predictions.append({**predictions[0], "guess": "good", "right": 1.0})
    objective = SimpleNamespace(labels=LABELS, answers=answers("text"))
    return errors("classes", objective, predictions, [{"text": text} for text in (*TEXTS, "right")])


def several() -> str:
    shares = {"art": 0.9, "law": 0.2, HOSTILE: 0.6}
    sides = [(["art"], ["art", HOSTILE]), ([], ["art"]), (["law", "art"], []), ([HOSTILE], ["law"])]
    predictions = [{"gold": gold, "guess": guess, "right": 0.0, "confidence": 0.6 + k / 10, "probabilities": shares}
                   for k, (gold, guess) in enumerate(sides)]  # fmt: skip
    objective = SimpleNamespace(labels=tuple(shares), answers=answers("text"))
    return errors("labels", objective, predictions, [{"text": text} for text in TEXTS[:4]])


def numbers() -> str:
    sides = ((1, 4.5), (5, 2), (3, float("nan")))
    predictions = [{"gold": gold, "guess": guess, "error": abs(gold - guess)} for gold, guess in sides]
    return errors("numbers", SimpleNamespace(answers=answers("text")), predictions, [{"text": text} for text in TEXTS[:3]])


def tags() -> str:
    words = ["Anna", "Berg", "met", HOSTILE, "in", "New", "York"]
    gold = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC", "I-LOC"]
    guesses = [["B-PER", "O", "B-LOC", "O", "O", "B-PER", "I-PER"], ["B-PER", "I-PER", "O", "O", "O", "B-LOC", "I-LOC"]]
    predictions = [{"gold": gold, "guess": guess, "right": 0.5, "words": words} for guess in guesses]
    objective = SimpleNamespace(labels=("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), answers=answers("words"))
    return errors("tags", objective, predictions, [{"words": words}] * 2)


def spans() -> str:
    context = f"The cat sat on the mat. {HOSTILE} It purred."
    sides = [(["cat"], "The cat sat"), ([], "mat"), (["mat"], ""), ([HOSTILE], "purred")]
    predictions = [{"gold": gold, "guess": guess, "right": 0.0, "f1": k / 4, "confidence": 0.9 - k / 10,
                    "probabilities": {guess: 0.9 - k / 10, "": 0.1} | dict.fromkeys(gold[: k % 2], 0.05)}
                   for k, (gold, guess) in enumerate(sides)]  # fmt: skip
    objective = SimpleNamespace(
        gold=lambda one: [(text, context.index(text)) for text in one.values["answers"]], answers=answers("question", "context")
    )
    examples = [{"question": f"Who? {HOSTILE}", "context": context, "answers": gold} for gold, _ in sides]
    return errors("spans", objective, predictions, examples)


def options() -> str:
    predictions = [{"gold": 0, "guess": k, "right": 0.0, "confidence": 0.7, "probabilities": [0.2, 0.7, 0.1]} for k in (1, 2)]
    objective = SimpleNamespace(
        context="", question="question", offered=lambda _: ["red", HOSTILE, "blue"], answers=answers("question", "a", "b")
    )
    return errors("options", objective, predictions, [{"question": "Which colour?"}] * 2)


def written() -> str:
    predictions = [{"prompt": text, "gold": ["a reference"], "guess": HOSTILE, "right": k / 5, "reference_logprob": -9.0 - k,
                    "reference_bytes": 11 * (k > 0)} for k, text in enumerate(TEXTS[:3])]  # fmt: skip
    return errors("texts", SimpleNamespace(answers=answers("text")), predictions, [{"text": text} for text in TEXTS[:3]])


def none() -> str:
    right = {"gold": "good", "guess": "good", "right": 1.0, "confidence": 0.9, "probabilities": dict.fromkeys(LABELS, 0.3)}
    return errors("classes", SimpleNamespace(labels=LABELS, answers=answers("text")), [right], [{"text": "fine"}])


def explained() -> str:
    """The page of lm.explain, of a random network."""
    import jax
    import numpy as np

    from lm.config import load
    from lm.data.tokenizer.tokenizer import Bytes
    from lm.language_model import LanguageModel
    from lm.sharding import unbox

    config, tokenizer = load("tests/configs/tiny.py"), Bytes().build(lambda: ())
    model = dataclasses.replace(config.objective.model, depth=1)
    objective = dataclasses.replace(config.objective, model=model).resolve(tokenizer)
    params = unbox(jax.jit(objective.init)(jax.random.key(0), {"tokens": np.zeros((1, 8), np.int32)}))
    config = dataclasses.replace(config, objective=objective)
    return LanguageModel(config, params, tokenizer, Path("<b>run")).explain(HOSTILE[:4], attribute="2").html()


def judged(folder: Path) -> str:
    systems = {"one": ["short", HOSTILE], "two": ["a longer text " * 20, "x" * 300]}
    write_sheet(folder / "sheet.csv", ["Which is better?", HOSTILE], systems)
    return (folder / "sheet.html").read_text(encoding="utf-8")


def study() -> str:
    """The report of a study of four arms, a grid, with hostile texts wherever a user or a network may write some."""
    from lm.studies.report.contents import gather
    from lm.studies.report.page import page
    from lm.studies.study import LOSS, Study, Tune
    from tests.studies import makers

    name = HOSTILE.replace("/", "").replace(",", "")  # which no arm's name has
    arms = tuple(makers.arm(f"{name} {k}", lr=0.01 * (k % 2 + 1), width=32 * (k // 2 + 1)) for k in range(4))
    tasks = {"cls": makers.CONFIG, "ner": makers.CONFIG}
    made = Study(
        arms=arms, name=HOSTILE, question=HOSTILE, seeds=3, metrics=(LOSS, "cls/eval/validation/examples/f1", HOSTILE),
        tune=Tune(values=(HOSTILE, "b")), downstream=tasks, scaling="isoflop",
    )  # fmt: skip
    figures = {f"{task}/eval/validation/examples/f1": 0.5 for task in tasks}
    values = {"samples": ((HOSTILE, HOSTILE), ("", "\ud800")), "tuned": {HOSTILE: HOSTILE}, "figures": figures}
    outcomes = makers.outcomes(made, [0, 0.1, -0.1, 0.01], search={"optimizer.lr": ((HOSTILE, 3.1), ("b", 3.2))}, **values)
    outcomes = makers.replaced(outcomes, arms[3].name, (1,), state="failed", reason=HOSTILE, folders={HOSTILE: Path(HOSTILE)})
    return page(gather(made, makers.replaced(outcomes, arms[2].name, (2,), state="running")))


PAGES = {"classes": classes, "several": several, "numbers": numbers, "tags": tags, "spans": spans, "options": options,
         "written": written, "none": none, "explained": explained, "judged": judged,
         "study": study}  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write each page once: name -> path."""
    made: dict[str, Path] = {}

    def path_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "page.html"
            html = judged(made[name].parent) if name == "judged" else PAGES[name]()
            made[name].write_text(html, encoding="utf-8", errors="backslashreplace")
        return made[name]

    return path_of


# -- every page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_every_control_of_a_page(name, pages, browser):
    browser.look(PHONE, "dark")
    browser.open(pages(name))
    for width, scheme in ((PHONE, "dark"), (PHONE, "light"), (DESK, "light"), (DESK, "dark")):
        browser.look(width, scheme)
        if (width, scheme) in ((PHONE, "dark"), (DESK, "light")):
            assert browser.operate() >= (0 if name == "none" else 3)
        assert browser.run("return document.documentElement.scrollWidth") <= width  # wide tables scroll in their own box
        if name != "explained":  # whose shades stand for numbers
            ratio, text = browser.run(CONTRAST)
            assert ratio >= 4.5, (scheme, text)
    assert browser.run("return window.broken ?? 0") == 0
    browser.sound()


# -- the page of errors ------------------------------------------------------------------------------------------------


def rows(browser: Browser) -> list[str]:
    """Return the places of the errors shown, in their order on the page."""
    script = "return [...document.querySelectorAll('#errors > section:not([hidden]) .where')].map(one => one.textContent)"
    return [where.removeprefix("data.csv:") for where in browser.run(script)]


def choose(browser: Browser, css: str, text: str) -> None:
    """Choose an option by its text, as a user does by keys."""
    (option,) = [one for one in browser.all(f"{css} option") if one.get_property("text").startswith(text)]
    browser.run("arguments[0].selected = true; arguments[0].closest('select').dispatchEvent(new Event('change'))", option)


@pytest.fixture
def list_of_errors(pages, browser):
    browser.look(DESK, "light")
    browser.open(pages("classes"))
    return browser


def test_labels_filter(list_of_errors):
    browser = list_of_errors
    assert rows(browser) == list("8765432")  # the surest first
    assert browser.one("#count").text == "7 of 7 shown"
    choose(browser, "[data-facet=true]", "good (4)")
    assert sorted(rows(browser)) == list("2578")
    assert {one.text for one in browser.shown(".verdict .chip:nth-of-type(2)")} == {"good"}
    choose(browser, "[data-facet=predicted]", "bad (4)")
    assert rows(browser) == list("852")
    assert browser.one("#count").text == "3 of 7 shown"
    (pair,) = browser.all("[aria-pressed=true]")
    assert pair.text == "good → bad 3"
    pair.click()  # once more: without it
    assert len(rows(browser)) == 7
    # A label is data: it filters like any other.
    choose(browser, "[data-facet=true]", "</script>")
    assert rows(browser) == ["4"]
    browser.one("#all").click()
    assert len(rows(browser)) == 7
    browser.sound()


def test_words_are_searched_and_marked(list_of_errors):
    browser = list_of_errors
    field = browser.one("#find")
    browser.one("body").send_keys("/")
    assert browser.driver.switch_to.active_element == field
    for text, found in (("CAT", "73"), ("the cat sat on", "3"), ("</SCRIPT>", "4"), ("größer", "8"), ("99 red", "")):
        field.clear()
        field.send_keys(text)
        assert rows(browser) == list(found), text
        assert browser.one("#count").text == f"{len(found)} of 7 shown"
        assert browser.one("#nothing").is_displayed() == (not found)
    field.clear()
    field.send_keys("nothing")
    assert browser.run("return CSS.highlights.get('found').size") == 30
    field.send_keys(Keys.ENTER)  # reloads nothing
    assert rows(browser) == ["5"]
    browser.sound()


def test_errors_are_sorted_both_ways(list_of_errors):
    browser, turn = list_of_errors, "#turn"
    expected = {
        "loss": "8765432",  # of the true label, whose probability falls from row to row
        "order in the data": "2345678",
        "true label": "4",  # punctuation before letters
        "predicted label": "76",
        "confidence": "8765432",
    }
    for name, order in expected.items():
        choose(browser, "#sort", name)
        assert "".join(rows(browser)).startswith(order), name
        before = rows(browser)
        browser.one(turn).click()
        if len(order) == 7:
            assert rows(browser) == before[::-1]
        else:
            keys = browser.run("return [...document.querySelectorAll('#errors .verdict')].map(one => one.textContent)")
            side = [key.split("predicted")[name.startswith("p")] for key in keys]
            assert side == sorted(side, reverse=True)
    browser.sound()


def test_the_address_keeps_the_choice(pages, list_of_errors):
    browser = list_of_errors
    choose(browser, "[data-facet=true]", "good")
    choose(browser, "#sort", "order")
    browser.one("#find").send_keys("o ")
    shown, address = rows(browser), browser.driver.current_url.partition("#")[2]
    assert shown == list("257")
    browser.open(pages("classes"), f"#{address}")
    assert rows(browser) == shown
    assert browser.one("#find").get_property("value") == "o"
    for other in ("#true=unheard&sort=-unheard", "#e3", "#%E0%A4%A", "#sort=%2Bloss"):
        browser.open(pages("classes"), other)
        assert len(rows(browser)) == 7
    assert rows(browser) == list("2345678")
    browser.sound()


RUN = Run("r")


def said(form: str, reads: tuple[str, ...], values: dict, run: Run = RUN, **prediction) -> dict[str, str]:
    """Return the flags of the command for an example, as a shell reads them."""
    found = Found(FORMS[form], SimpleNamespace(answers=answers(*reads)), [], [])
    words = shlex.split(command(found, prediction, Example(values, "f:1"), run))
    assert words[:3] == ["python", "-m", "lm.explain"]
    return dict(word.removeprefix("--").split("=", 1) for word in words[3:])


def test_commands_say_what_was_read():
    """As `lm.explain` takes it: one text, or an object of several values."""
    plain = said("classes", ("text",), {"text": "it's", "label": "x"}, Run("runs/a b", "best", "news"))
    assert plain == {"workdir": "runs/a b", "step": "best", "task": "news", "text": "it's"}
    assert said("classes", ("text",), {"text": "x"}, fold="3/5")["workdir"] == "r/3"  # the run that has not seen it
    pair = {"premise": "a\n'b'", "hypothesis": "ü"}
    assert json.loads(said("classes", tuple(pair), {**pair, "label": "x"})["text"]) == pair
    assert json.loads(said("classes", ("text",), {"text": "{x}"})["text"]) == {"text": "{x}"}
    assert said("tags", ("words",), {}, words=["New", "York"])["text"] == "New York"
    for words, spaced in ((["New York", "is"], True), (["北", "京"], False), (["one"], True)):
        text = said("tags", ("words",), {"spaced": spaced}, words=words)["text"]
        assert json.loads(text) == {"words": words, "spaced": spaced}
    assert said("texts", ("a", "b"), {"a": "x", "b": "y"}, prompt="x and y")["text"] == "x and y"
    for text in ("", "a\0b", "x" * 200_000):  # no argument of a command
        found = Found(FORMS["classes"], SimpleNamespace(answers=answers("text")), [], [])
        assert command(found, {}, Example({"text": text}, ""), RUN) == ""


def test_commands_are_copied(list_of_errors):
    browser = list_of_errors
    browser.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    for text, place in ((HOSTILE, 5), (TEXTS[1], 6)):
        section = browser.one(f"#e{place}")
        section.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
        command = section.find_element(By.TAG_NAME, "code").get_property("textContent")
        assert shlex.split(command) == ["python", "-m", "lm.explain", "--workdir=runs/it's", f"--text={text}"]
        button = section.find_element(By.CLASS_NAME, "copy")
        button.click()
        copied = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
        assert copied == command
    browser.sound()


# -- the page for judges -----------------------------------------------------------------------------------------------


def test_a_judges_file_is_read_back(pages, browser):
    page = pages("judged")
    browser.look(PHONE, "light")
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    browser.one("#save").click()
    assert browser.driver.switch_to.active_element == browser.one("#judge")  # a name is wanted first
    browser.one("#judge").send_keys("Ann")
    for radio in browser.all("input[value=left]"):
        browser.run("arguments[0].scrollIntoView({block: 'center'})", radio)
        radio.click()
    browser.one(".comment").send_keys('=1, "so"')
    assert browser.one("#count").text == "2 of 2 judged"
    browser.open(page)  # kept until then
    assert len(browser.all("section.done")) == 2
    browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(browser.downloads))
    browser.one("#save").click()
    for _ in range(200):
        if saved := list(browser.downloads.glob("*.csv")):
            break
        time.sleep(0.05)
    judgements = read_sheet(saved, page.parent / "sheet.key.json")
    assert [(one.judge, one.preferred == one.left) for one in judgements] == [("Ann", True)] * 2
    assert '=1, "so"' in {one.comment for one in judgements}
    browser.sound()


# -- the report of a study ---------------------------------------------------------------------------------------------


@pytest.fixture
def report(pages, browser):
    browser.look(DESK, "light")
    browser.open(pages("study"))
    return browser


def column(browser: Browser, place: int) -> list[str]:
    script = (
        "return [...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[arguments[0]].textContent)"
    )
    return browser.run(script, place)


def test_results_are_sorted_by_a_column(report):
    arms, means = column(report, 0), column(report, 3)
    button = report.all("table.sortable button.sort")[3]
    for order, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert column(report, 3) == sorted(means)[::sign]
        assert report.one("table.sortable th:nth-child(4)").get_attribute("aria-sort") == order
    report.all("table.sortable button.sort")[0].click()
    assert column(report, 0) == sorted(arms)
    assert [one.get_attribute("aria-sort") for one in report.all("table.sortable:first-of-type th[aria-sort=ascending]")] == [
        "ascending"
    ]
    report.all("table.sortable button.sort")[4].click()
    assert column(report, 1)[-1] == "baseline"  # without a difference: last
    report.sound()


def test_curves_follow_their_choices(report):
    lines = lambda: len(report.all("#curve-chart path[stroke-width='2']"))  # noqa: E731
    assert lines() == 4
    arms = report.all("#legend button[aria-pressed]")
    arms[1].click()
    assert (lines(), arms[1].get_attribute("aria-pressed")) == (3, "false")
    report.one("#all").click()  # shows what was hidden
    assert lines() == 4
    report.one("#all").click()
    assert lines() == 0
    assert report.one("#curve-chart text").text == "no values yet"
    report.one("#all").click()
    choose(report, "#axis", "FLOPs")
    assert report.all("#curve-chart text")[-1].text == "FLOPs"
    whole = report.one("#curve-chart path[stroke-width='2']").get_attribute("d")
    choose(report, "#range", "second half")
    assert 0 < report.one("#curve-chart path[stroke-width='2']").get_attribute("d").count("L") < whole.count("L")
    choose(report, "#figure", "train/lr")
    assert "train/lr" in [one.text for one in report.all("#curve-chart text")]
    report.sound()


def test_a_point_is_read_by_pointer_and_by_keys(report):
    from selenium.webdriver import ActionChains

    report.run("document.querySelector('#curve-chart').scrollIntoView({block: 'center', behavior: 'instant'})")
    tip, point = report.one("#curve-chart .tip"), report.all("#curve-chart g circle")[9]
    assert not tip.is_displayed()
    ActionChains(report.driver).move_to_element(point).perform()
    assert tip.is_displayed()
    assert tip.text.split("\n")[0] in [one.text for one in report.all("#legend button span")]
    assert tip.text.endswith("(3 seeds)\nstep 100")
    chart = report.one("#curve-chart svg")
    report.run("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_LEFT)
    assert tip.text.endswith("step 90")
    before = tip.text
    chart.send_keys(Keys.ARROW_DOWN)
    assert tip.text != before
    assert tip.text.endswith("step 90")
    report.sound()
