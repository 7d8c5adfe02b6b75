r"""Runs math-verify in a child process with limits on time and memory.

The process imports math-verify once and forks a child that serves the requests. Timers whose default action ends the
child bound every request, also inside C code and also after the parent's death. When a child dies, the next one is
forked within milliseconds. Requests and replies are single lines of ASCII JSON over a socket, one request at a time:

    {"id": 7, "op": "same", "a": "\\boxed{x}", "b": "...", "limit": 0.4}  ->  {"id": 7, "same": true, "seconds": 0.01}
    {"id": 8, "op": "read", "text": "...", "limit": 0.4}  ->  {"id": 8, "answer": "x", "key": "...", "seconds": 0.01}
    a child that died before its reply                    ->  {"died": 14}
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import resource
import signal
import time
from collections import OrderedDict
from itertools import pairwise
from typing import Any

from lightning_serl.answers.reading.announced import is_prose

MEMORY_BYTES = 1_500_000_000
# Limits count processor time, so that verdicts do not depend on what else the machine does. A request that takes this
# many times its limit on the wall clock is ended as well.
WALL_FACTOR = 3.0
_PARSED = 512
# Parsing makes many small objects of short life.
_COLLECT_EVERY = 100_000
# Values of variables, chosen by name, and the distance of two results that no rounding explains.
_VALUES = (1.3717, 0.7193, 2.2391, 1.8467, 0.4639)
_APART = 1e-5
_FEW_SYMBOLS = 3
_LENGTHY = 200
_ONE_NUMBER = re.compile(r"[^\d]*\d(?:[\d.,]|\{,\}|\\[,!])*[^\d]*")
_SOCKET = 0  # the client passes it as standard input

# Formulas that are read and compared before the first request, so that none pays for one-time costs: sympy imports its
# solvers on first use, and the LaTeX parser caches parts of its grammar as it parses. The first comparison of a kind
# takes 150 to 280 ms, the second 5 to 50. They hold what occurs in answers and in lines where responses break off.
_FORMULAS = (
    r"\frac{x}{2}+1",
    r"-\frac{3\sqrt{5}}{4} - 2\sqrt[3]{7}",
    r"x = \frac{-b + \sqrt{b^2 - 4ac}}{2a}",
    r"f(x) = x^3 + 2x^2y - 3xy^{2} + 5",
    r"(a + b)(c - d)^2 = a_1 b_{12} + (x-1)(x+1)",
    r"2 \cdot 3 \times 4 + 5(6) = 42",
    r"\left(1, -2\right)",
    r"(-\infty, 3] \cup [5, \infty)",
    r"\{1, 2, 3\}",
    r"x = 2, y = -3",
    r"x^2 + y^2 \le 4",
    r"0 < x \neq \pi",
    r"\begin{pmatrix} 1 & x \\ \frac{1}{2} & 0 \end{pmatrix}",
    r"\left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]",
    r"\begin{bmatrix} -1 \\ 2x \end{bmatrix}",
    r"\sin^2 \theta + \cos(2x) - \tan \alpha",
    r"\log_2 8 + \ln x + e^{2\pi i/3}",
    r"|x - 3| + \lfloor x \rfloor",
    r"\binom{5}{2} \cdot 3!",
    r"90^\circ",
    r"20\%",
    r"3 + 4i",
    r"\sum_{k=1}^{n} k = \frac{n(n+1)}{2}",
    r"a \equiv 2 \pmod{5}",
    r"\text{even}",
    r"\angle ABC = \overline{AB}",
    r"-10/9",
    r"1.25",
    r"f(f(2)) = g(1, 3)",
    r"\frac{(a+b)^2}{c} + \frac{1}{k(k+1)}",
    r"\left(\frac{1}{2}, \frac{\pi}{3}\right)",
    r"u_n = u_{n-1} + 2u_{n-2}",
    r"C_n = \sum_{k=0}^{n-1} C_k C_{n-1-k}",
)
# One pair for each way that math-verify compares.
_PAIRS = (
    (r"2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
    (r"a=b", r"b=a"),
    (r"x^2=4", r"x=2"),
    (r"x \in [-2,7]", r"-2\le x \le 7"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1"),
    (r"\sin^2 x+\cos^2 x", r"1"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}"),
    (r"\{1,2,x\}", r"\{x,2,1\}"),
    (r"\frac{1}{x+1}+\frac{1}{x}", r"\frac{2x+1}{x(x+1)}"),
    (r"a^{n+1}-a^n", r"a^n(a-1)"),
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    (r"\log_2(3)", r"\frac{\ln 3}{\ln 2}"),
    (r"\frac{\sqrt{3}+i}{2}", r"e^{i\pi/6}"),
    (r"\int_0^1 x dx", r"0.5"),
    (r"S_n = \sum_{k=0}^{n-1} a_k b_{n-k}", r"S_n = \sum_{k=0}^{n-1} b_{n-k} a_k"),
    (r"\log_2(3)", r"x = \log_{3}{(5 - \sqrt{21})} + \frac{1}{2}\log_{3}{(3)}"),
    (r"x=1,y=2", r"(1,2)"),
    (r"20\%", r"0.2"),
    (r"Cannot be determined", r"0"),
)


class Verifier:
    """math-verify with the settings of SeRL's reward; parsed texts are cached."""

    def __init__(self) -> None:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
        from math_verify.grader import get_pct_val

        self._parse, self._verify, self._percent = parse, verify, get_pct_val
        self._targets = (ExprExtractionConfig(), LatexExtractionConfig())
        self._parsed: OrderedDict[str, list[Any]] = OrderedDict()
        # math-verify warns at every parse without its own alarm; here the timers of serve() bound it.
        logging.disable(logging.CRITICAL)
        # Before the first fork, so that no child has to.
        for formula in _FORMULAS:
            self.same(f"\\boxed{{{formula}}}", f"We have $\\frac{{1}}{{2}}$, so ${formula}$ follows.")
        for left, right in _PAIRS:
            self.same(f"\\boxed{{{left}}}", f"\\boxed{{{right}}}")

    def parsed(self, text: str) -> list[Any]:
        """What math-verify extracts from a text: the expression and its spelling, the spelling alone, or nothing."""
        found = self._parsed.get(text)
        if found is None:
            found = self._parsed[text] = self._parse(text, self._targets, parsing_timeout=None)
            if len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)
        return found

    def same(self, a: str, b: str) -> bool:
        """Whether two texts are equal in either direction; math-verify treats its gold side differently."""
        left, right = self.parsed(a), self.parsed(b)
        if not left or not right or self._differ(left, right):
            return False
        verify = self._verify
        return bool(verify(left, right, 6, timeout_seconds=None) or verify(right, left, 6, timeout_seconds=None))

    def _differ(self, left: list[Any], right: list[Any]) -> bool:
        """Whether two formulas differ in value at one point, which no simplification can undo.

        Simplifying the difference of unequal formulas is what math-verify spends most of its time on.
        """
        from sympy import Expr, MatrixExpr, Symbol

        (a, *spelled_a), (b, *spelled_b) = left, right
        for formula in (a, b):
            # These math-verify does not compare by value.
            other = isinstance(formula, Symbol | MatrixExpr) or self._percent(formula) is not None
            if other or not isinstance(formula, Expr):
                return False
        if spelled_a == spelled_b:
            return False
        try:
            values = [
                complex(f.subs({x: _VALUES[sum(x.name.encode()) % len(_VALUES)] for x in f.free_symbols}).evalf(15))
                for f in (a, b)
            ]
        except Exception:
            return False  # no number at this point, for whatever reason
        return abs(values[0] - values[1]) > _APART * max(1.0, *map(abs, values))

    def read(self, text: str) -> dict[str, Any]:
        """The answer found in a text, a key shared by texts with the same extraction, and whether it can be printed."""
        from sympy import srepr

        found = self.parsed(text)
        if not found:
            return {"answer": None, "key": None, "printable": True}
        spelling = self._spelling(found)
        try:
            [str(item) for item in found]
            printable = True
        except Exception:
            # SeRL's metric prints what it extracted and takes any error for "different": the caller must know.
            printable = False
        try:
            spelled = "\n".join(item if isinstance(item, str) else srepr(item) for item in found)
        except Exception:
            spelled = text  # cannot be written: only identical texts share the key
        key = hashlib.sha256(spelled.encode("utf-8", "surrogatepass")).hexdigest()
        return {"answer": spelling, "key": key, "printable": printable}

    def _spelling(self, found: list[Any]) -> str:
        """An answer that math-verify reads back as the expression it found."""
        from sympy import Integer, latex

        expression, spelling = found[0], str(found[-1])
        if isinstance(expression, str):
            return expression
        if isinstance(expression, Integer) and _ONE_NUMBER.fullmatch(spelling) is None:
            return str(expression)  # the spelling may be that of a formula that could not be parsed
        if self._percent(expression) is not None and "%" not in spelling:
            spelling += r"\%"
        # The spelling it reports is that of its first match, which need not be the match that could be parsed.
        again = self.parsed("\\boxed{" + spelling + "}")
        same = bool(again) and again[0] == expression
        # Sentences and derivations are no spelling, unless there is nothing else: a product of letters.
        lengthy = is_prose(spelling) or len(spelling) > _LENGTHY
        if same and (not lengthy or len(expression.free_symbols) > _FEW_SYMBOLS):
            return spelling
        return _chain(expression) or str(latex(expression))


