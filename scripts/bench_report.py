"""How long a report takes to be written, to open, and to filter and search, in headless Chromium.

Opening is measured from the navigation to the first frame after the page has loaded, a filter or a search from the
event to the next frame. Two limits stand beside them: 3 s to open 5,000 inputs, and 0.1 s for what feels at once.

    python scripts/bench_report.py                       # 5,000 made-up inputs
    python scripts/bench_report.py --like runs/tt-si     # the inputs of a run, repeated up to that many
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from benchmarking import Line, Seconds, describe, show, surroundings, timed, told, write_json
from ttsi_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FRAME = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
OPENED = f"(async () => {{ {FRAME} return performance.now() / 1000; }})()"
SEARCHES = ("oslo", "case 42", "a", "nowhere to be found", "")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        inputs: records in the report.
        like: a run whose records are repeated; by default they are made up.
        rounds: how often each is measured.
        json: the file to write the results to.
    """

    inputs: int = 5000
    like: Path | None = None
    rounds: int = 5
    json: Path | None = None


def records(options: Options):  # noqa: ANN201
    from runs.synthetic import run
    from ttsi_jax.runs.functions import Listed
    from ttsi_jax.runs.groups import Run, load_run
    from ttsi_jax.runs.summary import summarise

    if options.like is None:
        return run(options.inputs)
    config, own, _, functions = load_run(options.like)
    if not own:
        raise InputError(f"--like {options.like}: the run has no record yet")
    repeated = [replace(own[i % len(own)], id=f"{own[i % len(own)].id}, {i}") for i in range(options.inputs)]
    ids = {one.id: [each.id for each in repeated[place :: len(own)]] for place, one in enumerate(own)}
    functions = [
        Listed(functions=one["functions"], inputs=[new for id in one["inputs"] for new in ids.get(id, ())])
        for one in functions
    ]
    return Run(config, repeated, summarise(repeated), functions)


def measure(file: Path, rounds: int) -> dict[str, Seconds]:
    from runs.chromium import Chromium, find_chromium

    program = find_chromium()
    if program is None:
        sys.exit("needs Chromium")
    taken: dict[str, list[float]] = {"open": [], "filter": [], "search": [], "next input": []}
    for _ in range(rounds):
        with Chromium(program) as browser:  # a new one, so that nothing is kept from before

            def after(action: str, browser: Chromium = browser) -> float:
                timing = (
                    f"const start = performance.now(); {action}; {FRAME} return (performance.now() - start) / 1000;"
                )
                return browser.evaluate(f"(async () => {{ {timing} }})()")

            browser.open(file)
            taken["open"].append(browser.evaluate(OPENED))
            for tag in ("fixed", "broken", "error", "uncertain", ""):
                taken["filter"].append(after(f"document.querySelector('button[data-tag=\"{tag}\"]').click()"))
            for text in SEARCHES:
                typed = f"browser.search.value = {text!r}; browser.search.dispatchEvent(new Event('input'))"
                taken["search"].append(after(typed))
            for _ in range(10):
                taken["next input"].append(
                    after("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true}))")
                )
            if browser.errors:
                sys.exit(f"the page has errors: {browser.errors}")
    return {name: Seconds.of(values) for name, values in taken.items()}


@told
def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    from ttsi_jax.runs.report import render_report

    run = records(options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        writing = timed(lambda: file.write_text(render_report({"run": run}), encoding="utf-8"))
        size = file.stat().st_size
        found = {"write": Seconds.of([writing]), **measure(file, options.rounds)}
    environment = surroundings(inputs=options.inputs, bytes=size)
    bounds = {"open": 3.0, "filter": 0.1, "search": 0.1, "next input": 0.1}
    describe(environment)
    show(
        f"A report over {options.inputs} inputs, {size / 1e6:.1f} MB: seconds, median (least–most)",
        ("", "seconds"),
        [Line(name, (str(own),), f"{bounds[name]:g}" if name in bounds else "") for name, own in found.items()],
    )
    if options.json:
        ratios = {name: found[name].high / bound for name, bound in bounds.items()}
        write_json(options.json, {"ratios": ratios, "seconds": found, "environment": environment})
    return 0


if __name__ == "__main__":
    sys.exit(main())
