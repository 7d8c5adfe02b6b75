"""Opens report pages in headless Chromium, as a reader would, and checks them.

    python benchmarks/report_pages.py [RUN ...] [--together] [--out runs/report-pages] [--chromium chromium]

Without a RUN it makes up three: one of 300 rounds and over 20,000 ledger rows, one whose texts are hostile (markup,
scripts, right-to-left text, NUL, lone surrogates, emoji), and one that was just begun; their comparison is opened too.
Each page is opened at 390, 1280 and 1920 pixels, light and dark. It exits 1 if a page has a script error, loads
anything, scrolls sideways, has a figure without content, runs a text of a model, is above 6 MB, or takes over a second
to open a transcript. Screenshots lie in --out. Where there is no Chromium the pages are only made, and it says so.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from lightning_serl.report import PAGE_BYTES, write_report

WIDTHS = (390, 1280, 1920)
HOSTILE = [
    "</script><script>window.ran = 1</script>", "<!-- <script> -->", "<img src=x onerror='window.ran = 2'>",
    "<svg onload='window.ran = 3'>", "]]> &lt;b&gt; &amp; \" ' `${window.ran = 4}`",
    "nul \x00 bell \x07 escape \x1b[31m",
    "lone \ud800 surrogate \udfff", "emoji \U0001f600 \U0001f469‍\U0001f4bb", "من هو مؤلف هذا الكتاب؟ 12 + 3",
    "\u202eright to left override\u202c", "x" * 3000, "\u2028line\u2029separators", "javascript:alert(1)",
]  # fmt: skip
# What a reader would see of the page; the awaited promise gives it.
CHECK = """(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const until = async (ready) => { for (let i = 0; i < 1000 && !ready(); i++) await wait(10); };
  const all = (what) => [...document.querySelectorAll(what)];
  const out = { faults: [], figures: 0, views: 0, transcripts: null };
  const drawn = (host) => host.querySelector("polyline, rect, circle, polygon");
  await until(() => document.querySelector("main"));
  const tabs = all(".tabs button").length || 1;
  for (let view = 0; view < tabs; view++) {
    if (tabs > 1) all(".tabs button")[view].click();
    await until(() => all(".chart").every(drawn) && (!document.querySelector(".list") || all(".item").length));
    await wait(100);
    out.views++;
    const room = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > room) {
      const over = (n) => n.getBoundingClientRect().right > room + 1 && !n.closest(".scroll, nav, svg, .list");
      const names = all("main *, header *").filter(over).slice(0, 3).map((n) => `${n.tagName}.${n.className}`);
      out.faults.push(`view ${view} is ${document.documentElement.scrollWidth} wide, not ${room}: ${names}`);
    }
    for (const host of all(".chart")) {
      out.figures++;
      const title = host.parentNode.querySelector("h3").textContent;
      if (!drawn(host)) out.faults.push(`no content in the figure ${title}`);
      if (host.innerHTML.includes("NaN")) out.faults.push(`NaN in the figure ${title}`);
    }
    if (!document.querySelector(".list")) continue;
    const items = all(".list .item[data-uid]"), detail = document.querySelector(".detail");
    if (!items.length) { out.faults.push(`view ${view} lists no problem`); continue; }
    const before = detail.textContent, start = performance.now();
    items[items.length - 1].click();
    if (items.length > 1) await until(() => detail.textContent !== before);
    const select = document.querySelector(".controls select"), first = performance.now();
    select.value = select.options[1].value;
    select.dispatchEvent(new Event("change"));
    await until(() => document.querySelector(".item.on") && detail.textContent);
    out.transcripts = Math.max(out.transcripts || 0, first - start, performance.now() - first);
  }
  if (window.ran !== undefined) out.faults.push(`a text of a model ran: ${window.ran}`);
  return out;
})()"""


def write_run(root: Path, rounds: int, texts: list[str], seed: int = 0, groups: int = 16, answers: int = 8) -> None:
    """A made-up run folder in the form that a fit writes."""
    root.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    metrics, ledger, samples = [_evaluation(0, 0.3)], [], []
    for number in range(rounds):
        share = 0.4 + 0.5 * number / max(1, rounds)
        for place in range(groups + 3):
            uid, text = f"r{number:05d}-{place:05d}", rng.choice(texts)
            prompt = f"{text} {rng.randrange(10**6)}?"
            ledger.append({"uid": uid, "event": "proposed", "round": number, "prompt": prompt})
            if place >= groups:
                ledger.append({"uid": uid, "event": "rejected", "round": number, "reason": "duplicate"})
                continue
            ledger.append({"uid": uid, "event": "accepted", "round": number})
            right = sum(rng.random() < share for _ in range(answers))
            scores = [float(i < right) for i in range(answers)]
            voted = {"label": text[:30], "confidence": right / answers, "scores": scores}
            ledger.append({"uid": uid, "event": "voted", "round": number, **voted})
            end = {"event": "kept"} if 1 < right < answers else {"event": "dropped", "reason": "too_easy"}
            ledger.append({"uid": uid, "round": number, **end})
            responses = [_response(rng, text, i < right) for i in range(answers)]
            facts = {"exemplars": [rng.choice(texts)], "meta": {"passage": rng.choice(texts)}}
            samples.append({"round": number, "uid": uid, "prompt": prompt, **facts, **voted, "responses": responses})
        metrics.append(_step(number + 1, share, rng))
        if (number + 1) % max(1, rounds // 10) == 0:
            metrics.append(_evaluation(number + 1, 0.3 + 0.6 * number / rounds))
    for name, rows in (("metrics", metrics), ("ledger", ledger), ("samples", samples)):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_bytes(data.encode("utf-8", errors="backslashreplace"))
    options = {"data": {"reward": texts[0][:60]}, "model": {"model_name_or_path": texts[0][:60]}}
    (root / "config.yaml").write_text(json.dumps(options), encoding="utf-8")
    if rounds > 1:
        summary = {"seconds": 9.0 * rounds, "times": {"answering": 5.0 * rounds, "training": 4.0 * rounds}}
        (root / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _response(rng: random.Random, text: str, right: bool) -> dict[str, Any]:
    answer = text[:30] if right else f"{text[:20]} {rng.randrange(4)}"
    said = f"{text} {' '.join(str(rng.randrange(1000)) for _ in range(60))} so {answer}"
    return {
        "text": said, "answer": answer, "score": float(right), "finished": rng.random() < 0.95,
        "tokens": len(said) // 4, "class": 0 if right else 1 + rng.randrange(3),
        "pieces": [len(said) - 3, 3], "logprobs": [-0.4, -2.25],
    }  # fmt: skip


def _step(step: int, share: float, rng: random.Random) -> dict[str, Any]:
    noise = rng.random() * 0.05
    row = {
        "step": step,
        "reward": share + noise,
        "reward_std": 0.4 - noise,
        "kl": 0.0001 * step,
        "entropy": 0.5 - noise,
    }
    row |= {"grad_norm": 0.4 + noise, "learning_rate": 1e-6, "completions/mean_length": 200 + 100 * noise}
    row |= {"completions/clipped_ratio": noise, "serl/vote/agreement_mean": share, "serl/filter/yield": 0.7 + noise}
    row |= {"serl/pool/size": 64.0 + 16 * step, "serl/pool/unique_4grams": 0.8 - noise, "serl/filter/proposed": 19.0}
    row |= {"sampling/sampling_logp_difference/mean": 2e-7 + 1e-7 * noise, "serl/health/kl_slope": 0.0002}
    row |= {"serl/health/unanimous_share": 0.2 + share / 2, "time/answering": 5.0 + noise, "time/step": 9.0}
    return row


def _evaluation(step: int, value: float) -> dict[str, Any]:
    row: dict[str, Any] = {"n": 200, "k": 16, "labelled": 200, "agreement": value, "vote_accuracy": value}
    for name in ("pass@1", "mean@k", "maj@k", "pass@k"):
        row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
    return {"step": step, **{f"val/held_out/{name}": one for name, one in row.items()}}


def made_up(root: Path) -> list[Path]:
    """The three runs that need no training."""
    ordinary = ["A shop sells apples for 3 coins and pears for 5; what do 4 apples and 2 pears cost", "Compute 17 * 23"]
    for name, rounds, texts in (("long", 300, ordinary), ("hostile", 6, HOSTILE), ("begun", 1, ordinary)):
        write_run(root / name, rounds, texts)
    with (root / "begun" / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"uid": "r00001-000')  # torn, as of a run that is writing
    return [root / name for name in ("long", "hostile", "begun")]


class Browser:
    """Chromium by its debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number, self.events = socket, 0, []

    async def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events in between are kept."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params}
        await self.socket.send_json(asked | ({"sessionId": session} if session else {}))
        while True:
            message = await self.socket.receive_json(timeout=120)
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    async def look(self, page: Path, width: int, dark: bool, picture: Path) -> tuple[dict[str, Any], list[str]]:
        """Open a page at a width; what the check found, and the script errors and requests of the page."""
        target = (await self.ask("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.ask("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", session, features=[scheme])
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.ask(f"{domain}.enable", session)
        self.events.clear()
        await self.ask("Page.navigate", session, url=page.absolute().as_uri())
        await asyncio.sleep(0.3)
        check = {"expression": CHECK, "awaitPromise": True, "returnByValue": True}
        found = (await self.ask("Runtime.evaluate", session, **check))["result"].get("value", {})
        await self.ask("Runtime.evaluate", session, expression="document.querySelector('.tabs button')?.click()")
        await self.ask("Runtime.evaluate", session, expression="window.scrollTo(0, 0)")
        await asyncio.sleep(0.7)
        height = "document.documentElement.scrollHeight"
        tall = (await self.ask("Runtime.evaluate", session, expression=height, returnByValue=True))["result"]["value"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, 12_000), "scale": 1}
        shot = await self.ask("Page.captureScreenshot", session, captureBeyondViewport=True, clip=clip)
        picture.write_bytes(base64.b64decode(shot["data"]))
        said = [_fault(event) for event in self.events if event.get("sessionId") == session]
        await self.ask("Target.closeTarget", targetId=target)
        return found, [one for one in said if one]


def _fault(event: dict[str, Any]) -> str:
    """A script error, a console error or a request, in words; empty for any other event."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"script error: {params['exceptionDetails'].get('exception', {}).get('description', params)}"[:300]
    if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return f"console: {params['entry']['text']}"[:300]
    if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:", "blob:")):
        return f"request: {params['request']['url']}"[:300]
    return ""


async def look_at(pages: list[Path], chromium: str, out: Path) -> list[str]:
    """Open all pages at all widths; the faults."""
    faults = []
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        command = [chromium, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            for _ in range(600):
                if port.exists() and len(port.read_text().splitlines()) > 1:
                    break
                await asyncio.sleep(0.1)
            number, path = port.read_text().splitlines()[:2]
            async with (
                aiohttp.ClientSession() as client,
                client.ws_connect(f"ws://127.0.0.1:{number}{path}", max_msg_size=0) as socket,
            ):
                browser = Browser(socket)
                for page in pages:
                    for width in WIDTHS:
                        for dark in (False, True) if width == WIDTHS[1] else (width == WIDTHS[2],):
                            name = f"{page.stem}-{width}{'-dark' if dark else ''}"
                            found, said = await browser.look(page, width, dark, out / f"{name}.png")
                            faults += [f"{name}: {one}" for one in [*found.get("faults", ["no check"]), *said]]
                            slowest = found.get("transcripts")
                            if slowest is not None and slowest > 1000:
                                faults.append(f"{name}: a transcript took {slowest:.0f} ms to open")
                            opened = "no transcripts" if slowest is None else f"transcripts in {slowest:.0f} ms"
                            print(f"{name}: {found.get('views')} views, {found.get('figures')} figures, {opened}")
        finally:
            process.terminate()
            process.wait()
    return faults


def main() -> int:
    """Make the pages, open them, and print the faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--together", action="store_true", help="a comparison of the runs too")
    parser.add_argument("--out", type=Path, default=Path("runs/report-pages"))
    parser.add_argument("--chromium", default="chromium")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = args.runs or made_up(args.out)
    asked = [(run.name, [run]) for run in runs]
    if args.together or not args.runs:
        asked.append(("comparison", list(runs)))
    faults, pages = [], []
    for name, folders in asked:
        page = args.out / f"{name}.html"
        began = time.process_time()
        size = write_report([folder.resolve() for folder in folders], page)
        print(f"{page}: {size / 1e6:.2f} MB, {time.process_time() - began:.2f} s of one core")
        if size > PAGE_BYTES:
            faults.append(f"{name}: {size} bytes")
        pages.append(page)
    chromium = shutil.which(args.chromium)
    if chromium is None:
        print(f"there is no {args.chromium} here: the pages were made, not opened")
    else:
        faults += asyncio.run(look_at(pages, chromium, args.out))
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