def _chain(expression: Any) -> str | None:
    """The spelling of ``a = b = c``, whose equations sympy would sort."""
    from latex2sympy2_extended.logic import And
    from sympy import Eq, latex

    links = expression._unsorted_args if isinstance(expression, And) else ()
    if not links or any(not isinstance(link, Eq) for link in links):
        return None
    if any(left.rhs != right.lhs for left, right in pairwise(links)):
        return None
    return " = ".join(latex(side) for side in (links[0].lhs, *(link.rhs for link in links)))


def serve(verifier: Verifier) -> None:
    """Answer requests until the client closes the connection."""
    # A request also pays for its way through the socket.
    started = time.process_time()
    with os.fdopen(_SOCKET, "rb", closefd=False) as requests:
        for line in requests:
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, request["limit"])
            signal.setitimer(signal.ITIMER_REAL, request["limit"] * WALL_FACTOR)
            try:
                if request["op"] == "same":
                    reply: dict[str, Any] = {"same": verifier.same(request["a"], request["b"])}
                else:
                    reply = verifier.read(request["text"])
            except Exception as error:
                # Model text breaks sympy in many ways (recursion, memory, type errors): the client is told.
                reply = {"error": type(error).__name__}
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            spent, started = time.process_time() - started, time.process_time()
            _send({"id": request["id"], **reply, "seconds": spent})


def main() -> None:
    """Import math-verify, then keep one serving child alive until the client closes the connection."""
    with contextlib.suppress(ValueError, OSError):  # macOS refuses address-space limits; time limits still hold
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        verifier = Verifier()
    except Exception as error:
        _send({"failed": f"{type(error).__name__}: {error}"})
        return
    # Everything loaded so far stays: the collector need not look at it, and the children share it with this process.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
    _send({"ready": os.getpid()})
    while True:
        child = os.fork()
        if child == 0:
            try:
                serve(verifier)
                os._exit(0)
            finally:
                os._exit(1)  # never fall through into the parent's loop
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        _send({"died": os.waitstatus_to_exitcode(status)})


def _send(reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode("ascii") + b"\n"
    while data:
        data = data[os.write(_SOCKET, data) :]


if __name__ == "__main__":
    main()
